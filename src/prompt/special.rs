//! The special tokens of a vocabulary, and where they occur in a text.
//!
//! A trie rather than a search per token: some vocabularies have hundreds of them, and the text is a client's. The
//! search takes time linear in the text, times the length of a token at worst.

use tokenizers::AddedToken;

/// A special token as the prompt encoder needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecialToken {
    /// Its text, never empty.
    pub content: String,
    /// White space before it belongs to it.
    pub takes_left_space: bool,
    /// White space after it belongs to it.
    pub takes_right_space: bool,
}

/// All special tokens of a vocabulary, in the order of their ids.
#[derive(Clone, Debug)]
pub struct SpecialTokens {
    tokens: Vec<SpecialToken>,
    /// Node 0 is the root.
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, Default)]
struct Node {
    /// Following byte and node, ascending by byte.
    edges: Vec<(u8, u32)>,
    /// The token that ends here.
    token_idx: Option<usize>,
}

impl SpecialTokens {
    pub(super) fn new<'a>(added: impl Iterator<Item = &'a AddedToken>) -> Self {
        let mut all = Self { tokens: Vec::new(), nodes: vec![Node::default()] };
        for token in added.filter(|token| token.special && !token.content.is_empty()) {
            all.tokens.push(SpecialToken {
                content: token.content.clone(),
                takes_left_space: token.lstrip,
                takes_right_space: token.rstrip,
            });
            all.add_last();
        }
        all
    }

    fn add_last(&mut self) {
        let token_idx = self.tokens.len() - 1;
        let mut node = 0;
        for &byte in self.tokens[token_idx].content.as_bytes() {
            node = match self.nodes[node].edges.binary_search_by_key(&byte, |edge| edge.0) {
                Ok(place) => self.nodes[node].edges[place].1 as usize,
                Err(place) => {
                    let new = self.nodes.len();
                    let edge = (byte, u32::try_from(new).expect("a vocabulary has few special tokens"));
                    self.nodes[node].edges.insert(place, edge);
                    self.nodes.push(Node::default());
                    new
                }
            };
        }
        self.nodes[node].token_idx = Some(token_idx);
    }

    /// The first special token in `text`, the longest where several start: its byte place and the token's index.
    #[must_use]
    pub fn find(&self, text: &str) -> Option<(usize, usize)> {
        let bytes = text.as_bytes();
        (0..bytes.len()).find_map(|start| self.longest_at(&bytes[start..]).map(|token_idx| (start, token_idx)))
    }

    fn longest_at(&self, bytes: &[u8]) -> Option<usize> {
        let mut node = &self.nodes[0];
        let mut longest = None;
        for byte in bytes {
            let Ok(place) = node.edges.binary_search_by_key(byte, |edge| edge.0) else { break };
            node = &self.nodes[node.edges[place].1 as usize];
            longest = node.token_idx.or(longest);
        }
        longest
    }

    /// The tokens, in the order of their ids.
    #[must_use]
    pub fn tokens(&self) -> &[SpecialToken] {
        &self.tokens
    }
}
