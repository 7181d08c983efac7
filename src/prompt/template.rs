//! Chat templates: messages to prompt text, as Hugging Face's `apply_chat_template` renders them.
//!
//! Templates come with models and are programs: each render has a budget of fuel, output and recursion, so the worst
//! template costs milliseconds and an error. Clients never send templates. Used by `encode_chat`.

use std::collections::BTreeMap;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use serde_json::{Map, Value as Json};

use super::python;
use super::tokenizer::Tokenizer;

/// Longest prompt text that a template may produce, in bytes.
pub const MAX_RENDERED_BYTES: usize = 8 << 20;

/// Longest template source, in bytes; published ones stay below 20 kB.
const MAX_SOURCE_BYTES: usize = 1 << 20;

/// Instructions and 64-byte units of data that one render may cost. A prompt of 1,000 messages takes about 100,000.
const MAX_FUEL: u64 = 1_500_000;

const MAX_RECURSION: usize = 100;

/// The template used when a conversation has tools, where a model has one of its own for that.
const TOOL_TEMPLATE: &str = "tool_use";
const DEFAULT_TEMPLATE: &str = "default";

/// A model's chat templates, compiled.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

/// What a chat template is given.
#[derive(Clone, Debug)]
pub struct TemplateInput {
    /// A list of messages in OpenAI's form. Contents may be strings, null or lists of text parts; `arguments` of tool
    /// calls may be JSON in a string.
    pub messages: Json,
    /// A list of tools in OpenAI's form.
    pub tools: Option<Json>,
    /// Further template variables, such as `enable_thinking`. The names above and below win over these.
    pub kwargs: Map<String, Json>,
    /// Whether the prompt ends with the start of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Whether the prompt ends inside the last message, for the model to go on with it.
    pub continue_final_message: bool,
    /// The clock that a template may read, in seconds since 1970.
    pub now_unix_s: i64,
}

impl TemplateInput {
    /// `messages` with a generation prompt, no tools, and the system's clock.
    #[must_use]
    pub fn new(messages: Json) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self {
            messages,
            tools: None,
            kwargs: Map::new(),
            add_generation_prompt: true,
            continue_final_message: false,
            now_unix_s: i64::try_from(now).unwrap_or(0),
        }
    }
}

/// Why a prompt could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The model has no chat template.
    #[error("the model has no chat template; use /v1/completions, or give the model a chat_template.jinja")]
    Missing,
    /// The template is not valid.
    #[error("the chat template does not compile: {0}")]
    Compile(String),
    /// The template refused the conversation; the message is the template's own.
    #[error("the chat template refuses the conversation: {0}")]
    Raised(String),
    /// The conversation has a form that templates do not take.
    #[error("{0}")]
    Input(String),
    /// The render cost more than it may.
    #[error("the chat template exceeds its budget of time or output for this conversation")]
    TooCostly,
    /// The template failed on the conversation.
    #[error("the chat template fails on the conversation: {0}")]
    Render(String),
}

impl ChatTemplate {
    /// Compiles one template.
    ///
    /// # Errors
    /// [`TemplateError::Compile`] with the line.
    pub fn new(source: &str, bos_token: Option<&str>, eos_token: Option<&str>) -> Result<Self, TemplateError> {
        let sources = BTreeMap::from([(DEFAULT_TEMPLATE.to_owned(), source.to_owned())]);
        Self::from_sources(&sources, bos_token, eos_token)
    }

    /// Compiles the templates that came with `tokenizer`.
    ///
    /// # Errors
    /// [`TemplateError::Missing`] where there is none, [`TemplateError::Compile`] with the line.
    pub fn from_tokenizer(tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        Self::from_sources(tokenizer.chat_templates(), tokenizer.bos_token(), tokenizer.eos_token())
    }

    fn from_sources(
        sources: &BTreeMap<String, String>,
        bos_token: Option<&str>,
        eos_token: Option<&str>,
    ) -> Result<Self, TemplateError> {
        if !sources.contains_key(DEFAULT_TEMPLATE) {
            return Err(TemplateError::Missing);
        }
        let compile = |error: Error| TemplateError::Compile(describe(&error));
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(compile)?;
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(MAX_FUEL));
        environment.set_recursion_limit(MAX_RECURSION);
        python::install(&mut environment);
        for (name, source) in sources {
            if name != DEFAULT_TEMPLATE && name != TOOL_TEMPLATE {
                continue;
            }
            if source.len() > MAX_SOURCE_BYTES {
                let len = source.len();
                return Err(TemplateError::Compile(format!("it has {len} bytes, more than {MAX_SOURCE_BYTES}")));
            }
            environment.add_template_owned(name.clone(), without_generation_tags(source)).map_err(compile)?;
        }
        Ok(Self { environment, bos_token: bos_token.map(str::to_owned), eos_token: eos_token.map(str::to_owned) })
    }

    /// Renders the prompt text of a conversation.
    ///
    /// # Errors
    /// All variants but `Missing` and `Compile`; each is the fault of the conversation or of the template.
    pub fn render(&self, input: &TemplateInput) -> Result<String, TemplateError> {
        self.render_normal(input, normal_messages(&input.messages)?)
    }

    /// [`ChatTemplate::render`] with `messages`, which went through [`normal_messages`], in place of the input's.
    pub(super) fn render_normal(&self, input: &TemplateInput, messages: Json) -> Result<String, TemplateError> {
        if !input.continue_final_message {
            return self.render_messages(input, &messages);
        }
        let mut messages = messages;
        // A mark that no message has, so the end of the last message can be found whatever the template does to it.
        let mark = unused_mark(&messages);
        let last = messages.as_array_mut().and_then(|list| list.last_mut()).and_then(|last| last.get_mut("content"));
        let Some(Json::String(content)) = last else {
            return Err(TemplateError::Input("continue_final_message needs a last message with content".to_owned()));
        };
        content.push_str(&mark);
        content.push(' ');
        let mut text = self.render_messages(input, &messages)?;
        let Some(end) = text.rfind(&mark) else {
            return Err(TemplateError::Input(
                "continue_final_message: the chat template leaves out the last message".to_owned(),
            ));
        };
        let keeps_spaces = text[end + mark.len()..].starts_with(' ');
        text.truncate(end);
        if !keeps_spaces {
            text.truncate(text.trim_end().len());
        }
        Ok(text)
    }

    fn render_messages(&self, input: &TemplateInput, messages: &Json) -> Result<String, TemplateError> {
        let tools = input.tools.as_ref().filter(|tools| tools.as_array().is_some_and(|list| !list.is_empty()));
        let name = if tools.is_some() && self.environment.get_template(TOOL_TEMPLATE).is_ok() {
            TOOL_TEMPLATE
        } else {
            DEFAULT_TEMPLATE
        };
        let mut context: BTreeMap<&str, Value> = BTreeMap::new();
        context.insert("documents", Value::from(()));
        for (name, token) in [("bos_token", &self.bos_token), ("eos_token", &self.eos_token)] {
            if let Some(token) = token {
                context.insert(name, Value::from(token.as_str()));
            }
        }
        for (key, value) in &input.kwargs {
            context.insert(key, Value::from(Serde(value)));
        }
        context.insert("messages", Value::from(Serde(messages)));
        context.insert("tools", tools.map_or_else(|| Value::from(()), |tools| Value::from(Serde(tools))));
        context.insert("add_generation_prompt", Value::from(input.add_generation_prompt));
        let now_unix_s = input.now_unix_s;
        let clock = move |format: &str| python::strftime(format, now_unix_s);
        context.insert("strftime_now", Value::from_function(clock));

        let template = self.environment.get_template(name).map_err(|error| render_error(&error))?;
        let mut output = CappedOutput { bytes: Vec::new(), is_full: false };
        let context = Value::from_pairs(context);
        let result = template.render_captured_to(context, &mut output).map(|_| ());
        if output.is_full {
            return Err(TemplateError::TooCostly);
        }
        result.map_err(|error| render_error(&error))?;
        Ok(String::from_utf8(output.bytes).expect("templates write text"))
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { environment: _, bos_token, eos_token } = self;
        f.debug_struct("ChatTemplate").field("bos", bos_token).field("eos", eos_token).finish_non_exhaustive()
    }
}

/// Collects output up to [`MAX_RENDERED_BYTES`].
struct CappedOutput {
    bytes: Vec<u8>,
    is_full: bool,
}

impl io::Write for CappedOutput {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + data.len() > MAX_RENDERED_BYTES {
            self.is_full = true;
            return Err(io::Error::other("the output is too long"));
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Messages in the one form that templates take: content is a string, tool arguments are objects, and a key with the
/// value null is a key that is not there. Not to be applied twice: it reads strings as JSON.
pub(super) fn normal_messages(messages: &Json) -> Result<Json, TemplateError> {
    let refuse = |what: String| Err(TemplateError::Input(what));
    let Json::Array(list) = messages else { return refuse("messages must be a list".to_owned()) };
    let mut normal = Vec::with_capacity(list.len());
    for (idx, message) in list.iter().enumerate() {
        let Json::Object(message) = message else { return refuse(format!("messages[{idx}] must be an object")) };
        let mut copy = Map::new();
        for (key, value) in message {
            match (key.as_str(), value) {
                (_, Json::Null) => {}
                ("content", Json::Array(parts)) => {
                    copy.insert(key.clone(), Json::String(joined_text(parts, idx)?));
                }
                ("tool_calls", Json::Array(calls)) => {
                    copy.insert(key.clone(), Json::Array(calls.iter().map(with_parsed_arguments).collect()));
                }
                _ => {
                    copy.insert(key.clone(), value.clone());
                }
            }
        }
        // Clients name a model's thoughts in three ways, templates in two.
        let thoughts = ["reasoning_content", "thinking", "reasoning"].iter().find_map(|key| copy.get(*key)).cloned();
        if let Some(thoughts) = thoughts {
            copy.entry("thinking").or_insert_with(|| thoughts.clone());
            copy.insert("reasoning_content".to_owned(), thoughts);
        }
        copy.entry("content").or_insert_with(|| Json::String(String::new()));
        normal.push(Json::Object(copy));
    }
    Ok(Json::Array(normal))
}

/// The text parts of a content list, one below the other.
fn joined_text(parts: &[Json], message_idx: usize) -> Result<String, TemplateError> {
    let mut texts = Vec::with_capacity(parts.len());
    for (idx, part) in parts.iter().enumerate() {
        match part.get("text").or_else(|| part.get("refusal")).unwrap_or(part) {
            Json::String(text) => texts.push(text.as_str()),
            _ => {
                let place = format!("messages[{message_idx}].content[{idx}]");
                return Err(TemplateError::Input(format!("{place} is not a text part")));
            }
        }
    }
    Ok(texts.join("\n"))
}

/// OpenAI's clients send `arguments` as JSON in a string, templates expect the object. A string that is not JSON stays.
fn with_parsed_arguments(call: &Json) -> Json {
    let mut call = call.clone();
    let holder = if call.get("function").is_some() { call.get_mut("function") } else { Some(&mut call) };
    let arguments = holder.and_then(|function| function.get_mut("arguments"));
    let parsed = arguments.as_ref().and_then(|text| serde_json::from_str::<Json>(text.as_str()?).ok());
    if let (Some(arguments), Some(parsed)) = (arguments, parsed) {
        *arguments = parsed;
    }
    call
}

/// A word that occurs nowhere in `messages`: a hash of them, which no text holds of itself.
fn unused_mark(messages: &Json) -> String {
    format!("mark{}", blake3::hash(messages.to_string().as_bytes()).to_hex())
}

/// `{% generation %}` marks the assistant's words for training and prints nothing; here it becomes a block that does
/// the same, so that white space around it is treated alike.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else { break };
        let tag = &rest[start + 2..start + len];
        let word = tag.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        out.push_str(&rest[..start + 2]);
        match word {
            "generation" => out.push_str(&tag.replace(word, "if true")),
            "endgeneration" => out.push_str(&tag.replace(word, "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[start + len..];
    }
    out.push_str(rest);
    out
}

fn render_error(error: &Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(raised) = current.downcast_ref::<python::Raised>() {
            return TemplateError::Raised(raised.0.clone());
        }
        if current.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::TooCostly;
        }
        cause = current.source();
    }
    TemplateError::Render(describe(error))
}

fn describe(error: &Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("line {line}: {detail}"),
        None => detail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::{Duration, Instant};

    fn render(source: &str, messages: Json) -> Result<String, TemplateError> {
        ChatTemplate::new(source, Some("<s>"), None)?.render(&TemplateInput::new(messages))
    }

    fn check(source: &str, expected: &str) {
        let messages = json!([{"role": "user", "content": "a<b>é'\n"}]);
        assert_eq!(render(source, messages).unwrap(), expected, "{source}");
    }

    #[test]
    fn renders_as_python_does() {
        check("{{ bos_token }}{{ eos_token }}{{ messages[0].content | tojson }}", r#"<s>"a<b>é'\n""#);
        check("{{ {'a': [1, 2.0, none, true], 'b': {}} | tojson }}", r#"{"a": [1, 2.0, null, true], "b": {}}"#);
        check("{{ {'b': 1, 'a': []} | tojson(indent=2, sort_keys=true) }}", "{\n  \"a\": [],\n  \"b\": 1\n}");
        check("{{ 'é😀' | tojson(ensure_ascii=true) }}", r#""\u00e9\ud83d\ude00""#);
        check("{{ [1, 'a'] | tojson(separators=(',', ':')) }}", r#"[1,"a"]"#);
        check("{{ [1e16, 1e-5, 0.0001, 123456789.5] | tojson }}", "[1e+16, 1e-05, 0.0001, 123456789.5]");
        check("{{ messages[0] }}", r#"{'role': 'user', 'content': "a<b>é'\n"}"#);
        check("{{ 'xay'.removeprefix('x').removesuffix('y') }}", "a");
        check("{{ 'a=b=c'.partition('=')[2] }}|{{ 'a=b=c'.rpartition('=')[0] }}", "b=c|a=b");
        check("{{ 'a b c'.rsplit(' ', 1) | tojson }}", r#"["a b", "c"]"#);
        check("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc");
        check("a{% generation %}b{%- endgeneration -%} c", "abc");
        check("{{ messages[0].nothing }}{{ tools is none }}{{ documents is none }}", "TrueTrue");
    }

    #[test]
    fn the_clock_is_the_inputs() {
        let template = ChatTemplate::new("{{ strftime_now('%d %b %Y %H:%M') }}", None, None).unwrap();
        let mut input = TemplateInput::new(json!([]));
        input.now_unix_s = 1_741_064_767;
        assert_eq!(template.render(&input).unwrap(), "04 Mar 2025 05:06");
    }

    #[test]
    fn messages_take_the_form_that_templates_expect() {
        let messages = json!([
            {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "name": null},
            {"role": "assistant", "content": null, "tool_calls": [
                {"type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}},
                {"type": "function", "function": {"name": "g", "arguments": "not json"}}]},
        ]);
        let source = "{% for m in messages %}[{{ m.content }}|{{ m.name is defined }}\
                      {% for c in m.tool_calls %}|{{ c.function.arguments | tojson }}{% endfor %}]{% endfor %}";
        assert_eq!(render(source, messages).unwrap(), "[one\ntwo|False][|False|{\"x\": 1}|\"not json\"]");
    }

    #[test]
    fn thoughts_have_every_name() {
        let source = "{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}";
        for key in ["reasoning_content", "thinking", "reasoning"] {
            let messages = json!([{"role": "assistant", "content": "x", key: "hm"}]);
            assert_eq!(render(source, messages).unwrap(), "hm|hm", "{key}");
        }
    }

    #[test]
    fn refusals_carry_the_templates_words() {
        let error =
            render("{% macro m() %}{{ raise_exception('roles must alternate') }}{% endmacro %}{{ m() }}", json!([]));
        assert!(matches!(error, Err(TemplateError::Raised(message)) if message == "roles must alternate"));
        assert!(matches!(render("{% if %}", json!([])), Err(TemplateError::Compile(_))));
        assert!(matches!(render("{{ messages[0].a.b }}", json!([])), Err(TemplateError::Render(_))));
        assert!(matches!(ChatTemplate::from_sources(&BTreeMap::new(), None, None), Err(TemplateError::Missing)));
    }

    #[test]
    fn the_last_message_can_be_continued() {
        let source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}";
        let kept = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}";
        for (source, expected) in [(source, "<user>hi</><assistant>Sure,"), (kept, "<user>hi</><assistant>Sure, ")] {
            let template = ChatTemplate::new(source, None, None).unwrap();
            let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Sure, "}]);
            let mut input = TemplateInput::new(messages);
            input.continue_final_message = true;
            // A template that trims loses the space together with the mark's, as it does in the reference.
            let text = template.render(&input).unwrap();
            assert_eq!(text, expected, "{source}");
        }
        let silent = ChatTemplate::new("nothing", None, None).unwrap();
        let mut input = TemplateInput::new(json!([{"role": "assistant", "content": "x"}]));
        input.continue_final_message = true;
        assert!(matches!(silent.render(&input), Err(TemplateError::Input(_))));
    }

    #[test]
    fn hostile_templates_end_soon() {
        for source in [
            "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
            "{% for a in range(100000) %}{{ 'x' * 100000 }}{% endfor %}",
            "{% set x = 'x' * 1000000000 %}{{ x | length }}",
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "{% set ns = namespace(x=[]) %}{% for i in range(200) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        ] {
            let started = Instant::now();
            let result = render(source, json!([]));
            assert!(result.is_err(), "{source}");
            // Tens of milliseconds on an idle machine with optimized code.
            assert!(started.elapsed() < Duration::from_secs(5), "{source} took {:?}", started.elapsed());
        }
        let deep = format!("{}{}", "{% if true %}".repeat(5000), "{% endif %}".repeat(5000));
        assert!(matches!(render(&deep, json!([])), Err(TemplateError::Compile(_))));
    }
}
