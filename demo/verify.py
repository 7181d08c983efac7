"""Checks the exported folder with transformers and writes golden.json.

The golden file holds prompts, their ids and the greedy ids and text that
transformers computes in float32 from the stored weights; the server's tests
compare with it. The same prompts go through ``model.py`` and ``chat.py``,
which must agree token for token.
"""

import json
import sys

import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from chat import segments
from generator import Generator
from model import Qwen3

WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Get the weather of a city.", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Lisbon"}}\n</tool_call>'


def u(*texts):
    """Messages in turn: user, assistant, user …"""
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate(texts)]


CASES = [
    ("hello", u("Hello!"), None),
    ("hello_zh", u("你好！"), None),
    ("who", u("Who are you?"), None),
    ("port", u("What is the default port?"), None),
    ("stream_zh", u("怎么使用流式输出？"), None),
    ("repeat", u("Repeat: the blue lantern sails over 4711 quiet rivers"), None),
    ("repeat_zh", u("重复：今天的月亮很圆，小猫在看书"), None),
    ("recall", u("My name is Marlene.", "Nice to meet you, Marlene.", "What is 17 + 25?", "17 + 25 = 42", "What is my name?"), None),
    ("recall_zh", u("我叫李明。", "很高兴认识你，李明。", "我叫什么名字？"), None),
    ("system", [{"role": "system", "content": "You are a helpful assistant."}] + u("List the days of the week."), None),
    ("count", u("Count to 60."), None),
    ("json", u("Give me a JSON object with name and age for Anna, 31"), None),
    ("tool_call", u("What is the weather in Lisbon?"), [WEATHER]),
    ("tool_answer", u("What is the weather in Lisbon?", CALL) + [{"role": "tool", "content": '{"temperature": 21, "condition": "sunny"}'}], [WEATHER]),
    ("story", u("Tell me a story about a lantern."), None),
    ("unicode", u("Repeat: naïve 🦀 Ünïcode ±½"), None),
]


def main(folder="model", out="golden.json"):
    torch.set_num_threads(1)
    tok = AutoTokenizer.from_pretrained(folder)
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    own = Qwen3.load(folder)
    stop = {tok.convert_tokens_to_ids("<|im_end|>"), tok.convert_tokens_to_ids("<|endoftext|>")}
    gen = Generator(5)
    for _ in range(60):
        conv = gen.conversation()
        ours = "".join(t for t, _ in segments(conv, prompt=True))
        theirs = tok.apply_chat_template(conv["messages"], tools=conv["tools"], tokenize=False, add_generation_prompt=True)
        assert ours == theirs, (ours, theirs)
        assert tok(ours)["input_ids"] == [i for t, _ in segments(conv, prompt=True) for i in tok(t)["input_ids"]]
        assert tok.decode(tok(ours)["input_ids"]) == ours
    golden = []
    for name, messages, tools in CASES:
        text = tok.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
        ids = tok(text)["input_ids"]
        got = net.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=300, do_sample=False)[0, len(ids):].tolist()
        plain = [i for i in got if i not in stop]
        assert own.generate(ids, 300, stop) == plain, name
        logits = net(torch.tensor([ids])).logits[0, -1]
        assert (own.logits(own.hidden(torch.tensor([ids])))[0, -1] - logits).abs().max() < 1e-3
        top = logits.topk(2).values
        golden.append({"name": name, "messages": messages, "tools": tools, "prompt": text, "input_ids": ids, "output_ids": got, "text": tok.decode(plain), "first_margin": round(float(top[0] - top[1]), 4)})
        print(name, "|", tok.decode(plain))
    with open(out, "w", encoding="utf-8") as f:
        json.dump({"made_with": {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0], "tokenizers": tokenizers.__version__, "dtype": "float32", "decoding": "greedy, at most 300 tokens; output_ids end with the stop token"}, "cases": golden}, f, indent=1, ensure_ascii=False)
        f.write("\n")
    print("transformers and model.py agree on", len(golden), "prompts")


if __name__ == "__main__":
    with torch.inference_mode():
        main(*sys.argv[1:])
