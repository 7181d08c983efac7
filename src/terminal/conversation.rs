//! What was said so far, and its file.
//!
//! After the system message, questions and answers alternate.

use super::ChatError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;

/// Largest file of a conversation.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// A conversation; as a file it is JSON with these fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Conversation {
    #[serde(default)]
    pub(super) system: Option<String>,
    messages: Vec<Message>,
}

/// One question or answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Message {
    role: Role,
    content: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    User,
    Assistant,
}

impl Conversation {
    /// Reads what [`Conversation::save`] wrote.
    ///
    /// # Errors
    /// When the file cannot be read or holds something else.
    pub(super) fn load(path: &Path) -> Result<Self, ChatError> {
        let error = |cause: String| ChatError::File { action: "read", path: path.to_owned(), cause };
        let size = std::fs::metadata(path).map_err(|cause| error(cause.to_string()))?.len();
        if size > MAX_FILE_BYTES {
            return Err(error(format!("{size} bytes are more than a conversation has")));
        }
        let text = std::fs::read(path).map_err(|cause| error(cause.to_string()))?;
        serde_json::from_slice(&text).map_err(|cause| error(format!("it is no saved conversation: {cause}")))
    }

    /// Writes the file whole, or leaves the old one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn save(&self, path: &Path) -> Result<(), ChatError> {
        let json = serde_json::to_vec_pretty(self).expect("text and names of roles are JSON");
        let error = |cause: std::io::Error| ChatError::File {
            action: "write",
            path: path.to_owned(),
            cause: cause.to_string(),
        };
        let mut partial = path.as_os_str().to_owned();
        partial.push(".part");
        std::fs::write(&partial, json).and_then(|()| std::fs::rename(&partial, path)).map_err(error)
    }

    /// Questions and answers.
    pub(super) fn turns(&self) -> &[Message] {
        &self.messages
    }

    /// As the API wants them, the system message first.
    pub(super) fn messages(&self) -> Vec<Value> {
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        system.chain(self.messages.iter().map(|message| json!(message))).collect()
    }

    pub(super) fn ask(&mut self, text: &str) {
        // A session that ended in a question is asked the new one instead.
        self.forget_question();
        self.messages.push(Message { role: Role::User, content: text.to_owned() });
    }

    pub(super) fn answer(&mut self, text: &str) {
        self.messages.push(Message { role: Role::Assistant, content: text.to_owned() });
    }

    /// Removes a question that has no answer.
    pub(super) fn forget_question(&mut self) {
        self.messages.pop_if(|message| message.role == Role::User);
    }

    /// Removes the last answer; whether there is a question to answer then.
    pub(super) fn forget_answer(&mut self) -> bool {
        self.messages.pop_if(|message| message.role == Role::Assistant);
        !self.messages.is_empty()
    }

    /// Forgets all but the system message.
    pub(super) fn clear(&mut self) {
        self.messages.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_alternate_and_survive_a_file() {
        let mut conversation = Conversation { system: Some("be brief".to_owned()), ..Conversation::default() };
        assert!(!conversation.forget_answer());
        conversation.ask("a");
        conversation.ask("b");
        conversation.answer("c");
        let roles = |conversation: &Conversation| {
            let texts = conversation.messages().into_iter().map(|message| message["content"].to_string());
            texts.collect::<String>()
        };
        assert_eq!(roles(&conversation), r#""be brief""b""c""#);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.json");
        conversation.save(&path).unwrap();
        assert_eq!(Conversation::load(&path).unwrap(), conversation);
        assert!(conversation.forget_answer());
        assert_eq!(roles(&conversation), r#""be brief""b""#);
        conversation.clear();
        assert_eq!(roles(&conversation), r#""be brief""#);
        std::fs::write(&path, "[]").unwrap();
        assert!(Conversation::load(&path).unwrap_err().to_string().contains("no saved conversation"));
        let nowhere = conversation.save(Path::new("/no/such/dir/x")).unwrap_err().to_string();
        assert!(nowhere.contains("cannot write /no/such/dir/x"), "{nowhere}");
    }
}
