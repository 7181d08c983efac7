"""Trains the demo model: AdamW on embeddings and norms, Muon on the matrices.

Every row is one conversation (isolated, as it is served); a batch holds
conversations of similar length, so little is padding. The loss counts answers only.
"""

import argparse
import math
import os
import random
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from chat import segments
from generator import Generator
from model import CONFIG, Qwen3


class Data:
    """Batches of about ``tokens`` tokens from a seeded stream."""

    def __init__(self, tok, seed, tokens, docs=0.02):
        self.tok, self.tokens, self.docs = tok, tokens, docs
        self.gen, self.rng = Generator(seed), random.Random(seed)
        self.end = tok.token_to_id("<|endoftext|>")
        self.ready = []

    def rows(self, n, longest, long_share):
        texts, spans = [], []
        for _ in range(n):
            if self.rng.random() < self.docs:
                segs = [("<|endoftext|>", False), (self.gen.document(), True)]
            else:
                segs = segments(self.gen.conversation(self.rng.randint(15, 60) if self.rng.random() < long_share else None))
            spans.append(len(segs))
            texts += segs
        ids = [e.ids for e in self.tok.encode_batch_fast([t for t, _ in texts], add_special_tokens=False)]
        at = 0
        for k in spans:
            row, mask = [], []
            for i in range(at, at + k):
                row += ids[i]
                mask += [texts[i][1]] * len(ids[i])
            at += k
            row.append(self.end)
            mask.append(mask[-1])
            if len(row) <= longest:
                yield row, mask

    def batch(self, longest, long_share):
        if not self.ready:
            rows = sorted(self.rows(3000, longest, long_share), key=lambda r: len(r[0]) + self.rng.random())
            group = []
            for r in rows:
                if group and (len(group) + 1) * len(r[0]) > self.tokens:
                    self.ready.append(group)
                    group = []
                group.append(r)
            self.rng.shuffle(self.ready)
        group = self.ready.pop()
        t = max(len(r) for r, _ in group)
        x = torch.full((len(group), t), self.end)
        m = torch.zeros((len(group), t), dtype=torch.bool)
        for i, (r, k) in enumerate(group):
            x[i, :len(r)] = torch.tensor(r)
            m[i, :len(r)] = torch.tensor(k)
        return x, m


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Newton-Schulz); matrices of one shape go together."""

    def __init__(self, params, lr, momentum=0.95, decay=0.02):
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self):
        for g in self.param_groups:
            shapes = {}
            for p in g["params"]:
                st = self.state[p]
                if "m" not in st:
                    st["m"] = torch.zeros_like(p)
                st["m"].lerp_(p.grad, 1 - g["momentum"])
                shapes.setdefault(p.shape, []).append((p, p.grad.lerp(st["m"], g["momentum"])))
            for shape, items in shapes.items():
                x = torch.stack([u for _, u in items]).bfloat16()  # exact enough, and three times as fast
                tall = shape[0] > shape[1]
                x = x.mT if tall else x
                x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
                for _ in range(5):
                    a = x @ x.mT
                    x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
                x = x.mT if tall else x
                for (p, _), u in zip(items, x.float()):
                    p.mul_(1 - g["lr"] * g["decay"]).add_(u, alpha=-g["lr"] * 0.2 * max(shape) ** 0.5)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--tokenizer", default="model/tokenizer.json")
    a.add_argument("--out", required=True)
    a.add_argument("--resume")
    a.add_argument("--minutes", type=float, default=40)
    a.add_argument("--tokens", type=int, default=4096)
    a.add_argument("--lr", type=float, default=0.004)
    a.add_argument("--warmup", type=int, default=100)
    a.add_argument("--floor", type=float, default=0.05)
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--longest", type=int, default=512)
    a.add_argument("--long-share", type=float, default=0.0)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--bf16", action="store_true")
    a.add_argument("--compile", action="store_true")
    a.add_argument("--set", nargs="*", default=[], help="config overrides, key=int")
    o = a.parse_args()
    torch.manual_seed(o.seed)
    torch.set_num_threads(o.threads)
    c = dict(CONFIG, **{k: int(v) for k, v in (s.split("=") for s in o.set)})
    net = Qwen3(c)
    done = {"steps": 0, "tokens": 0, "seconds": 0.0}
    if o.resume:
        ck = torch.load(o.resume)
        net.load_state_dict(ck["model"])
        done = ck["done"]
    if o.compile:
        for layer in net.layers:
            layer.compile(dynamic=True)
    mats = [p for n, p in net.named_parameters() if p.dim() == 2 and "embed" not in n]
    rest = [p for n, p in net.named_parameters() if p.dim() != 2 or "embed" in n]
    opts = [Muon(mats, o.lr), torch.optim.AdamW(rest, lr=o.lr * 0.7, betas=(0.9, 0.97), weight_decay=0.0, fused=True)]
    if o.resume and "opts" in ck:
        for opt, st in zip(opts, ck["opts"]):
            opt.load_state_dict(st)
    print(sum(p.numel() for p in net.parameters()), "parameters", flush=True)
    data = Data(Tokenizer.from_file(o.tokenizer), o.seed, o.tokens)
    began, seen, step, avg, saved = time.time(), 0, 0, None, time.time()

    def save():
        torch.save({"model": net.state_dict(), "opts": [x.state_dict() for x in opts], "config": c, "done": {"steps": done["steps"] + step, "tokens": done["tokens"] + seen, "seconds": done["seconds"] + time.time() - began}}, o.out + ".tmp")
        os.replace(o.out + ".tmp", o.out)

    while True:
        part = (time.time() - began) / (60 * o.minutes)
        if part >= 1:
            break
        rate = min(1, (step + 1) / o.warmup) * (o.floor + (1 - o.floor) * (0.5 + 0.5 * math.cos(math.pi * part)))
        for opt, base in zip(opts, (o.lr, o.lr * 0.7)):
            for g in opt.param_groups:
                g["lr"] = base * rate
        x, m = data.batch(o.longest, o.long_share)
        with torch.autocast("cpu", torch.bfloat16, enabled=o.bf16):
            h = net.hidden(x[:, :-1])[m[:, 1:]]
            loss = F.cross_entropy(net.logits(h).float(), x[:, 1:][m[:, 1:]])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        step += 1
        seen += x.numel()
        avg = loss.item() if avg is None else 0.98 * avg + 0.02 * loss.item()
        if step % 50 == 0 or step < 10:
            print(f"{step} {time.time() - began:.0f}s {seen / (time.time() - began):.0f} tok/s loss {avg:.4f} rate {rate:.3f}", flush=True)
        if time.time() - saved > 120:
            save()
            saved = time.time()
    save()


if __name__ == "__main__":
    main()
