//! What Python offers to chat templates beyond Jinja itself: `tojson` as `json.dumps`, `strftime`, string methods,
//! `raise_exception`. Lists and dicts cannot be changed in place (`append`, `update`), as in Hugging Face's sandbox.

use std::fmt::Write;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

/// Deepest nesting that `tojson` writes; deeper values are a template's trick.
const MAX_JSON_DEPTH: usize = 128;

/// A refusal by the template itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// Adds the functions, filters and methods of this file to `environment`.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    environment.add_filter("tojson", tojson);
    // Jinja lets nothing count as a list only where it is undefined; templates ask this of `tools`, which may be none.
    environment
        .add_test("iterable", |value: &Value| value.is_undefined() || (!value.is_none() && value.try_iter().is_ok()));
    environment.set_unknown_method_callback(|state, value, method, args| {
        match string_method(state, value, method, args)? {
            Some(result) => Ok(result),
            None => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
        }
    });
}

/// Methods of `str` that pycompat lacks; `None` for all others.
fn string_method(state: &State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let Some(text) = value.as_str() else { return Ok(None) };
    let argument = |idx: usize| {
        args.get(idx).and_then(Value::as_str).ok_or_else(|| {
            Error::new(ErrorKind::MissingArgument, format!("str.{method} needs a string as argument {}", idx + 1))
        })
    };
    state.consume_fuel(text.len() as u64 / 64)?;
    let tuple = |parts: [&str; 3]| Value::from_iter(parts);
    Ok(Some(match method {
        "removeprefix" => text.strip_prefix(argument(0)?).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(argument(0)?).unwrap_or(text).into(),
        "partition" => {
            let by = argument(0)?;
            text.split_once(by).map_or(tuple([text, "", ""]), |(left, right)| tuple([left, by, right]))
        }
        "rpartition" => {
            let by = argument(0)?;
            text.rsplit_once(by).map_or(tuple(["", "", text]), |(left, right)| tuple([left, by, right]))
        }
        "rsplit" if args.len() == 2 => {
            let num_splits = args[1].as_usize().unwrap_or(usize::MAX).saturating_add(1);
            let mut parts: Vec<&str> = text.rsplitn(num_splits, argument(0)?).collect();
            parts.reverse();
            Value::from_iter(parts)
        }
        _ => return Ok(None),
    }))
}

/// How `json.dumps` writes.
struct JsonStyle {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// `tojson` as Hugging Face defines it: `json.dumps`, nothing escaped for HTML.
#[expect(clippy::needless_pass_by_value, reason = "filters take their keyword arguments by value")]
fn tojson(state: &State<'_, '_>, value: &Value, ensure_ascii: Option<bool>, kwargs: Kwargs) -> Result<String, Error> {
    let indent = match kwargs.get::<Option<Value>>("indent")? {
        None => None,
        Some(indent) if indent.is_none() => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(indent.as_usize().unwrap_or(0).min(64)),
        }),
    };
    let separators = kwargs.get::<Option<Vec<String>>>("separators")?.unwrap_or_default();
    let default_item = if indent.is_some() { "," } else { ", " };
    let mut separators = separators.into_iter();
    let style = JsonStyle {
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.or(ensure_ascii).unwrap_or(false),
        indent,
        item_separator: separators.next().unwrap_or_else(|| default_item.to_owned()),
        key_separator: separators.next().unwrap_or_else(|| ": ".to_owned()),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    write_json(state, value, &style, 0, &mut out)?;
    Ok(out)
}

fn write_json(
    state: &State<'_, '_>,
    value: &Value,
    style: &JsonStyle,
    depth: usize,
    out: &mut String,
) -> Result<(), Error> {
    let refuse = |what: &str| Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}")));
    if depth > MAX_JSON_DEPTH {
        return refuse("the value is nested too deeply");
    }
    state.consume_fuel(1)?;
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number if value.is_integer() => write!(out, "{value}").expect("strings take text"),
        ValueKind::Number => match f64::try_from(value.clone()) {
            Ok(number) => out.push_str(&python_float(number)),
            Err(_) => return refuse("the number is out of range"),
        },
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            state.consume_fuel(text.len() as u64 / 16)?;
            write_json_string(text, style.ensure_ascii, out);
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut is_first = true;
            for item in value.try_iter()? {
                separate(style, depth, &mut is_first, out);
                write_json(state, &item, style, depth + 1, out)?;
            }
            close(style, depth, is_first, ']', out);
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort_keys {
                keys.sort();
            }
            out.push('{');
            let mut is_first = true;
            for key in keys {
                separate(style, depth, &mut is_first, out);
                write_json_string(&key.to_string(), style.ensure_ascii, out);
                out.push_str(&style.key_separator);
                write_json(state, &value.get_item(&key)?, style, depth + 1, out)?;
            }
            close(style, depth, is_first, '}', out);
        }
        ValueKind::Undefined => return refuse("the value is undefined"),
        _ => return refuse("the value is not JSON"),
    }
    Ok(())
}

fn separate(style: &JsonStyle, depth: usize, is_first: &mut bool, out: &mut String) {
    if !std::mem::take(is_first) {
        out.push_str(&style.item_separator);
    }
    break_line(style, depth + 1, out);
}

fn close(style: &JsonStyle, depth: usize, is_empty: bool, bracket: char, out: &mut String) {
    if !is_empty {
        break_line(style, depth, out);
    }
    out.push(bracket);
}

fn break_line(style: &JsonStyle, depth: usize, out: &mut String) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str(indent));
    }
}

fn write_json_string(text: &str, ensure_ascii: bool, out: &mut String) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            char if (char as u32) < 0x20 || (ensure_ascii && (char as u32) > 0x7e) => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}").expect("strings take text");
                }
            }
            char => out.push(char),
        }
    }
    out.push('"');
}

/// `repr(float)`: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
fn python_float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').expect("the format has an exponent");
        let exponent: i32 = exponent.parse().expect("an exponent is a small integer");
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    format!("{number:?}")
}

/// `datetime.strftime` in UTC and English for the directives that templates use; others stay as they are.
pub(super) fn strftime(format: &str, unix_s: i64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
    let days = unix_s.div_euclid(86_400);
    let seconds = unix_s.rem_euclid(86_400);
    let (year, month, day) = civil_date(days);
    let day_of_year = days - days_before_year(year) + 1;
    let weekday = (days + 3).rem_euclid(7); // 1970-01-01 was a Thursday.
    let pick = |names: &[&'static str], idx: i64| names[usize::try_from(idx).expect("an index within the table")];
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(char) = chars.next() {
        if char != '%' {
            out.push(char);
            continue;
        }
        let mut directive = chars.next();
        let is_bare = directive == Some('-');
        if is_bare {
            directive = chars.next();
        }
        let number = |value: i64, width: usize| if is_bare { value.to_string() } else { format!("{value:0width$}") };
        out.push_str(&match directive {
            Some('Y') => number(year, 4),
            Some('y') => number(year.rem_euclid(100), 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('H') => number(hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('f') => "000000".to_owned(),
            Some('j') => number(day_of_year, 3),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('B') => pick(&MONTHS, month - 1).to_owned(),
            Some('b' | 'h') => pick(&MONTHS, month - 1)[..3].to_owned(),
            Some('A') => pick(&DAYS, weekday).to_owned(),
            Some('a') => pick(&DAYS, weekday)[..3].to_owned(),
            Some('F') => format!("{year:04}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('D') => format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
            Some('R') => format!("{hour:02}:{minute:02}"),
            Some('z') | Some('Z') => String::new(), // A clock without a time zone prints none.
            Some('%') => "%".to_owned(),
            Some(other) => format!("%{other}"),
            None => "%".to_owned(),
        });
    }
    out
}

/// Year, month and day of a day counted from 1970-01-01, by Howard Hinnant's `civil_from_days`.
fn civil_date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Days from 1970-01-01 to the first of January of `year`.
fn days_before_year(year: i64) -> i64 {
    let past = year - 1;
    (past * 365 + past.div_euclid(4) - past.div_euclid(100) + past.div_euclid(400)) - 719_162
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (unix_s, expected) in [
            (0, "1970-01-01 Thu 001 12AM"),
            (951_782_399, "2000-02-28 Mon 059 11PM"),
            (951_782_400, "2000-02-29 Tue 060 12AM"),
            (1_767_225_599, "2025-12-31 Wed 365 11PM"),
            (4_107_542_400, "2100-03-01 Mon 060 12AM"),
            (-1, "1969-12-31 Wed 365 11PM"),
        ] {
            assert_eq!(strftime("%Y-%m-%d %a %j %I%p", unix_s), expected);
        }
        assert_eq!(strftime("%-d %B %y %% %Q %", 1_741_064_767), "4 March 25 % %Q %");
    }

    #[test]
    fn floats() {
        for (number, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-1.5e300, "-1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
        ] {
            assert_eq!(python_float(number), expected);
        }
    }
}
