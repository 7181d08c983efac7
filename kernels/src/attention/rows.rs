//! Attention of a few query rows over a run of pages: the online softmax (Milakov and Gimelshein 2018).
//!
//! A context is cut into spans of [`SPAN_PAGES`] pages. Inside a span a row takes its pages in ascending order, each
//! with one rescaling; the spans' results are then merged in ascending order. Both cuts depend on the row's own position
//! alone, so its bits are the same for every tile, chunk, batch and number of threads.

use super::HeadShape;
use super::tile::{Operands, Prefetch, accumulate, max_tiles};
use crate::aligned::AlignedVec;
use crate::kv_cache::{BLOCK_SIZE, KvCache, KvElement, Page, TILE_TOKENS};
use crate::shared::SharedSlice;
use crate::simd::{LANES, Lanes, Simd, Task, exp};
use std::ops::Range;

/// Pages whose results are accumulated before they are merged with earlier ones.
pub(super) const SPAN_PAGES: usize = 4;
/// Tokens of a span.
pub(super) const SPAN_TOKENS: usize = SPAN_PAGES * BLOCK_SIZE;
/// Most rows that [`Simd`] accumulates at once, rounded up.
const MAX_ROWS: usize = 8;

/// Result of a softmax over a part of the context, per row.
pub(super) struct Sums<'a> {
    /// `[rows]`, largest score.
    max: &'a mut [f32],
    /// `[rows]`, sum of `e^(score - max)`.
    sum: &'a mut [f32],
    /// `[rows, stride]`, sum of `e^(score - max) * v`.
    output: &'a mut [f32],
    stride: usize,
}

impl<'a> Sums<'a> {
    /// Values that hold `rows` rows.
    pub(super) fn len(rows: usize, head_dim: usize) -> usize {
        rows * (head_dim.next_multiple_of(LANES) + 2)
    }

    /// Views the start of `data` as the sums of `rows` rows.
    pub(super) fn new(data: &'a mut [f32], rows: usize, head_dim: usize) -> Self {
        let stride = head_dim.next_multiple_of(LANES);
        let (output, rest) = data.split_at_mut(rows * stride);
        let (max, rest) = rest.split_at_mut(rows);
        Self { max, sum: &mut rest[..rows], output, stride }
    }

    /// The sums over nothing.
    #[inline(always)]
    fn clear(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        self.output.fill(0.0);
    }

    /// Takes in what comes after in the context, for rows from `first_row`.
    #[inline(always)]
    fn merge<S: Simd>(&mut self, simd: S, first_row: usize, later: &Sums<'_>) {
        let stride = self.stride;
        for row in first_row..self.max.len() {
            let max = greater(self.max[row], later.max[row]);
            let mut exponents = [0.0; LANES];
            exponents[..2].copy_from_slice(&[self.max[row] - max, later.max[row] - max]);
            let mut factors = [0.0; LANES];
            simd.store(exp(simd, simd.load(&exponents)), &mut factors);
            self.max[row] = max;
            self.sum[row] = self.sum[row] * factors[0] + later.sum[row] * factors[1];
            let (mine, _) = self.output[row * stride..][..stride].as_chunks_mut::<LANES>();
            let (theirs, _) = later.output[row * stride..][..stride].as_chunks::<LANES>();
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                let kept = simd.mul(simd.load(mine), simd.splat(factors[0]));
                simd.store(simd.fma(simd.load(theirs), simd.splat(factors[1]), kept), mine);
            }
        }
    }

    /// Writes one row's softmax-weighted mean of values, `[head_dim]`.
    #[inline(always)]
    fn finish(&self, row: usize, out: &mut [f32]) {
        let factor = 1.0 / self.sum[row];
        for (out, x) in out.iter_mut().zip(&self.output[row * self.stride..][..self.stride]) {
            *out = x * factor;
        }
    }
}

#[inline(always)]
fn greater(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Memory of one thread.
pub(super) struct RowScratch {
    /// `[max_rows, head_dim]`
    queries: AlignedVec<f32>,
    /// Sums of the current span.
    span: AlignedVec<f32>,
    /// Sums of all spans before it.
    total: AlignedVec<f32>,
    /// `[MAX_ROWS, BLOCK_SIZE]`
    scores: AlignedVec<f32>,
}

impl RowScratch {
    /// Room for `max_rows` rows.
    pub(super) fn new(max_rows: usize, head_dim: usize) -> Self {
        let sums_len = Sums::len(max_rows, head_dim);
        Self {
            queries: AlignedVec::zeroed(max_rows * head_dim),
            span: AlignedVec::zeroed(sums_len),
            total: AlignedVec::zeroed(sums_len),
            scores: AlignedVec::zeroed(MAX_ROWS * BLOCK_SIZE),
        }
    }
}

/// Queries of one sequence that share a KV head.
#[derive(Clone, Copy)]
pub(super) struct Queries<'a> {
    pub(super) heads: HeadShape,
    pub(super) scale: f32,
    pub(super) kv_head: usize,
    /// Rows `[num_queries, qkv_len]`.
    pub(super) qkv: &'a [f32],
    /// Index of the first in the step.
    pub(super) first_token: usize,
    /// Tokens that the first query sees; each further query sees one more.
    pub(super) first_context: usize,
}

impl Queries<'_> {
    fn num_rows(&self) -> usize {
        self.qkv.len() / self.heads.qkv_len() * self.heads.group()
    }

    /// First row that sees position `position`.
    #[inline(always)]
    fn first_row(&self, position: usize) -> usize {
        (position + 1).saturating_sub(self.first_context) * self.heads.group()
    }

    /// Copies the queries to `out`, scaled, `[rows, head_dim]`.
    #[inline(always)]
    fn copy_to(&self, out: &mut [f32]) {
        let HeadShape { head_dim, .. } = self.heads;
        let width = self.heads.group() * head_dim;
        for (row, out) in self.qkv.chunks_exact(self.heads.qkv_len()).zip(out.chunks_exact_mut(width)) {
            for (out, x) in out.iter_mut().zip(&row[self.kv_head * width..][..width]) {
                *out = x * self.scale;
            }
        }
    }

    /// Writes the rows' results to their places in `out`, `[num_tokens, num_heads * head_dim]`.
    #[inline(always)]
    fn write(&self, total: &Sums<'_>, out: &SharedSlice<'_, f32>) {
        let HeadShape { num_heads, head_dim, .. } = self.heads;
        let group = self.heads.group();
        for row in 0..self.num_rows() {
            let head = self.kv_head * group + row % group;
            let start = ((self.first_token + row / group) * num_heads + head) * head_dim;
            // SAFETY: a token and head belong to one item of a step, and one thread computes it.
            total.finish(row, unsafe { out.part(start..start + head_dim) });
        }
    }
}

/// A run of pages of one sequence.
#[derive(Clone, Copy)]
pub(super) struct Pages<'a, E> {
    pub(super) kv: &'a KvCache,
    pub(super) layer: usize,
    /// Blocks of the sequence from its start.
    pub(super) blocks: &'a [u32],
    /// First page of what the thread does next, if known.
    pub(super) next: Option<&'a [E]>,
}

/// Attention of some queries to their whole context.
pub(super) struct WholeContext<'a, E> {
    pub(super) queries: Queries<'a>,
    pub(super) pages: Pages<'a, E>,
    pub(super) scratch: &'a mut RowScratch,
    pub(super) out: &'a SharedSlice<'a, f32>,
}

impl<E: KvElement> Task for WholeContext<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { queries, pages, scratch, out } = self;
        let rows = queries.num_rows();
        let head_dim = queries.heads.head_dim;
        queries.copy_to(&mut scratch.queries);
        let mut total = Sums::new(&mut scratch.total, rows, head_dim);
        let mut span_sums = Sums::new(&mut scratch.span, rows, head_dim);
        total.clear();
        let context = queries.first_context + rows / queries.heads.group() - 1;
        for span in 0..context.div_ceil(SPAN_TOKENS) {
            span_sums.clear();
            add_span(simd, span, &queries, &pages, &scratch.queries, &mut scratch.scores, &mut span_sums);
            total.merge(simd, queries.first_row(span * SPAN_TOKENS), &span_sums);
        }
        queries.write(&total, out);
    }
}

/// Attention of one query to one span of its context.
pub(super) struct OneSpan<'a, E> {
    pub(super) queries: Queries<'a>,
    pub(super) pages: Pages<'a, E>,
    pub(super) span: usize,
    pub(super) scratch: &'a mut RowScratch,
    /// The result, as [`Sums`].
    pub(super) partial: &'a mut [f32],
}

impl<E: KvElement> Task for OneSpan<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { queries, pages, span, scratch, partial } = self;
        queries.copy_to(&mut scratch.queries);
        let mut sums = Sums::new(partial, queries.num_rows(), queries.heads.head_dim);
        sums.clear();
        add_span(simd, span, &queries, &pages, &scratch.queries, &mut scratch.scores, &mut sums);
    }
}

/// Merges what [`OneSpan`] left for the spans of one query.
pub(super) struct MergeSpans<'a> {
    pub(super) queries: Queries<'a>,
    /// One [`Sums`] per span, ascending.
    pub(super) partials: &'a mut [f32],
    pub(super) scratch: &'a mut RowScratch,
    pub(super) out: &'a SharedSlice<'a, f32>,
}

impl Task for MergeSpans<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (rows, head_dim) = (self.queries.num_rows(), self.queries.heads.head_dim);
        let mut total = Sums::new(&mut self.scratch.total, rows, head_dim);
        total.clear();
        for partial in self.partials.chunks_exact_mut(Sums::len(rows, head_dim)) {
            total.merge(simd, 0, &Sums::new(partial, rows, head_dim));
        }
        self.queries.write(&total, self.out);
    }
}

/// Adds the pages of one span to `sums`, for the rows that see them.
#[inline(always)]
fn add_span<S: Simd, E: KvElement>(
    simd: S,
    span: usize,
    queries: &Queries<'_>,
    pages: &Pages<'_, E>,
    packed: &[f32],
    scores: &mut [f32],
    sums: &mut Sums<'_>,
) {
    let rows = sums.max.len();
    let group = queries.heads.group();
    let context = queries.first_context + rows / group - 1;
    let num_pages = context.div_ceil(BLOCK_SIZE);
    let page_of = |page_idx: usize| pages.kv.page::<E>(pages.layer, pages.blocks[page_idx], queries.kv_head);
    for page_idx in span * SPAN_PAGES..num_pages.min((span + 1) * SPAN_PAGES) {
        let page = page_of(page_idx);
        let next = if page_idx + 1 < num_pages { Some(page_of(page_idx + 1).k) } else { pages.next };
        let first_row = queries.first_row(page_idx * BLOCK_SIZE);
        // As even as possible: seven rows and one would be slower than four and four.
        let num_tiles = (rows - first_row).div_ceil(S::MAX_ROWS);
        let tile_rows = (rows - first_row).div_ceil(num_tiles);
        for row in (first_row..rows).step_by(tile_rows) {
            let tile_rows = tile_rows.min(rows - row);
            let mut limits = [0; MAX_ROWS];
            for r in 0..tile_rows {
                let context = queries.first_context + (row + r) / group;
                limits[r] = (context - page_idx * BLOCK_SIZE).min(BLOCK_SIZE);
            }
            let next = next.filter(|_| row == first_row);
            let step = Step { page, head_dim: queries.heads.head_dim, row, rows: tile_rows, limits, next };
            step.score(simd, packed, scores);
            let factors = step.softmax(simd, scores, sums);
            step.add_values(simd, scores, &factors, sums);
        }
    }
}

/// A tile of rows and a page.
struct Step<'a, E> {
    page: Page<'a, E>,
    head_dim: usize,
    /// First row.
    row: usize,
    rows: usize,
    /// Tokens of the page that each row sees: at least 1, ascending.
    limits: [usize; MAX_ROWS],
    /// K of the page to prefetch.
    next: Option<&'a [E]>,
}

impl<E: KvElement> Step<'_, E> {
    /// Writes `q·k` of the rows to `scores`, `[rows, BLOCK_SIZE]`.
    #[inline(always)]
    fn score<S: Simd>(&self, simd: S, packed: &[f32], scores: &mut [f32]) {
        let tile_len = TILE_TOKENS * self.head_dim;
        let num_tiles = self.limits[self.rows - 1].div_ceil(TILE_TOKENS);
        let max_tiles = max_tiles::<S>(self.rows);
        let mut tile = 0;
        while tile < num_tiles {
            // May reach beyond the context, where the page holds anything: those lanes are never looked at.
            let tiles = (num_tiles - tile).next_power_of_two().min(max_tiles);
            let operands = Operands {
                a: &packed[self.row * self.head_dim..],
                a_stride: self.head_dim,
                len: self.head_dim,
                b: &self.page.k[tile * tile_len..],
                b_step: LANES,
                b_tile_step: tile_len,
                out: &mut scores[tile * LANES..],
                out_stride: BLOCK_SIZE,
                start: None,
                prefetch: self.prefetch(tile == 0, 0, self.page.k.len() / self.head_dim),
            };
            accumulate(simd, self.rows, tiles, operands);
            tile += tiles;
        }
    }

    /// Turns scores into weights `e^(score - max)`, updates maximum and sum, and returns the factor by which earlier
    /// outputs shrink.
    #[inline(always)]
    fn softmax<S: Simd>(&self, simd: S, scores: &mut [f32], sums: &mut Sums<'_>) -> Lanes {
        let (scores, _) = scores.as_chunks_mut::<BLOCK_SIZE>();
        let (k_scales, _) = self.page.k_scales.as_chunks::<LANES>();
        let (v_scales, _) = self.page.v_scales.as_chunks::<LANES>();
        let rows = self.row..self.row + self.rows;
        let mut max = [0.0; LANES];
        let mut old_max = [0.0; LANES];
        old_max[..self.rows].copy_from_slice(&sums.max[rows.clone()]);
        for r in 0..self.rows {
            let (tiles, _) = scores[r].as_chunks_mut::<LANES>();
            let mut row_max = simd.splat(f32::NEG_INFINITY);
            for t in 0..self.limits[r].div_ceil(TILE_TOKENS) {
                let mut score = simd.load(&tiles[t]);
                if let Some(scale) = k_scales.get(t) {
                    score = simd.mul(score, simd.load(scale));
                }
                let seen = self.limits[r] - t * TILE_TOKENS;
                if seen < TILE_TOKENS {
                    score = simd.first_lanes(seen, score, simd.splat(f32::NEG_INFINITY));
                }
                simd.store(score, &mut tiles[t]);
                row_max = simd.max(row_max, score);
            }
            max[r] = greater(old_max[r], simd.max_lane(row_max));
        }
        let mut factors = [0.0; LANES];
        simd.store(exp(simd, simd.sub(simd.load(&old_max), simd.load(&max))), &mut factors);
        for r in 0..self.rows {
            let (tiles, _) = scores[r].as_chunks_mut::<LANES>();
            let mut sum = simd.splat(0.0);
            for t in 0..self.limits[r].div_ceil(TILE_TOKENS) {
                let mut weight = exp(simd, simd.sub(simd.load(&tiles[t]), simd.splat(max[r])));
                sum = simd.add(sum, weight);
                if let Some(scale) = v_scales.get(t) {
                    weight = simd.mul(weight, simd.load(scale));
                }
                simd.store(weight, &mut tiles[t]);
            }
            let row_sum = &mut sums.sum[self.row + r];
            *row_sum = *row_sum * factors[r] + simd.sum(sum);
        }
        sums.max[rows].copy_from_slice(&max[..self.rows]);
        factors
    }

    /// Adds `weights·V` to the outputs.
    #[inline(always)]
    fn add_values<S: Simd>(&self, simd: S, weights: &[f32], factors: &Lanes, sums: &mut Sums<'_>) {
        let common = self.limits[0];
        self.add_values_of(simd, 0..self.rows, 0..common, weights, factors, sums);
        for r in 1..self.rows {
            // A value that a row does not see may be anything, so weight 0 would not do.
            if self.limits[r] > common {
                self.add_values_of(simd, r..r + 1, common..self.limits[r], weights, &[1.0; LANES], sums);
            }
        }
    }

    #[inline(always)]
    fn add_values_of<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        tokens: Range<usize>,
        weights: &[f32],
        factors: &Lanes,
        sums: &mut Sums<'_>,
    ) {
        let stride = self.page.v_stride;
        let max_tiles = max_tiles::<S>(rows.len());
        let mut tile = 0;
        while tile < stride / LANES {
            let left = stride / LANES - tile;
            let tiles = max_tiles.min(1 << left.ilog2());
            let operands = Operands {
                a: &weights[rows.start * BLOCK_SIZE + tokens.start..],
                a_stride: BLOCK_SIZE,
                len: tokens.len(),
                b: &self.page.v[tokens.start * stride + tile * LANES..],
                b_step: stride,
                b_tile_step: LANES,
                out: &mut sums.output[(self.row + rows.start) * stride + tile * LANES..],
                out_stride: stride,
                start: Some(factors),
                prefetch: self.prefetch(tile == 0 && tokens.start == 0, self.page.k.len(), stride),
            };
            accumulate(simd, rows.len(), tiles, operands);
            tile += tiles;
        }
    }

    /// What to prefetch while a loop runs over elements of this page: those of the next page, from element `first`,
    /// `per_step` for each round of the loop.
    #[inline(always)]
    fn prefetch(&self, wanted: bool, first: usize, per_step: usize) -> Prefetch {
        let Some(next) = self.next.filter(|_| wanted) else { return Prefetch::NONE };
        let address = next.as_ptr().wrapping_add(first).cast();
        Prefetch { address, lines_per_step: (per_step * size_of::<E>()).div_ceil(64) }
    }
}
