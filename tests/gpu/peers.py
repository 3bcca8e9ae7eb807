"""What else runs on this GPU, on the same problems and timed the same way: dense attention of PyTorch (cuDNN, flash) and of
FlashAttention's own packages where they are installed, and FlexAttention, compiled, with the same neighborhood mask; forward, and backward where problems.json asks for one.

    python3 peers.py rates OUT.json                 the ceilings: bf16 matrix product, device-to-device copy
    python3 peers.py peers OUT.json [--filter A,B] [--passes forward,backward] [--seconds N]

Needs PyTorch 2.5 or newer. A peer that fails is reported and the others go on.
"""
import argparse
import importlib
import importlib.util
import json
import math
import pathlib
import statistics
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
# What torch.compile imports would take profile.py beside this file for Python's own module of that name.
sys.path = [path for path in sys.path if pathlib.Path(path).resolve() != HERE]

try:
    import torch
except ImportError:
    sys.exit("no PyTorch here")

TARGET_MS = 250.0


def timed(call, sets=1):
    """Median, smallest and largest milliseconds of one call on the device: events around batches of a millisecond, after a
    warm-up. The device sleeps before each batch for longer than the host needs to queue it, so the host does not count."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    host = 0.0

    def batch(first, count):
        cycles = int(1.9e9 * min(0.15, 1.5 * host * count + 30e-6))
        torch.cuda._sleep(cycles)
        start.record()
        for i in range(count):
            call((first + i) % sets)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    batch(0, 1)
    began = time.perf_counter()
    call(0)
    host = time.perf_counter() - began
    torch.cuda.synchronize()
    once = batch(0, 1)
    batch(0, max(1, min(50, int(20 / once))))
    once = batch(0, 1)
    size = 1 if once > 1 else max(sets, math.ceil(1.5 / max(once, 1e-3)))
    runs = 2 if once > 300 else max(3, min(60, int(TARGET_MS / (once * size))))
    times = sorted(batch(run * size, size) / size for run in range(runs))
    return {"median_ms": statistics.median(times), "min_ms": times[0], "max_ms": times[-1], "runs": runs, "host_ms": host * 1e3}


def rates():
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    product = timed(lambda _: torch.matmul(a, b, out=out))
    source = torch.empty(1 << 30, device="cuda", dtype=torch.uint8).random_()
    target = torch.empty_like(source)
    copied = timed(lambda _: target.copy_(source))
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "matmul_bf16_tflops": 2 * n**3 / product["median_ms"] / 1e9,
        "copy_tbs": 2 * source.numel() / copied["median_ms"] / 1e9,
    }


def windows(problem, axis):
    """Start and end of the window of every token along an axis (dilation 1, not causal), as the operator defines them."""
    extent, window, stride = (problem[key][axis] for key in ("tokens", "kernel_size", "stride"))
    i = torch.arange(extent, device="cuda")
    leader = torch.clamp(i // stride * stride + stride // 2, max=extent - 1)
    start = torch.clamp(leader - window // 2, 0, extent - window)
    return start, start + window


def tile_of(problem):
    """A box of 128 tokens that divides the problem, or None: tokens then stay in row-major order."""
    boxes = {1: [(128,)], 2: [(8, 16), (16, 8), (4, 32)], 3: [(2, 8, 8), (4, 4, 8), (1, 8, 16), (2, 4, 16)]}
    tokens = problem["tokens"]
    for box in boxes[len(tokens)]:
        if all(extent % side == 0 for extent, side in zip(tokens, box)):
            return box
    return None


def order_of(problem, tile):
    """Token coordinates in the order in which they lie in memory: row-major, or tile by tile."""
    tokens = problem["tokens"]
    grid = torch.stack(torch.meshgrid(*[torch.arange(e, device="cuda") for e in tokens], indexing="ij"), -1)
    if tile is None:
        return grid.reshape(-1, len(tokens))
    shape, rank = [], len(tokens)
    for extent, side in zip(tokens, tile):
        shape += [extent // side, side]
    grid = grid.reshape(*shape, rank)
    return grid.permute(*range(0, 2 * rank, 2), *range(1, 2 * rank, 2), 2 * rank).reshape(-1, rank)


def mask_of(problem, tile):
    """The neighborhood as FlexAttention's mask: arithmetic on indices, no tables."""
    tokens, kernel, stride = problem["tokens"], problem["kernel_size"], problem["stride"]

    def coordinates(index):
        out = []
        if tile is None:
            for extent in reversed(tokens):
                out.append(index % extent)
                index = index // extent
            return out[::-1]
        size = math.prod(tile)
        inside, outside = index % size, index // size
        for side, extent in zip(reversed(tile), reversed(tokens)):
            out.append(outside % (extent // side) * side + inside % side)
            outside, inside = outside // (extent // side), inside // side
        return out[::-1]

    def mask(_batch, _head, query, key):
        visible = None
        for q, k, extent, window, step in zip(coordinates(query), coordinates(key), tokens, kernel, stride):
            leader = q if step == 1 else torch.clamp(q // step * step + step // 2, max=extent - 1)
            start = torch.clamp(leader - window // 2, 0, extent - window)
            here = (k >= start) & (k < start + window)
            visible = here if visible is None else visible & here
        return visible

    return mask


def block_mask_of(problem, tile, block=128):
    """The block mask, built from the windows directly: asking the mask for every pair would take gigabytes."""
    from torch.nn.attention.flex_attention import BlockMask

    order = order_of(problem, tile)
    length = order.shape[0]
    blocks = -(-length // block)
    spans = [windows(problem, axis) for axis in range(order.shape[1])]
    some = torch.zeros(blocks, blocks, dtype=torch.bool, device="cuda")
    every = torch.zeros_like(some)
    pad = blocks * block - length
    for row in range(blocks):
        queries = order[row * block : (row + 1) * block]
        visible = None
        for axis, (start, end) in enumerate(spans):
            q, k = queries[:, axis], order[:, axis]
            here = (k[None] >= start[q][:, None]) & (k[None] < end[q][:, None])
            visible = here if visible is None else visible & here
        padded = torch.nn.functional.pad(visible, (0, pad)).reshape(len(queries), blocks, block)
        some[row] = padded.any(2).any(0)
        every[row] = padded.all(2).all(0) & (len(queries) == block)
    partial = some & ~every

    def lists(which):
        count = which.sum(1, dtype=torch.int32)
        indices = torch.argsort(which.int(), dim=1, descending=True, stable=True).int()
        return count[None, None].contiguous(), indices[None, None].contiguous()

    # Without its length a mask is one of whole blocks. PyTorch 2.5 does not take it.
    ragged = {"seq_lengths": (length, length)} if pad else {}
    mask_mod = mask_of(problem, tile)
    mask = BlockMask.from_kv_blocks(*lists(partial), *lists(every), BLOCK_SIZE=block, mask_mod=mask_mod, **ragged)
    return mask, int(some.sum())


def visible_of(problem, tile):
    """The mask written out: which keys each query sees, in the order of tokens in memory."""
    order, visible = order_of(problem, tile), None
    for axis in range(order.shape[1]):
        start, end = windows(problem, axis)
        at = order[:, axis]
        here = (at[None] >= start[at][:, None]) & (at[None] < end[at][:, None])
        visible = here if visible is None else visible & here
    return visible


def difference(problem, tile, operands, call, scale, backward):
    """Of FlexAttention's output, or of its gradients over the largest of theirs, to dense attention under the mask written out,
    on two heads, where that is small enough to write out."""
    if math.prod(problem["tokens"]) > 8192:
        return {}

    def results(operands, call):
        if not backward:
            return [call(*operands)[:, :2].float()]
        out = call(*operands)
        return [gradient[:, :2].float() for gradient in torch.autograd.grad(out, operands, torch.ones_like(out))]

    visible = visible_of(problem, tile)
    dense = torch.nn.functional.scaled_dot_product_attention
    two_heads = [t[:, :2].detach().float().requires_grad_(backward) for t in operands]
    wanted = results(two_heads, lambda q, k, v: dense(q, k, v, attn_mask=visible, scale=scale))
    found = results(operands, call)
    largest = [w.abs().max() if backward else 1.0 for w in wanted]
    return {"difference_to_dense": max(float((f - w).abs().max() / l) for f, w, l in zip(found, wanted, largest))}


def tensors(problem, head_dim, sets, backward):
    shape = (1, problem["heads"], math.prod(problem["tokens"]), head_dim)

    def tensor():
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=backward)

    return [[tensor() for _ in range(3)] for _ in range(sets)]


def time_pass(call, operands, backward):
    """The forward alone, or the backward alone: what it needs of its forward is made once and kept. Gradients are returned, not
    summed into the operands, so that nothing but the backward is timed."""
    if not backward:
        return timed(lambda i: call(*operands[i]), len(operands))
    outs = [call(*inputs) for inputs in operands]
    d_outs = [torch.randn_like(out) for out in outs]
    return timed(lambda i: torch.autograd.grad(outs[i], operands[i], d_outs[i], retain_graph=True), len(operands))


def peers(problem, head_dim, backward, deadline):
    """All peers on one pass of a problem. A backward counts as 2.5 forwards: five products of matrices to two."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    length, factor = math.prod(problem["tokens"]), 2.5 if backward else 1.0
    useful = factor * 4 * head_dim * problem["heads"] * length * math.prod(problem["kernel_size"]) / 1e12
    dense = factor * 4 * head_dim * problem["heads"] * length**2 / 1e12
    size = (8 if backward else 4) * 2 * problem["heads"] * length * head_dim
    sets = max(1, min(24, -(-3 * torch.cuda.get_device_properties(0).L2_cache_size // size)))
    operands = tensors(problem, head_dim, sets, backward)
    scale = problem.get("scale")
    kind = "backward" if backward else "forward"
    lines = []

    def note(peer, tflop, work):
        line = {"problem": problem["name"], "head_dim": head_dim, "type": "bf16", "pass": kind, "peer": peer}
        if time.monotonic() > deadline:
            line["skipped"] = "no time left"
        else:
            try:
                line.update(work())
                line["useful_tflops"] = useful / line["median_ms"] * 1e3
                line["issued_tflops"] = line.pop("issued_tflop", tflop) / line["median_ms"] * 1e3
            except Exception as error:  # noqa: BLE001: whatever a peer does, the others go on
                line["error"] = f"{type(error).__name__}: {error}"[:400]
                torch.cuda.empty_cache()
        lines.append(line)
        shown = line.get("error") or line.get("skipped") or f"{line['median_ms']:.4f} ms, {line['issued_tflops']:.0f} TFLOP/s issued"
        print(f"{problem['name']:<22} {head_dim:>3} {kind:<8} {peer:<12} {shown}", flush=True)

    def flex(tile):
        from torch.nn.attention.flex_attention import flex_attention

        torch._dynamo.reset()
        # A backward is timed many times over what its forward left, which a compiled one would take for its own results.
        torch._functorch.config.donated_buffer = False
        mask, visited = block_mask_of(problem, tile)
        compiled = torch.compile(flex_attention, dynamic=False)

        def call(query, key, value):
            return compiled(query, key, value, block_mask=mask, scale=scale)

        check = difference(problem, tile, operands[0], call, scale, backward)
        result = time_pass(call, operands, backward)
        issued = factor * 4 * head_dim * problem["heads"] * visited * 128 * 128 / 1e12
        return {**result, **check, "issued_tflop": issued}

    tile = tile_of(problem)
    if tile is not None and len(problem["tokens"]) > 1:
        note("flex-tiled", useful, lambda: flex(tile))
    note("flex", useful, lambda: flex(None))
    for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):

        def sdpa():
            with sdpa_kernel(backend):
                attention = torch.nn.functional.scaled_dot_product_attention
                return time_pass(lambda q, k, v: attention(q, k, v, scale=scale), operands, backward)

        note(f"dense-{name}", dense, sdpa)
    for name, module in (("fa4", "flash_attn.cute"), ("fa3", "flash_attn_interface"), ("fa2", "flash_attn")):
        if not has(module):
            continue

        def own():
            attention = importlib.import_module(module).flash_attn_func

            def call(query, key, value):
                out = attention(*(x.transpose(1, 2) for x in (query, key, value)), softmax_scale=scale)
                return out[0] if isinstance(out, tuple) else out

            return time_pass(call, operands, backward)

        note(f"dense-{name}", dense, own)
    return lines


def has(module):
    """Whether this machine has a package of FlashAttention's own, whose tensors are [batch, tokens, heads, head_dim]."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["rates", "peers"])
    parser.add_argument("out")
    parser.add_argument("--filter", default="")
    parser.add_argument("--passes", default="forward,backward")
    parser.add_argument("--seconds", type=float, default=500)
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    if not torch.cuda.is_available():
        print("no CUDA device for PyTorch", file=sys.stderr)
        sys.exit(2)
    report = rates()
    print(json.dumps(report))
    out = pathlib.Path(arguments.out)
    if arguments.what == "peers":
        report["measurements"] = []
        filters = [text for text in arguments.filter.split(",") if text]
        problems = json.loads((HERE / "problems.json").read_text())["problems"]
        chosen = [p for p in problems if p["peers"] and (not filters or any(text in p["name"] for text in filters))]
        runs = [(p, p["head_dims"][0], False) for p in chosen] + [(p, d, True) for p in chosen for d in p["backward"]]
        for problem, head_dim, backward in runs:
            if ("backward" if backward else "forward") in arguments.passes.split(","):
                report["measurements"] += peers(problem, head_dim, backward, deadline)
                torch.cuda.empty_cache()
                out.write_text(json.dumps(report, indent=1))
    out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
