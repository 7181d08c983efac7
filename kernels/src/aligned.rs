//! [`AlignedVec`]: memory for kernels, aligned to a cache line and never grown.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Cache line, and the width of the widest vector register, in bytes.
pub const ALIGN_BYTES: usize = 64;
/// Allocations of at least this size are aligned for, and ask the system for, 2 MiB pages.
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
        // SAFETY: the layout's size is not zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(raw.cast::<T>()) else { handle_alloc_error(layout) };
        ask_for_huge_pages(raw, layout.size());
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

#[cfg(target_os = "linux")]
fn ask_for_huge_pages(start: *mut u8, size_bytes: usize) {
    if size_bytes >= HUGE_PAGE_BYTES {
        // SAFETY: the range was just allocated; the call is a hint that changes no contents.
        unsafe { libc::madvise(start.cast(), size_bytes, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_start: *mut u8, _size_bytes: usize) {}

impl<T: Plain> Drop for AlignedVec<T> {
    fn drop(&mut self) {
        let layout = Self::layout(self.len);
        if layout.size() > 0 {
            // SAFETY: allocated in `zeroed` with this very layout.
            unsafe { dealloc(self.ptr.as_ptr().cast(), layout) };
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
