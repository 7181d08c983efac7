//! A global allocator that counts, per thread of control: tests measure what a call allocates.
#![expect(unsafe_code, reason = "a global allocator can only be written this way")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Install with `#[global_allocator]`.
pub(crate) struct Counting;

static IS_ON: AtomicBool = AtomicBool::new(false);
static NUM_CALLS: AtomicUsize = AtomicUsize::new(0);
static NUM_BYTES: AtomicUsize = AtomicUsize::new(0);
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

fn count(size_bytes: usize) {
    if IS_ON.load(Ordering::Relaxed) {
        NUM_CALLS.fetch_add(1, Ordering::Relaxed);
        NUM_BYTES.fetch_add(size_bytes, Ordering::Relaxed);
    }
}

/// What a call allocated, on all threads, freed or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allocated {
    /// Calls of the allocator.
    pub(crate) calls: usize,
    /// Bytes asked for.
    pub(crate) bytes: usize,
}

/// Runs `work` and counts. Other tests of the same binary must not allocate meanwhile: give it a binary of its own or
/// call it everywhere.
pub(crate) fn measure<T>(work: impl FnOnce() -> T) -> (T, Allocated) {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    NUM_CALLS.store(0, Ordering::Relaxed);
    NUM_BYTES.store(0, Ordering::Relaxed);
    IS_ON.store(true, Ordering::SeqCst);
    let result = work();
    IS_ON.store(false, Ordering::SeqCst);
    (result, Allocated { calls: NUM_CALLS.load(Ordering::Relaxed), bytes: NUM_BYTES.load(Ordering::Relaxed) })
}
