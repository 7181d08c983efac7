//! What a typed line asks for: a message, or one of the commands that begin with `/`.

use std::path::PathBuf;

/// A command as `/help` and the Tab key know it.
pub(super) struct Row {
    /// With the slash.
    pub(super) name: &'static str,
    pub(super) usage: &'static str,
    pub(super) about: &'static str,
}

const fn row(name: &'static str, usage: &'static str, about: &'static str) -> Row {
    Row { name, usage, about }
}

/// Every command; a letter is enough where it is the only one.
pub(super) const COMMANDS: &[Row] = &[
    row("/help", "/help", "this list"),
    row("/new", "/new", "forget the conversation; the system message stays"),
    row("/regenerate", "/regenerate", "answer the last message again"),
    row("/system", "/system [TEXT|off]", "show, set or remove the system message"),
    row("/model", "/model [NAME]", "list the server's models, or talk to another"),
    row("/save", "/save FILE", "write the conversation to a file"),
    row("/stats", "/stats", "turn figures after each answer on or off"),
    row("/quit", "/quit", "leave, as Ctrl-D does"),
];

/// A line that was understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Say(String),
    Help,
    New,
    Regenerate,
    System(Option<String>),
    Model(Option<String>),
    Save(PathBuf),
    Stats,
    Quit,
}

/// Reads a line; `None` for a blank one.
///
/// # Errors
/// What is wrong with a command, for the user.
pub(super) fn parse(line: &str) -> Result<Option<Command>, String> {
    let text = unwrapped(line);
    if text.trim().is_empty() {
        return Ok(None);
    }
    if let Some(rest) = text.strip_prefix("//") {
        return Ok(Some(Command::Say(format!("/{rest}"))));
    }
    if !text.starts_with('/') {
        return Ok(Some(Command::Say(text)));
    }
    let (name, argument) = text.split_once(char::is_whitespace).unwrap_or((&text, ""));
    let argument = Some(argument.trim().to_owned()).filter(|argument| !argument.is_empty());
    let matching: Vec<&str> = COMMANDS.iter().map(|row| row.name).filter(|known| known.starts_with(name)).collect();
    let name = match matching[..] {
        [only] => only,
        _ if COMMANDS.iter().any(|row| row.name == name) => name,
        [] => return Err(format!("no command {name}; /help lists them, // sends a line that begins with /")),
        _ => return Err(format!("{name} may be {}", matching.join(" or "))),
    };
    Ok(Some(match name {
        "/help" => Command::Help,
        "/new" => Command::New,
        "/regenerate" => Command::Regenerate,
        "/system" => Command::System(argument),
        "/model" => Command::Model(argument),
        "/save" => Command::Save(argument.ok_or("/save needs the name of a file")?.into()),
        "/stats" => Command::Stats,
        _ => Command::Quit,
    }))
}

/// Whether the line goes on: a `\` at its end, or a `"""` that is not closed.
pub(super) fn is_unfinished(line: &str) -> bool {
    match line.trim_start().strip_prefix("\"\"\"") {
        Some(rest) => !rest.contains("\"\"\""),
        None => line.ends_with('\\'),
    }
}

/// A line without what only says that it goes on.
fn unwrapped(line: &str) -> String {
    match line.trim_start().strip_prefix("\"\"\"") {
        Some(rest) => rest.trim_end().trim_end_matches("\"\"\"").trim_matches('\n').to_owned(),
        None => line.replace("\\\n", "\n").trim_end().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        let say = |text: &str| Ok(Some(Command::Say(text.to_owned())));
        assert_eq!(parse("hi there "), say("hi there"));
        assert_eq!(parse("//etc is a folder"), say("/etc is a folder"));
        assert_eq!(parse("one\\\ntwo"), say("one\ntwo"));
        assert_eq!(parse("\"\"\"\none\n\ntwo\n\"\"\""), say("one\n\ntwo"));
        assert_eq!(parse("  "), Ok(None));
        assert_eq!(parse("/system be brief"), Ok(Some(Command::System(Some("be brief".to_owned())))));
        assert_eq!(parse("/system"), Ok(Some(Command::System(None))));
        assert_eq!(parse("/r"), Ok(Some(Command::Regenerate)));
        assert_eq!(parse("/save a b.json"), Ok(Some(Command::Save("a b.json".into()))));
        assert!(parse("/s").unwrap_err().contains("/system or /save or /stats"));
        assert!(parse("/what").unwrap_err().contains("/help"));
        assert!(parse("/save").unwrap_err().contains("file"));
        for row in COMMANDS {
            assert!(row.usage.starts_with(row.name) && parse(&format!("{} x", row.name)).unwrap().is_some());
        }
    }

    #[test]
    fn lines_go_on_where_they_say_so() {
        for (line, goes_on) in
            [("a", false), ("a\\", true), ("a\\\nb", false), ("\"\"\"a", true), ("\"\"\"a\n\"\"\"", false)]
        {
            assert_eq!(is_unfinished(line), goes_on, "{line:?}");
        }
    }
}
