"""PyTorch on the bench set, beside ours: masked SDPA and FlexAttention, forward, as useful GFLOP/s.

Install, outside the tree (the CPU build that torch's own site names for your system is the smaller one; FlexAttention
compiles with the system's C++ compiler):
    python3 -m venv peers-env && peers-env/bin/pip install torch numpy

Side by side, each problem in one sitting, ours first (`cargo bench --no-run -p natten-benches` beforehand):
    peers-env/bin/python benches/peers/torch_peers.py --ours [C1 C3 ..] [--elements f32,bf16] [--threads 2]
PyTorch alone without --ours; --json prints an object a line, as `cargo bench --bench cpu_table -- --json` does.

The operator is the same, so the window is a mask: SDPA gets it as a tensor for each block of queries, made beforehand
in the form that is fastest for it; FlexAttention gets a block mask, compiled. Tensors are heads first and contiguous,
as both like best. Names are the bench set's (benches/src/problems.rs); L0 and L1 are left out unless asked for, since their
dense scores take minutes and L1's mask of all pairs 10 GB.
"""

import argparse
import json
import math
import statistics
import subprocess
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
ELEMENTS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
QUERY_BLOCK = 1024


def axis_mask(extent, window, dilation):
    """Which keys of an axis each query sees: a window clamped into the tokens of its residue."""
    token = torch.arange(extent)
    residue, position = token % dilation, token // dilation
    length = extent // dilation + (residue < extent % dilation).long()
    start = torch.minimum((position - window // 2).clamp(min=0), length - window)[:, None]
    same = residue[:, None] == residue[None, :]
    return same & (position >= start) & (position < start + window)


def mask_rows(problem, queries):
    """Rows of the dense mask, for flattened queries."""
    tokens, _, _, kernel_size, dilation, _ = problem
    mask = torch.ones(len(queries), 1, dtype=torch.bool)
    coordinates, rest = [], queries
    for extent in reversed(tokens):
        coordinates.append(rest % extent)
        rest = rest // extent
    for extent, window, coordinate in zip(tokens, kernel_size, reversed(coordinates)):
        along = axis_mask(extent, window, dilation)[coordinate]
        mask = (mask[:, :, None] & along[:, None, :]).flatten(1)
    return mask


def sdpa(problem, q, k, v):
    scale, count = problem[5], q.shape[2]
    blocks = []
    for start in range(0, count, QUERY_BLOCK):
        rows = slice(start, min(start + QUERY_BLOCK, count))
        mask = mask_rows(problem, torch.arange(count)[rows])
        # Booleans would be turned into this at every call.
        blocks.append((rows, torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -math.inf)))

    def call():
        attend = F.scaled_dot_product_attention
        return torch.cat([attend(q[:, :, rows], k, v, attn_mask=mask, scale=scale) for rows, mask in blocks], 2)

    return call


def flex(problem, q, k, v):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    tokens, _, _, kernel_size, dilation, scale = problem
    axes = [(extent, axis_mask(extent, window, dilation)) for extent, window in zip(tokens, kernel_size)]

    def visible(_batch, _head, query, key):
        seen = None
        for extent, mask in reversed(axes):
            along = mask[query % extent, key % extent]
            seen = along if seen is None else seen & along
            query, key = query // extent, key // extent
        return seen

    block = create_block_mask(visible, None, None, q.shape[2], q.shape[2], device="cpu")
    torch.compiler.reset()  # or the second problem would be compiled for any shape, which fails
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, block_mask=block, scale=scale)


PEERS = {"SDPA": sdpa, "FlexAttention": flex}


def seconds_of(call, budget):
    """Best and median of calls for about `budget` seconds, after one that does not count."""
    call()
    samples, start = [], time.perf_counter()
    while not samples or time.perf_counter() - start < budget:
        begin = time.perf_counter()
        call()
        samples.append(time.perf_counter() - begin)
    return min(samples), statistics.median(samples)


def measure(name, element, args):
    """A row for each peer."""
    problem = PROBLEMS[name]
    tokens, heads, head_dim, kernel_size, _, _ = problem
    count = math.prod(tokens)
    torch.manual_seed(0)
    q, k, v = ((torch.rand(1, heads, count, head_dim) * 2 - 1).to(ELEMENTS[element]) for _ in range(3))
    flops = 4.0 * count * math.prod(kernel_size) * head_dim * heads
    common = {"problem": name, "pass": "forward", "element": element, "threads": args.threads}
    first = None
    for peer, prepare in PEERS.items():
        try:
            with torch.no_grad():
                call = prepare(problem, q, k, v)
                best, median = seconds_of(call, args.seconds)
                out = call().float()
        except Exception as error:  # one peer that cannot run must not hide the others
            yield common | {"who": peer, "failed": f"{type(error).__name__}: {error}".splitlines()[0]}
            continue
        first = out if first is None else first
        if not torch.allclose(out, first, atol=2e-2 if element != "f32" else 1e-4):
            raise SystemExit(f"{name}: the peers compute different things")
        yield common | {"who": peer, "best_ms": best * 1e3, "median_ms": median * 1e3, "gflops": flops / median / 1e9}


def ours(name, args):
    command = ["cargo", "bench", "--quiet", "-p", "natten-benches", "--bench", "cpu_table", "--", "--json"]
    command += ["--only", name, "--pass", "forward", "--elements", args.elements, "--threads", str(args.threads)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in printed.splitlines()]


def side_by_side(name, rows, args):
    """One line of the table for each element type; ours on the instructions that did best."""
    for element in args.elements.split(","):
        of_it = [row for row in rows if row["element"] == element]
        natten = max((row for row in of_it if row["who"].startswith("natten")), key=lambda row: row["gflops"])
        cells = [name, element, f"{natten['median_ms']:.2f}", f"{natten['gflops']:.1f} ({natten['share']:.2f})"]
        rates = []
        for peer in PEERS:
            row = next(row for row in of_it if row["who"] == peer)
            cells.append(f"{row['gflops']:.2f}" if "gflops" in row else "fails")
            rates.append(row.get("gflops", 0.0))
        cells.append(f"{natten['gflops'] / max(rates):.0f}" if max(rates) > 0 else "")
        print("| " + " | ".join(cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[name for name in PROBLEMS if name[0] == "C"])
    parser.add_argument("--elements", default="f32,bf16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=3.0, help="for each peer, problem and element type")
    parser.add_argument("--ours", action="store_true", help="measure natten too, side by side")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.json and args.ours:
        print(f"PyTorch {torch.__version__}, threads: {args.threads}; useful GFLOP/s of the median call.\n")
        print("| problem | element | natten, ms | natten (share of f32 peak) | " + " | ".join(PEERS) + " | natten over the best |")
        print("|---|---|---|---|" + "---|" * len(PEERS) + "---|", flush=True)
    for name in args.names:
        rows = ours(name, args) if args.ours else []
        for element in args.elements.split(","):
            rows += measure(name, element, args)
        for row in rows:
            if "failed" in row:
                print(f"{name} {row['who']} {row['element']}: {row['failed']}", flush=True)
        if args.json or not args.ours:
            print("\n".join(map(json.dumps, rows)), flush=True)
        else:
            side_by_side(name, rows, args)


if __name__ == "__main__":
    main()
