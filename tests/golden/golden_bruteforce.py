"""Golden arrays for what NATTEN cannot do, by dense float64 attention and autograd: bNNN_*d.safetensors.

    golden_bruteforce.py OUT_DIR SEED COUNT

Beyond NATTEN: windows and extents of one, any head_dim, another head_dim_v, scale 0 and below, additional keys with
grouped heads, and a gradient of the log-sum-exp. Same format as golden_from_natten.py, all float32, with d_lse
where it is not zero, d_add_k and d_add_v where there are additional keys, and "head_dim_v" among the arguments.
"""

import json
import math
import random
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

LARGEST_EXTENT = {1: 70, 2: 13, 3: 7}
MOST_NUMBERS = 60_000


def axis_mask(extent, window, stride, dilation, is_causal):
    """mask[query, key] of one axis, token by token."""
    mask = torch.zeros(extent, extent, dtype=torch.bool)
    for token in range(extent):
        residue, position = token % dilation, token // dilation
        length = len(range(residue, extent, dilation))
        block = position // stride * stride
        if is_causal:
            leader = min(block + stride - 1, length - 1)
            seen = range(max(leader - window + 1, 0), position + 1)
        else:
            leader = min(block + stride // 2, length - 1)
            start = min(max(leader - window // 2, 0), length - window)
            seen = range(start, start + window)
        for key in seen:
            mask[token, residue + key * dilation] = True
    return mask


def full_mask(problem):
    """mask[query, key] over all tokens, the last axis fastest, additional keys (always seen) behind."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    names = ("token_shape", "kernel_size", "stride", "dilation", "is_causal")
    for axis in zip(*(problem[name] for name in names)):
        own = axis_mask(*axis)
        extent, size = axis[0], mask.shape[0]
        mask = (mask[:, None, :, None] & own[None, :, None, :]).reshape(size * extent, size * extent)
    return torch.cat([mask, torch.ones(mask.shape[0], problem["additional"], dtype=torch.bool)], 1)


def draw(rng):
    """The arguments of one case."""
    rank = rng.choice([1, 2, 3])
    token_shape = [rng.randint(1, LARGEST_EXTENT[rank]) for _ in range(rank)]
    kernel_size, stride, dilation, is_causal = [], [], [], []
    for extent in token_shape:
        window = rng.choice([1, extent, rng.randint(1, extent), rng.randint(1, extent)])
        kernel_size.append(window)
        dilation.append(rng.randint(1, extent // window))
        stride.append(rng.choice([1, window, rng.randint(1, window)]))
        is_causal.append(rng.random() < 0.35)
    heads_kv = rng.choice([1, 2, 3])
    head_dim = rng.choice([1, 5, 8, 32, 40, 64, 72, 80, 96, 128])
    return {
        "token_shape": token_shape,
        "kernel_size": kernel_size,
        "stride": stride,
        "dilation": dilation,
        "is_causal": is_causal,
        "batch": rng.choice([1, 1, 2]),
        "heads": heads_kv * rng.choice([1, 2, 4]),
        "heads_kv": heads_kv,
        "head_dim": head_dim,
        "head_dim_v": rng.choice([head_dim, head_dim, 16, 48]),
        "additional": rng.choice([0, 0, 1, 5, 130]),
        "scale": rng.choice([None, None, 1.0, 0.0, -0.3]),
    }


def normal(*shape):
    """Normal deviates that float32 holds exactly, in float64."""
    return torch.randn(*shape).double()


def operands(problem):
    """Leaf tensors: q, k, v, and the additional ones if any."""
    batch, tokens, heads_kv = problem["batch"], problem["token_shape"], problem["heads_kv"]
    dim, dim_v, additional = problem["head_dim"], problem["head_dim_v"], problem["additional"]
    shapes = {
        "q": (batch, *tokens, problem["heads"], dim),
        "k": (batch, *tokens, heads_kv, dim),
        "v": (batch, *tokens, heads_kv, dim_v),
    }
    if additional:
        shapes["add_k"] = (batch, additional, heads_kv, dim)
        shapes["add_v"] = (batch, additional, heads_kv, dim_v)
    return {name: normal(*shape).requires_grad_() for name, shape in shapes.items()}


def attend(problem, tensors):
    """Output and log-sum-exp."""
    batch, tokens, heads = problem["batch"], problem["token_shape"], problem["heads"]

    def rows(name):
        flat = tensors[name].flatten(1, -3)
        if "add_" + name in tensors:
            flat = torch.cat([flat, tensors["add_" + name]], 1)
        return flat.repeat_interleave(heads // flat.shape[2], 2)

    scale = problem["head_dim"] ** -0.5 if problem["scale"] is None else problem["scale"]
    scores = scale * torch.einsum("bnhd,bmhd->bhnm", rows("q"), rows("k"))
    scores = scores.masked_fill(~full_mask(problem), -math.inf)
    lse = scores.logsumexp(-1)
    out = torch.einsum("bhnm,bmhd->bnhd", (scores - lse[..., None]).exp(), rows("v"))
    return out.reshape(batch, *tokens, heads, -1), lse.transpose(1, 2).reshape(batch, *tokens, heads)


def make(problem, has_d_lse):
    """All arrays of one case."""
    tensors = operands(problem)
    out, lse = attend(problem, tensors)
    d_out = torch.randn_like(out).float().double()
    d_lse = torch.randn_like(lse).float().double() if has_d_lse else torch.zeros_like(lse)
    gradients = torch.autograd.grad([out, lse], list(tensors.values()), [d_out, d_lse])
    arrays = {**tensors, "out": out, "lse": lse, "d_out": d_out}
    arrays.update({"d_" + name: gradient for name, gradient in zip(tensors, gradients)})
    if has_d_lse:
        arrays["d_lse"] = d_lse
    return {name: array.detach().float().contiguous() for name, array in arrays.items()}


def main(folder, seed, count):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    torch.manual_seed(seed)
    made = 0
    while made < count:
        problem = draw(rng)
        rows = math.prod(problem["token_shape"]) * problem["batch"] * problem["heads"]
        if rows * max(problem["head_dim"], problem["head_dim_v"]) > MOST_NUMBERS:
            continue
        arrays = make(problem, rng.random() < 0.5)
        path = folder / f"b{made:03d}_{len(problem['token_shape'])}d.safetensors"
        metadata = {"problem": json.dumps(problem), "source": "dense float64 torch autograd"}
        save_file(arrays, path, metadata=metadata)
        made += 1


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
