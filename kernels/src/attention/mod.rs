//! Attention over a paged KV cache: [`prepare_qkv`] stores a step's keys and values, [`attend`] reads them.
//!
//! Work is cut into items, each the queries of one sequence that share a KV head and a tile of rows. With few items a
//! long context is also cut into spans. No cut shows in the result: see `rows.rs`.

mod prepare;
mod rows;
#[cfg(test)]
mod tests;
mod tile;

use crate::aligned::AlignedVec;
use crate::isa::Isa;
use crate::kv_cache::{BLOCK_SIZE, KvCache, KvElement, KvType};
use crate::pool::Pool;
use crate::shared::SharedSlice;
use crate::simd::dispatch;
use half::f16;
pub use prepare::{QkvParams, prepare_qkv};
use rows::{MergeSpans, OneSpan, Pages, Queries, RowScratch, SPAN_TOKENS, Sums, WholeContext};
use std::cmp::Reverse;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows of a tile of queries: their sums and one page fit into a first-level cache of 32 KiB at `head_dim` 64.
const TILE_ROWS: usize = 32;
/// Items per thread below which work is cut finer.
const MIN_ITEMS_PER_THREAD: usize = 4;
/// Work, in rows times tokens, that is not worth waking other threads for: some 2 µs.
const MIN_PARALLEL_WORK: usize = 512;
/// Items beyond which the order no longer matters for the balance.
const MAX_SORTED_ITEMS: usize = 256;

/// Heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads: a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements per head: a multiple of 8.
    pub head_dim: usize,
}

impl HeadShape {
    /// Length of a row of queries, keys and values.
    #[must_use]
    pub fn qkv_len(self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Query heads that share a KV head.
    #[must_use]
    pub fn group(self) -> usize {
        self.num_heads / self.num_kv_heads
    }
}

/// One sequence of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionSeq {
    /// Its rows in the step: the last tokens of the context.
    pub tokens: Range<usize>,
    /// Its blocks in the step's block tables; they cover `context_len` at least. Those that no token's window reaches
    /// are not looked at, and need not exist.
    pub blocks: Range<usize>,
    /// Tokens in the cache, those of this step included.
    pub context_len: usize,
}

/// Parameters of [`attend`].
#[derive(Clone, Copy)]
pub struct AttentionParams<'a> {
    /// Heads in a row.
    pub heads: HeadShape,
    /// Factor of `q·k`, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A token sees itself and the `window - 1` tokens before it; all of them if `None`.
    pub window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)` (Gemma 2).
    pub softcap: Option<f32>,
    /// Sequences, with ascending rows that do not overlap.
    pub seqs: &'a [AttentionSeq],
    /// All block tables end to end.
    pub block_tables: &'a [u32],
    /// Layer of the cache.
    pub layer: usize,
}

/// Memory of [`attend`], sized once.
pub struct AttentionScratch {
    heads: HeadShape,
    max_context: usize,
    threads: Vec<RowScratch>,
    items: Vec<Item>,
    splits: Vec<Split>,
    partials: AlignedVec<f32>,
}

/// What one thread does at a time.
#[derive(Clone, Copy)]
struct Item {
    seq: usize,
    kv_head: usize,
    first_query: usize,
    num_queries: usize,
    part: Part,
    cost: usize,
}

#[derive(Clone, Copy)]
enum Part {
    Whole,
    Span { span: usize, partial: usize },
}

/// A query whose spans are separate items.
#[derive(Clone, Copy)]
struct Split {
    item: Item,
    partials: Range2,
}

/// A `Range` that is `Copy`.
#[derive(Clone, Copy)]
struct Range2 {
    start: usize,
    end: usize,
}

impl AttentionScratch {
    /// Room for steps of `max_tokens` tokens, contexts of `max_context` tokens and pools of `num_threads` threads.
    ///
    /// # Panics
    /// When `num_heads` is not a multiple of `num_kv_heads`.
    #[must_use]
    pub fn new(heads: HeadShape, num_threads: usize, max_tokens: usize, max_context: usize) -> Self {
        assert!(heads.num_kv_heads > 0 && heads.num_heads.is_multiple_of(heads.num_kv_heads), "{heads:?}");
        let max_rows = TILE_ROWS.max(heads.group());
        let max_splits = MIN_ITEMS_PER_THREAD * num_threads;
        let max_partials = max_splits * max_context.div_ceil(SPAN_TOKENS);
        let partial_len = Sums::len(heads.group(), heads.head_dim);
        Self {
            heads,
            max_context,
            threads: (0..num_threads).map(|_| RowScratch::new(max_rows, heads.head_dim)).collect(),
            items: Vec::with_capacity(max_tokens * heads.num_kv_heads + max_partials),
            splits: Vec::with_capacity(max_splits),
            partials: AlignedVec::zeroed(max_partials * partial_len),
        }
    }

    /// Cuts a step into items.
    fn plan(&mut self, params: &AttentionParams<'_>) {
        self.items.clear();
        self.splits.clear();
        let HeadShape { num_kv_heads, .. } = self.heads;
        let enough = MIN_ITEMS_PER_THREAD * self.threads.len();
        let window = params.window.unwrap_or(usize::MAX);
        let num_items = |tile_queries: usize| -> usize {
            params.seqs.iter().map(|seq| seq.tokens.len().div_ceil(tile_queries) * num_kv_heads).sum()
        };
        let mut tile_queries = (TILE_ROWS / self.heads.group()).max(1);
        while tile_queries > 1 && num_items(tile_queries) < enough {
            tile_queries = tile_queries.div_ceil(2);
        }
        let may_split = self.threads.len() > 1 && num_items(tile_queries) < enough;
        let mut num_partials = 0;
        for (seq_idx, seq) in params.seqs.iter().enumerate() {
            for kv_head in 0..num_kv_heads {
                for first_query in seq.tokens.clone().step_by(tile_queries) {
                    let num_queries = tile_queries.min(seq.tokens.end - first_query);
                    let context = seq.context_len - (seq.tokens.end - first_query) + num_queries;
                    let start = (context + 1 - num_queries).saturating_sub(window);
                    let cost = (context - start) * num_queries;
                    let item = Item { seq: seq_idx, kv_head, first_query, num_queries, part: Part::Whole, cost };
                    let first_span = start / SPAN_TOKENS;
                    let num_spans = context.div_ceil(SPAN_TOKENS) - first_span;
                    if !may_split || num_queries > 1 || num_spans == 1 {
                        self.items.push(item);
                        continue;
                    }
                    let partials = Range2 { start: num_partials, end: num_partials + num_spans };
                    self.splits.push(Split { item, partials });
                    for span in first_span..first_span + num_spans {
                        let part = Part::Span { span, partial: num_partials + span - first_span };
                        let cost = SPAN_TOKENS.min(context - span * SPAN_TOKENS);
                        self.items.push(Item { part, cost, ..item });
                    }
                    num_partials += num_spans;
                }
            }
        }
        if self.items.len() <= MAX_SORTED_ITEMS {
            // The longest first, so that threads finish together, but items that read the same pages next to each
            // other, so that they find them in the cache.
            self.items.sort_unstable_by_key(|item| {
                let context_len = params.seqs[item.seq].context_len;
                (Reverse(context_len), item.seq, item.kv_head, Reverse(item.first_query), Reverse(item.cost))
            });
        }
    }
}

/// `softmax(q·Kᵀ * scale)·V` over the paged context, causal, within the window if there is one.
///
/// `qkv` is `[num_tokens, qkv_len]` after [`prepare_qkv`] of the same layer; `out` is `[num_tokens,
/// num_heads * head_dim]`. Rows that belong to no sequence stay as they are. A NaN, or an infinite score, makes its own
/// row NaN, and a NaN or an infinity in V the row's channel; no other row sees it.
///
/// # Panics
/// When sizes of `qkv`, `out`, cache, scratch and sequences do not fit together, or a block does not exist.
pub fn attend(
    pool: &Pool,
    isa: Isa,
    qkv: &[f32],
    params: &AttentionParams<'_>,
    kv: &KvCache,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) {
    check(pool, qkv, params, kv, scratch, out);
    scratch.plan(params);
    match kv.kv_type() {
        KvType::F32 => attend_as::<f32>(pool, isa, qkv, params, kv, scratch, out),
        KvType::F16 => attend_as::<f16>(pool, isa, qkv, params, kv, scratch, out),
        KvType::Int8 => attend_as::<i8>(pool, isa, qkv, params, kv, scratch, out),
    }
}

fn check(
    pool: &Pool,
    qkv: &[f32],
    params: &AttentionParams<'_>,
    kv: &KvCache,
    scratch: &AttentionScratch,
    out: &[f32],
) {
    let heads = params.heads;
    let num_tokens = qkv.len() / heads.qkv_len();
    assert!(qkv.len() == num_tokens * heads.qkv_len(), "qkv of {} values, rows of {}", qkv.len(), heads.qkv_len());
    let width = heads.num_heads * heads.head_dim;
    assert!(out.len() == num_tokens * width, "output of {} values for {num_tokens} tokens", out.len());
    assert!(scratch.heads == heads && scratch.threads.len() >= pool.num_threads(), "scratch for other sizes");
    let shape = kv.shape();
    assert!((shape.num_kv_heads, shape.head_dim) == (heads.num_kv_heads, heads.head_dim), "{heads:?}, cache {shape:?}");
    assert!(params.window != Some(0), "a window of no tokens");
    let mut end = 0;
    for seq in params.seqs {
        let tokens = &seq.tokens;
        assert!(end <= tokens.start && tokens.start <= tokens.end && tokens.end <= num_tokens, "rows {tokens:?}");
        end = tokens.end;
        let context_len = seq.context_len;
        assert!(tokens.len() <= context_len && context_len <= scratch.max_context, "a context of {context_len}");
        assert!(seq.blocks.len() * BLOCK_SIZE >= context_len, "{} blocks for {context_len} tokens", seq.blocks.len());
    }
}

fn attend_as<E: KvElement>(
    pool: &Pool,
    isa: Isa,
    qkv: &[f32],
    params: &AttentionParams<'_>,
    kv: &KvCache,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) {
    let AttentionScratch { heads, threads, items, splits, partials, .. } = scratch;
    let partial_len = Sums::len(heads.group(), heads.head_dim);
    let out = SharedSlice::new(out);
    let run = Run::<E> { isa, qkv, params, kv, element: std::marker::PhantomData };
    let shared_threads = SharedSlice::new(threads);
    let shared_partials = SharedSlice::new(partials);
    let next = AtomicUsize::new(0);
    let claim = || items.get(next.fetch_add(1, Ordering::Relaxed));
    let num_threads = pool.num_threads();
    let work = |thread_idx: usize| {
        // SAFETY: each thread takes the scratch of its own index.
        let [scratch] = (unsafe { shared_threads.part(thread_idx..thread_idx + 1) }) else { return };
        let mut current = claim();
        while let Some(item) = current {
            // Knowing what comes next allows to prefetch it; towards the end it might starve another thread.
            let is_far_from_end = next.load(Ordering::Relaxed) + 2 * num_threads <= items.len();
            let ahead = if is_far_from_end { claim() } else { None };
            let next_page = ahead.map(|item| run.first_page(item));
            match item.part {
                Part::Whole => run.whole(item, next_page, scratch, &out),
                Part::Span { span, partial } => {
                    let range = partial * partial_len..(partial + 1) * partial_len;
                    // SAFETY: each item has a part of its own.
                    let partial = unsafe { shared_partials.part(range) };
                    run.span(item, span, next_page, scratch, partial);
                }
            }
            current = ahead.or_else(claim);
        }
    };
    let total: usize = items.iter().map(|item| item.cost * heads.group()).sum();
    if total < MIN_PARALLEL_WORK {
        work(0);
    } else {
        pool.for_each_on(num_threads, 1, |thread_idx, _| work(thread_idx));
    }
    for Split { item, partials: Range2 { start, end } } in splits {
        let partials = &mut partials[*start * partial_len..*end * partial_len];
        let queries = run.queries(item);
        dispatch(isa, MergeSpans { queries, partials, scratch: &mut threads[0], out: &out });
    }
}

/// One call of [`attend`].
struct Run<'a, E> {
    isa: Isa,
    qkv: &'a [f32],
    params: &'a AttentionParams<'a>,
    kv: &'a KvCache,
    element: std::marker::PhantomData<E>,
}

impl<E: KvElement> Run<'_, E> {
    fn queries(&self, item: &Item) -> Queries<'_> {
        let AttentionParams { heads, scale, seqs, window, softcap, .. } = *self.params;
        let seq = &seqs[item.seq];
        let rows = item.first_query..item.first_query + item.num_queries;
        Queries {
            heads,
            scale,
            kv_head: item.kv_head,
            qkv: &self.qkv[rows.start * heads.qkv_len()..rows.end * heads.qkv_len()],
            first_token: rows.start,
            first_context: seq.context_len - (seq.tokens.end - rows.start) + 1,
            window: window.unwrap_or(usize::MAX),
            softcap,
        }
    }

    fn blocks(&self, item: &Item) -> &[u32] {
        &self.params.block_tables[self.params.seqs[item.seq].blocks.clone()]
    }

    fn pages<'p>(&'p self, item: &Item, next: Option<&'p [E]>) -> Pages<'p, E> {
        Pages { kv: self.kv, layer: self.params.layer, blocks: self.blocks(item), next }
    }

    /// K of the first page that an item reads.
    fn first_page(&self, item: &Item) -> &[E] {
        let first = self.queries(item).first_page();
        let page = match item.part {
            Part::Whole => first,
            Part::Span { span, .. } => first.max(span * rows::SPAN_PAGES),
        };
        self.kv.page::<E>(self.params.layer, self.blocks(item)[page], item.kv_head).k
    }

    fn whole(&self, item: &Item, next: Option<&[E]>, scratch: &mut RowScratch, out: &SharedSlice<'_, f32>) {
        let (queries, pages) = (self.queries(item), self.pages(item, next));
        dispatch(self.isa, WholeContext { queries, pages, scratch, out });
    }

    fn span(&self, item: &Item, span: usize, next: Option<&[E]>, scratch: &mut RowScratch, partial: &mut [f32]) {
        let (queries, pages) = (self.queries(item), self.pages(item, next));
        dispatch(self.isa, OneSpan { queries, pages, span, scratch, partial });
    }
}
