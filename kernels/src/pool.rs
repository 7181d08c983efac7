//! [`Pool`]: fork-join over a few threads that spin briefly, then park.
//!
//! A step of a small model is about a hundred short parallel phases. A futex wake-up costs tens of microseconds, a
//! spin a tenth of one, so the workers spin between the phases of a step and park between steps.
//!
//! How the work is cut never shows in a result: an item is computed by one thread from start to end. Nor need a worker
//! come at all: on a machine that others use too, the caller does not wait for a thread that has no core.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// Threads that a pool may have.
pub const MAX_THREADS: usize = 64;
/// Spins before a waiting thread first gives way to others: some 20 µs.
const SPINS_BEFORE_YIELD: u32 = 4_000;
/// Yields before a worker parks: under a millisecond on an idle machine, so that it survives the gap between phases.
const YIELDS_BEFORE_PARK: u32 = 200;

/// A task as the workers see it: called once per thread with that thread's index.
type Task<'a> = &'a (dyn Fn(usize) + Sync);

/// A fixed set of threads that run one parallel phase at a time. The caller is thread 0.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held during a phase: a second caller waits instead of breaking the protocol.
    phase: Mutex<()>,
}

struct Shared {
    /// The phase and who is in it, see [`State`].
    state: AtomicU64,
    stop: AtomicBool,
    task: UnsafeCell<Option<Task<'static>>>,
    /// The next grain of each thread's share of a [`Pool::for_each`].
    cursors: Vec<Cursor>,
    parked: Vec<AtomicBool>,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

// SAFETY: `task` is written only by the caller of a phase while the last phase is closed and nobody is in it, and read
// by workers only between entering a phase and leaving it.
unsafe impl Sync for Shared {}
// SAFETY: the reference in `task` points to a `Sync` closure.
unsafe impl Send for Shared {}

/// On a cache line of its own, so that threads do not slow each other down.
#[repr(align(64))]
struct Cursor(AtomicUsize);

/// What [`Shared::state`] says: a phase is open until the caller closes it; workers enter only open phases.
///
/// ```text
/// 63 phase 32 | 31 closed | 30 workers that have entered 16 | 15 workers that have not left 0
/// ```
#[derive(Clone, Copy)]
struct State(u64);

impl State {
    const CLOSED: u64 = 1 << 31;
    const ENTER: u64 = (1 << 16) + 1;
    const LEAVE: u64 = 1;

    fn phase(self) -> u64 {
        self.0 >> 32
    }

    fn is_closed(self) -> bool {
        self.0 & Self::CLOSED != 0
    }

    fn num_entered(self) -> usize {
        (self.0 >> 16 & 0x7fff) as usize
    }

    fn num_inside(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    fn open_next(self) -> u64 {
        self.phase().wrapping_add(1) << 32
    }
}

/// Who must take part in a phase.
#[derive(Clone, Copy, PartialEq)]
enum Attendance {
    All,
    WhoeverComes,
}

impl Pool {
    /// A pool of `num_threads` threads, the caller included; `num_threads - 1` are spawned.
    ///
    /// # Panics
    /// When `num_threads` is 0 or above [`MAX_THREADS`], or the system refuses a thread.
    #[must_use]
    pub fn new(num_threads: usize) -> Self {
        assert!(num_threads > 0, "a pool needs the caller's thread at least");
        assert!(num_threads <= MAX_THREADS, "a pool has at most {MAX_THREADS} threads, not {num_threads}");
        let shared = Arc::new(Shared {
            state: AtomicU64::new(State::CLOSED),
            stop: AtomicBool::new(false),
            task: UnsafeCell::new(None),
            cursors: (0..num_threads).map(|_| Cursor(AtomicUsize::new(0))).collect(),
            parked: (1..num_threads).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
        });
        let workers = (1..num_threads)
            .map(|thread_idx| {
                let shared = Arc::clone(&shared);
                let name = format!("kernel-{thread_idx}");
                let spawned = thread::Builder::new().name(name).spawn(move || shared.work(thread_idx));
                spawned.expect("the system grants a thread")
            })
            .collect();
        let pool = Self { shared, workers, phase: Mutex::new(()) };
        // A thread's own start allocates; with all of them up, no later phase does.
        pool.run(|_| {});
        pool
    }

    /// Threads that share the work, the caller included.
    #[must_use]
    pub fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(thread_idx)` once on every thread and returns when all have finished.
    ///
    /// # Panics
    /// Passes on the first panic of any thread, after all have finished. Calling it from inside a task deadlocks.
    pub fn run(&self, task: impl Fn(usize) + Sync) {
        if self.workers.is_empty() {
            task(0);
            return;
        }
        let _phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        self.run_phase(Attendance::All, &task);
    }

    /// One phase; the lock is held.
    fn run_phase(&self, attendance: Attendance, task: Task<'_>) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; this function does not return before every worker that entered has left,
        // and none enters a closed phase.
        let task: Task<'static> = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        // SAFETY: the last phase is closed and nobody is in it, so nobody reads the cell.
        unsafe { *shared.task.get() = Some(task) };
        let last = State(shared.state.load(Ordering::Relaxed));
        debug_assert!(last.is_closed() && last.num_inside() == 0);
        shared.state.store(last.open_next(), Ordering::SeqCst);
        for (worker, parked) in self.workers.iter().zip(&shared.parked) {
            if parked.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| task(0)));
        let wait_until = |is_met: &dyn Fn(State) -> bool| {
            let mut spins = 0;
            while !is_met(State(shared.state.load(Ordering::Acquire))) {
                wait_a_little(&mut spins);
            }
        };
        if attendance == Attendance::All {
            wait_until(&|state| state.num_entered() == self.workers.len());
        }
        shared.state.fetch_or(State::CLOSED, Ordering::AcqRel);
        wait_until(&|state| state.num_inside() == 0);
        let theirs = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    /// Calls `work` on ranges that together cover `0..num_items` exactly once, `grain` items at a time (the last range
    /// may be shorter). Each thread takes its own share first, then what others have left.
    ///
    /// # Panics
    /// As [`Pool::run`]; also when `grain` is 0.
    pub fn for_each(&self, num_items: usize, grain: usize, work: impl Fn(Range<usize>) + Sync) {
        self.for_each_on(num_items, grain, |_thread_idx, range| work(range));
    }

    /// As [`Pool::for_each`]; `work` also gets the index of the thread it runs on, for scratch memory.
    ///
    /// # Panics
    /// As [`Pool::for_each`].
    pub fn for_each_on(&self, num_items: usize, grain: usize, work: impl Fn(usize, Range<usize>) + Sync) {
        assert!(grain > 0, "a grain is at least one item");
        let num_grains = num_items.div_ceil(grain);
        let num_threads = self.num_threads();
        if num_threads == 1 || num_grains <= 1 {
            for start in (0..num_items).step_by(grain) {
                work(0, start..num_items.min(start + grain));
            }
            return;
        }
        let share = |thread_idx: usize| thread_idx * num_grains / num_threads;
        let _phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        let cursors = &self.shared.cursors;
        for (thread_idx, cursor) in cursors.iter().enumerate() {
            cursor.0.store(share(thread_idx), Ordering::Relaxed);
        }
        self.run_phase(Attendance::WhoeverComes, &|thread_idx| {
            for offset in 0..num_threads {
                let owner = (thread_idx + offset) % num_threads;
                loop {
                    let grain_idx = cursors[owner].0.fetch_add(1, Ordering::Relaxed);
                    if grain_idx >= share(owner + 1) {
                        break;
                    }
                    let start = grain_idx * grain;
                    work(thread_idx, start..num_items.min(start + grain));
                }
            }
        });
    }
}

impl Shared {
    /// Body of a worker thread.
    fn work(&self, thread_idx: usize) {
        let mut seen = 0;
        loop {
            self.wait_for_phase(seen, &self.parked[thread_idx - 1]);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            let (phase, has_entered) = self.try_enter();
            seen = phase;
            if !has_entered {
                continue;
            }
            // SAFETY: the phase was open, so the caller has written the task and does not touch it until we leave.
            let task = unsafe { *self.task.get() }.expect("a phase has a task");
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(thread_idx))) {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            }
            self.state.fetch_sub(State::LEAVE, Ordering::Release);
        }
    }

    /// Enters the phase unless it is closed already; says which it is.
    fn try_enter(&self) -> (u64, bool) {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            if State(state).is_closed() {
                return (State(state).phase(), false);
            }
            let entered = state + State::ENTER;
            match self.state.compare_exchange_weak(state, entered, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return (State(state).phase(), true),
                Err(found) => state = found,
            }
        }
    }

    fn wait_for_phase(&self, seen: u64, parked: &AtomicBool) {
        let is_over = || State(self.state.load(Ordering::SeqCst)).phase() != seen || self.stop.load(Ordering::SeqCst);
        let mut spins = 0;
        while !is_over() {
            if spins < SPINS_BEFORE_YIELD + YIELDS_BEFORE_PARK {
                wait_a_little(&mut spins);
                continue;
            }
            // Announce first, look again, then park: the caller either sees the flag or we see the new phase.
            parked.store(true, Ordering::SeqCst);
            while !is_over() {
                thread::park();
            }
            parked.store(false, Ordering::SeqCst);
        }
    }
}

fn wait_a_little(spins: &mut u32) {
    if *spins < SPINS_BEFORE_YIELD {
        std::hint::spin_loop();
    } else {
        thread::yield_now();
    }
    *spins = spins.saturating_add(1);
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            Thread::unpark(worker.thread());
            // A worker catches the panics of tasks, so joining cannot fail for a reason worth reporting.
            drop(worker.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_item_is_done_once_whatever_the_cut() {
        for num_threads in [1, 2, 3, 5] {
            let pool = Pool::new(num_threads);
            for (num_items, grain) in [(0, 1), (1, 1), (7, 3), (64, 8), (1000, 1)] {
                let done: Vec<AtomicUsize> = (0..num_items).map(|_| AtomicUsize::new(0)).collect();
                pool.for_each(num_items, grain, |range| {
                    assert!(range.len() <= grain);
                    for item in range {
                        done[item].fetch_add(1, Ordering::Relaxed);
                    }
                });
                assert!(done.iter().all(|d| d.load(Ordering::Relaxed) == 1), "{num_threads} {num_items} {grain}");
            }
        }
    }

    #[test]
    fn workers_wake_from_parking() {
        let pool = Pool::new(2);
        for _ in 0..3 {
            // Longer than a worker waits before it parks.
            thread::park_timeout(Duration::from_millis(20));
            let count = AtomicUsize::new(0);
            pool.run(|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.load(Ordering::Relaxed), 2);
        }
    }

    #[test]
    fn many_short_phases_lose_no_item_and_no_worker() {
        let pool = Pool::new(4);
        let count = AtomicUsize::new(0);
        for phase in 0..5_000 {
            if phase % 2 == 0 {
                pool.for_each(9, 1, |range| {
                    count.fetch_add(range.len(), Ordering::Relaxed);
                });
            } else {
                pool.run(|_| {
                    count.fetch_add(1, Ordering::Relaxed);
                });
            }
        }
        assert_eq!(count.load(Ordering::Relaxed), 2_500 * (9 + 4));
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(2);
        let result =
            catch_unwind(AssertUnwindSafe(|| pool.run(|thread_idx| assert!(thread_idx == 0, "thread 1 fails"))));
        assert!(result.is_err());
        let count = AtomicUsize::new(0);
        pool.run(|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }
}
