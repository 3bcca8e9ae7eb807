"""What bounds our kernels: hardware counters of single launches, read by ncu, as one line a kernel.

    python3 profile.py KIT LOGS [--seconds N] [TARGET...]

A target is PROBLEM:HEAD_DIM:TYPE:CAPABILITY[:backward] of problems.json. ncu's own output stays in LOGS.
"""
import argparse
import csv
import pathlib
import re
import subprocess
import sys
import time

# Worst first: what the report of the last run on a GPU could not explain.
TARGETS = [
    "hunyuan-w18-s1:32:bf16:9.0", "L0:64:bf16:9.0", "L4:64:bf16:9.0", "hunyuan-w18-s16:128:bf16:9.0",
    "L0:64:bf16:5.0", "2d-w16-s1:32:bf16:9.0", "2d-w16-s1:128:bf16:9.0:backward", "L0:64:bf16:8.0",
    "flux-w80-s1:128:bf16:8.0", "L0:64:bf16:9.0:backward", "hunyuan-w18-s1:64:bf16:9.0", "1d-w2048-s1:128:bf16:9.0",
]
SECTIONS = [
    "SpeedOfLight", "Occupancy", "LaunchStats", "WarpStateStats", "SchedulerStats", "MemoryWorkloadAnalysis",
    "ComputeWorkloadAnalysis",
]
# Column title, what the counter's name starts with (the first that is there counts), and how to show it.
COLUMNS = [
    ("ms", ["gpu__time_duration.sum"], lambda v: f"{v / 1e6:.4f}"),
    ("issue%", ["smsp__issue_active.avg.pct_of_peak_sustained_active", "sm__inst_issued.avg.pct_of_peak_sustained_active"], "{:.0f}".format),
    ("ipc", ["sm__inst_executed.avg.per_cycle_active"], "{:.2f}".format),
    ("dram%", ["gpu__dram_throughput.avg.pct_of_peak", "dram__throughput.avg.pct_of_peak"], "{:.0f}".format),
    ("l2%", ["lts__t_sectors.avg.pct_of_peak", "lts__throughput.avg.pct_of_peak"], "{:.0f}".format),
    ("l1%", ["l1tex__throughput.avg.pct_of_peak"], "{:.0f}".format),
    ("l1hit%", ["l1tex__t_sector_hit_rate.pct"], "{:.0f}".format),
    ("l2hit%", ["lts__t_sector_hit_rate.pct"], "{:.0f}".format),
    ("warps%", ["sm__warps_active.avg.pct_of_peak_sustained_active"], "{:.0f}".format),
    ("regs", ["launch__registers_per_thread"], "{:.0f}".format),
    ("conflicts", ["l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum", "l1tex__data_bank_conflicts_pipe_lsu.sum"], "{:.2g}".format),
    ("waves", ["launch__waves_per_multiprocessor"], "{:.1f}".format),
]
STALL = re.compile(r"smsp__average_warps?_(?:latency_)?issue_stalled_(\w+?)(?:_per_issue_active|_per_warp_active)?\.(?:ratio|pct)$")
PIPE = re.compile(r"sm__(?:inst_executed_)?pipe_(\w+?)(?:_cycles_active)?\.avg\.pct_of_peak_sustained_active$")
EXTRA = ["l1tex__data_bank_conflicts_pipe_lsu_mem_shared", "smsp__issue_active", "sm__pipe_tensor_cycles_active"]


def number(text):
    try:
        return float(text.replace(",", ""))
    except (AttributeError, ValueError):
        return None


def known_extras():
    """The counters of EXTRA that this ncu knows: it refuses a whole command for one that it does not."""
    try:
        listed = subprocess.run(["ncu", "--query-metrics", "--chips", "gh100"], capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return []
    names = set(re.findall(r"^\s*(\w+)", listed.stdout, re.MULTILINE))
    return [n for n in EXTRA if n in names]


def profile(kit, log, target, extras, limit):
    """Rows of one target: a dict of counters a kernel."""
    problem, head_dim, kind, capability, *rest = target.split(":")
    command = ["ncu", "--clock-control", "none", "--kernel-name", "regex:natten_", "--csv", "--page", "raw", "--print-units", "base"]
    for section in SECTIONS:
        command += ["--section", section]
    if extras:
        suffix = lambda n: ".sum" if "conflicts" in n else ".avg.pct_of_peak_sustained_active"
        command += ["--metrics", ",".join(n + suffix(n) for n in extras)]
    command += ["--log-file", str(log), kit, "once", problem, f"head_dim={head_dim}", f"type={kind}", f"capability={capability}"]
    command += ["backward=1"] if rest else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    text = log.read_text(errors="replace") if log.exists() else ""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    if not lines:
        words = (text + done.stdout + done.stderr).strip().splitlines()
        raise RuntimeError(" / ".join(words[-4:]) or f"exit code {done.returncode}")
    # The second line holds units.
    return [row for row in csv.DictReader(lines) if number(row.get("ID")) is not None]


def shares(row, pattern, count):
    """The largest of a family of counters, by name."""
    found = {}
    for name, text in row.items():
        match = pattern.match(name or "")
        value = number(text)
        if match and value is not None and not match[1].endswith("not_issued"):
            found[match[1]] = max(value, found.get(match[1], 0.0))
    return sorted(found.items(), key=lambda item: -item[1])[:count]


def show(target, row):
    cells = []
    for _, names, form in COLUMNS:
        values = (number(text) for prefix in names for name, text in row.items() if (name or "").startswith(prefix))
        value = next((v for v in values if v is not None), None)
        cells.append("-" if value is None else form(value))
    kernel = row.get("Kernel Name", "?").split("(")[0].replace("natten_", "")
    widths = " ".join(f"{cell:>{max(len(title), 5)}}" for cell, (title, _, _) in zip(cells, COLUMNS))
    print(f"{target:<32} {kernel:<34} {widths}")
    stalls = "  ".join(f"{name} {value:.2f}" for name, value in shares(row, STALL, 7))
    pipes = "  ".join(f"{name} {value:.0f}" for name, value in shares(row, PIPE, 6))
    print(f"    stalled warps an issue: {stalls or '-'}\n    pipes, % of peak: {pipes or '-'}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kit")
    parser.add_argument("logs", type=pathlib.Path)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=float, default=90)
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    extras = known_extras()
    print(f"counters asked for beyond the sections: {', '.join(extras) or 'none'}")
    print(f"{'target':<32} {'kernel':<34} " + " ".join(f"{title:>5}" for title, _, _ in COLUMNS), flush=True)
    failed = 0
    for index, target in enumerate(arguments.targets or TARGETS):
        left = deadline - time.monotonic()
        if left < 5:
            print(f"{target:<32} not profiled: no time left")
            continue
        try:
            for row in profile(arguments.kit, arguments.logs / f"ncu-{index}.csv", target, extras, left):
                show(target, row)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"{target:<32} FAILED: {str(error)[:300]}", flush=True)
            failed += 1
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
