//! Which kernels are compiled: the one list of instances, and the PTX version each architecture really needs.

use serde::Serialize;

/// A target and the lowest `.version` whose PTX has all that its kernels use. NVRTC always writes its own version,
/// and a driver refuses a newer one than it knows, so the line is lowered after compiling.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// For `--gpu-architecture`.
    pub arch: &'static str,
    /// PTX ISA version.
    pub version: &'static str,
    /// Wheels of ptxas, with the architecture to assemble for: the oldest that knows the version, and newer ones.
    pub assemblers: &'static [(&'static str, &'static str)],
}

/// `shfl.sync` and `vote.sync` came with PTX 6.0 (CUDA 9.0); nothing else here is newer than 4.3. The newest
/// assembler has dropped sm_50, so it gets the first architecture it still shares with drivers, and Hopper.
pub(crate) const SIMT: Target = Target {
    arch: "compute_50",
    version: "6.0",
    assemblers: &[("11.8", "sm_50"), ("12.9", "sm_70"), ("13.0", "sm_80"), ("13.0", "sm_90")],
};

/// Everything in these kernels came with PTX 7.0 (CUDA 11.0). One text serves all later architectures too.
pub(crate) const SM80: Target = Target {
    arch: "compute_80",
    version: "7.0",
    assemblers: &[("11.8", "sm_80"), ("12.9", "sm_80"), ("13.0", "sm_80"), ("13.0", "sm_90")],
};

/// `setmaxnreg` and warpgroup products came with PTX 8.0 (CUDA 12.0). The text runs on this one architecture.
pub(crate) const SM90: Target =
    Target { arch: "compute_90a", version: "8.0", assemblers: &[("12.9", "sm_90a"), ("13.0", "sm_90a")] };

/// What a kernel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Operation {
    Forward,
    BackwardQuery,
    BackwardKey,
    Delta,
    SumPartials,
    Merge,
    WindowDump,
    Peak,
    Wait,
}

/// Element types as the kernels name them, and as entry names do.
const TYPES: [(&str, &str); 3] = [("F32", "f32"), ("F16", "f16"), ("BF16", "bf16")];

/// How a row of up to `head_dim` elements is spread: `lanes * elems == head_dim`. 16 elements a lane keep the
/// exchange between lanes small against the arithmetic, and still fit the registers.
const BUCKETS: [(u32, u32); 5] = [(1, 8), (2, 16), (4, 16), (8, 16), (16, 16)];

/// Buckets with a variant for rows that are not 16-byte aligned or not a multiple of 16 bytes long.
const UNALIGNED: [u32; 2] = [64, 256];

/// One `.entry`, in a file of its own.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub name: String,
    pub operation: Operation,
    pub source: &'static str,
    pub target: Target,
    pub element_type: &'static str,
    /// Longest row, 0 where any goes.
    pub head_dim: u32,
    pub aligned: bool,
    pub lanes: u32,
    /// Neighbouring queries (or keys) that share a lane group's loads.
    pub items: u32,
    pub threads: u32,
    /// Queries and keys of a tile, 0 where there are no tiles.
    pub tile: [u32; 2],
    /// Dynamic shared memory.
    pub shared_bytes: u32,
    pub defines: Vec<String>,
}

/// All instances.
pub(crate) fn entries() -> Vec<Entry> {
    let mut entries = Vec::new();
    for (ty, type_name) in TYPES {
        for (operation, source, pass, items) in [
            (Operation::Forward, "forward/simt.cu", 0, 4),
            (Operation::BackwardQuery, "backward/simt.cu", 0, 2),
            (Operation::BackwardKey, "backward/simt.cu", 1, 2),
        ] {
            for (lanes, elems) in BUCKETS {
                let head_dim = lanes * elems;
                for aligned in [true, false] {
                    if !aligned && !UNALIGNED.contains(&head_dim) {
                        continue;
                    }
                    // Element by element loads need registers that two keys with their gradients do not leave.
                    let items = if aligned || operation != Operation::BackwardKey { items } else { 1 };
                    let suffix = if aligned { "" } else { "_unaligned" };
                    let name =
                        format!("natten_{}_simt_{type_name}_d{head_dim}{suffix}", operation.short_name());
                    entries.push(Entry {
                        defines: vec![
                            format!("NATTEN_TYPE={ty}"),
                            format!("NATTEN_LANES={lanes}"),
                            format!("NATTEN_ELEMS={elems}"),
                            format!("NATTEN_ITEMS={items}"),
                            format!("NATTEN_ALIGNED={aligned}"),
                            format!("NATTEN_PASS={pass}"),
                        ],
                        name,
                        operation,
                        source,
                        target: SIMT,
                        element_type: type_name,
                        head_dim,
                        aligned,
                        lanes,
                        items,
                        threads: 128,
                        tile: [0; 2],
                        shared_bytes: 0,
                    });
                }
            }
        }
        for (pass, operation) in
            [Operation::Delta, Operation::SumPartials, Operation::Merge].into_iter().enumerate()
        {
            let name = format!("natten_{}_{type_name}", operation.short_name());
            let defines = vec![format!("NATTEN_TYPE={ty}"), format!("NATTEN_PASS={pass}")];
            entries.push(row_entry(name, operation, "rows.cu", type_name, defines));
        }
    }
    let dump = "natten_window_dump".to_owned();
    entries.push(row_entry(dump, Operation::WindowDump, "window_dump.cu", "i32", Vec::new()));
    entries.extend(TYPES[1..].iter().flat_map(|&ty| SM80_TILES.map(|tile| sm80_entry(ty, tile))));
    entries.extend(TYPES[1..].iter().flat_map(|&ty| SM90_TILES.map(|tile| sm90_entry(ty, tile))));
    entries.extend(measuring_entries());
    entries
}

/// head_dim, queries and keys of a tile. 128 queries (32 a warp) halve the shared memory traffic per multiplication, 64
/// give small problems twice the thread blocks. At head_dim 256 only 64 fit the registers.
const SM80_TILES: [[u32; 3]; 7] =
    [[32, 128, 64], [64, 128, 64], [128, 128, 64], [32, 64, 64], [64, 64, 64], [128, 64, 64], [256, 64, 32]];

fn sm80_entry((ty, type_name): (&str, &'static str), [head_dim, queries, keys]: [u32; 3]) -> Entry {
    // Q, three slots for K and V, what describes the keys, the table of columns, that of starting scores, which is short
    // where two thread blocks with a long one would not fit into 164 KiB: forward/sm80.cu asserts the sum.
    let starts = if head_dim == 256 || head_dim == 128 && queries == 128 { 256 } else { 4096 };
    let shared_bytes = 2 * head_dim * (queries + 3 * keys) + 232 + (keys + 1) * 8 + 16 + starts;
    Entry {
        name: format!("natten_forward_sm80_{type_name}_d{head_dim}_q{queries}_k{keys}"),
        operation: Operation::Forward,
        source: "forward/sm80.cu",
        target: SM80,
        element_type: type_name,
        head_dim,
        aligned: true,
        lanes: 32,
        items: queries,
        threads: 128,
        tile: [queries, keys],
        shared_bytes,
        defines: vec![
            format!("NATTEN_TYPE={ty}"),
            format!("NATTEN_DIM={head_dim}"),
            format!("NATTEN_ROWS={queries}"),
            format!("NATTEN_KEYS={keys}"),
            format!("NATTEN_SHARED_BYTES={shared_bytes}"),
        ],
    }
}

/// head_dim, consumer warpgroups (64 queries each) and keys of a tile. Longer rows leave no registers for a third
/// warpgroup, and at 256 no shared memory for more than 64 keys.
const SM90_TILES: [[u32; 3]; 6] =
    [[32, 2, 128], [32, 3, 128], [64, 2, 128], [64, 3, 128], [128, 2, 128], [256, 2, 64]];

fn sm90_entry((ty, type_name): (&str, &'static str), [head_dim, warpgroups, keys]: [u32; 3]) -> Entry {
    let queries = 64 * warpgroups;
    let suffix = if warpgroups == 2 { "" } else { "_q192" };
    // Q of the items in flight, two stages of K and of V, rows, masks, items, stages' places, barriers: sm90/config.cuh
    // lays them out, forward/sm90.cu asserts the sum.
    let items = if head_dim == 256 { 1 } else { 2 };
    let shared_bytes = 2 * head_dim * (items * queries + 4 * keys)
        + 48 * queries
        + 16 * (keys + 5)
        + items * 96
        + 32
        + 64
        + items * 16;
    Entry {
        name: format!("natten_forward_sm90_{type_name}_d{head_dim}{suffix}"),
        operation: Operation::Forward,
        source: "forward/sm90.cu",
        target: SM90,
        element_type: type_name,
        head_dim,
        aligned: true,
        lanes: 32,
        items: queries,
        threads: 128 * (warpgroups + 1),
        tile: [queries, keys],
        shared_bytes,
        defines: vec![
            format!("NATTEN_TYPE={ty}"),
            format!("NATTEN_HEAD_DIM={head_dim}"),
            format!("NATTEN_KEYS={keys}"),
            format!("NATTEN_WARPGROUPS={warpgroups}"),
            format!("NATTEN_SHARED_BYTES={shared_bytes}"),
        ],
    }
}

/// What measures a GPU's limits and times: no part of the operator.
fn measuring_entries() -> Vec<Entry> {
    let entry = |name: &str, operation, source, target, element_type, defines: Vec<String>| Entry {
        target,
        threads: 256,
        ..row_entry(format!("natten_{name}"), operation, source, element_type, defines)
    };
    let peak = |name: &str, source, target, element_type, defines| {
        entry(name, Operation::Peak, source, target, element_type, defines)
    };
    let mut entries = vec![
        Entry { threads: 1, ..entry("wait", Operation::Wait, "measure/wait.cu", SIMT, "i32", Vec::new()) },
        peak("peak_fma_f32", "measure/peak_fma.cu", SIMT, "f32", Vec::new()),
    ];
    for (ty, name) in &TYPES[1..] {
        let defines = vec![format!("NATTEN_TYPE={ty}")];
        entries.push(peak(&format!("peak_mma_{name}"), "measure/peak_mma.cu", SM80, name, defines));
    }
    for (ty, name) in &TYPES[1..] {
        // Two warpgroups' 64 rows and their common 256, of 64 elements.
        let shared_bytes = (2 * 64 + 256) * 64 * 2;
        let defines = vec![format!("NATTEN_TYPE={ty}"), format!("NATTEN_SHARED_BYTES={shared_bytes}")];
        let wgmma = peak(&format!("peak_wgmma_{name}"), "measure/peak_wgmma.cu", SM90, name, defines);
        entries.push(Entry { shared_bytes, ..wgmma });
    }
    entries
}

fn row_entry(
    name: String,
    operation: Operation,
    source: &'static str,
    element_type: &'static str,
    defines: Vec<String>,
) -> Entry {
    let (lanes, items, threads) = (32, 1, 128);
    Entry {
        name,
        operation,
        source,
        target: SIMT,
        element_type,
        head_dim: 0,
        aligned: false,
        lanes,
        items,
        threads,
        tile: [0; 2],
        shared_bytes: 0,
        defines,
    }
}

impl Operation {
    /// As in entry names.
    pub(crate) fn short_name(self) -> &'static str {
        match self {
            Operation::Forward => "forward",
            Operation::BackwardQuery => "backward_query",
            Operation::BackwardKey => "backward_key",
            Operation::Delta => "delta",
            Operation::SumPartials => "sum_partials",
            Operation::Merge => "merge",
            Operation::WindowDump => "window_dump",
            Operation::Peak => "peak",
            Operation::Wait => "wait",
        }
    }
}
