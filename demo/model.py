"""A compact Qwen3: the same arithmetic as transformers' Qwen3ForCausalLM, only for training."""

import json

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 2048, "hidden_size": 192, "intermediate_size": 384,
    "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "rope_scaling": None, "max_position_embeddings": 4096, "max_window_layers": 6, "sliding_window": None, "use_sliding_window": False,
    "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": True, "initializer_range": 0.02, "use_cache": True,
}


class Norm(nn.Module):
    def __init__(self, n, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(n)), eps

    def forward(self, x):
        x = x.float()
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.h, self.kv, self.d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        n = c["hidden_size"]
        self.q_proj = nn.Linear(n, self.h * self.d, bias=False)
        self.k_proj = nn.Linear(n, self.kv * self.d, bias=False)
        self.v_proj = nn.Linear(n, self.kv * self.d, bias=False)
        self.o_proj = nn.Linear(self.h * self.d, n, bias=False)
        self.q_norm, self.k_norm = Norm(self.d, c["rms_norm_eps"]), Norm(self.d, c["rms_norm_eps"])

    def forward(self, x, cos, sin, cache=None):
        b, t, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(b, t, self.h, self.d)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(b, t, self.kv, self.d)).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv, self.d).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            if "k" in cache:
                k, v = torch.cat((cache["k"], k), 2), torch.cat((cache["v"], v), 2)
            cache["k"], cache["v"] = k, v
        k, v = (y.repeat_interleave(self.h // self.kv, 1) for y in (k, v))
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=t > 1)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        n, m = c["hidden_size"], c["intermediate_size"]
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(n, m, bias=False), nn.Linear(n, m, bias=False), nn.Linear(m, n, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm, self.self_attn = Norm(c["hidden_size"], c["rms_norm_eps"]), Attention(c)
        self.post_attention_layernorm, self.mlp = Norm(c["hidden_size"], c["rms_norm_eps"]), Mlp(c)

    def forward(self, x, cos, sin, cache=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3(nn.Module):
    def __init__(self, c=CONFIG):
        super().__init__()
        self.config = c
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = Norm(c["hidden_size"], c["rms_norm_eps"])
        inv = 1.0 / c["rope_theta"] ** (torch.arange(0, c["head_dim"], 2).float() / c["head_dim"])
        ang = torch.outer(torch.arange(c["max_position_embeddings"]).float(), inv)
        ang = torch.cat((ang, ang), -1)
        self.register_buffer("cos", ang.cos(), persistent=False)
        self.register_buffer("sin", ang.sin(), persistent=False)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)
        for l in self.layers:
            for p in (l.self_attn.o_proj, l.mlp.down_proj):
                nn.init.normal_(p.weight, std=0.02 / (2 * len(self.layers)) ** 0.5)

    def hidden(self, ids, caches=None, at=0):
        t = ids.shape[1]
        cos, sin = self.cos[at:at + t], self.sin[at:at + t]
        x = self.embed_tokens(ids)
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, caches[i] if caches else None)
        return self.norm(x)

    def logits(self, x):
        return F.linear(x, self.embed_tokens.weight)

    @torch.no_grad()
    def generate(self, ids, most, stop):
        """Greedy continuation of one prompt."""
        caches = [{} for _ in self.layers]
        out, x, at = [], torch.tensor([ids]), 0
        while len(out) < most:
            y = self.logits(self.hidden(x, caches, at)[:, -1])
            at += x.shape[1]
            n = int(y.argmax(-1))
            if n in stop:
                break
            out.append(n)
            x = torch.tensor([[n]])
        return out

    def exported(self):
        """Weights under the names that transformers uses."""
        return {"model." + k: v for k, v in self.state_dict().items()}

    @classmethod
    def load(cls, folder):
        from safetensors.torch import load_file
        with open(folder + "/config.json") as f:
            m = cls(json.load(f))
        m.load_state_dict({k.removeprefix("model."): v.float() for k, v in load_file(folder + "/model.safetensors").items()})
        return m.eval()
