"""Writes a training checkpoint as the folder that ships: bf16 weights and the two configs."""

import json
import os
import sys

import torch
from safetensors.torch import save_file


def main(checkpoint, out="model"):
    ck = torch.load(checkpoint)
    weights = {"model." + k: v.to(torch.bfloat16).contiguous() for k, v in ck["model"].items()}
    save_file(weights, out + "/model.safetensors", metadata={"format": "pt"})
    os.chmod(out + "/model.safetensors", 0o644)
    config = dict(ck["config"], bos_token_id=None, eos_token_id=2043, pad_token_id=2041, torch_dtype="bfloat16")
    generation = {"do_sample": False, "eos_token_id": [2043, 2041], "pad_token_id": 2041, "max_new_tokens": 512}
    for name, data in (("config.json", config), ("generation_config.json", generation)):
        with open(f"{out}/{name}", "w") as f:
            json.dump(data, f, indent=2)
            f.write("\n")
    print({k: round(v) for k, v in ck["done"].items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
