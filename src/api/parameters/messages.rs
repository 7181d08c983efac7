//! The `messages` of a chat: checked one by one and brought to the form that chat templates expect.
//!
//! Every accepted key either reaches the template or is known to say nothing (`annotations`, `refusal: null`, …), so that
//! an assistant message can be sent back just as it was received.

use serde_json::{Map, Value, json};

use super::field::Field;
use crate::error::ApiError;

/// Checks `messages` and returns them as templates read them: `content` a string, arguments of tool calls as objects.
///
/// # Errors
/// Names the message and key that is wrong, for instance `messages[1].content`.
pub(in crate::api) fn read_messages(field: &Field<'_>) -> Result<Vec<Value>, ApiError> {
    let items = field.items()?;
    if items.len() == 0 {
        return Err(field.invalid("must have at least one message"));
    }
    items.map(|message| read_message(&message)).collect()
}

fn read_message(message: &Field<'_>) -> Result<Value, ApiError> {
    let Some(role_field) = message.entry("role")? else { return Err(message.missing("role")) };
    let role = role_field.one_of(&["developer", "system", "user", "assistant", "tool", "function"])?;
    let mut out = Map::new();
    // Templates know `system` and `tool`; the other two names are newer and older words for them.
    let template_role = match role {
        "developer" => "system",
        "function" => "tool",
        other => other,
    };
    out.insert("role".to_owned(), template_role.into());
    for (key, field) in message.entries()? {
        match (role, key) {
            (_, "role") => {}
            (_, "content") => {
                out.insert(key.to_owned(), read_content(&field, role)?.into());
            }
            (_, "name") => {
                out.insert(key.to_owned(), field.string_of_len(1..=256)?.into());
            }
            ("assistant", "tool_calls") => {
                out.insert(key.to_owned(), read_tool_calls(&field)?);
            }
            ("assistant", "function_call") => {
                let function = read_function(&field)?;
                out.insert("tool_calls".to_owned(), json!([{"type": "function", "function": function}]));
            }
            ("assistant", "reasoning" | "reasoning_content") => {
                out.insert("reasoning_content".to_owned(), field.string()?.into());
            }
            ("assistant", "refusal") => {
                let refusal = field.string()?;
                out.entry("content").or_insert_with(|| refusal.into());
            }
            ("assistant", "annotations") => {
                field.items().map(drop)?;
            }
            ("assistant", "audio") => return Err(field.unsupported("is not supported: this server reads text only")),
            ("tool", "tool_call_id") => {
                out.insert(key.to_owned(), field.string_of_len(1..=256)?.into());
            }
            _ => return Err(field.unknown()),
        }
    }
    complete(message, role, out)
}

/// Refuses a message that lacks what its role needs.
fn complete(message: &Field<'_>, role: &str, mut out: Map<String, Value>) -> Result<Value, ApiError> {
    if !out.contains_key("content") {
        if !out.contains_key("tool_calls") {
            return Err(message.missing("content"));
        }
        out.insert("content".to_owned(), "".into());
    }
    if role == "tool" && !out.contains_key("tool_call_id") {
        return Err(message.missing("tool_call_id"));
    }
    if role == "function" && !out.contains_key("name") {
        return Err(message.missing("name"));
    }
    Ok(Value::Object(out))
}

/// A string, or text parts joined by line breaks.
fn read_content(field: &Field<'_>, role: &str) -> Result<String, ApiError> {
    if !field.value.is_array() {
        return Ok(field.string()?.to_owned());
    }
    let parts = field.items()?;
    if parts.len() == 0 {
        return Err(field.invalid("must have at least one part"));
    }
    let texts: Result<Vec<&str>, ApiError> = parts.map(|part| read_part(&part, role)).collect();
    Ok(texts?.join("\n"))
}

fn read_part<'a>(part: &Field<'a>, role: &str) -> Result<&'a str, ApiError> {
    let Some(kind_field) = part.entry("type")? else { return Err(part.missing("type")) };
    let kind = kind_field.string()?;
    let text_key = match kind {
        "text" => "text",
        "refusal" if role == "assistant" => "refusal",
        "image_url" | "input_audio" | "file" | "video_url" | "audio_url" => {
            return Err(kind_field.unsupported(format_args!("'{kind}' is not supported: this server reads text only")));
        }
        _ => return Err(kind_field.invalid(format_args!("must be text, not '{kind}'"))),
    };
    let mut text = None;
    for (key, field) in part.entries()? {
        if key == text_key {
            field.string()?;
            text = part.value.get(text_key).and_then(Value::as_str);
        } else if key != "type" {
            return Err(field.unknown());
        }
    }
    text.ok_or_else(|| part.missing(text_key))
}

fn read_tool_calls(field: &Field<'_>) -> Result<Value, ApiError> {
    let mut calls = Vec::new();
    for call in field.items()? {
        let (mut id, mut function) = (None, None);
        for (key, field) in call.entries()? {
            match key {
                "id" => id = Some(field.string()?.to_owned()),
                "type" => {
                    field.one_of(&["function"])?;
                }
                "function" => function = Some(read_function(&field)?),
                "index" => {
                    field.integer(0..=i64::MAX)?;
                }
                _ => return Err(field.unknown()),
            }
        }
        let function = function.ok_or_else(|| call.missing("function"))?;
        let mut out = Map::new();
        if let Some(id) = id {
            out.insert("id".to_owned(), id.into());
        }
        out.insert("type".to_owned(), "function".into());
        out.insert("function".to_owned(), function);
        calls.push(Value::Object(out));
    }
    Ok(Value::Array(calls))
}

/// `{name, arguments}` with the arguments as an object where they parse as one: templates print them as JSON themselves.
fn read_function(field: &Field<'_>) -> Result<Value, ApiError> {
    let Some(name) = field.entry("name")? else { return Err(field.missing("name")) };
    let name = name.string_of_len(1..=256)?;
    let arguments = match field.entry("arguments")? {
        None => Value::Object(Map::new()),
        Some(arguments) => {
            if arguments.value.is_object() {
                arguments.value.clone()
            } else {
                let text = arguments.string()?;
                serde_json::from_str::<Map<String, Value>>(text).map_or_else(|_| text.into(), Value::Object)
            }
        }
    };
    Ok(json!({"name": name, "arguments": arguments}))
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "cases are written in place")]
mod tests {
    use super::*;

    fn read(messages: Value) -> Result<Vec<Value>, ApiError> {
        read_messages(&Field::new("messages", &messages))
    }

    fn check_param(messages: Value, param: &str) {
        let error = read(messages.clone()).expect_err(param);
        assert_eq!(error.param(), Some(param), "{messages}");
    }

    #[test]
    fn parts_of_text_become_one_string() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let messages = read(json!([{"role": "user", "content": parts}])).unwrap();
        assert_eq!(messages, vec![json!({"role": "user", "content": "a\nb"})]);
    }

    #[test]
    fn an_assistant_message_can_be_sent_back_as_received() {
        let message = json!({"role": "assistant", "content": "hi", "refusal": null, "annotations": [], "audio": null,
            "function_call": null, "tool_calls": null});
        assert_eq!(read(json!([message])).unwrap(), vec![json!({"role": "assistant", "content": "hi"})]);
    }

    #[test]
    fn tool_calls_reach_the_template_with_parsed_arguments() {
        let call = json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}});
        let messages = read(json!([
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
        ]))
        .unwrap();
        assert_eq!(messages[0]["tool_calls"][0]["function"]["arguments"], json!({"a": 1}));
        assert_eq!(messages[0]["content"], "");
        assert_eq!(messages[1]["tool_call_id"], "c1");
    }

    #[test]
    fn the_newer_and_older_role_names_are_translated() {
        let messages = read(json!([
            {"role": "developer", "content": "d"},
            {"role": "function", "name": "f", "content": "1"},
        ]))
        .unwrap();
        assert_eq!((&messages[0]["role"], &messages[1]["role"]), (&json!("system"), &json!("tool")));
    }

    #[test]
    fn each_error_names_its_place() {
        check_param(json!([]), "messages");
        check_param(json!("hi"), "messages");
        check_param(json!(["hi"]), "messages[0]");
        check_param(json!([{"content": "x"}]), "messages[0].role");
        check_param(json!([{"role": "robot", "content": "x"}]), "messages[0].role");
        check_param(json!([{"role": "user"}]), "messages[0].content");
        check_param(json!([{"role": "user", "content": 1}]), "messages[0].content");
        check_param(
            json!([{"role": "user", "content": "x"}, {"role": "user", "content": null}]),
            "messages[1].content",
        );
        check_param(json!([{"role": "user", "content": "x", "colour": "red"}]), "messages[0].colour");
        check_param(json!([{"role": "user", "content": []}]), "messages[0].content");
        check_param(json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text");
        check_param(
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            "messages[0].content[0].type",
        );
        check_param(json!([{"role": "tool", "content": "x"}]), "messages[0].tool_call_id");
        check_param(json!([{"role": "assistant", "tool_calls": [{"id": "a"}]}]), "messages[0].tool_calls[0].function");
    }
}
