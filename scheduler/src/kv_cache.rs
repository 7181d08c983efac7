//! [`KvCacheManager`]: gives KV blocks to sequences and takes them back, with reuse of what is already computed.
//!
//! A block table is built from three kinds of blocks:
//!
//! ```text
//! tokens    0 ........ 64 ....... 128 ..... 150 ............... len
//! blocks    | shared   | shared    | copied  : own, to compute   |
//!           full blocks found by   the part of another block
//!           key, one more user     that matches, in a block of
//!           each                   its own (`BlockCopy`)
//! ```
//!
//! Invariant: a block that several sequences use is full and never written again. A block that is the source of a copy
//! is pinned (has one user more) until the step that carries out the copy is over. Used by `scheduler`.

use crate::block_key::{BlockKey, BlockKeyHasher};
use crate::block_pool::BlockPool;
use crate::sequence::Sequence;
use tokenmill_models::runner::{BlockCopy, BlockId, ContextRules, Geometry, TokenId};

/// There are not enough free blocks; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfBlocks;

/// What the prefix cache gave to a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachedPrefix {
    /// Tokens at the start whose K and V need no computation.
    pub num_tokens: u32,
    /// To be carried out at the start of the step.
    pub copy: Option<BlockCopy>,
}

/// Whether blocks are reused across sequences, and under which secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixCache {
    /// Every prompt is computed.
    Off,
    /// Prefixes are found by a hash under this secret, which should be random per process.
    On {
        /// Key of the hash.
        secret: [u64; 2],
    },
}

/// The KV blocks of one runner and who has them.
pub struct KvCacheManager {
    pool: BlockPool,
    hasher: Option<BlockKeyHasher>,
    block_size: u32,
    context: ContextRules,
    /// Blocks that a sequence can make use of at one time.
    max_held: u32,
    pinned: Vec<BlockId>,
}

impl KvCacheManager {
    /// All blocks of a runner with this geometry, free.
    #[must_use]
    pub fn new(geometry: &Geometry, prefix_cache: PrefixCache) -> Self {
        let hasher = match prefix_cache {
            PrefixCache::Off => None,
            PrefixCache::On { secret } => Some(BlockKeyHasher::new(secret)),
        };
        Self {
            pool: BlockPool::new(geometry.num_blocks, geometry.block_size),
            hasher,
            block_size: geometry.block_size,
            context: geometry.context,
            max_held: geometry.context.window.map_or(u32::MAX, |window| {
                window.saturating_add(geometry.max_batch_tokens).div_ceil(geometry.block_size) + 1
            }),
            pinned: Vec::with_capacity(geometry.max_batch_seqs as usize),
        }
    }

    /// Blocks that some sequence (or a copy of this step) uses.
    #[must_use]
    pub fn num_used(&self) -> u32 {
        self.pool.num_blocks() - self.pool.num_free()
    }

    /// Blocks without a user whose contents can be reused.
    #[must_use]
    pub fn num_cached(&self) -> u32 {
        self.pool.num_registered_free()
    }

    /// Blocks without a user that hold nothing.
    #[must_use]
    pub fn num_free(&self) -> u32 {
        self.pool.num_free() - self.pool.num_registered_free()
    }

    /// Blocks that a sequence may take, empty or by eviction.
    #[must_use]
    pub fn num_available(&self) -> u32 {
        self.pool.num_free()
    }

    /// Blocks that `seq` still has to take to hold all its tokens, or as many of them as it needs at one time.
    #[must_use]
    pub fn num_missing(&self, seq: &Sequence) -> u32 {
        let enough = seq.num_left_behind.saturating_add(self.max_held);
        seq.len().div_ceil(self.block_size).min(enough).saturating_sub(table_len(seq))
    }

    /// Puts the longest known prefix at the head of an empty block table: full blocks by sharing, the part of one block
    /// more by copying. At most all tokens but the last, whose logits are needed.
    ///
    /// # Errors
    /// `OutOfBlocks` unless all of the sequence's tokens would fit, with `num_reserved` blocks to spare; nothing has
    /// changed then.
    pub fn attach_prefix(&mut self, seq: &mut Sequence, num_reserved: u32) -> Result<AttachedPrefix, OutOfBlocks> {
        assert!(seq.blocks.is_empty(), "sequence {} has blocks already", seq.id.0);
        let mut partial = None;
        if self.hasher.is_some() {
            self.find_full_blocks(seq);
            let start = table_len(seq) * self.block_size;
            let end = seq.max_cached_tokens().min(start + self.block_size);
            let parent = self.key(seq, seq.blocks.len());
            partial = self.pool.find_partial(parent, tokens_of(seq, start, end));
        }
        let num_shared = table_len(seq);
        let num_revived = held(seq).iter().filter(|&&block| self.pool.is_free(block)).count();
        let num_revived = u32::try_from(num_revived).expect("at most the table's length");
        let num_needed = self.num_missing(seq) + num_revived + num_reserved;
        if num_needed > self.pool.num_free() {
            seq.blocks.clear();
            seq.num_left_behind = 0;
            return Err(OutOfBlocks);
        }
        // The source of a copy is kept besides the sequence's own blocks; without room for it, compute instead.
        let has_room_for = |block| num_needed + u32::from(self.pool.is_free(block)) <= self.pool.num_free();
        let partial = partial.filter(|found| has_room_for(found.block));
        for &block in held(seq) {
            self.pool.add_ref(block);
        }
        seq.num_published_blocks = num_shared;
        seq.num_computed_tokens = num_shared * self.block_size;
        let copy = partial.map(|found| {
            self.pool.add_ref(found.block);
            self.pinned.push(found.block);
            let to = self.pool.take().expect("room was checked");
            seq.blocks.push(to);
            seq.num_computed_tokens += found.num_tokens;
            BlockCopy { from: found.block, to, num_tokens: found.num_tokens }
        });
        Ok(AttachedPrefix { num_tokens: seq.num_computed_tokens, copy })
    }

    /// Fills the table with known full blocks, as many as leave no gap that the next token would reach. Gaps before are
    /// blocks that were evicted after every token had left them behind.
    fn find_full_blocks(&self, seq: &mut Sequence) {
        let limit = seq.max_cached_tokens();
        let (mut unbroken_from, mut num_usable) = (0, 0);
        loop {
            let start = table_len(seq) * self.block_size;
            let end = start + self.block_size;
            if end > limit || (unbroken_from > 0 && self.context.window.is_none()) {
                break;
            }
            let idx = seq.blocks.len();
            let (parent, key) = (self.key(seq, idx), self.key(seq, idx + 1));
            let found = self.pool.find_full(parent, key, tokens_of(seq, start, end));
            seq.blocks.push(found.unwrap_or(BlockId::LEFT_BEHIND));
            if found.is_none() {
                unbroken_from = end;
            } else if unbroken_from <= self.context.first_reached(end) {
                num_usable = table_len(seq);
            }
        }
        seq.blocks.truncate(num_usable as usize);
        seq.num_left_behind = self.num_unreached(num_usable * self.block_size);
        seq.blocks[..seq.num_left_behind as usize].fill(BlockId::LEFT_BEHIND);
    }

    /// Blocks at the head of a table that neither the token at `position` nor a later one reaches.
    fn num_unreached(&self, position: u32) -> u32 {
        self.context.first_reached(position) / self.block_size
    }

    /// Gives back the blocks that no token still to compute reaches. What they hold stays for reuse until they are needed.
    pub fn leave_behind(&mut self, seq: &mut Sequence) {
        let num_unreached = self.num_unreached(seq.num_computed_tokens);
        for block_idx in seq.num_left_behind..num_unreached {
            let block = std::mem::replace(&mut seq.blocks[block_idx as usize], BlockId::LEFT_BEHIND);
            self.pool.release(block);
        }
        seq.num_left_behind = num_unreached.max(seq.num_left_behind);
    }

    /// Extends the block table to cover `num_tokens`.
    ///
    /// # Errors
    /// On `OutOfBlocks` nothing has changed.
    pub fn grow(&mut self, seq: &mut Sequence, num_tokens: u32) -> Result<(), OutOfBlocks> {
        let num_missing = num_tokens.div_ceil(self.block_size).saturating_sub(table_len(seq));
        if num_missing > self.pool.num_free() {
            return Err(OutOfBlocks);
        }
        for _ in 0..num_missing {
            seq.blocks.push(self.pool.take().expect("counted above"));
        }
        Ok(())
    }

    /// Tokens that `grow` could cover now.
    #[must_use]
    pub fn max_coverage(&self, seq: &Sequence) -> u32 {
        (table_len(seq) + self.pool.num_free()).saturating_mul(self.block_size)
    }

    /// Offers newly full blocks for reuse; and, when just the prompt has been computed, the part of its last block, so
    /// that equal prompts need not wait for this sequence's end.
    pub fn commit(&mut self, seq: &mut Sequence) {
        if self.hasher.is_none() {
            return;
        }
        let num_full = seq.num_computed_tokens / self.block_size;
        for block_idx in seq.num_published_blocks..num_full {
            let idx = block_idx as usize;
            let (parent, key) = (self.key(seq, idx), self.key(seq, idx + 1));
            let start = block_idx * self.block_size;
            let tokens = tokens_of(seq, start, start + self.block_size);
            self.pool.register_full(seq.blocks[idx], parent, key, tokens);
        }
        seq.num_published_blocks = num_full;
        if seq.num_computed_tokens == seq.num_prompt_tokens {
            self.publish_tail(seq);
        }
    }

    /// Offers the last, partly filled block.
    fn publish_tail(&mut self, seq: &mut Sequence) {
        let num_full = seq.num_published_blocks;
        let start = num_full * self.block_size;
        if start == seq.num_computed_tokens {
            return;
        }
        let parent = self.key(seq, num_full as usize);
        let tokens = tokens_of(seq, start, seq.num_computed_tokens);
        self.pool.register_partial(seq.blocks[num_full as usize], parent, tokens);
    }

    /// Takes all blocks back and keeps their contents for reuse until the blocks are needed.
    pub fn free(&mut self, seq: &mut Sequence) {
        if self.hasher.is_some() && seq.num_computed_tokens > 0 {
            self.commit(seq);
            self.publish_tail(seq);
        }
        self.discard(seq);
    }

    /// Takes all blocks back without offering anything new: what the last step wrote is in doubt.
    pub fn discard(&mut self, seq: &mut Sequence) {
        // The end of a prefix is useless without its start, so it is to be evicted first.
        for &block in held(seq).iter().rev() {
            self.pool.release(block);
        }
        seq.blocks.clear();
        seq.num_left_behind = 0;
        seq.num_computed_tokens = 0;
        seq.num_published_blocks = 0;
    }

    /// The step is over, so its copies have been carried out.
    pub fn unpin(&mut self) {
        for &block in &self.pinned {
            self.pool.release(block);
        }
        self.pinned.clear();
    }

    /// Key of everything before block `idx`, from the sequence's memo.
    fn key(&self, seq: &mut Sequence, idx: usize) -> BlockKey {
        let hasher = self.hasher.as_ref().expect("keys are asked for only with a prefix cache");
        if seq.keys.is_empty() {
            let root = hasher.root(seq.salt);
            // Long sequences have other K and V for the same tokens.
            seq.keys.push(if seq.is_long { hasher.child(root, &[]) } else { root });
        }
        while seq.keys.len() <= idx {
            let block_idx = u32::try_from(seq.keys.len() - 1).expect("at most the table's length");
            let start = block_idx * self.block_size;
            let parent = seq.keys[block_idx as usize];
            let key = hasher.child(parent, tokens_of(seq, start, start + self.block_size));
            seq.keys.push(key);
        }
        seq.keys[idx]
    }

    /// Panics unless used, cached and free blocks add up and every reference count matches the tables of the `live`
    /// sequences; also when sequences with different salts share a block.
    pub fn check_integrity<'a>(&self, live: impl Iterator<Item = &'a Sequence>) {
        self.pool.check_integrity();
        let num_blocks = self.pool.num_blocks();
        assert_eq!(self.num_used() + self.num_cached() + self.num_free(), num_blocks, "blocks add up");
        let mut users = vec![(0_u32, None); num_blocks as usize];
        for seq in live {
            let num_needed = seq.num_computed_tokens.div_ceil(self.block_size);
            assert!(table_len(seq) >= num_needed, "sequence {} has computed more than its blocks hold", seq.id.0);
            for block in held(seq) {
                let (count, salt) = &mut users[block.0 as usize];
                *count += 1;
                let whose = (seq.salt, seq.is_long);
                assert_eq!(*salt.get_or_insert(whose), whose, "block {} is shared across salts", block.0);
            }
        }
        for block in &self.pinned {
            users[block.0 as usize].0 += 1;
        }
        for (idx, (count, _)) in users.into_iter().enumerate() {
            let block = BlockId(u32::try_from(idx).expect("at most num_blocks"));
            assert_eq!(self.pool.ref_count(block), count, "users of block {idx}");
        }
    }
}

/// The blocks of a table that the sequence uses.
fn held(seq: &Sequence) -> &[BlockId] {
    &seq.blocks[seq.num_left_behind as usize..]
}

fn table_len(seq: &Sequence) -> u32 {
    u32::try_from(seq.blocks.len()).expect("at most the number of blocks")
}

/// Tokens `start..end`; empty if the range is.
fn tokens_of(seq: &Sequence, start: u32, end: u32) -> &[TokenId] {
    &seq.tokens[start as usize..end.max(start) as usize]
}
