"""The tables at the end of the report, from the raw numbers in a folder: our kernels beside their peers, what masks cost,
what failed.

    python3 summary.py FOLDER
"""
import json
import pathlib
import sys


def read(folder, name):
    path = folder / name
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def number(value, form):
    return "-" if value is None else format(value, form)


def beside_peers(bench, peers):
    """One line a problem and head_dim: the fastest of our families, the others, and the peers."""
    lines = [m for m in bench["measurements"] if m.get("median_ms") and m["pass"] == "forward"]
    theirs = {}
    for m in (peers or {}).get("measurements", []):
        if m.get("median_ms") and m.get("pass", "forward") == "forward":
            theirs.setdefault((m["problem"], m["head_dim"], m["type"]), {})[m["peer"]] = m["median_ms"]
    groups = {}
    for m in lines:
        groups.setdefault((m["problem"], m["head_dim"], m["type"]), []).append(m)
    print("forward, ms; 'x': how much faster ours is than FlexAttention with the same mask, or than the fastest dense attention")
    print(
        f"{'problem':<22} {'hd':>3} {'type':<4} {'ours':>9} {'useful':>7} {'issued':>7} {'share':>6} {'flex':>9} {'x':>6} "
        f"{'dense':>9} {'x':>6} {'':<12}  family"
    )
    for (problem, head_dim, kind), group in groups.items():
        best = min(group, key=lambda m: m["median_ms"])
        peer = theirs.get((problem, head_dim, kind), {})
        flex = min((peer[p] for p in peer if p.startswith("flex")), default=None)
        dense, which = min(((ms, p) for p, ms in peer.items() if p.startswith("dense")), default=(None, ""))
        times = [number(other and other / best["median_ms"], ".2f") for other in (flex, dense)]
        families = ", ".join(f"{family(m)} {m['median_ms']:.3f}" for m in sorted(group, key=lambda m: m["median_ms"]))
        print(
            f"{problem:<22} {head_dim:>3} {kind:<4} {best['median_ms']:>9.4f} {best['useful_tflops']:>7.1f} "
            f"{number(best['issued_tflops'], '.1f'):>7} {number(best['share_of_matmul'], '.2f'):>6} {number(flex, '.4f'):>9} "
            f"{times[0]:>6} {number(dense, '.4f'):>9} {times[1]:>6} {which:<12}  {families}"
        )


def family(m):
    parts = m["kernel"].split("_")
    return next((p for p in parts if p == "simt" or p.startswith("sm")), m["kernel"])


def masks(bench):
    """Time per issued FLOP with masks over without: the same window, stride 1 against a stride that makes every tile full."""
    pairs = [
        ("1d-w2048-s1", "1d-w2048-s2048"), ("2d-w16-s1", "2d-w16-s16"), ("2d-w16-s8", "2d-w16-s16"),
        ("flux-w80-s1", "flux-w80-s16"), ("hunyuan-w18-s1", "hunyuan-w18-s16"),
        ("cosmos-w16-32-48", "cosmos-w16-32-48-s16"), ("cosmos-w16-24-16", "cosmos-w16-24-16-s16"),
    ]
    found = {}
    for m in bench["measurements"]:
        if m.get("issued_tflops") and m["pass"] == "forward":
            found[m["problem"], m["head_dim"], m["type"], family(m)] = m
    print("\ncost of masks: time per issued FLOP at stride 1 over that of a stride that leaves only full tiles (1 is free)")
    for masked, full in pairs:
        for key, m in found.items():
            other = found.get((full, *key[1:]))
            if key[0] == masked and other and key[3] != "simt":
                ratio = other["issued_tflops"] / m["issued_tflops"]
                print(f"{masked:<22} {key[1]:>3} {key[2]:<4} {key[3]:<6} {ratio:.2f}   (issued over useful {m['issued_over_useful']:.2f})")


def backward(bench, peers):
    """Ours beside FlexAttention's with the same mask and the dense ones."""
    lines = [m for m in bench["measurements"] if m.get("median_ms") and m["pass"] == "backward"]
    theirs = {}
    for m in (peers or {}).get("measurements", []):
        if m.get("median_ms") and m.get("pass") == "backward":
            kind = "flex" if m["peer"].startswith("flex") else m["peer"]
            found = theirs.setdefault((m["problem"], m["head_dim"], m["type"]), {})
            found[kind] = min(m["median_ms"], found.get(kind, m["median_ms"]))
    if lines:
        print("\nbackward, ms; useful TFLOP/s count it as 2.5 forwards")
        print(f"{'problem':<22} {'hd':>3} {'type':<4} {'ours':>9} {'useful':>7} {'flex':>9} {'cudnn':>9} {'flash':>9}  family")
    for m in lines:
        peer = theirs.get((m["problem"], m["head_dim"], m["type"]), {})
        flex, cudnn, flash = (number(peer.get(kind), ".4f") for kind in ("flex", "dense-cudnn", "dense-flash"))
        print(
            f"{m['problem']:<22} {m['head_dim']:>3} {m['type']:<4} {m['median_ms']:>9.4f} {m['useful_tflops']:>7.1f} "
            f"{flex:>9} {cudnn:>9} {flash:>9}  {family(m)}"
        )


def host(bench):
    """Where the host is the slower half: the time to plan and queue a call beside the device's."""
    lines = [m for m in bench["measurements"] if m.get("host_ms") and m.get("plan_ms") is not None]
    lines.sort(key=lambda m: m["median_ms"] / m["host_ms"])
    print("\nhost time of a call, microseconds (plan is part of host); calls that the host holds up first")
    for m in lines[:16]:
        print(
            f"{m['problem']:<22} {m['head_dim']:>3} {m['type']:<4} {m['pass']:<8} {family(m):<5} device {m['median_ms'] * 1e3:>8.1f}  "
            f"host {m['host_ms'] * 1e3:>7.1f}  plan {m['plan_ms'] * 1e3:>7.1f}"
        )
    for name in sorted({family(m) for m in lines}):
        plans = sorted(m["plan_ms"] * 1e3 for m in lines if family(m) == name)
        print(f"plan, {name}: median {plans[len(plans) // 2]:.1f}, largest {plans[-1]:.1f} of {len(plans)}")


def elsewhere(bench):
    """Problems that the newest family leaves to an older one."""
    newest = max((m["capability"] for m in bench["measurements"] if m.get("same_as")), default=None)
    left = [m for m in bench["measurements"] if m.get("same_as") and m["capability"] == newest]
    if left:
        print(f"\nas {newest}, these run an older family's kernel")
    for m in left:
        print(f"{m['problem']:<22} {m['head_dim']:>3} {m['type']:<4} {m['pass']:<8} {m['same_as']}")


def differences(bench):
    """Families that do not agree: their outputs were sampled on the same data."""
    limit = {"f32": 1e-4, "f16": 1e-2, "bf16": 5e-2}
    for m in bench["measurements"]:
        error = m.get("difference_to_first")
        if error is not None and not error <= limit[m["type"]]:
            print(f"DISAGREES: {m['problem']} hd {m['head_dim']} {m['type']}: {m['kernel']} differs by {error:.2e}")


def main():
    folder = pathlib.Path(sys.argv[1])
    load, truth, suite, bench, peers = (read(folder, f"{n}.json") for n in ("load", "truth", "suite", "bench", "peers"))
    if bench:
        beside_peers(bench, peers)
        masks(bench)
        backward(bench, peers)
        host(bench)
        elsewhere(bench)
        differences(bench)
        for m in bench["measurements"]:
            if m.get("error"):
                print(f"ERROR: {m['problem']} hd {m['head_dim']}: {m['error'].splitlines()[0][:160]}")
        print(f"\ncopy {bench['copy_tbs']:.2f} TB/s, bf16 matrix product {number(bench['matmul_tflops'], '.0f')} TFLOP/s")
    if load:
        print(f"\nload: {load['loaded']} texts loaded, {load['refused']} refused, {load['skipped']} for other architectures, {load['spilling']} use local memory")
    if truth:
        for function in truth.get("sweep") or []:
            if isinstance(function, dict):
                print(f"{function['function']:<16} at most {function['max_ulp']:.2f} units in the last place, at {function['at']}, over {function['items']} patterns")
        print(f"truth: {truth['recorded']} cases recorded, {truth['failed']} failed, {truth['not_as_documented']} not as documented")
    for run in suite or []:
        print(f"suite as {run['capability']}: {run['passed']} passed, {run['failed']} failed, {run['unsupported']} unsupported, {run['not_run']} not run, of {run['checks']}")


if __name__ == "__main__":
    main()
