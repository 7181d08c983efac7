//! [`SharedSlice`]: one output, written by several threads in disjoint parts.

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice that the threads of a phase share; each takes parts that no other takes.
pub(crate) struct SharedSlice<'a, T> {
    ptr: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out exclusive parts of a slice, which may move to another thread if `T` may.
unsafe impl<T: Send> Send for SharedSlice<'_, T> {}
// SAFETY: as above; that parts are disjoint is what callers of `part` promise.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { ptr: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// The elements `range`.
    ///
    /// # Panics
    /// When the range leaves the slice.
    ///
    /// # Safety
    /// While the result lives, no other part that overlaps it may live.
    #[inline(always)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {}", self.len);
        // SAFETY: the start is inside the slice, or one past its end.
        let start = unsafe { self.ptr.add(range.start) };
        // SAFETY: the range is inside the slice, which is borrowed for 'a; the caller promises exclusiveness.
        unsafe { std::slice::from_raw_parts_mut(start, range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_slice_and_leaving_it_panics() {
        let mut values = [0, 1, 2, 3];
        let shared = SharedSlice::new(&mut values);
        // SAFETY: it does not overlap `b`.
        let a = unsafe { shared.part(0..2) };
        // SAFETY: it does not overlap `a`.
        let b = unsafe { shared.part(2..4) };
        a[1] = 10;
        b[0] = 20;
        let outside = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // SAFETY: panics before a part exists.
            unsafe { shared.part(3..5) }.len()
        }));
        assert!(outside.is_err());
        assert_eq!(values, [0, 10, 20, 3]);
    }
}
