#!/usr/bin/env python3
"""Makes the golden models beside this script: tiny random decoders and what Hugging Face transformers computes with them.

usage: make_golden.py [NAME ...]          needs torch, transformers, safetensors, gguf; all models unless some are named

The weights are random and large enough that a missing norm, bias or rotation changes the logits by far more than the
tolerance of the test. Seeds are tried until the greedy paths have no near ties. The reference runs in f32 on the stored
(rounded) weights with eager attention, without a cache. Versions are in each expected.json.
"""
import json
import math
import pathlib
import sys

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (Gemma2Config, Gemma3TextConfig, GemmaConfig, GraniteConfig, LlamaConfig, MistralConfig,
                          MixtralConfig, Olmo2Config, OlmoeConfig, Phi3Config, Qwen2Config, Qwen3Config, Qwen3MoeConfig,
                          SmolLM3Config)

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
SMALL = dict(
    vocab_size=64, hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0, rms_norm_eps=1e-5,
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
# The other families, smaller still, each with what sets it apart.
SMALL_MODELS = {
    "mistral-window": (MistralConfig(**SMALL, head_dim=16, sliding_window=12), 4),
    "mixtral": (MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2, sliding_window=None), 5),
    "qwen3_moe-mixed": (
        Qwen3MoeConfig(**SMALL, head_dim=8, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=24,
                       norm_topk_prob=True, mlp_only_layers=[1]), 4),
    "gemma": (GemmaConfig(**SMALL, head_dim=16), 4),
    "gemma2": (
        Gemma2Config(**SMALL, head_dim=16, query_pre_attn_scalar=12, sliding_window=9, attn_logit_softcapping=2.0,
                     final_logit_softcapping=6.0), 4),
    "gemma3": (
        Gemma3TextConfig(**SMALL, head_dim=8, query_pre_attn_scalar=12, sliding_window=9, sliding_window_pattern=2,
                         rope_parameters=dict(
                             full_attention=dict(rope_type="linear", rope_theta=1000000.0, factor=8.0),
                             sliding_attention=dict(rope_type="default", rope_theta=10000.0))), 4),
    "phi3-longrope": (
        Phi3Config(**SMALL, original_max_position_embeddings=32, rope_parameters=dict(
            rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.5, short_factor=[1.0, 1.25],
            long_factor=[1.5, 3.0])), 5),
    "smollm3": (SmolLM3Config(**SMALL, no_rope_layer_interval=2, tie_word_embeddings=True), 4),
    "granite": (
        GraniteConfig(**SMALL, attention_multiplier=0.3, embedding_multiplier=3.0, residual_multiplier=0.4,
                      logits_scaling=2.5, attention_bias=True, mlp_bias=True), 5),
    "olmo2": (Olmo2Config(**SMALL), 4),
    "olmoe-clipped": (
        OlmoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, clip_qkv=1.0, norm_topk_prob=False), 5),
}
# Of these a GGUF file too: norms with 1 added, rows of q and k in pairs, experts stacked, factors of rotations.
WITH_GGUF = ("gemma3", "mixtral", "phi3-longrope", "granite")
# Matrices of layers stored as 8-bit floats, a scale for each row.
WITH_F8 = ("mistral-window",)
SMALL_PROMPT_LENGTHS, SMALL_GREEDY, SMALL_TOP = (5, 40), 30, 4


def random_model(config, dtype, seed):
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                # Gemma stores norm weights less 1.
                weight.copy_((0 if "gemma" in config.model_type else 1) + 0.3 * torch.randn_like(weight))
            elif name.endswith("bias"):
                weight.copy_(0.5 * torch.randn_like(weight))
            elif "embed" in name:
                weight.copy_(0.5 * torch.randn_like(weight))
            else:
                weight.copy_(1.5 * torch.randn_like(weight) / weight.shape[-1] ** 0.5)
            weight.copy_(weight.to(dtype).float())
    return model.float().eval()


@torch.no_grad()
def expected(model, vocab_size, seed, lengths, num_greedy, num_top):
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for length in lengths:
        ids = torch.randint(3, vocab_size, (length,), generator=generator).tolist()
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
        top = logits.topk(num_top)
        greedy, margin = [], 1.0
        for _ in range(num_greedy):
            last = model(torch.tensor([ids + greedy]), use_cache=False).logits[0, -1]
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
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        config["sliding_window_pattern"] = config.pop("_sliding_window_pattern")
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.51.3"
    if config["model_type"] in ("gemma2", "gemma3_text"):
        del config["layer_types"]
    if config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts", config.get("num_experts"))
    return config


def round_to_f8(weights):
    """Stores projections as 8-bit floats: returns the tensors to be stored, and changes `weights` to what they mean."""
    stored = {}
    for name, weight in weights.items():
        stored[name] = weight.to(torch.bfloat16)
        if "proj" in name:
            scale = weight.abs().amax(1, keepdim=True) / 448
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[name + "_scale"] = scale
            weight.copy_(stored[name].float() * scale)
    return stored


def permuted(rows, num_heads):
    """GGUF's order for models that it rotates in neighbouring pairs: rows `i` and `i + half` of a head side by side."""
    return rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path, weights, config):
    import gguf
    family = config.model_type
    arch = {"mixtral": "llama", "gemma3_text": "gemma3"}.get(family, family)
    out = gguf.GGUFWriter(path, arch)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim, "attention.value_length": head_dim,
        "rope.dimension_count": int(head_dim * rope.get("partial_rotary_factor", 1.0)),
    }
    floats = {"attention.layer_norm_rms_epsilon": config.rms_norm_eps, "rope.freq_base": rope["rope_theta"]}
    if rope["rope_type"] == "linear":
        out.add_string(f"{arch}.rope.scaling.type", "linear")
        floats["rope.scaling.factor"] = rope["factor"]
    if family == "mixtral":
        numbers |= {"expert_count": config.num_local_experts, "expert_used_count": config.num_experts_per_tok}
    if family == "granite":
        floats |= {"attention.scale": config.attention_multiplier, "embedding_scale": config.embedding_multiplier,
                   "residual_scale": config.residual_multiplier, "logit_scale": config.logits_scaling}
    if family == "gemma3_text":
        numbers |= {"attention.sliding_window": config.sliding_window, "attention.sliding_window_pattern": 2}
        floats |= {"rope.freq_base_swa": config.rope_parameters["sliding_attention"]["rope_theta"],
                   "attention.scale": config.query_pre_attn_scalar ** -0.5}
    if family == "phi3":
        original = rope["original_max_position_embeddings"]
        numbers["rope.scaling.original_context_length"] = original
        growth = config.max_position_embeddings / original
        floats["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(growth) / math.log(original))
        for kind in ("long", "short"):
            out.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], dtype=np.float32))
    for key, value in numbers.items():
        out.add_uint32(f"{arch}.{key}", value)
    for key, value in floats.items():
        out.add_float32(f"{arch}.{key}", value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config.num_hidden_layers)
    bf16 = gguf.GGMLQuantizationType.BF16
    stacks = {}
    for name, weight in weights.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = weight.numpy()
        if ".experts." in name:
            before, after = name.split(".experts.")
            stacks.setdefault(f"{before}.experts.{after.split('.')[1]}", []).append(values)
            continue
        base, suffix = name.rsplit(".", 1)
        if family == "gemma3_text" and name.endswith("norm.weight"):
            values = values + 1
        if family in ("mixtral", "granite") and (".q_proj." in name or ".k_proj." in name):
            values = permuted(values, config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads)
        values = np.ascontiguousarray(values)
        if values.ndim == 1:
            out.add_tensor(f"{names.get_name(base)}.{suffix}", values)
        else:
            out.add_tensor(f"{names.get_name(base)}.{suffix}", gguf.quants.quantize(values, bf16), raw_dtype=bf16)
    for base, experts in stacks.items():
        out.add_tensor(f"{names.get_name(base)}.weight", gguf.quants.quantize(np.stack(experts), bf16), raw_dtype=bf16)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def make(folder, config, dtype, layout, shard, cases):
    for seed in range(1, 200):
        model = random_model(config, dtype, seed)
        f8 = round_to_f8(model.state_dict()) if folder.name in WITH_F8 else None
        prompts = expected(model, config.vocab_size, seed, *cases)
        if min(case["greedy_min_margin"] for case in prompts) > MIN_MARGIN:
            break
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=1, eos_token_id=[2, 0], do_sample=True, temperature=0.6, top_p=0.9)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    if f8:
        save_file(f8, folder / "model.safetensors", metadata={"format": "pt"})
    if folder.name in WITH_GGUF:
        weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
        write_gguf(folder / "model.gguf", weights, config)
    if layout == 4:
        path = folder / "config.json"
        path.write_text(json.dumps(old_layout(json.loads(path.read_text())), indent=2) + "\n")
    if f8:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | dict(quantization_config=dict(quant_method="fp8")), indent=2) + "\n")
    reference = f"transformers {transformers.__version__}, torch {torch.__version__}, float32, eager, no cache"
    text = json.dumps(dict(reference=reference, seed=seed, prompts=prompts), separators=(",", ":"))
    (folder / "expected.json").write_text(text + "\n")
    print(folder.name, "seed", seed, "margin", min(case["greedy_min_margin"] for case in prompts))


def main(names):
    out = pathlib.Path(__file__).parent
    for name, (config, dtype, layout, shard) in MODELS.items():
        if name in names or not names:
            make(out / name, config, dtype, layout, shard, (PROMPT_LENGTHS, NUM_GREEDY, NUM_TOP))
    for name, (config, layout) in SMALL_MODELS.items():
        if name in names or not names:
            make(out / name, config, torch.bfloat16, layout, "1MB", (SMALL_PROMPT_LENGTHS, SMALL_GREEDY, SMALL_TOP))


main(sys.argv[1:])
