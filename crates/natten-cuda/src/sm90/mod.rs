//! The Hopper family: which of its kernels serves a problem, with what tiles, and its launches.
//!
//! [`prepare`] is pure: from a problem and the places of its tensors to launches, or the reason why there are none.
//! [`run`] encodes the tensor maps and launches.

mod launch;
pub mod params;
mod tiles;

use natten_core::window::Axis;
use natten_core::{ElementType, Problem};

use crate::device::TensorMapSpec;
use crate::error::CudaError;
use crate::launch::geometry;
use crate::params::{Divisor, Strides, to_i32};
use crate::select::{ComputeCapability, RejectionReason};
use crate::tiles::Request;
use crate::tma::{MapError, RowView, Tile, tensor_map};

pub use launch::run;
pub(crate) use launch::{prepare_forward, try_forward};
use params::{ForwardParamsSm90, MapSteps};
pub use tiles::Boxes;
use tiles::{choose, of_tiling};

/// The one architecture that runs these kernels: warpgroup products exist nowhere else.
pub const CAPABILITY: ComputeCapability = ComputeCapability { major: 9, minor: 0 };

/// Beyond so many scores computed for one that is wanted, CUDA cores on exact windows are as fast.
const MAX_ISSUED_OVER_USEFUL: f64 = 32.0;

/// One kernel of the family.
#[derive(Debug)]
pub struct Kernel {
    /// Entry and file name.
    pub entry: &'static str,
    /// The text that the driver compiles.
    pub ptx: &'static str,
    /// Of all tensors but the log-sum-exp.
    pub element_type: ElementType,
    /// Longest row.
    pub head_dim: usize,
    /// Keys of a tile.
    pub keys: usize,
    /// Consumer warpgroups, 64 queries each.
    pub warpgroups: usize,
    /// Dynamic shared memory.
    pub shared_bytes: u32,
}

impl Kernel {
    /// Threads of a block: the consumers and one producer warpgroup.
    pub fn threads(&self) -> u32 {
        128 * (self.warpgroups as u32 + 1)
    }
}

macro_rules! kernels {
    ($($type_name:literal $ty:ident $d:literal $suffix:literal keys $keys:literal warpgroups $warpgroups:literal
       shared $shared:literal;)*) => {
        &[$(Kernel {
            entry: concat!("natten_forward_sm90_", $type_name, "_d", $d, $suffix),
            ptx: include_str!(concat!("../../ptx/natten_forward_sm90_", $type_name, "_d", $d, $suffix, ".ptx")),
            element_type: ElementType::$ty,
            head_dim: $d,
            keys: $keys,
            warpgroups: $warpgroups,
            shared_bytes: $shared,
        },)*]
    };
}

/// All kernels of the family. Short rows leave room for a third consumer warpgroup, which keeps the tensor cores busier
/// but wastes more of a small window.
pub static KERNELS: &[Kernel] = kernels! {
    "f16" F16 32 "" keys 128 warpgroups 2 shared 57728;
    "f16" F16 32 "_q192" keys 128 warpgroups 3 shared 68992;
    "f16" F16 64 "" keys 128 warpgroups 2 shared 106880;
    "f16" F16 64 "_q192" keys 128 warpgroups 3 shared 126336;
    "f16" F16 128 "" keys 128 warpgroups 2 shared 205184;
    "f16" F16 256 "" keys 64 warpgroups 2 shared 204160;
    "bf16" Bf16 32 "" keys 128 warpgroups 2 shared 57728;
    "bf16" Bf16 32 "_q192" keys 128 warpgroups 3 shared 68992;
    "bf16" Bf16 64 "" keys 128 warpgroups 2 shared 106880;
    "bf16" Bf16 64 "_q192" keys 128 warpgroups 3 shared 126336;
    "bf16" Bf16 128 "" keys 128 warpgroups 2 shared 205184;
    "bf16" Bf16 256 "" keys 64 warpgroups 2 shared 204160;
};

/// Where the tensors of a forward call are. Views are `[batch, X, Y, Z, heads, head_dim]` with unit axes for missing ones.
#[derive(Clone, Copy, Debug)]
pub struct Views {
    /// Queries.
    pub query: RowView,
    /// Keys.
    pub key: RowView,
    /// Values.
    pub value: RowView,
    /// Additional keys and values, their tokens on the last axis.
    pub additional: Option<[RowView; 2]>,
    /// Address of the result, and strides in elements.
    pub out: (u64, Strides),
    /// Address of the log-sum-exp (0: none), and strides in elements.
    pub lse: (u64, Strides),
}

/// One launch but for its tensor maps.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// Thread blocks.
    pub grid: u32,
    /// Tiles.
    pub boxes: Boxes,
    /// Scores computed.
    pub issued: u64,
    /// All parameters but the maps.
    pub params: ForwardParamsSm90,
    /// Of queries, keys, values, additional keys, additional values.
    pub maps: [Option<TensorMapSpec>; 5],
}

/// The launches that serve one sequence of a problem, or why there are none.
///
/// `entry` asks for one kernel. A layout that leaves no axis for the batch gets one launch for each batch item.
///
/// # Errors
/// The reason against the family; [`CudaError::TooLarge`] where a number does not fit a kernel's integers.
pub fn prepare(
    problem: &Problem,
    axes: &[Axis; 3],
    views: &Views,
    entry: Option<&str>,
    multiprocessors: u32,
) -> Result<Result<Vec<Prepared>, RejectionReason>, CudaError> {
    let kernels = match candidates(problem, axes, entry) {
        Ok(kernels) => kernels,
        Err(reason) => return Ok(Err(reason)),
    };
    match choose(problem, axes, &kernels) {
        Some((kernel, boxes)) => prepare_boxes(problem, axes, views, kernel, boxes, multiprocessors),
        None => Ok(Err(RejectionReason::Dilation)),
    }
}

/// [`prepare`] with the kernel and boxes that are asked for.
pub(crate) fn prepare_as(
    problem: &Problem,
    axes: &[Axis; 3],
    views: &Views,
    request: &Request,
    multiprocessors: u32,
) -> Result<Result<Vec<Prepared>, RejectionReason>, CudaError> {
    let Some(tiling) = &request.tiling else {
        return prepare(problem, axes, views, request.entry, multiprocessors);
    };
    let kernels = match candidates(problem, axes, request.entry) {
        Ok(kernels) => kernels,
        Err(reason) => return Ok(Err(reason)),
    };
    let mut asked =
        kernels.into_iter().filter_map(|kernel| Some((kernel, of_tiling(problem, axes, kernel, tiling)?)));
    match asked.next() {
        Some((kernel, boxes)) => prepare_boxes(problem, axes, views, kernel, boxes, multiprocessors),
        None => Ok(Err(RejectionReason::NotAskedFor)),
    }
}

/// One launch, or one for each batch item.
fn prepare_boxes(
    problem: &Problem,
    axes: &[Axis; 3],
    views: &Views,
    kernel: &'static Kernel,
    boxes: Boxes,
    multiprocessors: u32,
) -> Result<Result<Vec<Prepared>, RejectionReason>, CudaError> {
    let whole = prepare_one(problem, axes, views, kernel, boxes, multiprocessors)?;
    let reason = match whole {
        Ok(launch) => return Ok(Ok(vec![launch])),
        Err(reason) => reason,
    };
    if problem.batch() == 1 || reason != RejectionReason::TensorMap(MapError::TooManyAxes) {
        return Ok(Err(reason));
    }
    let mut launches = Vec::with_capacity(problem.batch());
    for item in 0..problem.batch() {
        match prepare_one(problem, axes, &views.batch_item(item), kernel, boxes, multiprocessors)? {
            Ok(launch) => launches.push(launch),
            Err(reason) => return Ok(Err(reason)),
        }
    }
    Ok(Ok(launches))
}

/// The kernel and tiles that [`prepare`] takes, if any.
pub fn boxes(problem: &Problem, axes: &[Axis; 3], entry: Option<&str>) -> Option<(&'static Kernel, Boxes)> {
    choose(problem, axes, &candidates(problem, axes, entry).ok()?)
}

/// The `most` cheapest ways to cut the problem, cheapest first, over the kernels that can serve it.
///
/// # Errors
/// The reason against the family.
pub(crate) fn ranked(
    problem: &Problem,
    most: usize,
) -> Result<Vec<(&'static Kernel, Boxes)>, RejectionReason> {
    let axes = problem.axes();
    Ok(tiles::ranked(problem, axes, &candidates(problem, axes, None)?, most))
}

/// Whether the family pays for this problem: windows of a few tokens leave most of every tile masked.
pub fn pays(problem: &Problem, prepared: &[Prepared]) -> bool {
    let issued: f64 = prepared.iter().map(|launch| launch.issued as f64).sum();
    issued <= MAX_ISSUED_OVER_USEFUL * problem.scores() as f64
}

/// Kernels whose rows are long enough but no longer than need be, or the one that is asked for if it can.
fn candidates(
    problem: &Problem,
    axes: &[Axis; 3],
    entry: Option<&str>,
) -> Result<Vec<&'static Kernel>, RejectionReason> {
    let head_dim = problem.head_dim().max(problem.head_dim_v());
    let asked = KERNELS.iter().filter(|kernel| entry.is_none_or(|entry| entry == kernel.entry));
    let of_type: Vec<_> = asked.filter(|kernel| kernel.element_type == problem.element_type()).collect();
    let Some(first) = of_type.first() else {
        return Err(RejectionReason::ElementType {
            kernel: ElementType::Bf16,
            problem: problem.element_type(),
        });
    };
    // The largest score, unscaled, must be the largest weight.
    if problem.scale() as f32 <= 0.0 {
        return Err(RejectionReason::Scale);
    }
    if axes.iter().any(|axis| axis.key_extent == 0) {
        return Err(RejectionReason::NoKeys);
    }
    let Some(bucket) = of_type.iter().map(|k| k.head_dim).filter(|&d| d >= head_dim).min() else {
        let max = of_type.iter().map(|k| k.head_dim).max().unwrap_or(first.head_dim);
        return Err(RejectionReason::HeadDim { max, found: head_dim });
    };
    Ok(of_type.into_iter().filter(|k| k.head_dim == bucket).collect())
}

fn prepare_one(
    problem: &Problem,
    axes: &[Axis; 3],
    views: &Views,
    kernel: &'static Kernel,
    boxes: Boxes,
    multiprocessors: u32,
) -> Result<Result<Prepared, RejectionReason>, CudaError> {
    let dilation = axes.map(|axis| axis.dilation);
    let side = |log2: [u32; 3]| log2.map(|log2| 1usize << log2);
    let tile = |side: [usize; 3]| Tile { side, dilation, head_dim: kernel.head_dim };
    let (query_tile, key_tile) = (tile(side(boxes.query_log2)), tile(side(boxes.key_log2)));
    let list = Tile { side: [1, 1, kernel.keys], dilation: [1; 3], head_dim: kernel.head_dim };

    let batch = views.query.batch;
    let mut params = ForwardParamsSm90 {
        out: views.out.0,
        lse: views.lse.0,
        out_strides: views.out.1,
        lse_strides: views.lse.1,
        geometry: geometry(problem, axes)?,
        heads: Divisor::new("the number of heads", problem.heads())?,
        query_box_log2: boxes.query_log2.map(|log2| log2 as i32),
        query_side: boxes.side as i32,
        key_box_log2: boxes.key_log2.map(|log2| log2 as i32),
        ..ForwardParamsSm90::default()
    };
    let mut items = (batch * problem.heads()) as u128;
    for (a, axis) in axes.iter().enumerate() {
        let longest = axis.query_extent.div_ceil(axis.dilation);
        let tiles = axis.dilation * longest.div_ceil(boxes.query_side(a, kernel.warpgroups));
        params.tiles[a] = Divisor::new("the tiles of an axis", tiles)?;
        items *= tiles as u128;
    }
    let limit = i32::MAX as u128;
    if items > limit {
        return Err(CudaError::TooLarge { what: "the number of tiles", value: items, limit });
    }
    params.items = to_i32("the number of tiles", items as usize)?;

    let mut maps = [const { None }; 5];
    let rows =
        [Some((&views.query, &query_tile)), Some((&views.key, &key_tile)), Some((&views.value, &key_tile))];
    let lists = views.additional.iter().flatten().map(|view| Some((view, &list)));
    let mut steps = [MapSteps::default(); 5];
    for (i, (view, tile)) in rows.into_iter().chain(lists).enumerate().filter_map(|(i, v)| Some((i, v?))) {
        match tensor_map(view, tile) {
            Ok((spec, step)) => (maps[i], steps[i]) = (Some(spec), step),
            Err(error) => return Ok(Err(RejectionReason::TensorMap(error))),
        }
    }
    for (split, tile) in [(&mut params.query_split, query_tile), (&mut params.key_split, key_tile)] {
        match tile.split() {
            Ok(found) => *split = found,
            Err(error) => return Ok(Err(RejectionReason::TensorMap(error))),
        }
    }
    [
        params.query_steps,
        params.key_steps,
        params.value_steps,
        params.additional_key_steps,
        params.additional_value_steps,
    ] = steps;
    let grid = multiprocessors.min(items as u32).max(1);
    let issued = boxes.issued * (batch * problem.heads()) as u64;
    Ok(Ok(Prepared { kernel, grid, boxes, issued, params, maps }))
}

impl Views {
    /// The same tensors, one batch item of them.
    fn batch_item(&self, item: usize) -> Views {
        let shifted = |address: u64, strides: &Strides, bytes: i64| {
            if address == 0 { 0 } else { address.wrapping_add_signed(strides.batch * item as i64 * bytes) }
        };
        let row =
            |view: RowView| RowView { address: shifted(view.address, &view.strides, 2), batch: 1, ..view };
        Views {
            query: row(self.query),
            key: row(self.key),
            value: row(self.value),
            additional: self.additional.map(|pair| pair.map(row)),
            out: (shifted(self.out.0, &self.out.1, 2), self.out.1),
            lse: (shifted(self.lse.0, &self.lse.1, 4), self.lse.1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifest_says_the_same() {
        let manifest: Vec<serde_json::Value> =
            serde_json::from_str(include_str!("../../ptx/manifest.json")).unwrap();
        for kernel in KERNELS {
            let record = manifest.iter().find(|record| record["entry"] == kernel.entry).expect(kernel.entry);
            let facts = [
                ("head_dim", kernel.head_dim),
                ("threads", kernel.threads() as usize),
                ("shared_bytes", kernel.shared_bytes as usize),
            ];
            for (name, value) in facts {
                assert_eq!(record[name], value, "{} {name}", kernel.entry);
            }
            assert_eq!(record["tile"], serde_json::json!([64 * kernel.warpgroups, kernel.keys]));
            assert_eq!(record["element_type"], kernel.element_type.name());
        }
    }

    /// One entry a file, one parameter, of the mirror's size.
    #[test]
    fn ptx_takes_the_mirrored_parameters() {
        for kernel in KERNELS {
            let bytes = size_of::<ForwardParamsSm90>();
            assert_eq!(kernel.ptx.matches(".entry ").count(), 1, "{}", kernel.entry);
            assert!(kernel.ptx.contains(&format!(".visible .entry {}(", kernel.entry)), "{}", kernel.entry);
            let parameter = kernel.ptx.lines().find(|line| line.starts_with(".param")).unwrap();
            assert!(parameter.starts_with(".param .align 64"), "tensor maps: {parameter}");
            assert!(parameter.ends_with(&format!("[{bytes}]")), "{}: {parameter}", kernel.entry);
        }
    }
}
