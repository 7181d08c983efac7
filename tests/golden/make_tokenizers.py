#!/usr/bin/env python3
"""Makes the small tokenizers of the text tests and records what the `tokenizers` library does with them.

usage: make_tokenizers.py OUT_DIR     (pip install tokenizers; the version is written into cases.json)
"""
import json
import os
import sys

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "the mill grinds tokens, and the tokens become words; the words become what the reader reads",
    "a server that serves one small machine serves it well: it batches, it caches, it streams",
    "def add(left, right):\n    return left + right\n\n\ndef sub(left, right):\n    return left - right\n",
    "你好，世界。磨坊把词元磨成文字。今天的天气很好，我们一起去散步吧。",
    "It's 2025 and we've got 1,234.5 reasons; they're 'quoted', I'll say.",
]
TEXTS = [
    "",
    " ",
    "   three spaces  two ",
    "\n\n\r\n \t x",
    "Hello, world! It'S WE'VE 12345",
    "the mill grinds tokens",
    "def add(left, right):\n    return left + right\n",
    "你好，世界。今天的天气很好",
    "e\u0301 and \u00e9, \u212b and \u00c5",
    "emoji 😀👩‍👩‍👧 flags 🇨🇭",
    "\x00\x01\x7f control",
    "a" * 100 + " " * 50 + "!" * 30,
    "<|im_start|>user\nhi<|im_end|>\n",
    "a <|im_end|>b<|im_end|><|im_end|> c <think>d</think>",
    "<|im_start <|im_ end|> <|endoftext|",
    "<0x41> \u2581 literal",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")])
    bos = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", pair="<|endoftext|> $A $B", special_tokens=[bos]
    )
    return tokenizer


def byte_fallback():
    characters = sorted(set("".join(CORPUS).replace(" ", "\u2581")) - set("磨坊"))
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + characters
    merges = []
    for left, right in ["th", "\u2581t", "he", "in", "er", "re", "to", "de", "ad", ("\u2581t", "he"), ("in", "d"), "你好"]:
        if left in pieces and right in pieces and left + right not in pieces:
            merges.append((left, right))
            pieces.append(left + right)
    vocab = {piece: place for place, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    return tokenizer


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always")
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, show_progress=False, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    ends = [(text, tokenizer.token_to_id(text)) for text in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ends
    )
    return tokenizer


def word_pieces():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=260, show_progress=False, special_tokens=special)
    tokenizer.train_from_iterator(CORPUS, trainer)
    ends = [(text, tokenizer.token_to_id(text)) for text in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return tokenizer


def main():
    out = sys.argv[1]
    for name, tokenizer, bos, eos in [
        ("byte-level", byte_level(), None, "<|im_end|>"),
        ("byte-fallback", byte_fallback(), "<s>", "</s>"),
        ("unigram", unigram(), "<s>", "</s>"),
        ("word-pieces", word_pieces(), "[CLS]", "[SEP]"),
    ]:
        folder = f"{out}/{name}"
        os.makedirs(folder, exist_ok=True)
        tokenizer.save(f"{folder}/tokenizer.json", pretty=False)
        config = {"bos_token": bos, "eos_token": {"content": eos, "special": True}, "chat_template": CHATML}
        with open(f"{folder}/tokenizer_config.json", "w", encoding="utf-8") as file:
            json.dump(config, file, indent=1)
        cases = []
        for text in TEXTS:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            cases.append(
                {
                    "text": text,
                    "ids": ids,
                    "ids_with_special": tokenizer.encode(text, add_special_tokens=True).ids,
                    "decoded": tokenizer.decode(ids, skip_special_tokens=False),
                }
            )
        with open(f"{folder}/cases.json", "w", encoding="utf-8") as file:
            json.dump({"reference": f"tokenizers {tokenizers.__version__}", "cases": cases}, file, ensure_ascii=False, indent=0)


if __name__ == "__main__":
    main()
