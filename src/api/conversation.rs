//! A conversation as turns, and its longest end that fits the context.
//!
//! A turn is a message of the user with all that follows up to the next one. What does not fit is left out from the front, by
//! whole turns; system messages before the first turn always stay, and so does the question at the end.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    parameters::TemplateOptions,
    plan::{Encoded, encode_messages, run_text_task, template_input},
};
use crate::{error::ApiError, serving::handle::ModelHandle, sessions::Message};

/// The part of the context that is kept for the reply where nobody says how long it may be: a quarter.
const OUTPUT_SHARE: u32 = 4;

/// Turns, oldest first, and the question.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    head: Vec<Value>,
    turns: Vec<Vec<Value>>,
    query: Value,
}

impl Conversation {
    /// `history` may begin with system messages.
    #[must_use]
    pub fn new(history: &[Message], query: &str) -> Self {
        let as_value = |message: &Message| json!({"role": message.role, "content": message.content});
        let len = history.iter().take_while(|message| message.role == "system").count();
        let (head, rest) = history.split_at(len);
        let mut turns: Vec<Vec<Value>> = Vec::new();
        for message in rest {
            match turns.last_mut() {
                Some(turn) if message.role != "user" => turn.push(as_value(message)),
                _ => turns.push(vec![as_value(message)]),
            }
        }
        let head = head.iter().map(as_value).collect();
        Self { head, turns, query: json!({"role": "user", "content": query}) }
    }

    /// The messages without the oldest `num_dropped` turns.
    fn without(&self, num_dropped: usize) -> Vec<Value> {
        let turns = self.turns[num_dropped..].iter().flatten();
        self.head.iter().chain(turns).chain([&self.query]).cloned().collect()
    }

    /// The fewest turns to drop so that the texts are short enough to be worth tokenizing.
    fn num_hopeless(&self, max_bytes: usize) -> usize {
        let bytes_of = |message: &Value| message["content"].as_str().map_or(0, str::len);
        let mut bytes: usize = self.head.iter().chain([&self.query]).map(bytes_of).sum();
        let mut num_kept = 0;
        for turn in self.turns.iter().rev() {
            bytes += turn.iter().map(bytes_of).sum::<usize>();
            if bytes > max_bytes {
                break;
            }
            num_kept += 1;
        }
        self.turns.len() - num_kept
    }

    /// Renders and encodes as many of the last turns as leave `room_for_output` tokens.
    ///
    /// Without any turn the question is encoded however long it is: the caller checks.
    pub(super) async fn encode(
        self,
        options: &TemplateOptions,
        handle: &Arc<ModelHandle>,
        room_for_output: Option<u32>,
    ) -> Result<Encoded, ApiError> {
        let max_len = handle.max_model_len();
        let max_tokens = max_len.saturating_sub(room_for_output.unwrap_or(max_len / OUTPUT_SHARE)) as usize;
        let options = options.clone();
        let task = move |handle: &ModelHandle| {
            let encode = |num_dropped: usize| {
                let input = template_input(&options, handle, self.without(num_dropped))?;
                let encoded = encode_messages(handle, &input)?;
                let num_dropped_turns = u32::try_from(num_dropped).unwrap_or(u32::MAX);
                Ok(Encoded { num_dropped_turns, ..encoded })
            };
            let num_hopeless = self.num_hopeless(handle.max_text_bytes());
            longest_that_fits(num_hopeless, self.turns.len(), max_tokens, encode)
        };
        run_text_task(handle, task).await
    }
}

/// What `encode` gives for the smallest number from `first` on with at most `max_tokens`, or else for `last`.
fn longest_that_fits(
    first: usize,
    last: usize,
    max_tokens: usize,
    encode: impl Fn(usize) -> Result<Encoded, ApiError>,
) -> Result<Encoded, ApiError> {
    let whole = encode(first)?;
    if whole.ids.len() <= max_tokens || first == last {
        return Ok(whole);
    }
    // Halving: `low - 1` does not fit, `high` fits or is the last.
    let (mut low, mut high) = (first + 1, last);
    let mut best = None;
    while low < high {
        let middle = usize::midpoint(low, high);
        let encoded = encode(middle)?;
        if encoded.ids.len() <= max_tokens {
            high = middle;
            best = Some(encoded);
        } else {
            low = middle + 1;
        }
    }
    match best.filter(|best| best.num_dropped_turns as usize == low) {
        Some(best) => Ok(best),
        None => encode(low),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(messages: &[Value]) -> Vec<&str> {
        messages.iter().map(|message| message["content"].as_str().unwrap()).collect()
    }

    fn history(messages: &[(&str, &str)]) -> Vec<Message> {
        messages.iter().map(|(role, text)| Message::new(role, *text)).collect()
    }

    #[test]
    fn turns_leave_whole_and_the_head_stays() {
        let messages = [("system", "S"), ("user", "u1"), ("assistant", "a1"), ("user", "u2"), ("user", "u3")];
        let conversation = Conversation::new(&history(&[&messages[..], &[("assistant", "a3")]].concat()), "q");
        assert_eq!(texts(&conversation.without(0)), ["S", "u1", "a1", "u2", "u3", "a3", "q"]);
        assert_eq!(texts(&conversation.without(1)), ["S", "u2", "u3", "a3", "q"]);
        assert_eq!(texts(&conversation.without(2)), ["S", "u3", "a3", "q"]);
        assert_eq!(texts(&conversation.without(3)), ["S", "q"]);
        // A greeting is a turn of its own.
        let greeted = Conversation::new(&history(&[("assistant", "hello"), ("user", "u")]), "q");
        assert_eq!(texts(&greeted.without(1)), ["u", "q"]);
    }

    #[test]
    fn texts_that_cannot_fit_are_not_tokenized() {
        let conversation = Conversation::new(&history(&[("user", "aaaa"), ("user", "bbb"), ("user", "cc")]), "q");
        let check = |max_bytes, num| assert_eq!(conversation.num_hopeless(max_bytes), num, "{max_bytes}");
        check(100, 0);
        check(10, 0);
        check(9, 1);
        check(6, 1);
        check(5, 2);
        check(2, 3);
        check(0, 3);
    }

    #[test]
    fn the_longest_end_that_fits_is_found_for_every_length() {
        // 10 tokens a turn, 5 for the rest.
        let encode = |total: usize| {
            move |dropped: usize| {
                let ids = vec![0; 5 + 10 * (total - dropped)];
                Ok(Encoded { text: String::new(), ids, num_dropped_turns: u32::try_from(dropped).unwrap() })
            }
        };
        for total in 0..12 {
            for first in 0..=total {
                for max_tokens in 0..140 {
                    let found = longest_that_fits(first, total, max_tokens, encode(total)).unwrap();
                    let wanted =
                        (first..=total).find(|dropped| 5 + 10 * (total - dropped) <= max_tokens).unwrap_or(total);
                    assert_eq!(found.num_dropped_turns as usize, wanted, "{total} {first} {max_tokens}");
                    assert_eq!(found.ids.len(), 5 + 10 * (total - wanted));
                }
            }
        }
    }
}
