//! Texts end to end in one string: how vocabularies and merges are held without an allocation per piece.
//!
//! Invariant: indices are stable, a list only grows at its end. Used by the models and the readers of their files.

/// A list of texts, end to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextList {
    pub(super) text: String,
    ends: Vec<u32>,
}

impl TextList {
    /// Number of texts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Text `idx`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn get(&self, idx: usize) -> &str {
        let start = if idx == 0 { 0 } else { self.ends[idx - 1] as usize };
        &self.text[start..self.ends[idx] as usize]
    }

    /// The texts in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).map(|idx| self.get(idx))
    }

    /// Adds a text at the end.
    ///
    /// # Panics
    /// When all texts together exceed 4 GiB.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.close();
    }

    /// Bytes of `text` that belong to no text yet.
    pub(super) fn open_len(&self) -> usize {
        self.text.len() - self.ends.last().map_or(0, |&end| end as usize)
    }

    /// Makes what was appended to `text` a text of its own.
    pub(super) fn close(&mut self) {
        self.ends.push(u32::try_from(self.text.len()).expect("a vocabulary is far below 4 GiB"));
    }
}

impl<S: AsRef<str>> FromIterator<S> for TextList {
    fn from_iter<I: IntoIterator<Item = S>>(texts: I) -> Self {
        let mut list = Self::default();
        texts.into_iter().for_each(|text| list.push(text.as_ref()));
        list.text.shrink_to_fit();
        list.ends.shrink_to_fit();
        list
    }
}

/// Pairs of pieces that merge, the first merge first. Each pair is held joined, which is what it becomes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Merges {
    pub(super) joined: TextList,
    /// Bytes of the left piece.
    pub(super) left_lens: Vec<u32>,
}

impl Merges {
    pub(crate) fn len(&self) -> usize {
        self.left_lens.len()
    }

    /// The left and the right piece of merge `rank`.
    pub(crate) fn get(&self, rank: usize) -> (&str, &str) {
        self.joined.get(rank).split_at(self.left_lens[rank] as usize)
    }

    /// What merge `rank` makes.
    pub(crate) fn joined(&self, rank: usize) -> &str {
        self.joined.get(rank)
    }

    /// Adds a merge as files write it: two pieces with a space between. A piece may start with a space.
    ///
    /// # Errors
    /// There are not two pieces.
    pub(crate) fn push_line(&mut self, line: &str) -> Result<(), String> {
        let space = line.char_indices().skip(1).find(|(_, char)| *char == ' ').map(|(place, _)| place);
        let Some((left, right)) = space.map(|place| (&line[..place], &line[place + 1..])) else {
            return Err(format!("merge {} is {line:?}, not two pieces", self.len()));
        };
        self.push(left, right);
        Ok(())
    }

    pub(crate) fn push(&mut self, left: &str, right: &str) {
        self.joined.text.push_str(left);
        self.joined.text.push_str(right);
        self.close(left.len());
    }

    /// Makes what was appended to the text a merge whose left piece has `left_len` bytes.
    pub(super) fn close(&mut self, left_len: usize) {
        self.left_lens.push(u32::try_from(left_len).expect("a vocabulary is far below 4 GiB"));
        self.joined.close();
    }
}
