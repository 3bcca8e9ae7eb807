"""PyTorch on the bench set: masked SDPA and FlexAttention, as useful GFLOP/s.

Install (about 200 MB), outside the tree:
    python3 -m venv peers-env && peers-env/bin/pip install torch
with the CPU build of torch that its own site names for your system. Then:
    peers-env/bin/python benches/peers/torch_peers.py [C1 C3 ..] [--threads 2]

SDPA gets the window as a boolean mask over all pairs (in blocks of queries where the mask would not fit memory);
FlexAttention gets it as a block mask, compiled. Compare with `cargo bench --bench cpu_table` on the same machine.
"""

import argparse
import time

import torch
import torch.nn.functional as F

# name: (tokens, heads, head_dim, kernel_size, dilation, scale)
PROBLEMS = {
    "C1": ((56, 56), 4, 32, (7, 7), 1, None),
    "C2": ((56, 56), 4, 32, (7, 7), 8, None),
    "C3": ((64, 64), 8, 64, (13, 13), 1, None),
    "C4": ((16, 32, 32), 4, 64, (7, 11, 11), 1, None),
    "C5": ((8192,), 4, 64, (257,), 1, None),
    "L0": ((16, 32, 48), 16, 64, (3, 7, 7), 1, 1.0),
    "L1": ((16, 64, 96), 8, 64, (3, 7, 7), 1, 1.0),
}
QUERY_BLOCK = 1024


def windows(extent, window, dilation):
    """First key position of each token's window, inside its residue."""
    token = torch.arange(extent)
    residue, position = token % dilation, token // dilation
    length = extent // dilation + (residue < extent % dilation).long()
    return torch.minimum((position - window // 2).clamp(min=0), length - window)


def axis_mask(extent, window, dilation):
    token = torch.arange(extent)
    start = windows(extent, window, dilation)[:, None]
    position = token[None, :] // dilation
    same = token[:, None] % dilation == token[None, :] % dilation
    return same & (position >= start) & (position < start + window)


def mask_rows(problem, queries):
    """Rows of the dense mask, for a range of flattened queries."""
    tokens, _, _, kernel_size, dilation, _ = problem
    mask = torch.ones(len(queries), 1, dtype=torch.bool)
    rest = queries
    coordinates = []
    for extent in reversed(tokens):
        coordinates.append(rest % extent)
        rest = rest // extent
    for extent, window, coordinate in zip(tokens, kernel_size, reversed(coordinates)):
        along = axis_mask(extent, window, dilation)[coordinate]
        mask = (mask[:, :, None] & along[:, None, :]).flatten(1)
    return mask


def sdpa(problem, q, k, v):
    scale = problem[5]
    outs = []
    for start in range(0, q.shape[2], QUERY_BLOCK):
        rows = torch.arange(start, min(start + QUERY_BLOCK, q.shape[2]))
        mask = mask_rows(problem, rows)
        outs.append(F.scaled_dot_product_attention(q[:, :, rows], k, v, attn_mask=mask, scale=scale))
    return torch.cat(outs, 2)


def flex(problem):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    tokens, _, _, kernel_size, dilation, scale = problem
    masks = [axis_mask(*axis, dilation) for axis in zip(tokens, kernel_size)]

    def visible(_batch, _head, q, k):
        seen = torch.ones((), dtype=torch.bool)
        for extent, mask in zip(reversed(tokens), reversed(masks)):
            seen = seen & mask[q % extent, k % extent]
            q, k = q // extent, k // extent
        return seen

    count = 1
    for extent in tokens:
        count *= extent
    block = create_block_mask(visible, None, None, count, count, device="cpu")
    compiled = torch.compile(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=block, scale=scale)


def best_seconds(call, budget=3.0):
    call()
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < budget:
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(PROBLEMS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| problem | peer | threads | ms | GFLOP/s |\n|---|---|---|---|---|")
    for name in args.names:
        problem = PROBLEMS[name]
        tokens, heads, head_dim, kernel_size, _, _ = problem
        count, window = 1, 1
        for extent, size in zip(tokens, kernel_size):
            count, window = count * extent, window * size
        q, k, v = (torch.rand(1, heads, count, head_dim) * 2 - 1 for _ in range(3))
        flops = 4.0 * count * window * head_dim * heads
        for peer, make in (("sdpa", lambda: lambda: sdpa(problem, q, k, v)), ("flex", lambda: flex_call(problem, q, k, v))):
            try:
                seconds = best_seconds(make())
            except Exception as error:  # one peer that cannot run must not hide the others
                print(f"| {name} | {peer} | {args.threads} | failed: {type(error).__name__} | |")
                continue
            print(f"| {name} | {peer} | {args.threads} | {seconds * 1e3:.2f} | {flops / seconds / 1e9:.1f} |")


def flex_call(problem, q, k, v):
    call = flex(problem)
    return lambda: call(q, k, v)


if __name__ == "__main__":
    main()
