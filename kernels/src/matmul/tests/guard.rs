//! Kernels on weights and outputs that end at a page which may not be touched.

use super::super::job::{Job, Kernel};
use super::super::packed::Weights;
use super::super::units::{LANES, Unit};
use super::{File, Noise, activations};
use crate::activations::Activations;
use crate::aligned::Plain;
use crate::isa::Isa;
use crate::matmul::{Layout, PackedMatrix, Part, Place};
use crate::pool::Pool;
use crate::shared::SharedSlice;

/// A slice that ends where memory may not be touched.
struct Guarded<T> {
    start: *mut u8,
    num_bytes: usize,
    values: *mut [T],
}

impl<T: Plain> Guarded<T> {
    fn new(values: &[T]) -> Self {
        const PAGE: usize = 4096;
        let data_bytes = size_of_val(values).next_multiple_of(PAGE);
        let num_bytes = data_bytes + PAGE;
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: asks for new memory anywhere.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), num_bytes, access, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        let start: *mut u8 = start.cast();
        let guard = start.wrapping_add(data_bytes);
        // SAFETY: the last page of the mapping, which nothing refers to.
        assert_eq!(unsafe { libc::mprotect(guard.cast(), PAGE, libc::PROT_NONE) }, 0);
        let first = guard.wrapping_sub(size_of_val(values)).cast::<T>();
        assert!(first.is_aligned());
        let slice = std::ptr::slice_from_raw_parts_mut(first, values.len());
        // SAFETY: zeroed memory in the mapping, aligned, and plain data.
        unsafe { &mut *slice }.copy_from_slice(values);
        Self { start, num_bytes, values: slice }
    }

    fn values(&mut self) -> &mut [T] {
        // SAFETY: made in `new`, and borrowed as long as `self`.
        unsafe { &mut *self.values }
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, which nothing refers to any more.
        unsafe { libc::munmap(self.start.cast(), self.num_bytes) };
    }
}

fn run_guarded<U: Unit>(units: &[U], units_per_block: usize, kernel: Kernel<U>, rows: usize, x: &Activations) {
    let (mut units, mut out) = (Guarded::new(units), Guarded::new(&vec![0.0f32; x.num_rows() * rows]));
    let job = Job {
        units: units.values(),
        units_per_block,
        x,
        rows,
        bias: &[],
        out: SharedSlice::new(out.values()),
        place: Place::rows_of(rows),
    };
    kernel(&job, 0..rows.div_ceil(LANES));
}

#[test]
#[cfg_attr(miri, ignore = "needs memory protection")]
fn kernels_stay_inside_weights_and_output() {
    let noise = &mut Noise(10);
    let pool = Pool::new(1);
    for isa in Isa::available() {
        for layout in Layout::ALL {
            let unit = layout.native_format().info().block_len.max(32);
            for (rows, cols) in [(1, unit), (17, 3 * unit), (80, 5 * unit)] {
                let file = File::noise(layout.native_format(), rows, cols, noise);
                let packed = PackedMatrix::pack(isa, &pool, &[Part::new(file.matrix())], layout);
                for num_rows in [1, 2, 3, 4, 12, 17] {
                    let x = activations(isa, &pool, &noise.floats(num_rows * cols), cols, layout);
                    match &packed.weights {
                        Weights::Q8(b) => run_guarded(&b.units, b.units_per_block, b.kernel, rows, &x),
                        Weights::Q4(b) => run_guarded(&b.units, b.units_per_block, b.kernel, rows, &x),
                        Weights::Q5(b) => run_guarded(&b.units, b.units_per_block, b.kernel, rows, &x),
                        Weights::Iq4(b) => run_guarded(&b.units, b.units_per_block, b.kernel, rows, &x),
                        Weights::Q4K(b) => run_guarded(&b.units, b.units_per_block, b.kernel, rows, &x),
                        Weights::Q5K(b) => run_guarded(&b.units, b.units_per_block, b.kernel, rows, &x),
                        Weights::Q6K(b) => run_guarded(&b.units, b.units_per_block, b.kernel, rows, &x),
                        Weights::F32(b) => run_guarded(&b.units, b.units_per_block, b.kernel, rows, &x),
                        Weights::F16(b) => run_guarded(&b.units, b.units_per_block, b.kernel, rows, &x),
                        Weights::BF16(b) => run_guarded(&b.units, b.units_per_block, b.kernel, rows, &x),
                    }
                }
            }
        }
    }
}
