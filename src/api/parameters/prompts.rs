//! The `prompt` of a completion: a text, a list of texts, a list of token ids, or a list of such lists.

use serde_json::Value;

use super::field::Field;
use crate::error::ApiError;

/// One prompt of a completion.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// To be tokenized.
    Text(String),
    /// At least one id; not yet compared with the vocabulary.
    Tokens(Vec<u32>),
}

/// Reads all four forms.
///
/// # Errors
/// Names the item that is wrong, for instance `prompt[1][0]`.
pub(super) fn read_prompts(field: &Field<'_>) -> Result<Vec<Prompt>, ApiError> {
    if let Value::String(text) = field.value {
        return Ok(vec![Prompt::Text(text.clone())]);
    }
    let mut items = field.items()?.peekable();
    match items.peek().map(|first| first.value) {
        None => Err(field.invalid("must not be empty")),
        Some(Value::Number(_)) => Ok(vec![Prompt::Tokens(read_ids(field)?)]),
        Some(_) => items.map(|item| read_prompt(&item)).collect(),
    }
}

fn read_prompt(item: &Field<'_>) -> Result<Prompt, ApiError> {
    match item.value {
        Value::String(text) => Ok(Prompt::Text(text.clone())),
        _ => Ok(Prompt::Tokens(read_ids(item)?)),
    }
}

/// A list of token ids with at least one item.
pub(super) fn read_ids(field: &Field<'_>) -> Result<Vec<u32>, ApiError> {
    let items = field.items()?;
    if items.len() == 0 {
        return Err(field.invalid("must not be empty"));
    }
    items.map(|item| item.count(0..=u32::MAX)).collect()
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "cases are written in place")]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(value: Value, expected: &[Prompt]) {
        assert_eq!(read_prompts(&Field::new("prompt", &value)).unwrap(), expected, "{value}");
    }

    fn check_param(value: Value, param: &str) {
        let error = read_prompts(&Field::new("prompt", &value)).expect_err(param);
        assert_eq!(error.param(), Some(param), "{value}");
    }

    #[test]
    fn all_four_forms_are_read() {
        check(json!("a"), &[Prompt::Text("a".to_owned())]);
        check(json!(["a", "b"]), &[Prompt::Text("a".to_owned()), Prompt::Text("b".to_owned())]);
        check(json!([1, 2]), &[Prompt::Tokens(vec![1, 2])]);
        check(json!([[1], [2, 3]]), &[Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]);
        check(json!(["a", [2]]), &[Prompt::Text("a".to_owned()), Prompt::Tokens(vec![2])]);
    }

    #[test]
    fn an_error_names_the_item() {
        check_param(json!([]), "prompt");
        check_param(json!(7), "prompt");
        check_param(json!({"text": "a"}), "prompt");
        check_param(json!([[]]), "prompt[0]");
        check_param(json!([1, "a"]), "prompt[1]");
        check_param(json!([1, -1]), "prompt[1]");
        check_param(json!(["a", {"b": 1}]), "prompt[1]");
        check_param(json!([[1], [2, "x"]]), "prompt[1][1]");
        check_param(json!([[1], [2, 1.5]]), "prompt[1][1]");
    }
}
