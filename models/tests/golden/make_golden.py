#!/usr/bin/env python3
"""Makes the golden models beside this script: tiny random decoders and what Hugging Face transformers computes with them.

usage: make_golden.py [OUT_DIR]          needs torch, transformers, safetensors

The weights are random and large enough that a missing norm, bias or rotation changes the logits by far more than the
tolerance of the test. Seeds are tried until the greedy paths have no near ties. The reference runs in f32 on the stored
(rounded) weights with eager attention, without a cache. Versions are in each expected.json.
"""
import json
import pathlib
import sys

import torch
import transformers
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

PROMPT_LENGTHS = (5, 33, 70)
NUM_GREEDY = 24
NUM_TOP = 20
MIN_MARGIN = 2e-3

COMMON = dict(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
)
LLAMA3_ROPE = dict(
    rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
# name: (configuration, stored type, layout of config.json, largest shard)
MODELS = {
    "llama-biased": (
        LlamaConfig(**COMMON, vocab_size=160, intermediate_size=64, tie_word_embeddings=False, attention_bias=True,
                    mlp_bias=True, rms_norm_eps=1e-5, rope_parameters=LLAMA3_ROPE),
        torch.bfloat16, 4, "1MB"),
    "qwen2-tied": (
        Qwen2Config(**COMMON, vocab_size=192, intermediate_size=64, tie_word_embeddings=True, rms_norm_eps=1e-6,
                    rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0,
                                         original_max_position_embeddings=64)),
        torch.float16, 5, "1MB"),
    "qwen3-sharded": (
        Qwen3Config(**COMMON, vocab_size=176, intermediate_size=56, tie_word_embeddings=False, rms_norm_eps=1e-6,
                    rope_parameters=dict(rope_type="default", rope_theta=1000000.0)),
        torch.bfloat16, 5, "60KB"),
}


def random_model(config, dtype, seed):
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(1 + 0.3 * torch.randn_like(weight))
            elif name.endswith("bias"):
                weight.copy_(0.5 * torch.randn_like(weight))
            elif "embed" in name:
                weight.copy_(0.5 * torch.randn_like(weight))
            else:
                weight.copy_(1.5 * torch.randn_like(weight) / weight.shape[1] ** 0.5)
            weight.copy_(weight.to(dtype).float())
    return model.float().eval()


@torch.no_grad()
def expected(model, vocab_size, seed):
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for length in PROMPT_LENGTHS:
        ids = torch.randint(3, vocab_size, (length,), generator=generator).tolist()
        logits = model(torch.tensor([ids])).logits[0]
        top = logits.topk(NUM_TOP)
        greedy, margin = [], 1.0
        for _ in range(NUM_GREEDY):
            last = model(torch.tensor([ids + greedy])).logits[0, -1]
            best = last.topk(2)
            margin = min(margin, ((best.values[0] - best.values[1]) / last.abs().max()).item())
            greedy.append(best.indices[0].item())
        digits = lambda values: [float(f"{value:.7g}") for value in values]
        cases.append(dict(
            name=f"len{length}", input_ids=ids, last_logits=digits(logits[-1].tolist()),
            top20_ids=top.indices.tolist(), top20_logits=[digits(row) for row in top.values.tolist()],
            greedy_ids=greedy, greedy_min_margin=margin))
    return cases


def old_layout(config):
    """What checkpoints made before transformers 5 have instead of `rope_parameters` and `dtype`."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.51.3"
    return config


def main(out):
    for name, (config, dtype, layout, shard) in MODELS.items():
        for seed in range(1, 100):
            model = random_model(config, dtype, seed)
            prompts = expected(model, config.vocab_size, seed)
            if min(case["greedy_min_margin"] for case in prompts) > MIN_MARGIN:
                break
        folder = out / name
        model.generation_config = transformers.GenerationConfig(
            bos_token_id=1, eos_token_id=[2, 0], do_sample=True, temperature=0.6, top_p=0.9)
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
        if layout == 4:
            path = folder / "config.json"
            path.write_text(json.dumps(old_layout(json.loads(path.read_text())), indent=2) + "\n")
        reference = f"transformers {transformers.__version__}, torch {torch.__version__}, float32, eager, no cache"
        text = json.dumps(dict(reference=reference, seed=seed, prompts=prompts), separators=(",", ":"))
        (folder / "expected.json").write_text(text + "\n")
        print(name, "seed", seed, "margin", min(case["greedy_min_margin"] for case in prompts))


main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent))
