//! [`BlockPool`]: which KV blocks are in use, which are free, and what the free ones still hold.
//!
//! A flat `Vec` of blocks with intrusive links, so nothing is allocated after construction. The free list is the
//! eviction order: a freed block keeps its contents registered until it is taken for something else.
//!
//! Contents are found in two ways. A *full* block by its own key, in O(1). Any registered block, full or partial, as a
//! child of the key before it, for the part of it that matches.
//!
//! ```text
//! free list   head ─ never registered ─ … ─ least recently used ─ … ─ most recently used ─ tail
//!             next to be taken                                                       last to be taken
//! ```
//!
//! Invariant: a block is in the free list if and only if its reference count is 0. Used by `kv_cache`.

use crate::block_key::BlockKey;
use tokenmill_models::runner::{BlockId, TokenId};

/// No block.
const NIL: u32 = u32::MAX;
/// Siblings that one search for a partial match looks at, newest first: a bound on the time of an admission.
const MAX_SIBLINGS: usize = 256;

/// Neighbours in one doubly linked list.
#[derive(Clone, Copy)]
struct Links {
    prev: u32,
    next: u32,
}

const UNLINKED: Links = Links { prev: NIL, next: NIL };

struct Block {
    ref_count: u32,
    /// Tokens whose K and V are registered for reuse, from the block's start; 0 if none.
    num_registered: u32,
    /// Key of everything before this block.
    parent: BlockKey,
    /// Own key; meaningful when the block is registered as full.
    key: BlockKey,
    free: Links,
    by_key: Links,
    by_parent: Links,
}

/// Chains of blocks in buckets, one of which is selected by a key.
struct Table {
    heads: Vec<u32>,
}

/// A block some of whose tokens match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PartialMatch {
    pub(crate) block: BlockId,
    pub(crate) num_tokens: u32,
}

/// The KV blocks of one runner.
pub(crate) struct BlockPool {
    block_size: usize,
    blocks: Vec<Block>,
    /// `[num_blocks, block_size]`; the first `num_registered` of each block mean something.
    tokens: Vec<TokenId>,
    by_key: Table,
    by_parent: Table,
    free_head: u32,
    free_tail: u32,
    num_free: u32,
    num_registered_free: u32,
}

impl BlockPool {
    pub(crate) fn new(num_blocks: u32, block_size: u32) -> Self {
        assert!(num_blocks > 0 && num_blocks < NIL, "{num_blocks} KV blocks: at least one, and fewer than 2^32 - 1");
        assert!(block_size > 0, "a KV block holds at least one token");
        let block = || Block {
            ref_count: 0,
            num_registered: 0,
            parent: BlockKey::NONE,
            key: BlockKey::NONE,
            free: UNLINKED,
            by_key: UNLINKED,
            by_parent: UNLINKED,
        };
        let num_buckets = (num_blocks as usize).next_power_of_two();
        let mut pool = Self {
            block_size: block_size as usize,
            blocks: (0..num_blocks).map(|_| block()).collect(),
            tokens: vec![0; num_blocks as usize * block_size as usize],
            by_key: Table { heads: vec![NIL; num_buckets] },
            by_parent: Table { heads: vec![NIL; num_buckets] },
            free_head: NIL,
            free_tail: NIL,
            num_free: 0,
            num_registered_free: 0,
        };
        for idx in 0..num_blocks {
            pool.push_free_back(idx);
        }
        pool
    }

    pub(crate) fn num_blocks(&self) -> u32 {
        u32::try_from(self.blocks.len()).expect("checked when the pool was built")
    }

    /// Blocks that nobody uses, registered or not.
    pub(crate) fn num_free(&self) -> u32 {
        self.num_free
    }

    /// Of those, the blocks whose contents can still be reused.
    pub(crate) fn num_registered_free(&self) -> u32 {
        self.num_registered_free
    }

    pub(crate) fn is_free(&self, block: BlockId) -> bool {
        self.block(block).ref_count == 0
    }

    pub(crate) fn ref_count(&self, block: BlockId) -> u32 {
        self.block(block).ref_count
    }

    /// Takes the block that was unused longest and forgets what it held.
    pub(crate) fn take(&mut self) -> Option<BlockId> {
        let idx = self.free_head;
        if idx == NIL {
            return None;
        }
        self.unlink_free(idx);
        self.unregister(BlockId(idx));
        self.blocks[idx as usize].ref_count = 1;
        Some(BlockId(idx))
    }

    /// One user more of a block, free or not.
    pub(crate) fn add_ref(&mut self, block: BlockId) {
        if self.is_free(block) {
            self.unlink_free(block.0);
        }
        self.block_mut(block).ref_count += 1;
    }

    /// One user less. A block without users goes to the end of the eviction order if its contents are registered, else
    /// to the front.
    pub(crate) fn release(&mut self, block: BlockId) {
        let entry = self.block_mut(block);
        assert!(entry.ref_count > 0, "block {} is released more often than used", block.0);
        entry.ref_count -= 1;
        if entry.ref_count > 0 {
            return;
        }
        if entry.num_registered > 0 {
            self.push_free_back(block.0);
        } else {
            self.push_free_front(block.0);
        }
    }

    /// The full block with this key, these tokens and this parent.
    pub(crate) fn find_full(&self, parent: BlockKey, key: BlockKey, tokens: &[TokenId]) -> Option<BlockId> {
        let mut idx = self.by_key.heads[key.bucket(self.by_key.heads.len())];
        while idx != NIL {
            let block = &self.blocks[idx as usize];
            if block.key == key && block.parent == parent && self.registered_tokens(idx) == tokens {
                return Some(BlockId(idx));
            }
            idx = block.by_key.next;
        }
        None
    }

    /// The block after `parent` that starts with the most of `tokens`, at least one; newest first among equals.
    pub(crate) fn find_partial(&self, parent: BlockKey, tokens: &[TokenId]) -> Option<PartialMatch> {
        let mut best: Option<PartialMatch> = None;
        let mut idx = self.by_parent.heads[parent.bucket(self.by_parent.heads.len())];
        for _ in 0..MAX_SIBLINGS {
            if idx == NIL {
                break;
            }
            if self.blocks[idx as usize].parent == parent {
                let held = self.registered_tokens(idx);
                let num_tokens = held.iter().zip(tokens).take_while(|(a, b)| a == b).count();
                let num_tokens = u32::try_from(num_tokens).expect("at most a block's tokens");
                if num_tokens > best.map_or(0, |found| found.num_tokens) {
                    best = Some(PartialMatch { block: BlockId(idx), num_tokens });
                    if num_tokens as usize == tokens.len() {
                        break;
                    }
                }
            }
            idx = self.blocks[idx as usize].by_parent.next;
        }
        best
    }

    /// Registers a full block's contents, unless another block is registered with the same.
    pub(crate) fn register_full(&mut self, block: BlockId, parent: BlockKey, key: BlockKey, tokens: &[TokenId]) {
        assert_eq!(tokens.len(), self.block_size, "a full block");
        self.unregister(block);
        if self.find_full(parent, key, tokens).is_some() {
            return;
        }
        self.set_registered(block, parent, tokens);
        self.block_mut(block).key = key;
        let idx = block.0;
        let bucket = key.bucket(self.by_key.heads.len());
        let head = std::mem::replace(&mut self.by_key.heads[bucket], idx);
        self.blocks[idx as usize].by_key = Links { prev: NIL, next: head };
        if head != NIL {
            self.blocks[head as usize].by_key.prev = idx;
        }
    }

    /// Registers the first `tokens.len()` slots of a block that is not full, unless another block already offers them.
    /// Its owner may go on appending to it: the registered slots do not change.
    pub(crate) fn register_partial(&mut self, block: BlockId, parent: BlockKey, tokens: &[TokenId]) {
        assert!(!tokens.is_empty() && tokens.len() < self.block_size, "a part of a block");
        let found = self.find_partial(parent, tokens);
        if found.is_some_and(|found| found.num_tokens as usize == tokens.len()) {
            return;
        }
        self.unregister(block);
        self.set_registered(block, parent, tokens);
    }

    fn set_registered(&mut self, block: BlockId, parent: BlockKey, tokens: &[TokenId]) {
        assert!(!self.is_free(block), "only its user knows what a block holds");
        let idx = block.0;
        let start = idx as usize * self.block_size;
        self.tokens[start..start + tokens.len()].copy_from_slice(tokens);
        let bucket = parent.bucket(self.by_parent.heads.len());
        let head = std::mem::replace(&mut self.by_parent.heads[bucket], idx);
        let entry = &mut self.blocks[idx as usize];
        entry.num_registered = u32::try_from(tokens.len()).expect("at most a block's tokens");
        entry.parent = parent;
        entry.by_parent = Links { prev: NIL, next: head };
        if head != NIL {
            self.blocks[head as usize].by_parent.prev = idx;
        }
    }

    /// Forgets what a used block holds; does nothing if it was not registered.
    fn unregister(&mut self, block: BlockId) {
        let entry = self.block_mut(block);
        let num_registered = std::mem::take(&mut entry.num_registered);
        if num_registered == 0 {
            return;
        }
        let (parent, key) = (entry.parent, entry.key);
        let by_parent = std::mem::replace(&mut entry.by_parent, UNLINKED);
        let by_key = std::mem::replace(&mut entry.by_key, UNLINKED);
        let bucket = parent.bucket(self.by_parent.heads.len());
        if by_parent.prev == NIL {
            self.by_parent.heads[bucket] = by_parent.next;
        } else {
            self.blocks[by_parent.prev as usize].by_parent.next = by_parent.next;
        }
        if by_parent.next != NIL {
            self.blocks[by_parent.next as usize].by_parent.prev = by_parent.prev;
        }
        if num_registered as usize == self.block_size {
            let bucket = key.bucket(self.by_key.heads.len());
            if by_key.prev == NIL {
                self.by_key.heads[bucket] = by_key.next;
            } else {
                self.blocks[by_key.prev as usize].by_key.next = by_key.next;
            }
            if by_key.next != NIL {
                self.blocks[by_key.next as usize].by_key.prev = by_key.prev;
            }
        }
    }

    fn registered_tokens(&self, idx: u32) -> &[TokenId] {
        let num_registered = self.blocks[idx as usize].num_registered as usize;
        &self.tokens[idx as usize * self.block_size..][..num_registered]
    }

    fn block(&self, block: BlockId) -> &Block {
        &self.blocks[block.0 as usize]
    }

    fn block_mut(&mut self, block: BlockId) -> &mut Block {
        &mut self.blocks[block.0 as usize]
    }

    fn push_free_back(&mut self, idx: u32) {
        let tail = std::mem::replace(&mut self.free_tail, idx);
        self.blocks[idx as usize].free = Links { prev: tail, next: NIL };
        if tail == NIL {
            self.free_head = idx;
        } else {
            self.blocks[tail as usize].free.next = idx;
        }
        self.count_free(idx);
    }

    fn push_free_front(&mut self, idx: u32) {
        let head = std::mem::replace(&mut self.free_head, idx);
        self.blocks[idx as usize].free = Links { prev: NIL, next: head };
        if head == NIL {
            self.free_tail = idx;
        } else {
            self.blocks[head as usize].free.prev = idx;
        }
        self.count_free(idx);
    }

    fn count_free(&mut self, idx: u32) {
        self.num_free += 1;
        self.num_registered_free += u32::from(self.blocks[idx as usize].num_registered > 0);
    }

    fn unlink_free(&mut self, idx: u32) {
        let entry = &mut self.blocks[idx as usize];
        let Links { prev, next } = std::mem::replace(&mut entry.free, UNLINKED);
        self.num_free -= 1;
        self.num_registered_free -= u32::from(entry.num_registered > 0);
        if prev == NIL {
            self.free_head = next;
        } else {
            self.blocks[prev as usize].free.next = next;
        }
        if next == NIL {
            self.free_tail = prev;
        } else {
            self.blocks[next as usize].free.prev = prev;
        }
    }

    /// Walks every list and panics where links, counts and reference counts disagree.
    pub(crate) fn check_integrity(&self) {
        let mut in_free_list = vec![false; self.blocks.len()];
        let (mut idx, mut prev, mut num_registered) = (self.free_head, NIL, 0);
        while idx != NIL {
            let block = &self.blocks[idx as usize];
            assert!(!std::mem::replace(&mut in_free_list[idx as usize], true), "block {idx} is in the free list twice");
            assert_eq!(block.free.prev, prev, "back link of block {idx} in the free list");
            num_registered += u32::from(block.num_registered > 0);
            (prev, idx) = (idx, block.free.next);
        }
        assert_eq!(self.free_tail, prev, "tail of the free list");
        let num_listed = in_free_list.iter().filter(|&&listed| listed).count();
        assert_eq!(num_listed, self.num_free as usize, "length of the free list");
        assert_eq!(num_registered, self.num_registered_free, "registered blocks in the free list");
        for (idx, block) in self.blocks.iter().enumerate() {
            assert_eq!(in_free_list[idx], block.ref_count == 0, "block {idx} with {} users", block.ref_count);
        }
        let is_full = |block: &Block| block.num_registered as usize == self.block_size;
        self.check_table(&self.by_key, is_full, |block| (block.key, block.by_key));
        self.check_table(&self.by_parent, |block| block.num_registered > 0, |block| (block.parent, block.by_parent));
    }

    fn check_table(&self, table: &Table, belongs: impl Fn(&Block) -> bool, of: impl Fn(&Block) -> (BlockKey, Links)) {
        let mut num_found = 0;
        for (bucket, &head) in table.heads.iter().enumerate() {
            let (mut idx, mut prev) = (head, NIL);
            while idx != NIL {
                let block = &self.blocks[idx as usize];
                let (key, links) = of(block);
                assert!(belongs(block), "block {idx} is listed but not registered");
                assert_eq!(key.bucket(table.heads.len()), bucket, "bucket of block {idx}");
                assert_eq!(links.prev, prev, "back link of block {idx} in its bucket");
                num_found += 1;
                assert!(num_found <= self.blocks.len(), "a bucket's chain is a ring");
                (prev, idx) = (idx, links.next);
            }
        }
        let num_expected = self.blocks.iter().filter(|block| belongs(block)).count();
        assert_eq!(num_found, num_expected, "registered blocks that can be found");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block_key::BlockKeyHasher;

    fn hasher() -> BlockKeyHasher {
        BlockKeyHasher::new([1, 2])
    }

    fn register(pool: &mut BlockPool, block: BlockId, parent: BlockKey, tokens: &[TokenId]) -> BlockKey {
        let key = hasher().child(parent, tokens);
        pool.register_full(block, parent, key, tokens);
        pool.check_integrity();
        key
    }

    #[test]
    fn takes_unregistered_blocks_first_then_the_least_recently_used() {
        let mut pool = BlockPool::new(4, 2);
        let root = hasher().root(0);
        let taken: Vec<BlockId> = (0..4).map(|_| pool.take().unwrap()).collect();
        assert_eq!(pool.take(), None);
        for (i, &block) in taken.iter().enumerate().take(3) {
            register(&mut pool, block, root, &[i as TokenId, 7]);
        }
        for &block in &[taken[1], taken[0], taken[3], taken[2]] {
            pool.release(block);
        }
        pool.check_integrity();
        assert_eq!((pool.num_free(), pool.num_registered_free()), (4, 3));
        let order: Vec<BlockId> = (0..4).map(|_| pool.take().unwrap()).collect();
        assert_eq!(order, [taken[3], taken[1], taken[0], taken[2]]);
        pool.check_integrity();
    }

    #[test]
    fn a_freed_block_is_found_until_it_is_taken() {
        let mut pool = BlockPool::new(1, 2);
        let root = hasher().root(0);
        let block = pool.take().unwrap();
        let key = register(&mut pool, block, root, &[1, 2]);
        pool.release(block);
        assert_eq!(pool.find_full(root, key, &[1, 2]), Some(block));
        pool.add_ref(block);
        assert_eq!((pool.num_free(), pool.ref_count(block)), (0, 1));
        pool.release(block);
        assert_eq!(pool.take(), Some(block));
        assert_eq!(pool.find_full(root, key, &[1, 2]), None);
        pool.check_integrity();
    }

    #[test]
    fn a_hit_needs_equal_tokens_and_parent_even_if_the_key_is_equal() {
        let mut pool = BlockPool::new(2, 2);
        let root = hasher().root(0);
        let block = pool.take().unwrap();
        let key = register(&mut pool, block, root, &[1, 2]);
        assert_eq!(pool.find_full(root, key, &[1, 3]), None, "a forged key does not leak another's block");
        assert_eq!(pool.find_full(hasher().root(1), key, &[1, 2]), None);
    }

    #[test]
    fn partial_matches_prefer_the_longest_and_stay_below_their_parent() {
        let mut pool = BlockPool::new(4, 4);
        let root = hasher().root(0);
        let (full, part, other) = (pool.take().unwrap(), pool.take().unwrap(), pool.take().unwrap());
        register(&mut pool, full, root, &[1, 2, 3, 4]);
        pool.register_partial(part, root, &[1, 2, 9]);
        pool.register_partial(other, hasher().root(1), &[1, 2, 3]);
        pool.check_integrity();
        let find = |pool: &BlockPool, tokens: &[TokenId]| pool.find_partial(root, tokens);
        assert_eq!(find(&pool, &[1, 2, 3, 5]), Some(PartialMatch { block: full, num_tokens: 3 }));
        assert_eq!(find(&pool, &[1, 2, 9, 5]), Some(PartialMatch { block: part, num_tokens: 3 }));
        assert_eq!(find(&pool, &[2]), None);
        assert_eq!(find(&pool, &[]), None);
    }

    #[test]
    fn a_part_grows_into_a_full_block_and_duplicates_are_not_registered() {
        let mut pool = BlockPool::new(3, 2);
        let root = hasher().root(0);
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        pool.register_partial(a, root, &[1]);
        pool.register_partial(b, root, &[1]);
        pool.check_integrity();
        let key = register(&mut pool, a, root, &[1, 2]);
        register(&mut pool, b, root, &[1, 2]);
        assert_eq!(pool.find_full(root, key, &[1, 2]), Some(a));
        pool.release(a);
        pool.release(b);
        assert_eq!(pool.num_registered_free(), 1, "only one of two equal blocks is kept");
        pool.check_integrity();
    }
}
