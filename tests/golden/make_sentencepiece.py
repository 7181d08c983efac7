#!/usr/bin/env python3
"""Trains small SentencePiece models, writes their vocabularies as a GGUF file would hold them, and records what the
`sentencepiece` library does with them.

usage: make_sentencepiece.py OUT_DIR     (pip install sentencepiece; the version is written into each file)
"""
import io
import json
import sys

import sentencepiece

from make_tokenizers import CORPUS, TEXTS

# Replacements as SentencePiece takes them: code points in hexadecimal, from and to.
RULES = {"ﬁ": "fi", "ﬂ": "fl", "Å": "A", "Å": "A", "\t": " ", "\n": " ", "\u3000": " ", "™": "TM", "e\u0301": "é", "\x7f": ""}
MORE = ["ﬁne ﬂow Å Å™ e\u0301e\u0301 \x7fx", "a\u3000b  c", "  lead and trail  "]


def train(kind, **options):
    with open("/tmp/rules.tsv", "w", encoding="utf-8") as file:
        for left, right in RULES.items():
            points = (" ".join(f"{ord(char):x}" for char in text) for text in (left, right))
            file.write("\t".join(points) + "\n")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4), model_writer=model, model_type=kind, minloglevel=2, **options
    )
    return model.getvalue()


def write(path, name, model, with_charsmap):
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    kinds = [piece.type for piece in proto.pieces]  # the numbers are GGUF's
    cases = []
    for text in TEXTS + MORE:
        if "<|" in text or "\x00" in text:
            continue
        ids = processor.encode(text)
        cases.append({"text": text, "ids": ids, "decoded": processor.decode(ids)})
    vocabulary = {
        "reference": f"sentencepiece {sentencepiece.__version__}",
        "model": name,
        "tokens": [piece.piece for piece in proto.pieces],
        "scores": [piece.score for piece in proto.pieces],
        "token_types": kinds,
        "charsmap": proto.normalizer_spec.precompiled_charsmap.hex() if with_charsmap else "",
        "add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
        "remove_extra_whitespaces": proto.normalizer_spec.remove_extra_whitespaces,
        "cases": cases,
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(vocabulary, file, ensure_ascii=False)


def main():
    out = sys.argv[1]
    unigram = train("unigram", vocab_size=230, hard_vocab_limit=False, normalization_rule_tsv="/tmp/rules.tsv")
    write(f"{out}/unigram.json", "t5", unigram, True)
    plain = dict(normalization_rule_name="identity", remove_extra_whitespaces=False, byte_fallback=True)
    pairs = train("bpe", vocab_size=520, hard_vocab_limit=False, split_by_whitespace=False, **plain)
    write(f"{out}/bpe.json", "llama", pairs, False)
    no_prefix = train("bpe", vocab_size=480, hard_vocab_limit=False, add_dummy_prefix=False, **plain)
    write(f"{out}/bpe-no-prefix.json", "llama", no_prefix, False)


if __name__ == "__main__":
    main()
