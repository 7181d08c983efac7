//! A byte-level BPE vocabulary of any size, made of nothing but letters.
//!
//! First the 256 bytes, then the merges that a list of common English words yields when byte pair encoding is trained
//! on it, then combinations of up to four letters, until the size is reached. So ordinary English takes few tokens,
//! every text can be encoded, and every token but the upper half of the bytes prints as ASCII.

use std::collections::{BTreeMap, HashMap};

use tokenmill_models::weights::gguf_writer::GgufHeader;

use crate::prompt::char_of_byte;

/// The special tokens, in the order of their ids.
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

const CHAT_TEMPLATE: &str = "{%- for message in messages %}\
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\
{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

/// Common English words, the commonest first; the rank stands in for the frequency (Zipf's law).
const WORDS: &str = "the of and to a in is that it was for on are as with his they be at one have this from or had by \
hot but some what there we can out other were all your when up use word how said an each she which do their time if will \
way about many then them would write like so these her long make thing see him two has look more day could go come did my \
sound no most number who over know water than call first people may down side been now find any new work part take get \
place made live where after back little only round man year came show every good me give our under name very through just \
form much great think say help low line before turn cause same mean differ move right boy old too does tell sentence set \
three want air well also play small end put home read hand port large spell add even land here must big high such follow \
act why ask men change went light kind off need house picture try us again animal point mother world near build self earth \
father head stand own page should country found answer school grow study still learn plant cover food sun four thought let \
keep eye never last door between city tree cross since hard start might story saw far sea draw left late run while press \
close night real life few stop open seem together next white children begin got walk example ease paper often always music \
those both mark book letter until mile river car feet care second group carry took rain eat room friend began idea fish \
mountain north once base hear horse cut sure watch color face wood main enough plain girl usual young ready above ever red \
list though feel talk bird soon body dog family direct pose leave song measure state product black short numeral class \
wind question happen complete ship area half rock order fire south problem piece told knew pass farm top whole king size \
heard best hour better true during hundred remember step early hold west ground interest reach fast five sing listen six \
table travel less morning ten simple several vowel toward war lay against pattern slow center love person money serve \
appear road map science rule govern pull cold notice voice fall power town fine certain fly unit lead cry dark machine \
note wait plan figure star box noun field rest correct able pound done beauty drive stood contain front teach week final \
gave green quick develop sleep warm free minute strong special mind behind clear tail produce fact street inch lot nothing \
course stay wheel full force blue object decide surface deep moon island foot yet busy test record boat common gold \
possible plane age dry wonder laugh thousand ago ran check game shape yes cool miss brought heat snow bed bring sit perhaps \
fill east weight language among model token server request response message system user assistant prompt cache memory \
please explain describe summarize function return value string data code error input output file text because however \
computer network program information important different between without through example following";

/// A generated vocabulary.
pub(super) struct Generated {
    tokens: Vec<String>,
    token_types: Vec<i32>,
    merges: Vec<String>,
    first_special: usize,
}

/// A vocabulary of `vocab_size` tokens, with the special ones from id `first_special` on.
pub(super) fn generate(vocab_size: usize, first_special: usize) -> Generated {
    let mut builder = Builder { pieces: Vec::new(), known: HashMap::new(), merges: Vec::new() };
    for byte in 0..=u8::MAX {
        builder.add(char_of_byte(byte).to_string());
    }
    let num_pieces = vocab_size - SPECIAL.len();
    assert!(builder.pieces.len() <= num_pieces, "a vocabulary of {vocab_size} has no room for all bytes");
    builder.train_on_words();
    builder.combine_letters(num_pieces);

    let mut tokens = builder.pieces;
    tokens.truncate(num_pieces);
    builder.merges.retain(|(_, largest_idx)| *largest_idx < num_pieces);
    let special = SPECIAL.map(str::to_owned);
    tokens.splice(first_special..first_special, special);
    let mut token_types = vec![1; tokens.len()];
    token_types[first_special..first_special + SPECIAL.len()].fill(3);
    Generated {
        tokens,
        token_types,
        merges: builder.merges.into_iter().map(|(merge, _)| merge).collect(),
        first_special,
    }
}

impl Generated {
    /// Adds the vocabulary's keys to a file's metadata; `pre` is the splitting rule.
    pub(super) fn put_into(&self, header: &mut GgufHeader, pre: &str) {
        let id = |offset: usize| u32::try_from(self.first_special + offset).expect("a vocabulary is far below 2^32");
        header.put_str("tokenizer.ggml.model", "gpt2");
        header.put_str("tokenizer.ggml.pre", pre);
        header.put_strs("tokenizer.ggml.tokens", &self.tokens);
        header.put_i32s("tokenizer.ggml.token_type", &self.token_types);
        header.put_strs("tokenizer.ggml.merges", &self.merges);
        header.put_u32("tokenizer.ggml.eos_token_id", id(2));
        header.put_u32("tokenizer.ggml.padding_token_id", id(0));
        header.put_bool("tokenizer.ggml.add_bos_token", false);
        header.put_str("tokenizer.chat_template", CHAT_TEMPLATE);
    }
}

struct Builder {
    pieces: Vec<String>,
    /// Index of each piece.
    known: HashMap<String, usize>,
    /// Each with the largest index among its pieces.
    merges: Vec<(String, usize)>,
}

impl Builder {
    fn add(&mut self, piece: String) -> usize {
        let idx = self.pieces.len();
        self.known.insert(piece.clone(), idx);
        self.pieces.push(piece);
        idx
    }

    /// The index of the piece that two known pieces make; a new one comes with its merge.
    fn merge(&mut self, left: &str, right: &str) -> usize {
        let piece = format!("{left}{right}");
        let idx = match self.known.get(&piece) {
            // Made of other parts before: this way leads to it as well.
            Some(&idx) => idx,
            None => self.add(piece),
        };
        let last_part = self.known[left].max(self.known[right]);
        self.merges.push((format!("{left} {right}"), idx.max(last_part)));
        idx
    }

    /// Byte pair encoding trained on [`WORDS`], with and without a space before and a capital at the start.
    fn train_on_words(&mut self) {
        let space = char_of_byte(b' ');
        let mut words: BTreeMap<String, usize> = BTreeMap::new();
        for (rank, word) in WORDS.split_whitespace().enumerate() {
            let count = 1_000_000 / (rank + 3);
            let capital = format!("{}{}", word[..1].to_uppercase(), &word[1..]);
            for (form, share) in [(format!("{space}{word}"), 1), (format!("{space}{capital}"), 8), (capital, 16)] {
                *words.entry(form).or_default() += count / share + 1;
            }
        }
        // Words as indices of pieces.
        let index_of =
            |char: char| self.pieces.iter().position(|piece| piece.starts_with(char)).expect("a byte's piece");
        let mut words: Vec<(Vec<usize>, usize)> =
            words.into_iter().map(|(word, count)| (word.chars().map(index_of).collect(), count)).collect();
        loop {
            let mut pairs: BTreeMap<(usize, usize), usize> = BTreeMap::new();
            for (parts, count) in &words {
                for pair in parts.windows(2) {
                    *pairs.entry((pair[0], pair[1])).or_default() += count;
                }
            }
            // Of equal counts the first in order, so that the vocabulary is always the same.
            let best = pairs.into_iter().max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(&a.0)));
            let Some(((left, right), _)) = best else { return };
            let joined = self.merge(&self.pieces[left].clone(), &self.pieces[right].clone());
            words.retain_mut(|(parts, _)| {
                join_pair(parts, (left, right), joined);
                parts.len() > 1
            });
        }
    }

    /// Adds combinations of letters until there are `num_pieces` pieces.
    fn combine_letters(&mut self, num_pieces: usize) {
        let letters: Vec<String> = ('a'..='z').map(String::from).collect();
        let space = char_of_byte(b' ').to_string();
        let starts: Vec<String> = letters.iter().map(|letter| format!("{space}{letter}")).collect();
        let capitals: Vec<String> = ('A'..='Z').map(String::from).collect();
        let pairs: Vec<String> = letters.iter().flat_map(|a| letters.iter().map(move |b| format!("{a}{b}"))).collect();
        let start_pairs: Vec<String> = pairs.iter().map(|pair| format!("{space}{pair}")).collect();
        self.merge_all(std::slice::from_ref(&space), &letters, num_pieces);
        for (left, right) in [
            (&letters, &letters),
            (&capitals, &letters),
            (&starts, &letters),
            (&pairs, &letters),
            (&start_pairs, &letters),
            (&start_pairs, &pairs),
            (&pairs, &pairs),
        ] {
            self.merge_all(left, right, num_pieces);
        }
        assert!(self.pieces.len() >= num_pieces, "letters make {} pieces, not {num_pieces}", self.pieces.len());
    }

    fn merge_all(&mut self, lefts: &[String], rights: &[String], num_pieces: usize) {
        for left in lefts {
            for right in rights {
                if self.pieces.len() >= num_pieces {
                    return;
                }
                if !self.known.contains_key(&format!("{left}{right}")) {
                    self.merge(left, right);
                }
            }
        }
    }
}

fn join_pair(parts: &mut Vec<usize>, pair: (usize, usize), joined: usize) {
    let mut idx = 0;
    while idx + 1 < parts.len() {
        if (parts[idx], parts[idx + 1]) == pair {
            parts[idx] = joined;
            parts.remove(idx + 1);
        }
        idx += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::{Special, Tokenizer, Vocabulary};

    fn tokenizer(vocab_size: usize, first_special: usize, pre: &str) -> Tokenizer {
        let generated = generate(vocab_size, first_special);
        Tokenizer::from_vocabulary(Vocabulary {
            model: "gpt2".to_owned(),
            pre: Some(pre.to_owned()),
            tokens: generated.tokens.iter().collect(),
            token_types: generated.token_types,
            merges: generated.merges.iter().collect(),
            ..Vocabulary::default()
        })
        .unwrap()
    }

    #[test]
    fn every_size_is_a_usable_vocabulary() {
        for (vocab_size, first_special, pre) in [(300, 5, "smollm"), (49_152, 0, "smollm"), (151_936, 151_643, "qwen2")]
        {
            let tokenizer = tokenizer(vocab_size, first_special, pre);
            assert_eq!(tokenizer.vocab_size(), vocab_size);
            assert_eq!(tokenizer.token_id("<|im_end|>"), Some(u32::try_from(first_special + 2).unwrap()));
            let mut num_bytes_only = 0;
            for id in 0..u32::try_from(vocab_size).unwrap() {
                match String::from_utf8(tokenizer.token_bytes(id)) {
                    Ok(text) => assert!(!text.is_empty() && text.is_ascii(), "{id}: {text:?}"),
                    Err(_) => num_bytes_only += 1,
                }
            }
            assert_eq!(num_bytes_only, 128);
            let text = "Hello, World! The 42 étés\n\tdef f(x): 你好 😀 <|im_start|>";
            let ids = tokenizer.encode(text, Special::Parse, false).unwrap();
            assert_eq!(tokenizer.decode(&ids, false), text);
            assert!(tokenizer.is_special(*ids.last().unwrap()));
        }
    }

    #[test]
    fn english_takes_few_tokens() {
        let text = "The people who live near the river often walk to the old school in the morning. Please explain how \
                    a computer can understand language, and describe the difference between these two methods.";
        let num_words = text.split_whitespace().count();
        let num_tokens = tokenizer(49_152, 0, "smollm").encode(text, Special::Parse, false).unwrap().len();
        assert!(num_tokens < num_words * 2, "{num_tokens} tokens for {num_words} words");
    }
}
