//! [`KvCache`]: keys and values of all sequences in blocks of 64 tokens.
//!
//! A block holds one page per layer and KV head, all of one block next to each other:
//!
//! ```text
//! page: K  [4 tiles][head_dim][16 tokens]   tokens in lanes, for q·K
//!       V  [64 tokens][v_stride]            channels in lanes, for p·V; v_stride = head_dim rounded up to 16
//!       Int8 only: K scales [64] f32, V scales [64] f32
//! ```
//!
//! Memory is zeroed and untouched until a block is first written. Which blocks belong to whom is the caller's affair.

use crate::aligned::{ALIGN_BYTES, AlignedVec, Plain};
use crate::simd::{LANES, Simd};
use half::f16;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicI8, AtomicU16, AtomicU32, Ordering};

/// Tokens per block.
pub const BLOCK_SIZE: usize = 64;
/// Tokens per tile of K.
pub(crate) const TILE_TOKENS: usize = LANES;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// As computed.
    F32,
    /// Rounded to nearest; beyond 65504 it is infinity, and rows that see it are NaN.
    F16,
    /// One `f32` scale per token and head, `max |x| / 127`: an element is off by half a scale at most. A token with a
    /// value that is not finite makes the rows that see it NaN.
    Int8,
}

/// Sizes of a [`KvCache`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers of the model.
    pub num_layers: usize,
    /// Blocks of [`BLOCK_SIZE`] tokens.
    pub num_blocks: usize,
    /// Heads of K and V.
    pub num_kv_heads: usize,
    /// Elements per head: a multiple of 8.
    pub head_dim: usize,
}

/// Where one token's K and V are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Block index.
    pub block: u32,
    /// Position in the block, below [`BLOCK_SIZE`].
    pub offset: u32,
}

/// Keys and values in pages.
pub struct KvCache {
    shape: KvShape,
    kv_type: KvType,
    layout: PageLayout,
    data: AlignedVec<u8>,
}

/// Sizes inside a page, and of it.
#[derive(Clone, Copy)]
struct PageLayout {
    k_bytes: usize,
    v_stride: usize,
    v_bytes: usize,
    page_bytes: usize,
}

impl PageLayout {
    fn new(shape: KvShape, kv_type: KvType) -> Self {
        let element_bytes = match kv_type {
            KvType::F32 => 4,
            KvType::F16 => 2,
            KvType::Int8 => 1,
        };
        let scales_bytes = if kv_type == KvType::Int8 { 2 * BLOCK_SIZE * size_of::<f32>() } else { 0 };
        let v_stride = shape.head_dim.next_multiple_of(LANES);
        let k_bytes = BLOCK_SIZE * shape.head_dim * element_bytes;
        let v_bytes = BLOCK_SIZE * v_stride * element_bytes;
        Self { k_bytes, v_stride, v_bytes, page_bytes: k_bytes + v_bytes + scales_bytes }
    }

    /// Byte at which a page starts.
    #[inline(always)]
    fn page_start(self, shape: KvShape, layer: usize, block: usize, kv_head: usize) -> usize {
        let KvShape { num_layers, num_blocks, num_kv_heads, .. } = shape;
        assert!(
            layer < num_layers && block < num_blocks && kv_head < num_kv_heads,
            "no page {layer} {block} {kv_head}"
        );
        ((block * num_layers + layer) * num_kv_heads + kv_head) * self.page_bytes
    }
}

impl KvCache {
    /// Memory of a cache, in bytes.
    #[must_use]
    pub fn size_bytes(shape: KvShape, kv_type: KvType) -> usize {
        shape.num_blocks * shape.num_layers * shape.num_kv_heads * PageLayout::new(shape, kv_type).page_bytes
    }

    /// A cache of zeros.
    ///
    /// # Panics
    /// When `head_dim` is not a multiple of 8.
    #[must_use]
    pub fn new(shape: KvShape, kv_type: KvType) -> Self {
        assert!(shape.head_dim > 0 && shape.head_dim.is_multiple_of(8), "head_dim {} of a KV cache", shape.head_dim);
        let layout = PageLayout::new(shape, kv_type);
        debug_assert!(layout.page_bytes.is_multiple_of(ALIGN_BYTES));
        Self { shape, kv_type, layout, data: AlignedVec::zeroed(Self::size_bytes(shape, kv_type)) }
    }

    /// The sizes it was made with.
    #[must_use]
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// How it stores keys and values.
    #[must_use]
    pub fn kv_type(&self) -> KvType {
        self.kv_type
    }

    /// Copies the first `num_tokens` slots of block `from` to block `to`, in every layer and head. Slots beyond them
    /// hold anything afterwards.
    ///
    /// # Panics
    /// When a block does not exist, both are the same, or `num_tokens` exceeds [`BLOCK_SIZE`].
    pub fn copy_block(&mut self, from: u32, to: u32, num_tokens: usize) {
        let (from, to) = (from as usize, to as usize);
        assert!(from < self.shape.num_blocks && to < self.shape.num_blocks, "copy of block {from} to {to}");
        assert!(from != to && num_tokens <= BLOCK_SIZE, "copy of {num_tokens} tokens of block {from} to {to}");
        let PageLayout { k_bytes, v_bytes, page_bytes, .. } = self.layout;
        let tiles = num_tokens.div_ceil(TILE_TOKENS);
        let k_copied = k_bytes / (BLOCK_SIZE / TILE_TOKENS) * tiles;
        let v_copied = v_bytes / BLOCK_SIZE * num_tokens;
        let pages = self.shape.num_layers * self.shape.num_kv_heads;
        for page in 0..pages {
            let source = (from * pages + page) * page_bytes;
            let target = (to * pages + page) * page_bytes;
            let v = k_bytes..k_bytes + v_copied;
            let scales = k_bytes + v_bytes..page_bytes;
            for part in [0..k_copied, v, scales] {
                self.data.copy_within(source + part.start..source + part.end, target + part.start);
            }
        }
    }

    /// One head's keys and values of one block.
    pub(crate) fn page<E: KvElement>(&self, layer: usize, block: u32, kv_head: usize) -> Page<'_, E> {
        assert!(self.kv_type == E::TYPE, "a cache of {:?} read as {:?}", self.kv_type, E::TYPE);
        let PageLayout { k_bytes, v_bytes, v_stride, page_bytes } = self.layout;
        let start = self.layout.page_start(self.shape, layer, block as usize, kv_head);
        let bytes = &self.data[start..start + page_bytes];
        let (k, rest) = bytes.split_at(k_bytes);
        let (v, scales) = rest.split_at(v_bytes);
        let (k_scales, v_scales) = cast::<f32>(scales).split_at(scales.len() / (2 * size_of::<f32>()));
        Page { k: cast(k), v: cast(v), k_scales, v_scales, v_stride }
    }

    /// Writes tokens from several threads.
    pub(crate) fn writer<E: KvElement>(&mut self, layer: usize) -> KvWriter<'_, E> {
        assert!(self.kv_type == E::TYPE, "a cache of {:?} written as {:?}", self.kv_type, E::TYPE);
        let (shape, layout) = (self.shape, self.layout);
        KvWriter { shape, layout, data: self.data.as_mut_ptr(), layer, borrow: PhantomData }
    }
}

/// Bytes as elements.
fn cast<T: Plain>(bytes: &[u8]) -> &[T] {
    assert!(bytes.as_ptr().cast::<T>().is_aligned() && bytes.len().is_multiple_of(size_of::<T>()));
    // SAFETY: aligned, whole elements, and `Plain` means that any bytes are a value.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>()) }
}

/// See the module's drawing. The scales are empty unless the element is `i8`.
#[derive(Clone, Copy)]
pub(crate) struct Page<'a, E> {
    pub(crate) k: &'a [E],
    pub(crate) v: &'a [E],
    pub(crate) k_scales: &'a [f32],
    pub(crate) v_scales: &'a [f32],
    pub(crate) v_stride: usize,
}

/// An element of K and V in memory.
pub(crate) trait KvElement: Plain {
    const TYPE: KvType;
    /// Sixteen elements as `f32`, without their scale.
    fn load<S: Simd>(simd: S, x: &[Self; LANES]) -> S::F32;
    /// Sixteen values divided by `scale` (which only `i8` has) and rounded.
    fn encode<S: Simd>(simd: S, x: S::F32, scale: f32) -> [Self; LANES];
    /// Stores atomically, so that threads that write one slot twice race without undefined behaviour.
    ///
    /// # Safety
    /// `target` is valid for writes, aligned, and accessed by nothing but this function for now.
    unsafe fn store(self, target: *mut Self);
}

impl KvElement for f32 {
    const TYPE: KvType = KvType::F32;
    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[f32; LANES]) -> S::F32 {
        simd.load(x)
    }
    #[inline(always)]
    fn encode<S: Simd>(simd: S, x: S::F32, _scale: f32) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        simd.store(x, &mut out);
        out
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { AtomicU32::from_ptr(target.cast()) }.store(self.to_bits(), Ordering::Relaxed);
    }
}

impl KvElement for f16 {
    const TYPE: KvType = KvType::F16;
    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[f16; LANES]) -> S::F32 {
        simd.load_f16(x)
    }
    #[inline(always)]
    fn encode<S: Simd>(simd: S, x: S::F32, _scale: f32) -> [f16; LANES] {
        simd.to_f16(x)
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut f16) {
        // SAFETY: the caller's promise.
        unsafe { AtomicU16::from_ptr(target.cast()) }.store(self.to_bits(), Ordering::Relaxed);
    }
}

impl KvElement for i8 {
    const TYPE: KvType = KvType::Int8;
    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[i8; LANES]) -> S::F32 {
        simd.load_i8(x)
    }
    #[inline(always)]
    fn encode<S: Simd>(simd: S, x: S::F32, scale: f32) -> [i8; LANES] {
        let mut lanes = [0.0; LANES];
        // A scale of 0 means that all values are (nearly) 0; one that is NaN, that the bytes do not matter.
        let divisor = if scale > 0.0 { scale } else { 1.0 };
        simd.store(simd.div(x, simd.splat(divisor)), &mut lanes);
        // Rounding by adding 1.5 * 2^23; the clamp is for scales so small that they are inexact.
        lanes.map(|x| ((x + 12_582_912.0) - 12_582_912.0).clamp(-127.0, 127.0) as i8)
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut i8) {
        // SAFETY: the caller's promise.
        unsafe { AtomicI8::from_ptr(target) }.store(self, Ordering::Relaxed);
    }
}

/// Exclusive access to a cache for writing tokens of one layer, shared by the threads of a phase.
pub(crate) struct KvWriter<'a, E> {
    shape: KvShape,
    layout: PageLayout,
    data: *mut u8,
    layer: usize,
    borrow: PhantomData<(&'a mut KvCache, E)>,
}

// SAFETY: it stands for a `&mut KvCache`, and threads that share it write with atomic stores only.
unsafe impl<E> Sync for KvWriter<'_, E> {}
// SAFETY: as a `&mut KvCache`.
unsafe impl<E> Send for KvWriter<'_, E> {}

impl<E: KvElement> KvWriter<'_, E> {
    /// Stores one token's key and value of one head, each `[head_dim]`.
    #[inline(always)]
    pub(crate) fn write<S: Simd>(&self, simd: S, slot: Slot, kv_head: usize, k: &[f32], v: &[f32]) {
        let head_dim = self.shape.head_dim;
        let PageLayout { k_bytes, v_bytes, v_stride, .. } = self.layout;
        let token = slot.offset as usize;
        assert!(token < BLOCK_SIZE && k.len() == head_dim && v.len() == head_dim, "token {token} of a block");
        let start = self.layout.page_start(self.shape, self.layer, slot.block as usize, kv_head);
        let tile_start = token / TILE_TOKENS * (TILE_TOKENS * head_dim) + token % TILE_TOKENS;
        let (k_scale, v_scale) = (scale::<E>(k), scale::<E>(v));
        self.write_row(simd, start, tile_start, TILE_TOKENS, k, k_scale);
        self.write_row(simd, start + k_bytes, token * v_stride, 1, v, v_scale);
        if E::TYPE == KvType::Int8 {
            let k_scales = start + k_bytes + v_bytes;
            self.write_element(k_scales, token, k_scale);
            self.write_element(k_scales, BLOCK_SIZE + token, v_scale);
        }
    }

    /// Stores `values` at elements `first`, `first + stride`, … of the part of a page that begins at byte `part`.
    #[inline(always)]
    fn write_row<S: Simd>(&self, simd: S, part: usize, first: usize, stride: usize, values: &[f32], scale: f32) {
        for (chunk_idx, chunk) in values.chunks(LANES).enumerate() {
            let mut lanes = [0.0; LANES];
            lanes[..chunk.len()].copy_from_slice(chunk);
            let encoded = E::encode(simd, simd.load(&lanes), scale);
            for i in 0..chunk.len() {
                self.write_element(part, first + (chunk_idx * LANES + i) * stride, encoded[i]);
            }
        }
    }

    /// Stores the `index`-th element of the part that begins at byte `part`.
    #[inline(always)]
    fn write_element<T: KvElement>(&self, part: usize, index: usize, value: T) {
        let byte = part + index * size_of::<T>();
        // SAFETY: `write` checked block, layer, head, token and lengths, so the element is inside its page.
        let target = unsafe { self.data.add(byte) }.cast::<T>();
        // SAFETY: inside the cache, which the writer borrows exclusively; parts start at multiples of 64 bytes.
        unsafe { value.store(target) };
    }
}

/// The scale of one token's row: 1 unless the element is `i8`.
#[inline(always)]
fn scale<E: KvElement>(x: &[f32]) -> f32 {
    if E::TYPE != KvType::Int8 {
        return 1.0;
    }
    let max = x.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    if x.iter().all(|x| x.is_finite()) { max / 127.0 } else { f32::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::simd::{Task, dispatch};

    const SHAPE: KvShape = KvShape { num_layers: 2, num_blocks: 3, num_kv_heads: 2, head_dim: 24 };

    struct Write<'a, E>(KvWriter<'a, E>, Slot, usize, &'a [f32], &'a [f32]);

    impl<E: KvElement> Task for Write<'_, E> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            self.0.write(simd, self.1, self.2, self.3, self.4);
        }
    }

    /// Distinct for every element of the cache.
    fn values(layer: usize, block: u32, token: u32, kv_head: usize, is_value: bool) -> Vec<f32> {
        let seed = ((layer * 3 + block as usize) * 64 + token as usize) * 4 + kv_head * 2 + usize::from(is_value);
        (0..SHAPE.head_dim).map(|d| (seed * 24 + d) as f32 * 0.001 - 10.0).collect()
    }

    fn fill<E: KvElement>(cache: &mut KvCache, isa: Isa) {
        for layer in 0..SHAPE.num_layers {
            for block in 0..SHAPE.num_blocks as u32 {
                for offset in 0..BLOCK_SIZE as u32 {
                    for kv_head in 0..SHAPE.num_kv_heads {
                        let k = values(layer, block, offset, kv_head, false);
                        let v = values(layer, block, offset, kv_head, true);
                        let slot = Slot { block, offset };
                        dispatch(isa, Write(cache.writer::<E>(layer), slot, kv_head, &k, &v));
                    }
                }
            }
        }
    }

    /// Asserts that tokens 0..`num_tokens` of `block` hold what was written to `origin`.
    fn check<E: KvElement + Into<f32>>(cache: &KvCache, block: u32, origin: u32, num_tokens: usize) {
        for layer in 0..SHAPE.num_layers {
            for kv_head in 0..SHAPE.num_kv_heads {
                let page = cache.page::<E>(layer, block, kv_head);
                for token in 0..num_tokens {
                    let k = values(layer, origin, token as u32, kv_head, false);
                    let v = values(layer, origin, token as u32, kv_head, true);
                    for d in 0..SHAPE.head_dim {
                        let found_k: f32 = page.k[(token / 16 * 24 + d) * 16 + token % 16].into();
                        let found_v: f32 = page.v[token * page.v_stride + d].into();
                        let k_scale = page.k_scales.get(token).copied();
                        let v_scale = page.v_scales.get(token).copied();
                        let k_error = k_scale.map_or(k[d].abs() / 2048.0, |scale| scale * 0.501);
                        let v_error = v_scale.map_or(v[d].abs() / 2048.0, |scale| scale * 0.501);
                        assert!((found_k * k_scale.unwrap_or(1.0) - k[d]).abs() <= k_error, "{block} {token} {d}");
                        assert!((found_v * v_scale.unwrap_or(1.0) - v[d]).abs() <= v_error, "{block} {token} {d}");
                    }
                }
            }
        }
    }

    fn check_type<E: KvElement + Into<f32>>() {
        let mut reference: Option<Vec<u8>> = None;
        for isa in Isa::available() {
            let mut cache = KvCache::new(SHAPE, E::TYPE);
            assert_eq!(cache.data.len(), KvCache::size_bytes(SHAPE, E::TYPE));
            fill::<E>(&mut cache, isa);
            for block in 0..3 {
                check::<E>(&cache, block, block, BLOCK_SIZE);
            }
            assert_eq!(*reference.get_or_insert_with(|| cache.data.to_vec()), *cache.data, "{isa}");
            for num_tokens in [64, 0, 1, 16, 33] {
                cache.copy_block(0, 2, num_tokens);
                check::<E>(&cache, 2, 0, num_tokens);
                check::<E>(&cache, 0, 0, BLOCK_SIZE);
                check::<E>(&cache, 1, 1, BLOCK_SIZE);
            }
        }
    }

    #[test]
    fn tokens_and_copies_are_where_they_belong() {
        check_type::<f32>();
        check_type::<f16>();
        check_type::<i8>();
    }

    #[test]
    fn int8_keeps_zero_tiny_and_infinite_rows_apart() {
        let mut cache = KvCache::new(SHAPE, KvType::Int8);
        let mut infinite = [1.0; 24];
        infinite[3] = f32::INFINITY;
        for (offset, row) in [[0.0; 24], [1e-44; 24], infinite].iter().enumerate() {
            let slot = Slot { block: 0, offset: offset as u32 };
            dispatch(Isa::best(), Write(cache.writer::<i8>(0), slot, 0, row, row));
        }
        let page = cache.page::<i8>(0, 0, 0);
        assert_eq!((page.v_scales[0], page.v[0]), (0.0, 0));
        assert!((f32::from(page.v[page.v_stride]) * page.v_scales[1]).abs() <= 1.3e-44);
        assert!(page.v_scales[2].is_nan() && page.k_scales[2].is_nan());
    }
}
