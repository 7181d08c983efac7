//! [`AlignedVec`]: memory for kernels, aligned to a cache line and never grown.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Cache line, and the width of the widest vector register, in bytes.
pub const ALIGN_BYTES: usize = 64;
/// Arrays of at least this size are aligned for, and ask the system for, 2 MiB pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Types for which all-zero bytes are a value and that own nothing.
///
/// # Safety
/// The type must be plain data: `Copy`, valid for every bit pattern.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}
macro_rules! plain {
    ($($t:ty),*) => { $(
        // SAFETY: a primitive number (or a transparent wrapper of one) is valid for every bit pattern.
        unsafe impl Plain for $t {}
    )* };
}
plain!(u8, i8, u16, i16, u32, i32, u64, i64, usize, f32, half::f16, half::bf16);
// SAFETY: an array of plain data is plain data.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// A fixed-length, zero-initialised array aligned to 64 bytes (2 MiB when large, with huge pages asked for).
pub struct AlignedVec<T: Plain> {
    ptr: NonNull<T>,
    len: usize,
}

// SAFETY: it owns plain data, like a Vec of it.
unsafe impl<T: Plain> Send for AlignedVec<T> {}
// SAFETY: shared access only reads plain data.
unsafe impl<T: Plain> Sync for AlignedVec<T> {}

impl<T: Plain> AlignedVec<T> {
    /// `len` zeros. Large arrays are not touched, so their pages cost nothing until written.
    ///
    /// # Panics
    /// When `len` elements exceed the address space.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        if layout.size() == 0 {
            const EMPTY: NonZeroUsize = NonZeroUsize::new(ALIGN_BYTES).expect("not zero");
            return Self { ptr: NonNull::without_provenance(EMPTY), len };
        }
        let raw = match large::zeroed(layout) {
            Some(raw) => raw,
            // SAFETY: the layout's size is not zero.
            None => unsafe { alloc_zeroed(layout) },
        };
        let Some(ptr) = NonNull::new(raw.cast::<T>()) else { handle_alloc_error(layout) };
        Self { ptr, len }
    }

    /// A copy of `values`.
    #[must_use]
    pub fn from_slice(values: &[T]) -> Self {
        let mut out = Self::zeroed(values.len());
        out.copy_from_slice(values);
        out
    }

    fn layout(len: usize) -> Layout {
        let size = len.checked_mul(size_of::<T>()).expect("an array fits the address space");
        let align = if size >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { ALIGN_BYTES };
        Layout::from_size_align(size, align).expect("an array fits the address space")
    }
}

/// Large arrays come straight from the system on Linux: fresh pages are zero without being touched, so that a KV cache
/// costs nothing before it is used, and 2 MiB pages can be asked for before the first touch.
#[cfg(target_os = "linux")]
mod large {
    use super::{HUGE_PAGE_BYTES, Layout};
    use std::ptr::null_mut;

    fn is_large(layout: Layout) -> bool {
        layout.align() == HUGE_PAGE_BYTES
    }

    fn mapped_bytes(layout: Layout) -> usize {
        layout.size().next_multiple_of(HUGE_PAGE_BYTES)
    }

    /// Zeroed memory for a large `layout`, null if the system has none; `None` for a small one.
    pub(super) fn zeroed(layout: Layout) -> Option<*mut u8> {
        if !is_large(layout) {
            return None;
        }
        let size = mapped_bytes(layout);
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // One huge page more, so that an aligned start is inside.
        // SAFETY: a new private mapping touches nothing that exists.
        let start = unsafe { libc::mmap(null_mut(), size + HUGE_PAGE_BYTES, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Some(null_mut());
        }
        let before = start.cast::<u8>().align_offset(HUGE_PAGE_BYTES);
        let aligned = start.wrapping_byte_add(before);
        // A hint; without it the pages are small and everything else is the same.
        if !cfg!(miri) {
            // SAFETY: the range lies in the new mapping; its contents do not change.
            unsafe { libc::madvise(aligned, size, libc::MADV_HUGEPAGE) };
        }
        for (edge, edge_bytes) in [(start, before), (aligned.wrapping_byte_add(size), HUGE_PAGE_BYTES - before)] {
            if edge_bytes > 0 {
                // SAFETY: whole pages at an edge of the new mapping, which nobody has a pointer into.
                unsafe { libc::munmap(edge, edge_bytes) };
            }
        }
        Some(aligned.cast())
    }

    /// Gives back what `zeroed` returned for `layout`; false if that was `None`.
    ///
    /// # Safety
    /// `start` came from [`zeroed`] with this very layout, or the layout is small; nobody uses it any more.
    pub(super) unsafe fn free(start: *mut u8, layout: Layout) -> bool {
        if is_large(layout) {
            // SAFETY: by the contract the whole range is ours and unused.
            unsafe { libc::munmap(start.cast(), mapped_bytes(layout)) };
        }
        is_large(layout)
    }
}

#[cfg(not(target_os = "linux"))]
mod large {
    use super::Layout;

    pub(super) fn zeroed(_layout: Layout) -> Option<*mut u8> {
        None
    }

    /// # Safety
    /// None needed: it does nothing.
    pub(super) unsafe fn free(_start: *mut u8, _layout: Layout) -> bool {
        false
    }
}

impl<T: Plain> Drop for AlignedVec<T> {
    fn drop(&mut self) {
        let layout = Self::layout(self.len);
        if layout.size() == 0 {
            return;
        }
        let start = self.ptr.as_ptr().cast();
        // SAFETY: allocated in `zeroed` with this very layout, and nobody borrows from a value that is dropped.
        let is_freed = unsafe { large::free(start, layout) };
        if !is_freed {
            // SAFETY: as above; a small layout came from the global allocator.
            unsafe { dealloc(start, layout) };
        }
    }
}

impl<T: Plain> Deref for AlignedVec<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` initialised elements live there as long as `self`.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_aligned_zeroed_and_writable_at_every_size_class() {
        for len in [0, 1, 15, 16, 1000, HUGE_PAGE_BYTES / 4, HUGE_PAGE_BYTES / 4 + 1] {
            let mut v = AlignedVec::<f32>::zeroed(len);
            assert_eq!(v.len(), len);
            assert_eq!(v.as_ptr() as usize % ALIGN_BYTES, 0);
            assert!(v.iter().all(|x| x.to_bits() == 0));
            v.fill(1.5);
            assert!(v.iter().all(|x| *x == 1.5));
        }
    }
}
