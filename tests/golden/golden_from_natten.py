"""Golden arrays made by NATTEN itself: NNN_*d.safetensors.

    golden_from_natten.py OUT_DIR SEED COUNT

The files here come from natten 0.21.7 (backend flex-fna, eager, CPU) with torch 2.7.1. Each holds float32 arrays
q, k, v, d_out, out, lse, the gradients d_q, d_k, d_v of <d_out, out>, and add_k, add_v where the case has
additional keys. The operator's arguments are JSON under the metadata key "problem"; "scale": null is the default.

What NATTEN refuses (a head_dim, a window of one) is printed and drawn again, so a number names a case only
together with the versions above.
"""

import json
import random
import sys
from pathlib import Path

import natten
import torch
from safetensors.torch import save_file

LARGEST_EXTENT = {1: 96, 2: 16, 3: 7}
FORWARD = {1: natten.na1d, 2: natten.na2d, 3: natten.na3d}


def draw_axis(rng, extent):
    """Window, dilation, stride and causality of one axis; each drawn whether used or not, to keep the sequence."""
    window, style = rng.randint(1, extent), rng.random()
    if style < 0.15:
        window = extent
    dilation = rng.randint(1, max(1, extent // window)) if rng.random() < 0.6 else 1
    stride = rng.randint(1, window) if rng.random() < 0.6 else 1
    if rng.random() < 0.15:
        stride = window
    return window, stride, dilation, rng.random() < 0.35


def draw(rng):
    """The arguments of one case."""
    rank = rng.choice([1, 2, 2, 3, 3])
    token_shape = [rng.randint(2, LARGEST_EXTENT[rank]) for _ in range(rank)]
    axes = [draw_axis(rng, extent) for extent in token_shape]
    kernel_size, stride, dilation, is_causal = (list(column) for column in zip(*axes))
    heads_kv, repeats = rng.choice([1, 2]), rng.choice([1, 1, 1, 2, 3])
    return {
        "token_shape": token_shape,
        "kernel_size": kernel_size,
        "stride": stride,
        "dilation": dilation,
        "is_causal": is_causal,
        "batch": rng.choice([1, 1, 2]),
        "heads": heads_kv * repeats,
        "heads_kv": heads_kv,
        "head_dim": rng.choice([8, 8, 16, 32]),
        "additional": rng.choice([0, 0, 0, 0, 3, 17]),
        "scale": rng.choice([None, None, None, 0.5]),
    }


def operands(problem):
    """Leaf tensors: q, k, v, and the additional ones if any."""
    batch, tokens, dim = problem["batch"], problem["token_shape"], problem["head_dim"]
    heads, heads_kv, additional = problem["heads"], problem["heads_kv"], problem["additional"]
    shapes = {
        "q": (batch, *tokens, heads, dim),
        "k": (batch, *tokens, heads_kv, dim),
        "v": (batch, *tokens, heads_kv, dim),
    }
    if additional:
        shapes["add_k"] = shapes["add_v"] = (batch, additional, heads_kv, dim)
    return {name: torch.randn(*shape, requires_grad=True) for name, shape in shapes.items()}


def attend(problem, tensors):
    """Output and log-sum-exp of NATTEN."""
    axes = {name: tuple(problem[name]) for name in ("kernel_size", "stride", "dilation", "is_causal")}
    extra = {}
    if problem["additional"]:
        extra = {
            "additional_keys": tensors["add_k"],
            "additional_values": tensors["add_v"],
            "attention_kwargs": {"backend": "flex-fmha"},
        }
    forward = FORWARD[len(problem["token_shape"])]
    q, k, v = tensors["q"], tensors["k"], tensors["v"]
    return forward(q, k, v, scale=problem["scale"], backend="flex-fna", return_lse=True, **axes, **extra)


def make(problem):
    """All arrays of one case."""
    tensors = operands(problem)
    out, lse = attend(problem, tensors)
    d_out = torch.randn_like(out)
    d_q, d_k, d_v = torch.autograd.grad(out, [tensors[name] for name in "qkv"], d_out)
    return {**tensors, "out": out, "lse": lse, "d_out": d_out, "d_q": d_q, "d_k": d_k, "d_v": d_v}


def main(folder, seed, count):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    torch.manual_seed(seed)
    source = f"natten {natten.__version__} flex-fna eager CPU, torch {torch.__version__}"
    made = 0
    while made < count:
        problem = draw(rng)
        if problem["additional"] and problem["heads"] != problem["heads_kv"]:
            continue  # Additional keys with grouped heads are left to golden_bruteforce.py.
        try:
            arrays = make(problem)
        except Exception as reason:  # Whatever it is, NATTEN gives no answer here.
            print("refused", problem, repr(reason)[:120])
            continue
        arrays = {name: array.detach().float().contiguous() for name, array in arrays.items()}
        path = folder / f"{made:03d}_{len(problem['token_shape'])}d.safetensors"
        save_file(arrays, path, metadata={"problem": json.dumps(problem), "source": source})
        made += 1


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
