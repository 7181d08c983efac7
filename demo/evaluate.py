"""Measures the exported folder on held-out prompts: greedy, float32, from the stored weights.

An answer is right when it holds what it must: for most kinds that is the whole
expected answer and nothing else, for talk and facts the key words (see
``generator.Generator.turn``). JSON and tool calls are compared as data.
"""

import argparse
import json
import time

import torch
from tokenizers import Tokenizer

from chat import segments
from generator import Generator
from model import Qwen3


def right(message, text, length):
    if "tool_call" in message:
        try:
            return json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>")) == message["tool_call"]
        except ValueError:
            return False
    if message["kind"] == "json":
        try:
            return json.loads(text) == json.loads(message["content"])
        except ValueError:
            return False
    if message["must"] is None:
        return text == message["content"]
    enough = length >= 100 if message["kind"] in ("story", "about") else True
    return enough and all(k in text for k in message["must"])


def prompt_ids(tok, conv):
    return [i for text, _ in segments(conv, prompt=True) for i in tok.encode(text, add_special_tokens=False).ids]


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--model", default="model")
    a.add_argument("--n", type=int, default=60)
    a.add_argument("--seed", type=int, default=2026)
    a.add_argument("--kinds", nargs="*", default=Generator.PROBES)
    a.add_argument("--wrong", type=int, default=0, help="show so many wrong answers of each kind")
    a.add_argument("--threads", type=int, default=2)
    o = a.parse_args()
    torch.set_num_threads(o.threads)
    tok, net = Tokenizer.from_file(o.model + "/tokenizer.json"), Qwen3.load(o.model)
    stop = {tok.token_to_id("<|im_end|>"), tok.token_to_id("<|endoftext|>")}
    began = time.time()
    print("| kind | en | zh | all |\n| --- | --- | --- | --- |")
    for kind in o.kinds:
        gen, n, shown = Generator(f"{o.seed}-{kind}", held=True), {0: [0, 0], 1: [0, 0]}, 0
        for _ in range(4 if kind == "count_100" else max(8, o.n // 4) if kind in ("story", "about") else o.n):
            conv = gen.probe(kind)
            last = conv["messages"].pop()
            ids = prompt_ids(tok, conv)
            most = 520 if last["kind"] in ("story", "about") else len(tok.encode(last["content"], add_special_tokens=False).ids) + 24
            out = net.generate(ids, most, stop)
            text = tok.decode(out, skip_special_tokens=False)
            ok = right(last, text, len(out))
            n[gen.zh][0] += ok
            n[gen.zh][1] += 1
            if not ok and shown < o.wrong:
                shown += 1
                print("   ", repr(conv["messages"][-1]["content"][:150]), "\n      want", repr(last["content"][:150]), "\n      got ", repr(text[:150]))
        show = [f"{100 * r / k:.0f} %" if k else "–" for r, k in (n[0], n[1], [n[0][0] + n[1][0], n[0][1] + n[1][1]])]
        print(f"| {kind} | {show[0]} | {show[1]} | {show[2]} |", flush=True)
    print(f"seconds: {time.time() - began:.0f}")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
