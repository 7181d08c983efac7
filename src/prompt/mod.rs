//! Messages to token ids: chat templates, tokenizers, and special tokens that stay text in what users write.
//!
//! [`encode_chat`] is the way in. It is slow work (milliseconds, more for long texts), so the API runs it on the
//! blocking pool, never on the threads that serve sockets.

mod assembly;
mod byte_alphabet;
mod decoder;
mod literal;
mod model;
mod pieces;
mod python;
mod sentencepiece;
mod special;
mod split_rule;
pub mod template;
pub mod tokenizer;
pub mod vocabulary;

pub(crate) use byte_alphabet::char_of_byte;
pub(crate) use pieces::TextAssembler;
pub use special::{SpecialToken, SpecialTokens};
pub use template::{ChatTemplate, TemplateError, TemplateInput};
pub use tokenizer::{Special, TokenId, Tokenizer, TokenizerError};
pub use vocabulary::{TextList, Vocabulary};

use literal::Disguise;

/// A conversation as the model reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedChat {
    /// The rendered prompt.
    pub text: String,
    /// Its token ids.
    pub ids: Vec<TokenId>,
}

/// Why a conversation could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The template did not render it.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The rendered text could not be tokenized.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// Renders and encodes a conversation. The text of special tokens in messages, tools and template variables stays
/// text: only the template's own special tokens become tokens.
///
/// # Errors
/// What the template and the tokenizer refuse; see [`TemplateError`] and [`TokenizerError`].
pub fn encode_chat(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    input: &TemplateInput,
) -> Result<EncodedChat, PromptError> {
    // Before looking for special tokens: JSON in strings may spell them with escapes.
    let messages = template::normal_messages(&input.messages)?;
    let kwargs = serde_json::Value::Object(input.kwargs.clone());
    let mut parts = vec![&messages, &kwargs];
    parts.extend(&input.tools);
    let Some(disguise) = Disguise::for_parts(tokenizer.special_tokens(), &parts) else {
        let text = template.render_normal(input, messages)?;
        let ids = tokenizer.encode(&text, Special::Parse, false)?;
        return Ok(EncodedChat { text, ids });
    };
    let disguised = TemplateInput {
        messages: serde_json::Value::Null,
        tools: input.tools.as_ref().map(|tools| disguise.apply(tools)),
        kwargs: disguise.apply_map(&input.kwargs),
        ..*input
    };
    let rendered = template.render_normal(&disguised, disguise.apply(&messages))?;
    let ids = disguise.encode(tokenizer, &rendered)?;
    Ok(EncodedChat { text: disguise.remove(&rendered), ids })
}

#[cfg(test)]
mod golden;
#[cfg(test)]
pub(crate) use golden::Numbers;
