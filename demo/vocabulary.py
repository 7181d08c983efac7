"""Trains the byte-level BPE tokenizer on the generator's text.

The split is Qwen2's (digits one by one), so servers that know qwen2 tokenizers
know this one. All 256 bytes are in the vocabulary: any UTF-8 text has tokens.
"""

import json
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from chat import ADDED, SPECIAL, TEMPLATE, segments
from generator import Generator

SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def main(out, size=2048):
    tok = Tokenizer(models.BPE(byte_fallback=False, fuse_unk=False))
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tok.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    gen = Generator(7)
    texts = []
    for _ in range(40000):
        for text, _ in segments(gen.conversation()):
            for s in SPECIAL + ADDED:
                text = text.replace(s, "\n")
            texts.append(text)
    trainer = trainers.BpeTrainer(vocab_size=size - len(SPECIAL) - len(ADDED), min_frequency=3, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tok.train_from_iterator(texts, trainer)
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    tok.add_tokens([AddedToken(s, special=False, normalized=False) for s in ADDED])
    assert tok.get_vocab_size() == size, tok.get_vocab_size()
    tok.save(out + "/tokenizer.json")
    added = {str(tok.token_to_id(s)): {"content": s, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": s in SPECIAL} for s in SPECIAL + ADDED}
    with open(out + "/tokenizer_config.json", "w", encoding="utf-8") as f:
        json.dump({"add_prefix_space": False, "added_tokens_decoder": added, "bos_token": None, "chat_template": TEMPLATE, "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace",
                   "model_max_length": 4096, "pad_token": "<|endoftext|>", "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None}, f, indent=2, ensure_ascii=False)
        f.write("\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "model")
