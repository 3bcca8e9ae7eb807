//! Which kernels are compiled: the one list of instances, and the PTX version each architecture really needs.
//!
//! What a kernel is stands here. What compiling it yields (threads, registers, shared memory, size of the parameter) is
//! read back from the result: facts.rs, assemble.rs.

/// A target and the lowest `.version` whose PTX has all that its kernels use. NVRTC always writes its own version,
/// and a driver refuses a newer one than it knows, so the line is lowered after compiling.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// For `--gpu-architecture`.
    pub arch: &'static str,
    /// PTX ISA version.
    pub version: &'static str,
    pub capability: Capability,
    /// Wheels of ptxas, with the architecture to assemble for: the oldest that knows the version, and newer ones. The
    /// last one's registers go into the table.
    pub assemblers: &'static [(&'static str, &'static str)],
}

/// The oldest architecture, or the only one. This and the enums below are printed into the table as they are written here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capability {
    pub major: u32,
    pub minor: u32,
    pub only: bool,
}

/// `shfl.sync` and `vote.sync` came with PTX 6.0 (CUDA 9.0); nothing else here is newer than 4.3. The newest
/// assembler has dropped sm_50, so it gets the first architecture it still shares with drivers, and Hopper.
pub(crate) const SIMT: Target = Target {
    arch: "compute_50",
    version: "6.0",
    capability: Capability { major: 5, minor: 0, only: false },
    assemblers: &[("11.8", "sm_50"), ("12.9", "sm_70"), ("13.0", "sm_80"), ("13.0", "sm_90")],
};

/// Everything in these kernels came with PTX 7.0 (CUDA 11.0). One text serves all later architectures too.
pub(crate) const SM80: Target = Target {
    arch: "compute_80",
    version: "7.0",
    capability: Capability { major: 8, minor: 0, only: false },
    assemblers: &[("11.8", "sm_80"), ("12.9", "sm_80"), ("13.0", "sm_80"), ("13.0", "sm_90")],
};

/// `setmaxnreg` and warpgroup products came with PTX 8.0 (CUDA 12.0). The text runs on this one architecture.
pub(crate) const SM90: Target = Target {
    arch: "compute_90a",
    version: "8.0",
    capability: Capability { major: 9, minor: 0, only: true },
    assemblers: &[("12.9", "sm_90a"), ("13.0", "sm_90a")],
};

/// `tcgen05` came with PTX 8.6 (CUDA 12.8). The text runs on this one architecture.
pub(crate) const SM100: Target = Target {
    arch: "compute_100a",
    version: "8.6",
    capability: Capability { major: 10, minor: 0, only: true },
    assemblers: &[("12.9", "sm_100a"), ("13.0", "sm_100a")],
};

/// What a kernel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Forward,
    BackwardQuery,
    BackwardKey,
    Delta,
    SumPartials,
    Merge,
    MergeBackward,
    CopyRows,
    AddRows,
    WindowDump,
    Peak,
    Wait,
}

/// Of all tensors but statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    F16,
    Bf16,
}

/// How a kernel shares its work out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Rows,
    Walk { lanes: u32, items: u32 },
    Tiles { queries: u32, keys: u32 },
    None,
}

/// One `.entry`, in a text of its own.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub name: String,
    pub family: &'static str,
    pub operation: Operation,
    pub source: &'static str,
    pub target: Target,
    pub element: Element,
    /// Longest row, 0 where any goes.
    pub max_head_dim: u32,
    pub needs_alignment: bool,
    pub shape: Shape,
    pub defines: Vec<String>,
}

/// All instances; of those for the same work, preferred ones first.
pub(crate) fn entries() -> Vec<Entry> {
    let mut entries = Vec::new();
    entries.extend(ELEMENTS.into_iter().flat_map(simt_entries));
    entries.extend(HALVES.into_iter().flat_map(|element| SM80_TILES.map(|tile| sm80_entry(element, tile))));
    entries.extend(HALVES.into_iter().flat_map(|element| SM90_TILES.map(|tile| sm90_entry(element, tile))));
    entries.extend(HALVES.into_iter().flat_map(sm80_backward_entries));
    entries.extend(HALVES.into_iter().flat_map(sm90_backward_entries));
    // Behind older ones: a kernel's number in the table decides which sample of the checks it gets.
    entries.extend(HALVES.into_iter().flat_map(|element| SM100_TILES.map(|tile| sm100_entry(element, tile))));
    // Each pass in both types: fewer kernels in a row would leave checks out.
    for pass in [Operation::BackwardQuery, Operation::BackwardKey] {
        entries.extend(HALVES.into_iter().flat_map(|element| sm100_backward_entries(element, pass)));
    }
    entries.extend(row_entries());
    entries.extend(measuring_entries());
    entries
}

const ELEMENTS: [Element; 3] = [Element::F32, Element::F16, Element::Bf16];
const HALVES: [Element; 2] = [Element::F16, Element::Bf16];

/// How a row of up to `head_dim` elements is spread: `lanes * elems == head_dim`. 16 elements a lane keep the
/// exchange between lanes small against the arithmetic, and still fit the registers. A warp has no more than 32 lanes, so the
/// longest rows have 32 elements a lane, and half as many items to make room for them.
const BUCKETS: [(u32, u32); 7] = [(1, 8), (2, 16), (4, 16), (8, 16), (16, 16), (32, 16), (32, 32)];

/// In a backward 8 elements a lane: a whole line of memory for a group of 8 lanes and half the loads for an item, in exchange for
/// more exchange; and room for two items and two tokens at a time. Longer rows have no lanes left for that.
const BACKWARD_BUCKETS: [(u32, u32); 7] = [(1, 8), (4, 8), (8, 8), (16, 8), (32, 8), (32, 16), (32, 32)];

/// Buckets with a variant for rows that are not 16-byte aligned or not a multiple of 16 bytes long.
const UNALIGNED: [(u32, u32); 3] = [(4, 16), (16, 16), (32, 32)];

/// Neighbouring items of a lane group: as many as registers hold beside the rows of a token. Element by element loads need more
/// of them.
fn items(operation: Operation, elems: u32, aligned: bool) -> u32 {
    match (operation, elems) {
        (Operation::Forward, 32) if aligned => 2,
        (_, 32) => 1,
        (Operation::Forward, _) => 4,
        (Operation::BackwardKey, _) if !aligned => 1,
        _ => 2,
    }
}

fn simt_entries(element: Element) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (operation, source, pass) in [
        (Operation::Forward, "forward/simt.cu", 0),
        (Operation::BackwardQuery, "backward/simt.cu", 0),
        (Operation::BackwardKey, "backward/simt.cu", 1),
    ] {
        let buckets = if operation == Operation::Forward { BUCKETS } else { BACKWARD_BUCKETS };
        let aligned = buckets.into_iter().map(|bucket| (bucket, true));
        for ((lanes, elems), aligned) in aligned.chain(UNALIGNED.into_iter().map(|bucket| (bucket, false))) {
            let items = items(operation, elems, aligned);
            let (max_head_dim, suffix) = (lanes * elems, if aligned { "" } else { "_unaligned" });
            let (operation_name, element_name) = (operation.name(), element.name());
            entries.push(Entry {
                name: format!("natten_{operation_name}_simt_{element_name}_d{max_head_dim}{suffix}"),
                family: "simt",
                operation,
                source,
                target: SIMT,
                element,
                max_head_dim,
                needs_alignment: aligned,
                shape: Shape::Walk { lanes, items },
                defines: vec![
                    format!("NATTEN_TYPE={}", element.in_kernels()),
                    format!("NATTEN_LANES={lanes}"),
                    format!("NATTEN_ELEMS={elems}"),
                    format!("NATTEN_ITEMS={items}"),
                    format!("NATTEN_ALIGNED={aligned}"),
                    format!("NATTEN_PASS={pass}"),
                ],
            });
        }
    }
    entries
}

/// head_dim, queries and keys of a tile. 128 queries (32 a warp) halve the shared memory traffic per multiplication, 64
/// give small problems twice the thread blocks. At head_dim 256 only 64 fit the registers.
const SM80_TILES: [[u32; 3]; 7] =
    [[32, 128, 64], [64, 128, 64], [128, 128, 64], [32, 64, 64], [64, 64, 64], [128, 64, 64], [256, 64, 32]];

fn sm80_entry(element: Element, [head_dim, queries, keys]: [u32; 3]) -> Entry {
    Entry {
        name: format!("natten_forward_sm80_{}_d{head_dim}_q{queries}_k{keys}", element.name()),
        family: "sm80",
        operation: Operation::Forward,
        source: "forward/sm80.cu",
        target: SM80,
        element,
        max_head_dim: head_dim,
        needs_alignment: true,
        shape: Shape::Tiles { queries, keys },
        defines: vec![
            format!("NATTEN_TYPE={}", element.in_kernels()),
            format!("NATTEN_DIM={head_dim}"),
            format!("NATTEN_ROWS={queries}"),
            format!("NATTEN_KEYS={keys}"),
        ],
    }
}

/// head_dim, rows of a cta and columns of a tile. A warp's 32 rows halve the shared memory traffic per multiplication where
/// their results fit its registers; 64 rows serve small windows and GPUs whose shared memory holds 128 just once.
const SM80_BACKWARD_QUERY_TILES: [[u32; 3]; 5] =
    [[32, 128, 64], [64, 128, 32], [128, 128, 32], [128, 64, 32], [256, 64, 16]];
const SM80_BACKWARD_KEY_TILES: [[u32; 3]; 4] = [[32, 128, 32], [64, 128, 32], [128, 64, 32], [256, 64, 16]];

fn sm80_backward_entries(element: Element) -> Vec<Entry> {
    let of_queries = SM80_BACKWARD_QUERY_TILES.map(|[head_dim, rows, columns]| {
        sm80_backward_entry(element, Operation::BackwardQuery, [head_dim, rows, columns])
    });
    let of_keys = SM80_BACKWARD_KEY_TILES.map(|[head_dim, rows, columns]| {
        sm80_backward_entry(element, Operation::BackwardKey, [head_dim, rows, columns])
    });
    of_queries.into_iter().chain(of_keys).collect()
}

fn sm80_backward_entry(element: Element, operation: Operation, [head_dim, rows, columns]: [u32; 3]) -> Entry {
    let (pass, queries, keys) =
        if operation == Operation::BackwardKey { (1, columns, rows) } else { (0, rows, columns) };
    Entry {
        name: format!("natten_{}_sm80_{}_d{head_dim}_q{queries}_k{keys}", operation.name(), element.name()),
        family: "sm80",
        operation,
        source: "backward/sm80.cu",
        target: SM80,
        element,
        max_head_dim: head_dim,
        needs_alignment: true,
        shape: Shape::Tiles { queries, keys },
        defines: vec![
            format!("NATTEN_TYPE={}", element.in_kernels()),
            format!("NATTEN_DIM={head_dim}"),
            format!("NATTEN_ROWS={rows}"),
            format!("NATTEN_COLUMNS={columns}"),
            format!("NATTEN_PASS={pass}"),
        ],
    }
}

/// head_dim, consumer warpgroups (64 queries each) and keys of a tile. Longer rows leave no registers for a third
/// warpgroup, and at 256 no shared memory for more than 64 keys. A third warpgroup keeps the tensor cores busier but wastes
/// more of a small window.
const SM90_TILES: [[u32; 3]; 6] =
    [[32, 2, 128], [32, 3, 128], [64, 2, 128], [64, 3, 128], [128, 2, 128], [256, 2, 64]];

fn sm90_entry(element: Element, [head_dim, warpgroups, keys]: [u32; 3]) -> Entry {
    let suffix = if warpgroups == 2 { "" } else { "_q192" };
    Entry {
        name: format!("natten_forward_sm90_{}_d{head_dim}{suffix}", element.name()),
        family: "sm90",
        operation: Operation::Forward,
        source: "forward/sm90.cu",
        target: SM90,
        element,
        max_head_dim: head_dim,
        needs_alignment: true,
        shape: Shape::Tiles { queries: 64 * warpgroups, keys },
        defines: vec![
            format!("NATTEN_TYPE={}", element.in_kernels()),
            format!("NATTEN_HEAD_DIM={head_dim}"),
            format!("NATTEN_KEYS={keys}"),
            format!("NATTEN_WARPGROUPS={warpgroups}"),
        ],
    }
}

/// head_dim and softmax warpgroups (128 queries each). With two of them products of one run under the softmax of the other;
/// one wastes less of a small window, and gives a small problem twice the thread blocks.
const SM100_TILES: [[u32; 2]; 6] = [[32, 2], [32, 1], [64, 2], [64, 1], [128, 2], [128, 1]];

fn sm100_entry(element: Element, [head_dim, warpgroups]: [u32; 2]) -> Entry {
    let suffix = if warpgroups == 2 { "" } else { "_q128" };
    Entry {
        name: format!("natten_forward_sm100_{}_d{head_dim}{suffix}", element.name()),
        family: "sm100",
        operation: Operation::Forward,
        source: "forward/sm100.cu",
        target: SM100,
        element,
        max_head_dim: head_dim,
        needs_alignment: true,
        shape: Shape::Tiles { queries: 128 * warpgroups, keys: 128 },
        defines: vec![
            format!("NATTEN_TYPE={}", element.in_kernels()),
            format!("NATTEN_HEAD_DIM={head_dim}"),
            format!("NATTEN_WARPGROUPS={warpgroups}"),
        ],
    }
}

/// head_dim and columns of a tile. Scores and their gradients of more columns would not fit beside the results in registers,
/// at 256 two stages of them not beside the rows in shared memory.
const SM90_BACKWARD_TILES: [[u32; 2]; 4] = [[32, 64], [64, 64], [128, 64], [256, 32]];

/// The passes over queries and over keys.
fn sm90_backward_entries(element: Element) -> Vec<Entry> {
    let rows = 128;
    let of_pass = |(pass, operation): (usize, Operation)| {
        SM90_BACKWARD_TILES.map(|[head_dim, columns]| Entry {
            name: format!("natten_{}_sm90_{}_d{head_dim}", operation.name(), element.name()),
            family: "sm90",
            operation,
            source: "backward/sm90.cu",
            target: SM90,
            element,
            max_head_dim: head_dim,
            needs_alignment: true,
            shape: match operation {
                Operation::BackwardQuery => Shape::Tiles { queries: rows, keys: columns },
                _ => Shape::Tiles { queries: columns, keys: rows },
            },
            defines: vec![
                format!("NATTEN_TYPE={}", element.in_kernels()),
                format!("NATTEN_HEAD_DIM={head_dim}"),
                format!("NATTEN_COLUMNS={columns}"),
                format!("NATTEN_PASS={pass}"),
            ],
        })
    };
    [Operation::BackwardQuery, Operation::BackwardKey].into_iter().enumerate().flat_map(of_pass).collect()
}

/// Rows and columns of a tile: lanes of tensor memory, and as many columns as it holds of scores and their gradients beside both
/// results. Products of fewer columns would read more of shared memory than there is.
const SM100_BACKWARD_SIDE: u32 = 128;

/// The pass over queries or over keys.
fn sm100_backward_entries(element: Element, operation: Operation) -> [Entry; 3] {
    [32, 64, 128].map(|head_dim| Entry {
        name: format!("natten_{}_sm100_{}_d{head_dim}", operation.name(), element.name()),
        family: "sm100",
        operation,
        source: "backward/sm100.cu",
        target: SM100,
        element,
        max_head_dim: head_dim,
        needs_alignment: true,
        shape: Shape::Tiles { queries: SM100_BACKWARD_SIDE, keys: SM100_BACKWARD_SIDE },
        defines: vec![
            format!("NATTEN_TYPE={}", element.in_kernels()),
            format!("NATTEN_HEAD_DIM={head_dim}"),
            format!("NATTEN_PASS={}", u32::from(operation == Operation::BackwardKey)),
        ],
    })
}

/// Row by row work around the passes.
fn row_entries() -> Vec<Entry> {
    let mut entries = Vec::new();
    let operations = [
        Operation::Delta,
        Operation::SumPartials,
        Operation::Merge,
        Operation::MergeBackward,
        Operation::CopyRows,
        Operation::AddRows,
    ];
    for (pass, operation) in operations.into_iter().enumerate() {
        for element in ELEMENTS {
            let defines =
                vec![format!("NATTEN_TYPE={}", element.in_kernels()), format!("NATTEN_PASS={pass}")];
            entries.push(Entry {
                family: "rows",
                shape: Shape::Rows,
                ..plain_entry(
                    format!("natten_{}_{}", operation.name(), element.name()),
                    operation,
                    ("rows.cu", SIMT),
                    element,
                    defines,
                )
            });
        }
    }
    entries
}

/// What measures a GPU's limits and times, and what a test holds against natten-core: no part of the operator. The fastest
/// arithmetic comes first.
fn measuring_entries() -> Vec<Entry> {
    let peak = |name: &str, from, element: Element, defines| {
        plain_entry(format!("natten_peak_{name}"), Operation::Peak, from, element, defines)
    };
    let mut entries = Vec::new();
    for (name, from) in [("wgmma", ("measure/peak_wgmma.cu", SM90)), ("mma", ("measure/peak_mma.cu", SM80))] {
        for element in HALVES {
            let defines = vec![format!("NATTEN_TYPE={}", element.in_kernels())];
            entries.push(peak(&format!("{name}_{}", element.name()), from, element, defines));
        }
    }
    entries.push(peak("fma_f32", ("measure/peak_fma.cu", SIMT), Element::F32, Vec::new()));
    for (operation, source) in
        [(Operation::Wait, "measure/wait.cu"), (Operation::WindowDump, "window_dump.cu")]
    {
        let name = format!("natten_{}", operation.name());
        entries.push(plain_entry(name, operation, (source, SIMT), Element::F32, Vec::new()));
    }
    entries
}

/// A kernel that takes rows of any length, wherever they lie, or none.
fn plain_entry(
    name: String,
    operation: Operation,
    (source, target): (&'static str, Target),
    element: Element,
    defines: Vec<String>,
) -> Entry {
    Entry {
        name,
        family: "measure",
        operation,
        source,
        target,
        element,
        max_head_dim: 0,
        needs_alignment: false,
        shape: Shape::None,
        defines,
    }
}

impl Entry {
    /// Tokens that a walking kernel takes at once: two in a pass over queries whose lanes hold 8 elements (backward/simt.cu).
    pub(crate) fn tokens(&self) -> u32 {
        let Shape::Walk { lanes, .. } = self.shape else { return 1 };
        let is_pair = self.operation == Operation::BackwardQuery && self.max_head_dim / lanes <= 8;
        if is_pair { 2 } else { 1 }
    }

    /// The same kernel for f16 of one for bf16. Where their texts differ in the type's name alone, one text ships for both.
    pub(crate) fn twin(&self) -> Option<String> {
        (self.element == Element::Bf16).then(|| self.name.replace("bf16", "f16"))
    }
}

impl Element {
    /// As in entry names.
    fn name(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::Bf16 => "bf16",
        }
    }

    /// The type's name in the kernels.
    fn in_kernels(self) -> &'static str {
        match self {
            Element::F32 => "F32",
            Element::F16 => "F16",
            Element::Bf16 => "BF16",
        }
    }
}

impl Operation {
    /// As in entry names.
    fn name(self) -> &'static str {
        match self {
            Operation::Forward => "forward",
            Operation::BackwardQuery => "backward_query",
            Operation::BackwardKey => "backward_key",
            Operation::Delta => "delta",
            Operation::SumPartials => "sum_partials",
            Operation::Merge => "merge",
            Operation::MergeBackward => "merge_backward",
            Operation::CopyRows => "copy_rows",
            Operation::AddRows => "add_rows",
            Operation::WindowDump => "window_dump",
            Operation::Peak => "peak",
            Operation::Wait => "wait",
        }
    }
}
