//! One value of a request's body together with its place, so that every complaint names its parameter.
//!
//! A place is a chain of borrowed steps; its text (`messages[1].content`) is made only when an error needs it.

use std::{fmt, ops::RangeInclusive};

use serde_json::{Map, Value};

use crate::error::ApiError;

/// Longest part of an offending value that an error message repeats.
const MAX_SHOWN_CHARS: usize = 40;

/// A value of a request's body and where it stands.
#[derive(Clone, Copy)]
pub struct Field<'a> {
    /// The value itself.
    pub value: &'a Value,
    place: Place<'a>,
}

/// Where a value stands.
#[derive(Clone, Copy)]
enum Place<'a> {
    Key(&'a str),
    KeyOf(&'a Place<'a>, &'a str),
    ItemOf(&'a Place<'a>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => f.write_str(key),
            Self::KeyOf(parent, key) => write!(f, "{parent}.{key}"),
            Self::ItemOf(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

impl<'a> Field<'a> {
    /// The top-level field `key` of a body.
    #[must_use]
    pub fn new(key: &'a str, value: &'a Value) -> Self {
        Self { value, place: Place::Key(key) }
    }

    /// The place as clients know it, for instance `messages[1].content`.
    #[must_use]
    pub fn param(&self) -> String {
        self.place.to_string()
    }

    /// An error about this field's value; `problem` follows the field's name.
    #[must_use]
    pub fn invalid(&self, problem: impl fmt::Display) -> ApiError {
        ApiError::invalid(self.param(), format!("'{}' {problem}", self.place))
    }

    /// An error for something that is known but not supported; `problem` follows the field's name.
    #[must_use]
    pub fn unsupported(&self, problem: impl fmt::Display) -> ApiError {
        ApiError::unsupported_value(self.param(), format!("'{}' {problem}", self.place))
    }

    /// An error for a field that nobody knows.
    #[must_use]
    pub fn unknown(&self) -> ApiError {
        ApiError::unknown(self.param())
    }

    /// An error for a key that must be there and is not.
    #[must_use]
    pub fn missing(&self, key: &str) -> ApiError {
        ApiError::missing(Place::KeyOf(&self.place, key).to_string())
    }

    fn wrong_type(&self, wanted: &str) -> ApiError {
        ApiError::invalid_type(self.param(), wanted, &shown(self.value))
    }

    /// A string.
    ///
    /// # Errors
    /// Names this field when it is anything else.
    pub fn string(&self) -> Result<&'a str, ApiError> {
        self.value.as_str().ok_or_else(|| self.wrong_type("a string"))
    }

    /// A string with a number of characters in `len`.
    ///
    /// # Errors
    /// Names this field when it is anything else.
    pub fn string_of_len(&self, len: RangeInclusive<usize>) -> Result<&'a str, ApiError> {
        let text = self.string()?;
        let num_chars = text.chars().count();
        if len.contains(&num_chars) {
            return Ok(text);
        }
        Err(self.invalid(format_args!("must have {} to {} characters, not {num_chars}", len.start(), len.end())))
    }

    /// One of a few strings.
    ///
    /// # Errors
    /// Names this field when it is anything else.
    pub fn one_of(&self, allowed: &[&str]) -> Result<&'a str, ApiError> {
        let text = self.string()?;
        if allowed.contains(&text) {
            return Ok(text);
        }
        Err(self.invalid(format_args!("must be one of {}, not {}", allowed.join(", "), shown(self.value))))
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// Names this field when it is anything else.
    pub fn flag(&self) -> Result<bool, ApiError> {
        self.value.as_bool().ok_or_else(|| self.wrong_type("true or false"))
    }

    /// A number within `range`.
    ///
    /// # Errors
    /// Names this field when it is anything else.
    pub fn number(&self, range: RangeInclusive<f64>) -> Result<f32, ApiError> {
        let number = self.value.as_f64().ok_or_else(|| self.wrong_type("a number"))?;
        if range.contains(&number) {
            #[expect(clippy::cast_possible_truncation, reason = "sampling computes in f32")]
            return Ok(number as f32);
        }
        Err(self.invalid(format_args!("must be between {} and {}, not {number}", range.start(), range.end())))
    }

    /// A whole number within `range`; `3.0` counts as one.
    ///
    /// # Errors
    /// Names this field when it is anything else.
    pub fn integer(&self, range: RangeInclusive<i64>) -> Result<i64, ApiError> {
        let Some(number) = self.value.as_number() else { return Err(self.wrong_type("an integer")) };
        let Some(integer) = whole(number) else { return Err(self.wrong_type("an integer")) };
        match i64::try_from(integer) {
            Ok(integer) if range.contains(&integer) => Ok(integer),
            _ if *range.end() == i64::MAX => {
                Err(self.invalid(format_args!("must be at least {}, not {number}", range.start())))
            }
            _ => Err(self.invalid(format_args!("must be between {} and {}, not {number}", range.start(), range.end()))),
        }
    }

    /// A count or id: a whole number within `range`, which lies within `u32`.
    ///
    /// # Errors
    /// Names this field when it is anything else.
    pub fn count(&self, range: RangeInclusive<u32>) -> Result<u32, ApiError> {
        let integer = self.integer(i64::from(*range.start())..=i64::from(*range.end()))?;
        Ok(u32::try_from(integer).expect("the range lies within u32"))
    }

    /// The items of a list.
    ///
    /// # Errors
    /// Names this field when it is anything else.
    pub fn items(&'a self) -> Result<impl ExactSizeIterator<Item = Field<'a>>, ApiError> {
        let items = self.value.as_array().ok_or_else(|| self.wrong_type("a list"))?;
        Ok(items.iter().enumerate().map(|(index, value)| Field { value, place: Place::ItemOf(&self.place, index) }))
    }

    /// The items of a list of at most `max` items.
    ///
    /// # Errors
    /// Names this field when it is anything else.
    pub fn items_up_to(&'a self, max: usize) -> Result<impl ExactSizeIterator<Item = Field<'a>>, ApiError> {
        let items = self.items()?;
        if items.len() > max {
            return Err(self.invalid(format_args!("must have at most {max} items, not {}", items.len())));
        }
        Ok(items)
    }

    /// The map behind an object.
    ///
    /// # Errors
    /// Names this field when it is anything else.
    pub fn map(&self) -> Result<&'a Map<String, Value>, ApiError> {
        self.value.as_object().ok_or_else(|| self.wrong_type("an object"))
    }

    /// The entries of an object whose value is not null.
    ///
    /// # Errors
    /// Names this field when it is anything else.
    pub fn entries(&'a self) -> Result<impl Iterator<Item = (&'a str, Field<'a>)>, ApiError> {
        let entries = self.map()?.iter().filter(|(_, value)| !value.is_null());
        Ok(entries.map(|(key, value)| (key.as_str(), Field { value, place: Place::KeyOf(&self.place, key) })))
    }

    /// The entry `key` of an object, if it is there and not null.
    ///
    /// # Errors
    /// Names this field when it is no object.
    pub fn entry(&'a self, key: &'a str) -> Result<Option<Field<'a>>, ApiError> {
        let value = self.map()?.get(key).filter(|value| !value.is_null());
        Ok(value.map(|value| Field { value, place: Place::KeyOf(&self.place, key) }))
    }
}

/// The whole number that `number` stands for, if it is one.
fn whole(number: &serde_json::Number) -> Option<i128> {
    if let Some(integer) = number.as_i128() {
        return Some(integer);
    }
    let float = number.as_f64()?;
    #[expect(clippy::cast_possible_truncation, reason = "saturates, and no range reaches that far")]
    (float.fract() == 0.0).then_some(float as i128)
}

/// `value` for an error message: strings and lists shortened.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::Array(items) => return format!("a list of {}", items.len()),
        Value::Object(_) => return "an object".to_owned(),
        other => other.to_string(),
    };
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "cases are written in place")]
mod tests {
    use serde_json::json;

    use super::*;

    fn check_integer(value: Value, expected: Option<i64>) {
        let field = Field::new("n", &value);
        assert_eq!(field.integer(1..=128).ok(), expected, "{value}");
    }

    #[test]
    fn integers_are_whole_and_in_range() {
        check_integer(json!(1), Some(1));
        check_integer(json!(128.0), Some(128));
        check_integer(json!(129), None);
        check_integer(json!(0), None);
        check_integer(json!(1.5), None);
        check_integer(json!(1e300), None);
        check_integer(json!(u64::MAX), None);
        check_integer(json!("1"), None);
        check_integer(json!(true), None);
    }

    #[test]
    fn an_error_names_the_place_of_a_nested_value() {
        let value = json!([{"content": "a"}, {"content": 7}]);
        let messages = Field::new("messages", &value);
        let second = messages.items().unwrap().nth(1).unwrap();
        let content = second.entry("content").unwrap().unwrap();
        assert_eq!(content.param(), "messages[1].content");
        assert!(content.string().is_err());
    }

    #[test]
    fn null_is_absent() {
        let value = json!({"a": null, "b": 1});
        let object = Field::new("x", &value);
        assert!(object.entry("a").unwrap().is_none());
        assert_eq!(object.entries().unwrap().count(), 1);
    }

    #[test]
    fn a_long_value_is_shortened_on_a_character_boundary() {
        let text = shown(&json!("模".repeat(100)));
        assert_eq!(text.chars().count(), MAX_SHOWN_CHARS + 1);
    }
}
