//! Stop strings in streamed text, however the text is cut.
//!
//! Invariant: the text that leaves a [`StopScanner`] depends on the whole text only, not on its pieces. The match that
//! ends first wins; of matches that end together, the longest. Text that may be the start of a stop string is held back.

/// Finds stop strings in text that arrives piece by piece.
#[derive(Clone, Debug)]
pub struct StopScanner {
    stops: Vec<Stop>,
    include: bool,
    held: String,
    matched: Option<usize>,
}

/// What a piece of text led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutput {
    /// Text that can be sent.
    pub text: String,
    /// Whether a stop string was found: the sequence is at its end, and later text is dropped.
    pub matched: bool,
}

/// One stop string with its Knuth-Morris-Pratt table.
#[derive(Clone, Debug)]
struct Stop {
    text: String,
    /// `[len]`: length of the longest proper prefix of the stop string that ends at this byte.
    borders: Vec<usize>,
    /// Bytes of the stop string that the text so far ends with.
    num_matched: usize,
}

impl StopScanner {
    /// A scanner for `stops`, of which empty ones count for nothing; `include` keeps the stop string in the text.
    #[must_use]
    pub fn new(stops: Vec<String>, include: bool) -> Self {
        let stops = stops.into_iter().map(Stop::new).collect();
        Self { stops, include, held: String::new(), matched: None }
    }

    /// Takes the next piece of text and hands out what is certain.
    #[must_use]
    pub fn push(&mut self, text: &str) -> StopOutput {
        if self.matched.is_some() {
            return StopOutput { text: String::new(), matched: true };
        }
        let start = self.held.len();
        self.held.push_str(text);
        for (offset, byte) in text.bytes().enumerate() {
            let Some(stop_idx) = self.step(byte) else { continue };
            let end = start + offset + 1;
            let cut = if self.include { end } else { end - self.stops[stop_idx].text.len() };
            self.matched = Some(stop_idx);
            self.held.truncate(cut);
            return StopOutput { text: std::mem::take(&mut self.held), matched: true };
        }
        // A stop string starts with a whole character, so this is a boundary between characters.
        let num_held = self.stops.iter().map(|stop| stop.num_matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - num_held);
        StopOutput { text: std::mem::replace(&mut self.held, rest), matched: false }
    }

    /// What was held back, at the end of the text.
    #[must_use]
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string that was found.
    #[must_use]
    pub fn matched(&self) -> Option<&str> {
        self.matched.map(|idx| self.stops[idx].text.as_str())
    }

    /// Advances all stop strings by one byte; the longest that is complete now.
    fn step(&mut self, byte: u8) -> Option<usize> {
        let mut best: Option<usize> = None;
        for idx in 0..self.stops.len() {
            if self.stops[idx].step(byte)
                && best.is_none_or(|best| self.stops[best].text.len() < self.stops[idx].text.len())
            {
                best = Some(idx);
            }
        }
        best
    }
}

impl Stop {
    fn new(text: String) -> Self {
        let bytes = text.as_bytes();
        let mut borders = vec![0; bytes.len()];
        for end in 1..bytes.len() {
            let mut border = borders[end - 1];
            while border > 0 && bytes[border] != bytes[end] {
                border = borders[border - 1];
            }
            borders[end] = border + usize::from(bytes[border] == bytes[end]);
        }
        Self { text, borders, num_matched: 0 }
    }

    /// Whether the stop string is complete with this byte.
    fn step(&mut self, byte: u8) -> bool {
        let bytes = self.text.as_bytes();
        if bytes.is_empty() {
            return false;
        }
        while self.num_matched > 0 && bytes[self.num_matched] != byte {
            self.num_matched = self.borders[self.num_matched - 1];
        }
        self.num_matched += usize::from(bytes[self.num_matched] == byte);
        self.num_matched == bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::Numbers;

    /// The definition, on the whole text: the match that ends first, of those the longest.
    fn naive(text: &str, stops: &[String], include: bool) -> (String, bool) {
        for end in 1..=text.len() {
            let ending =
                stops.iter().filter(|stop| !stop.is_empty() && text.as_bytes()[..end].ends_with(stop.as_bytes()));
            if let Some(stop) = ending.max_by_key(|stop| stop.len()) {
                return (text[..if include { end } else { end - stop.len() }].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    fn scan(pieces: &[&str], stops: &[String], include: bool) -> (String, bool) {
        let mut scanner = StopScanner::new(stops.to_vec(), include);
        let mut text = String::new();
        let mut matched = false;
        for piece in pieces {
            let output = scanner.push(piece);
            text.push_str(&output.text);
            matched = output.matched;
        }
        text.push_str(&scanner.finish());
        assert_eq!(scanner.matched().is_some(), matched);
        (text, matched)
    }

    #[test]
    fn equals_a_search_of_the_whole_text_for_any_cut() {
        const LETTERS: [char; 4] = ['a', 'b', 'é', '😀'];
        for seed in 1..=20_000 {
            let mut numbers = Numbers(seed * 0x9e37_79b9);
            let word = |numbers: &mut Numbers, limit: usize| -> String {
                (0..numbers.below(limit)).map(|_| LETTERS[numbers.below(1 + numbers.0 as usize % 4)]).collect()
            };
            let text = word(&mut numbers, 24);
            let stops: Vec<String> = (0..numbers.below(5)).map(|_| word(&mut numbers, 6)).collect();
            let mut pieces = Vec::new();
            let mut start = 0;
            for (place, _) in text.char_indices() {
                if numbers.below(3) == 0 {
                    pieces.push(&text[start..place]);
                    start = place;
                }
            }
            pieces.push(&text[start..]);
            for include in [false, true] {
                let expected = naive(&text, &stops, include);
                assert_eq!(scan(&pieces, &stops, include), expected, "seed {seed}: {text:?} {stops:?} {pieces:?}");
            }
        }
    }

    #[test]
    fn holds_back_only_what_may_become_a_stop() {
        let mut scanner = StopScanner::new(vec!["\n\nUser:".to_owned(), "END".to_owned()], false);
        let mut push = |text: &str| scanner.push(text).text;
        assert_eq!(push("one E"), "one ");
        assert_eq!(push("N"), "");
        assert_eq!(push("ough\n"), "ENough");
        assert_eq!(push("\n\n"), "\n");
        assert_eq!(push("Us"), "");
        let last = scanner.push("er: x");
        assert_eq!(last, StopOutput { text: String::new(), matched: true });
        assert_eq!(scanner.matched(), Some("\n\nUser:"));
        assert_eq!(scanner.push("more"), StopOutput { text: String::new(), matched: true });
        assert_eq!(scanner.finish(), "");
    }
}
