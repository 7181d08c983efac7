//! What the sampler asks of a whole row of logits; each function is one pass over it.

use tokenmill_models::runner::TokenId;

/// Entries whose exponentials are summed together before the sum goes to f64.
pub(super) const CHUNK_LEN: usize = 1024;

/// One token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: TokenId,
    pub(super) logit: f32,
    /// `exp(logit)`, set only where it is needed.
    pub(super) weight: f32,
}

/// Most likely first, the lower id first among equals: a total order, so that a cut never depends on anything else.
pub(super) fn by_likelihood(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// Whether no entry is infinite or NaN.
pub(super) fn is_finite(row: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    // Without an early end the loop is a few instructions per vector.
    row.iter().fold(true, |finite, x| finite & (x.to_bits() & EXPONENT != EXPONENT))
}

/// The largest entry.
pub(super) fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = row.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |best, &x| if x > best { x } else { best })
}

/// Index of the largest entry, the first among equals.
pub(super) fn argmax(row: &[f32]) -> usize {
    let best = max(row);
    row.iter().position(|&x| x == best).unwrap_or(0)
}

/// `Σ exp(x − shift)`.
pub(super) fn sum_exp(row: &[f32], shift: f32) -> f64 {
    row.chunks(CHUNK_LEN).map(|chunk| sum_exp_chunk(chunk, shift)).sum()
}

/// The same for at most [`CHUNK_LEN`] entries.
pub(super) fn sum_exp_chunk(chunk: &[f32], shift: f32) -> f64 {
    chunk.iter().map(|x| f64::from((x - shift).exp())).sum()
}

/// `(x − max) · scale` for every entry; the largest becomes 0.
pub(super) fn shift_and_scale(row: &mut [f32], max: f32, scale: f32) {
    for x in row {
        *x = (*x - max) * scale;
    }
}

/// Appends every entry of at least `floor`, in order of the ids, weights unset. Forbidden tokens (−∞) never.
pub(super) fn collect_from(row: &[f32], floor: f32, out: &mut Vec<Candidate>) {
    let floor = floor.max(f32::MIN);
    for (id, &logit) in (0..).zip(row) {
        if logit >= floor {
            out.push(Candidate { id, logit, weight: 0.0 });
        }
    }
}

/// Puts the `count` most likely entries into `out`, in no particular order, weights unset. Entries of at least
/// `first_floor` are looked at first.
pub(super) fn top_unsorted(row: &[f32], count: usize, first_floor: f32, out: &mut Vec<Candidate>) {
    for floor in [first_floor, f32::MIN] {
        out.clear();
        collect_from(row, floor, out);
        if out.len() >= count {
            break;
        }
    }
    if out.len() > count {
        if count > 0 {
            out.select_nth_unstable_by(count - 1, by_likelihood);
        }
        out.truncate(count);
    }
}

/// The `count` most likely entries, best first, in `out`.
pub(super) fn top(row: &[f32], max: f32, count: usize, out: &mut Vec<Candidate>) {
    top_unsorted(row, count, max - 8.0, out);
    out.sort_unstable_by(by_likelihood);
}
