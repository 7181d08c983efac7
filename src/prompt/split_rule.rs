//! How text is split before byte pairs merge, by the names that GGUF files have for it.
//!
//! A `tokenizer.json` says how text is split; a GGUF file only names it (`tokenizer.ggml.pre`). [`SPLITS`] is the one
//! table of these names; a new name is a new line there. Used when a tokenizer is built from a GGUF vocabulary.

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use super::tokenizer::TokenizerError;

/// One step of a splitting rule.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Every match is a piece of its own, and so is what lies between.
    Regex(&'static str),
    /// Every digit is a piece of its own.
    Digits,
}

/// How texts are split before merging, and what else goes with that.
pub(super) struct SplitRule {
    /// The names in `tokenizer.ggml.pre` that mean this rule.
    names: &'static [&'static str],
    steps: &'static [Step],
    /// Unicode normalization form C comes first.
    pub(super) nfc: bool,
    /// A piece of the split text that is in the vocabulary is taken whole.
    pub(super) ignore_merges: bool,
    /// Whether BOS is put in front where the file does not say.
    pub(super) add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As [`GPT4O`], with digits one by one.
const YOUTU: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As [`GPT4O`], where runs of Han characters are pieces of their own.
const KIMI: &str = r"\p{Han}+|[^\r\n\p{L}\p{N}]?[[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]&&[^\p{Han}]]*[[\p{Ll}\p{Lm}\p{Lo}\p{M}]&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]&&[^\p{Han}]]+[[\p{Ll}\p{Lm}\p{Lo}\p{M}]&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Han from the basic block, and kana.
const CJK: &str = "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const SPARK: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##;
/// Han, Hangul and what lies between, as DeepSeek's first models split it.
const DEEPSEEK_CJK: &str = "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const MINICPM5: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const NO_CONTRACTIONS: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Letters that have a case, of the alphabets that Unicode 12 knew.
const CASED: &str = "\\s?[A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{295}-\u{2af}\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}]+";

/// A rule without anything special.
const fn rule(names: &'static [&'static str], steps: &'static [Step]) -> SplitRule {
    SplitRule { names, steps, nfc: false, ignore_merges: false, add_bos: false }
}

/// The splitting rules that GGUF files name, with the expressions that the models' own `tokenizer.json` files have.
const SPLITS: &[SplitRule] = &[
    rule(
        &[
            "gpt-2",
            "gpt2",
            "phi-2",
            "mpt",
            "olmo",
            "gpt-neox",
            "jais",
            "trillion",
            "granite-docling",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "roberta-bpe",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v1-en",
            "jina-v2-code",
        ],
        &[Step::Regex(GPT2)],
    ),
    SplitRule {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        steps: &[Step::Regex(LLAMA3)],
        nfc: false,
        ignore_merges: true,
        add_bos: true,
    },
    rule(&["smaug-bpe", "dbrx", "chatglm-bpe", "glm4"], &[Step::Regex(LLAMA3)]),
    SplitRule {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "kormo", "f2llmv2"],
        steps: &[Step::Regex(QWEN2)],
        nfc: true,
        ignore_merges: false,
        add_bos: false,
    },
    rule(&["stablelm2", "hunyuan", "solar-open", "grok-2"], &[Step::Regex(QWEN2)]),
    SplitRule { names: &["qwen35"], steps: &[Step::Regex(QWEN35)], nfc: true, ignore_merges: false, add_bos: false },
    rule(&["laguna"], &[Step::Regex(r"[^\n]+|[\n]+"), Step::Regex(QWEN2)]),
    rule(&["ufakzeka"], &[Step::Regex(NO_CONTRACTIONS)]),
    rule(
        &["starcoder", "refact", "smollm", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[Step::Digits, Step::Regex(GPT2)],
    ),
    rule(&["falcon"], &[Step::Regex(r"[\p{P}\$\+<=>\^~\|`]+"), Step::Regex(GPT2), Step::Regex("[0-9][0-9][0-9]")]),
    rule(
        &["deepseek-llm"],
        &[
            Step::Regex("[\r\n]"),
            Step::Regex(CASED),
            Step::Regex(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
            Step::Regex(r"\s+$"),
            Step::Regex(DEEPSEEK_CJK),
            Step::Digits,
        ],
    ),
    rule(
        &["deepseek-coder"],
        &[
            Step::Regex("[\r\n]"),
            Step::Regex(r"\s?\p{L}+"),
            Step::Regex(r"\s?\p{P}+"),
            Step::Regex(DEEPSEEK_CJK),
            Step::Digits,
        ],
    ),
    rule(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[Step::Regex(r"\p{N}{1,3}"), Step::Regex(CJK), Step::Regex(DEEPSEEK3)],
    ),
    rule(&["spark2_5"], &[Step::Regex(r"\p{N}{1,3}"), Step::Regex(CJK), Step::Regex(SPARK), Step::Regex(r"\p{N}")]),
    SplitRule {
        names: &["youtu"],
        steps: &[
            Step::Regex(
                "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+",
            ),
            Step::Regex(YOUTU),
        ],
        nfc: false,
        ignore_merges: true,
        add_bos: false,
    },
    rule(&["poro-chat", "bloom", "gpt3-finnish"], &[Step::Regex(BLOOM)]),
    rule(&["viking"], &[Step::Regex(BLOOM), Step::Digits]),
    SplitRule { names: &["tekken"], steps: &[Step::Regex(TEKKEN)], nfc: false, ignore_merges: true, add_bos: true },
    rule(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[Step::Regex(GPT4O)]),
    rule(&["tiny_aya", "cohere2moe"], &[Step::Regex(r"\d{1,3}(?=(?:\d{3})*\b)"), Step::Regex(GPT4O)]),
    rule(&["kimi-k2"], &[Step::Regex(KIMI)]),
    rule(&["superbpe"], &[Step::Regex(r"\p{N}+"), Step::Regex(r"(?=(\d{3})+(?!\d))")]),
    rule(&["bailingmoe", "bailingmoe2", "llada-moe"], &[Step::Regex(BAILING)]),
    rule(&["seed-coder"], &[Step::Regex(SEED)]),
    rule(&["exaone-moe"], &[Step::Regex(EXAONE_MOE)]),
    rule(&["jais-2"], &[Step::Regex(JAIS2)]),
    SplitRule {
        names: &["minicpm5"],
        steps: &[Step::Regex(r"\p{N}{1,3}"), Step::Regex(MINICPM5)],
        nfc: false,
        ignore_merges: true,
        add_bos: false,
    },
    SplitRule {
        names: &["chameleon"],
        steps: &[
            Step::Regex("<sentinel:[0-9]+>"),
            Step::Regex("(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"),
            Step::Regex("([\t\n]|    |  )"),
            Step::Digits,
            Step::Regex(r"[\p{P}!-/:-@\[-`{-~]"),
            Step::Regex(GPT2),
        ],
        nfc: false,
        ignore_merges: false,
        add_bos: true,
    },
    // What readers of GGUF files do with a file that names no rule.
    rule(
        &["default", ""],
        &[
            Step::Regex(r"[\p{P}\$\+<=>\^~\|]+"),
            Step::Regex(GPT2),
            Step::Regex(r"\p{N}+"),
            Step::Regex("[0-9][0-9][0-9]"),
        ],
    ),
];

impl SplitRule {
    /// The rule that `tokenizer.ggml.pre` names; without a name, `default` and a warning.
    ///
    /// # Errors
    /// [`TokenizerError::Unsupported`] for an unknown name: a wrong rule would give wrong tokens without a word.
    pub(super) fn find(pre: Option<&str>) -> Result<&'static Self, TokenizerError> {
        if pre.is_none_or(str::is_empty) {
            tracing::warn!(
                "the file does not name its splitting rule (tokenizer.ggml.pre), so `default` is used; \
                 if the model makes little sense, convert it again with current tools"
            );
        }
        let pre = pre.unwrap_or("default");
        SPLITS.iter().find(|rule| rule.names.contains(&pre)).ok_or_else(|| {
            let known: Vec<&str> = Self::names().collect();
            TokenizerError::Unsupported(format!("tokenizer.ggml.pre is {pre:?}; known are {}", known.join(", ")))
        })
    }

    /// All names that are known.
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        SPLITS.iter().flat_map(|rule| rule.names).copied().filter(|name| !name.is_empty())
    }

    /// The rule, and bytes as GPT-2's characters.
    pub(super) fn pre_tokenizer(&self) -> Result<Sequence, TokenizerError> {
        let mut list: Vec<PreTokenizerWrapper> = Vec::with_capacity(self.steps.len() + 1);
        for step in self.steps {
            list.push(match step {
                Step::Digits => Digits::new(true).into(),
                Step::Regex(regex) => split(regex)?.into(),
            });
        }
        list.push(ByteLevel::new(false, true, false).into());
        Ok(Sequence::new(list))
    }
}

fn split(regex: &str) -> Result<Split, TokenizerError> {
    Split::new(SplitPattern::Regex(regex.to_owned()), SplitDelimiterBehavior::Isolated, false)
        .map_err(|error| TokenizerError::Invalid(format!("splitting rule: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    fn pieces(pre: &str, text: &str) -> Vec<String> {
        let mut split = PreTokenizedString::from(text);
        SplitRule::find(Some(pre)).unwrap().pre_tokenizer().unwrap().pre_tokenize(&mut split).unwrap();
        let splits = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(_, (start, end), _)| text[start..end].to_owned()).collect()
    }

    #[test]
    fn every_rule_splits_without_losing_text() {
        let text = "It's 1234567 naïve Tests,\r\n\n  don't (stop)!  你好ab世界 e\u{301}x\t<sentinel:12> ABCdef ";
        let mut num_names = 0;
        for name in SplitRule::names() {
            assert_eq!(pieces(name, text).concat(), text, "{name}");
            num_names += 1;
        }
        assert!(num_names > 60, "{num_names}");
        assert!(SplitRule::find(Some("llama-bpe-2")).err().unwrap().to_string().contains("llama-bpe-2"));
    }

    #[test]
    fn rules_split_where_the_models_do() {
        for (name, text, expected) in [
            ("qwen2", "a 1234'Sb", &["a", " ", "1", "2", "3", "4", "'S", "b"][..]),
            ("llama3", "a 1234'Sb", &["a", " ", "123", "4", "'S", "b"]),
            ("gpt-2", "a 1234'sb", &["a", " 1234", "'s", "b"]),
            ("qwen35", "xe\u{301}y", &["xe\u{301}y"]),
            ("qwen2", "xe\u{301}y", &["xe", "\u{301}y"]),
            ("tekken", "HTTPServer", &["HTTPServer"]),
            ("gpt-4o", "CamelCase's 1234", &["Camel", "Case's", " ", "123", "4"]),
            ("superbpe", "x1234567", &["x", "1", "234", "567"]),
            ("tiny_aya", "1234567", &["1", "234", "567"]),
            ("kimi-k2", "ab你好cd", &["ab", "你好", "cd"]),
            ("deepseek-v3", "x=12345你好", &["x", "=", "123", "45", "你好"]),
            ("falcon", "x``12345", &["x", "``", "123", "45"]),
            ("bloom", "a,b c", &["a", ",", "b", " c"]),
            ("starcoder", "a 12", &["a", " ", "1", "2"]),
            ("command-r", "a 12", &["a", " ", "1", "2"]),
        ] {
            assert_eq!(pieces(name, text), expected, "{name}: {text:?}");
        }
    }
}
