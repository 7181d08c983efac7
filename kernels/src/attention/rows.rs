//! Attention of a few query rows over a run of pages: the online softmax (Milakov and Gimelshein 2018).
//!
//! A context is cut into spans of [`SPAN_PAGES`] pages. Inside a span a row takes its pages in ascending order, each
//! with one rescaling; the spans' results are then merged in ascending order. Both cuts depend on the row's own position
//! alone, so its bits are the same for every tile, chunk, batch and number of threads.

use super::HeadShape;
use super::tile::{Operands, Prefetch, accumulate, max_tiles};
use crate::activation::softcap;
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

    /// Takes in what comes after in the context, for the rows that see something of it.
    #[inline(always)]
    fn merge<S: Simd>(&mut self, simd: S, rows: Range<usize>, later: &Sums<'_>) {
        let stride = self.stride;
        for row in rows {
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
    /// Tokens up to and with the first query; each further query has one more.
    pub(super) first_context: usize,
    /// Last tokens of its context that a query sees; `usize::MAX` sees them all.
    pub(super) window: usize,
    /// Scores become `cap * tanh(score / cap)`.
    pub(super) softcap: Option<f32>,
}

impl Queries<'_> {
    fn num_rows(&self) -> usize {
        self.qkv.len() / self.heads.qkv_len() * self.heads.group()
    }

    /// Tokens up to and with the query of `row`.
    #[inline(always)]
    fn context(&self, row: usize) -> usize {
        self.first_context + row / self.heads.group()
    }

    /// Position of the first token that `row` sees.
    #[inline(always)]
    fn start(&self, row: usize) -> usize {
        self.context(row).saturating_sub(self.window)
    }

    /// First page that some row sees.
    pub(super) fn first_page(&self) -> usize {
        self.start(0) / BLOCK_SIZE
    }

    /// Rows that see some of `positions`: those late enough, but not so late that their window has passed.
    #[inline(always)]
    fn rows_seeing(&self, positions: Range<usize>) -> Range<usize> {
        let group = self.heads.group();
        let first = (positions.start + 1).saturating_sub(self.first_context) * group;
        let end = (positions.end.saturating_add(self.window)).saturating_sub(self.first_context).saturating_mul(group);
        first.min(self.num_rows())..end.min(self.num_rows())
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
        for span in queries.start(0) / SPAN_TOKENS..queries.context(rows - 1).div_ceil(SPAN_TOKENS) {
            span_sums.clear();
            add_span(simd, span, &queries, &pages, &scratch.queries, &mut scratch.scores, &mut span_sums);
            let seeing = queries.rows_seeing(span * SPAN_TOKENS..(span + 1) * SPAN_TOKENS);
            total.merge(simd, seeing, &span_sums);
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
            total.merge(simd, 0..rows, &Sums::new(partial, rows, head_dim));
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
    let num_pages = queries.context(sums.max.len() - 1).div_ceil(BLOCK_SIZE);
    let first_page = queries.first_page();
    let page_of = |page_idx: usize| pages.kv.page::<E>(pages.layer, pages.blocks[page_idx], queries.kv_head);
    for page_idx in first_page.max(span * SPAN_PAGES)..num_pages.min((span + 1) * SPAN_PAGES) {
        let page = page_of(page_idx);
        let next = if page_idx + 1 < num_pages { Some(page_of(page_idx + 1).k) } else { pages.next };
        let page_start = page_idx * BLOCK_SIZE;
        let seeing = queries.rows_seeing(page_start..page_start + BLOCK_SIZE);
        // As even as possible: seven rows and one would be slower than four and four.
        let num_tiles = seeing.len().div_ceil(S::MAX_ROWS);
        let tile_rows = seeing.len().div_ceil(num_tiles);
        for row in seeing.clone().step_by(tile_rows) {
            let tile_rows = tile_rows.min(seeing.end - row);
            let (mut starts, mut limits) = ([0; MAX_ROWS], [0; MAX_ROWS]);
            for r in 0..tile_rows {
                starts[r] = queries.start(row + r).saturating_sub(page_start);
                limits[r] = (queries.context(row + r) - page_start).min(BLOCK_SIZE);
            }
            let next = next.filter(|_| row == seeing.start);
            let (head_dim, softcap) = (queries.heads.head_dim, queries.softcap);
            let step = Step { page, head_dim, softcap, row, rows: tile_rows, starts, limits, next };
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
    softcap: Option<f32>,
    /// First row.
    row: usize,
    rows: usize,
    /// First token of the page that each row sees, ascending.
    starts: [usize; MAX_ROWS],
    /// Where the tokens that each row sees end: above its start, ascending.
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
        let first_tile = self.starts[0] / TILE_TOKENS;
        let mut tile = first_tile;
        while tile < num_tiles {
            // May reach beyond the context, where the page holds anything: those lanes are never looked at.
            let room = 1 << (BLOCK_SIZE / TILE_TOKENS - tile).ilog2();
            let tiles = (num_tiles - tile).next_power_of_two().min(max_tiles).min(room);
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
                prefetch: self.prefetch(tile == first_tile, 0, self.page.k.len() / self.head_dim),
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
            for t in self.starts[r] / TILE_TOKENS..self.limits[r].div_ceil(TILE_TOKENS) {
                let mut score = simd.load(&tiles[t]);
                if let Some(scale) = k_scales.get(t) {
                    score = simd.mul(score, simd.load(scale));
                }
                if let Some(cap) = self.softcap {
                    score = softcap(simd, score, cap);
                }
                let passed = self.starts[r].saturating_sub(t * TILE_TOKENS);
                if passed > 0 {
                    score = simd.first_lanes(passed, simd.splat(f32::NEG_INFINITY), score);
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
            for t in self.starts[r] / TILE_TOKENS..self.limits[r].div_ceil(TILE_TOKENS) {
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

    /// Adds `weights·V` to the outputs. A value that a row does not see may be anything, so weight 0 would not do:
    ///
    /// ```text
    /// row 0   |---head---|======== common ========|
    /// row 1      |-head--|========================|-tail-|
    /// row 2              |========================|---tail---|
    /// ```
    #[inline(always)]
    fn add_values<S: Simd>(&self, simd: S, weights: &[f32], factors: &Lanes, sums: &mut Sums<'_>) {
        let common = self.starts[self.rows - 1]..self.limits[0];
        if common.is_empty() {
            for r in 0..self.rows {
                let seen = self.starts[r]..self.limits[r];
                self.add_values_of(simd, r..r + 1, seen, weights, &factors[r..], sums);
            }
            return;
        }
        let mut left = *factors;
        for r in 0..self.rows {
            if self.starts[r] < common.start {
                self.add_values_of(simd, r..r + 1, self.starts[r]..common.start, weights, &factors[r..], sums);
                left[r] = 1.0;
            }
        }
        self.add_values_of(simd, 0..self.rows, common.clone(), weights, &left, sums);
        for r in 1..self.rows {
            if self.limits[r] > common.end {
                self.add_values_of(simd, r..r + 1, common.end..self.limits[r], weights, &[1.0; LANES], sums);
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
        factors: &[f32],
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
