//! Every kernel that ships, with its PTX and what it can take. `ptx/manifest.json` says the same; a test compares.

use natten_core::ElementType;

use crate::select::ComputeCapability;
use crate::sm90;

/// What a kernel computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Output and log-sum-exp.
    Forward,
    /// Gradient of the queries.
    BackwardQuery,
    /// Gradients of keys and values.
    BackwardKey,
    /// Row statistics that the backward passes read.
    Delta,
    /// Sum of partial gradients.
    SumPartials,
    /// Merge of partial results.
    Merge,
    /// The window formula, for tests.
    WindowDump,
    /// Nothing but arithmetic, to measure the device's limit.
    Peak,
    /// Nothing, for so many clocks.
    Wait,
}

/// One kernel.
#[derive(Debug)]
pub struct Kernel {
    /// Entry and file name.
    pub entry: &'static str,
    /// The text that the driver compiles.
    pub ptx: &'static str,
    /// What it computes.
    pub operation: Operation,
    /// Of all tensors but statistics.
    pub element_type: ElementType,
    /// Longest row, or 0 where any goes.
    pub max_head_dim: usize,
    /// Whether bases, strides and row lengths must be multiples of 16 bytes.
    pub needs_alignment: bool,
    /// Lanes that share a row.
    pub lanes: usize,
    /// Neighbouring items that share a lane group's loads.
    pub items: usize,
    /// Threads of a block.
    pub threads: u32,
    /// Queries and keys of a tile, for kernels that work on tiles.
    pub tile: Option<Tile>,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Oldest architecture.
    pub min_capability: ComputeCapability,
}

/// How many queries a thread block of a kernel on tiles has, and how many keys it takes at once. Their boxes are
/// arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Queries.
    pub queries: usize,
    /// Keys.
    pub keys: usize,
}

/// All kernels, preferred ones first among those for the same work.
pub fn kernels() -> impl Iterator<Item = &'static Kernel> {
    KERNELS.iter().chain(SM80_KERNELS).chain(ROW_KERNELS)
}

/// What measures a device's limits and keeps it busy: no part of the operator. Fastest arithmetic first.
pub fn measuring_kernels() -> impl Iterator<Item = &'static Kernel> {
    MEASURING_KERNELS.iter()
}

const SM50: ComputeCapability = ComputeCapability { major: 5, minor: 0 };
const SM80: ComputeCapability = ComputeCapability { major: 8, minor: 0 };

macro_rules! walk_kernel {
    ($operation:ident $name:literal $ty:ident $type_name:literal $d:literal $suffix:literal
     aligned $aligned:literal lanes $lanes:literal items $items:literal) => {
        Kernel {
            entry: concat!("natten_", $name, "_simt_", $type_name, "_d", $d, $suffix),
            ptx: include_str!(concat!(
                "../ptx/natten_",
                $name,
                "_simt_",
                $type_name,
                "_d",
                $d,
                $suffix,
                ".ptx"
            )),
            operation: Operation::$operation,
            element_type: ElementType::$ty,
            max_head_dim: $d,
            needs_alignment: $aligned,
            lanes: $lanes,
            items: $items,
            threads: 128,
            tile: None,
            shared_bytes: 0,
            min_capability: SM50,
        }
    };
}

macro_rules! walk_kernels {
    ($($operation:ident $name:literal items $items:literal unaligned $few:literal;)*) => {
        walk_kernels!(@types $($operation $name $items $few F32 "f32",)*
            $($operation $name $items $few F16 "f16",)* $($operation $name $items $few Bf16 "bf16",)*)
    };
    (@types $($operation:ident $name:literal $items:literal $few:literal $ty:ident $type_name:literal,)*) => {
        &[$(
            walk_kernel!($operation $name $ty $type_name 8 "" aligned true lanes 1 items $items),
            walk_kernel!($operation $name $ty $type_name 32 "" aligned true lanes 2 items $items),
            walk_kernel!($operation $name $ty $type_name 64 "" aligned true lanes 4 items $items),
            walk_kernel!($operation $name $ty $type_name 128 "" aligned true lanes 8 items $items),
            walk_kernel!($operation $name $ty $type_name 256 "" aligned true lanes 16 items $items),
            walk_kernel!($operation $name $ty $type_name 64 "_unaligned" aligned false lanes 4 items $few),
            walk_kernel!($operation $name $ty $type_name 256 "_unaligned" aligned false lanes 16 items $few),
        )*]
    };
}

static KERNELS: &[Kernel] = walk_kernels! {
    Forward "forward" items 4 unaligned 4;
    BackwardQuery "backward_query" items 2 unaligned 2;
    BackwardKey "backward_key" items 2 unaligned 1;
};

macro_rules! sm80_kernels {
    ($(d $d:literal q $q:literal k $k:literal shared $shared:literal;)*) => {
        sm80_kernels!(@types $(F16 "f16" $d $q $k $shared,)* $(Bf16 "bf16" $d $q $k $shared,)*)
    };
    (@types $($ty:ident $type_name:literal $d:literal $q:literal $k:literal $shared:literal,)*) => {
        &[$(Kernel {
            entry: concat!("natten_forward_sm80_", $type_name, "_d", $d, "_q", $q, "_k", $k),
            ptx: include_str!(concat!("../ptx/natten_forward_sm80_", $type_name, "_d", $d, "_q", $q, "_k", $k, ".ptx")),
            operation: Operation::Forward,
            element_type: ElementType::$ty,
            max_head_dim: $d,
            needs_alignment: true,
            lanes: 32,
            items: $q,
            threads: 128,
            tile: Some(Tile { queries: $q, keys: $k }),
            shared_bytes: $shared,
            min_capability: SM80,
        },)*]
    };
}

static SM80_KERNELS: &[Kernel] = sm80_kernels! {
    d 32 q 128 k 64 shared 25344;
    d 64 q 128 k 64 shared 45824;
    d 128 q 128 k 64 shared 82944;
    d 32 q 64 k 64 shared 21248;
    d 64 q 64 k 64 shared 37632;
    d 128 q 64 k 64 shared 70400;
    d 256 q 64 k 32 shared 82688;
};

macro_rules! row_kernels {
    ($($entry:literal $operation:ident $ty:ident)*) => {
        &[$(Kernel {
            entry: $entry,
            ptx: include_str!(concat!("../ptx/", $entry, ".ptx")),
            operation: Operation::$operation,
            element_type: ElementType::$ty,
            max_head_dim: 0,
            needs_alignment: false,
            lanes: 32,
            items: 1,
            threads: 128,
            tile: None,
            shared_bytes: 0,
            min_capability: SM50,
        },)*]
    };
}

static ROW_KERNELS: &[Kernel] = row_kernels! {
    "natten_delta_f32" Delta F32
    "natten_delta_f16" Delta F16
    "natten_delta_bf16" Delta Bf16
    "natten_sum_partials_f32" SumPartials F32
    "natten_sum_partials_f16" SumPartials F16
    "natten_sum_partials_bf16" SumPartials Bf16
    "natten_merge_f32" Merge F32
    "natten_merge_f16" Merge F16
    "natten_merge_bf16" Merge Bf16
    "natten_window_dump" WindowDump F32
};

macro_rules! measuring_kernels {
    ($($entry:literal $operation:ident $ty:ident threads $threads:literal shared $shared:literal from $capability:expr;)*) => {
        &[$(Kernel {
            entry: $entry,
            ptx: include_str!(concat!("../ptx/", $entry, ".ptx")),
            operation: Operation::$operation,
            element_type: ElementType::$ty,
            max_head_dim: 0,
            needs_alignment: false,
            lanes: 32,
            items: 1,
            threads: $threads,
            tile: None,
            shared_bytes: $shared,
            min_capability: $capability,
        },)*]
    };
}

static MEASURING_KERNELS: &[Kernel] = measuring_kernels! {
    "natten_peak_wgmma_f16" Peak F16 threads 256 shared 49152 from sm90::CAPABILITY;
    "natten_peak_wgmma_bf16" Peak Bf16 threads 256 shared 49152 from sm90::CAPABILITY;
    "natten_peak_mma_f16" Peak F16 threads 256 shared 0 from SM80;
    "natten_peak_mma_bf16" Peak Bf16 threads 256 shared 0 from SM80;
    "natten_peak_fma_f32" Peak F32 threads 256 shared 0 from SM50;
    "natten_wait" Wait F32 threads 1 shared 0 from SM50;
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{measure, params};

    fn all() -> impl Iterator<Item = &'static Kernel> {
        kernels().chain(measuring_kernels())
    }

    #[test]
    fn manifest_says_the_same() {
        let manifest: Vec<serde_json::Value> =
            serde_json::from_str(include_str!("../ptx/manifest.json")).unwrap();
        assert_eq!(manifest.len(), all().count() + sm90::KERNELS.len());
        for kernel in all() {
            let record = manifest.iter().find(|record| record["entry"] == kernel.entry).expect(kernel.entry);
            let facts = [
                ("head_dim", kernel.max_head_dim),
                ("lanes", kernel.lanes),
                ("items", kernel.items),
                ("threads", kernel.threads as usize),
                ("shared_bytes", kernel.shared_bytes as usize),
            ];
            for (name, value) in facts {
                assert_eq!(record[name], value, "{} {name}", kernel.entry);
            }
            let tile = kernel.tile.map_or([0; 2], |tile| [tile.queries, tile.keys]);
            assert_eq!(record["tile"], serde_json::json!(tile), "{}", kernel.entry);
            assert_eq!(record["aligned"], kernel.needs_alignment, "{}", kernel.entry);
            if !matches!(kernel.operation, Operation::WindowDump | Operation::Wait) {
                assert_eq!(record["element_type"], kernel.element_type.name());
            }
        }
    }

    /// One entry a file, one parameter, of the mirror's size.
    #[test]
    fn ptx_takes_the_mirrored_parameters() {
        for kernel in all() {
            let bytes = match kernel.operation {
                Operation::Forward if kernel.tile.is_some() => size_of::<params::TileForwardParams>(),
                Operation::Forward => size_of::<params::ForwardParams>(),
                Operation::BackwardQuery | Operation::BackwardKey => size_of::<params::BackwardParams>(),
                Operation::Delta => size_of::<params::DeltaParams>(),
                Operation::SumPartials => size_of::<params::SumParams>(),
                Operation::Merge => size_of::<params::MergeParams>(),
                Operation::WindowDump => size_of::<params::WindowDumpParams>(),
                Operation::Peak => size_of::<measure::PeakParams>(),
                Operation::Wait => size_of::<measure::WaitParams>(),
            };
            assert_eq!(kernel.ptx.matches(".entry ").count(), 1, "{}", kernel.entry);
            assert!(kernel.ptx.contains(&format!(".visible .entry {}(", kernel.entry)), "{}", kernel.entry);
            let parameters: Vec<&str> =
                kernel.ptx.lines().filter(|line| line.starts_with(".param")).collect();
            assert_eq!(parameters.len(), 1, "{}", kernel.entry);
            assert!(parameters[0].ends_with(&format!("[{bytes}]")), "{}: {}", kernel.entry, parameters[0]);
        }
    }
}
