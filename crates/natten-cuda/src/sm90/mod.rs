//! The Hopper family: which of its kernels serves a problem, with what tiles, and its launches.
//!
//! [`prepare`] is pure: from a problem and the places of its tensors to launches, or the reason why there are none.
//! [`run`] encodes the tensor maps and launches: once, but for dilations that do not divide their axis (classes.rs).

pub(crate) mod classes;
mod kept;
mod launch;
pub mod params;
mod rates;
mod select;
mod tiles;

use natten_core::window::Axis;
use natten_core::{ElementType, Problem};

use crate::device::TensorMapSpec;
use crate::error::CudaError;
use crate::launch::geometry;
use crate::params::{Divisor, Strides, to_i32};
use crate::registry::{Facts, KERNELS, Kernel};
use crate::select::{ComputeCapability, RejectionReason};
use crate::tiles::Request;
use crate::tma::{MapError, RowView, Tile, tensor_map};

use classes::{Class, classes};
pub use launch::run;
pub(crate) use launch::{forward, prepare_forward};
use params::{ForwardParamsSm90, MapSteps};
pub(crate) use select::select;
pub use tiles::Boxes;
use tiles::{choose, neighbours, of_tiling};

/// The one architecture that runs these kernels: warpgroup products exist nowhere else.
pub const CAPABILITY: ComputeCapability = ComputeCapability { major: 9, minor: 0 };

/// All kernels of the family. Short rows leave room for a third consumer warpgroup, which keeps the tensor cores busier
/// but wastes more of a small window.
pub fn kernels() -> impl Iterator<Item = &'static Kernel> {
    KERNELS.iter().filter(|kernel| kernel.family == "sm90")
}

/// Consumer warpgroups, 64 queries each; one more produces.
pub(crate) fn warpgroups(kernel: &Kernel) -> usize {
    kernel.threads as usize / 128 - 1
}

/// Keys of a tile.
fn keys(kernel: &Kernel) -> usize {
    kernel.tile().map_or(1, |tile| tile.keys)
}

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

impl Views {
    /// The same from a token of each axis on.
    fn from(&self, first: [usize; 3]) -> Self {
        let (out, lse) = (self.out, self.lse);
        let lse_address = if lse.0 == 0 { 0 } else { lse.1.at(lse.0, first, 4) };
        Views {
            query: self.query.from(first),
            key: self.key.from(first),
            value: self.value.from(first),
            additional: self.additional,
            out: (out.1.at(out.0, first, 2), out.1),
            lse: (lse_address, lse.1),
        }
    }
}

/// The launches that serve one sequence, but for their tensor maps.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// Tiles of all of it.
    pub boxes: Boxes,
    /// Scores computed.
    pub issued: u64,
    /// One for the residues of each length: they write to different places.
    pub launches: Vec<Launch>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Thread blocks.
    pub grid: u32,
    /// All parameters but the maps.
    pub params: ForwardParamsSm90,
    /// Of queries, keys, values, additional keys, additional values.
    pub maps: [Option<TensorMapSpec>; 5],
}

/// The launches that serve one sequence of a problem, or why there are none. `entry` asks for one kernel.
///
/// # Errors
/// The reason against the family; [`CudaError::TooLarge`] where a number does not fit a kernel's integers.
pub fn prepare(
    problem: &Problem,
    axes: &[Axis; 3],
    views: &Views,
    entry: Option<&str>,
    multiprocessors: u32,
) -> Result<Result<Prepared, RejectionReason>, CudaError> {
    match boxes(problem, axes, entry, multiprocessors) {
        Ok(choice) => prepare_boxes(problem, axes, views, choice, multiprocessors),
        Err(reason) => Ok(Err(reason)),
    }
}

/// [`prepare`] with this kernel and these boxes.
pub(crate) fn prepare_boxes(
    problem: &Problem,
    axes: &[Axis; 3],
    views: &Views,
    (kernel, boxes): (&'static Kernel, Boxes),
    multiprocessors: u32,
) -> Result<Result<Prepared, RejectionReason>, CudaError> {
    let mut launches = Vec::new();
    for class in classes(axes) {
        let views = views.from(class.first);
        match maps(&views, kernel, &boxes, &class) {
            Ok(maps) => {
                launches.push(launch(problem, &class, &views, (kernel, &boxes), maps, multiprocessors)?)
            }
            Err(reason) => return Ok(Err(RejectionReason::TensorMap(reason))),
        }
    }
    let issued = boxes.issued * (views.query.batch * problem.heads()) as u64;
    Ok(Ok(Prepared { kernel, boxes, issued, launches }))
}

/// The launch of a class, whose views these are.
fn launch(
    problem: &Problem,
    class: &Class,
    views: &Views,
    (kernel, boxes): (&'static Kernel, &Boxes),
    (maps, params): (Maps, ForwardParamsSm90),
    multiprocessors: u32,
) -> Result<Launch, CudaError> {
    let batch = views.query.batch;
    let mut params = ForwardParamsSm90 {
        out: views.out.0,
        lse: views.lse.0,
        out_strides: views.out.1,
        lse_strides: views.lse.1,
        geometry: geometry(problem, &class.axes)?,
        heads: Divisor::new("the number of heads", problem.heads())?,
        query_box_log2: boxes.query_log2.map(|log2| log2 as i32),
        query_side: boxes.side as i32,
        key_box_log2: boxes.key_log2.map(|log2| log2 as i32),
        ..params
    };
    // The kernel turns the queries where the scale is negative, and needs a power of two that is not zero: with the
    // smallest there is, all weights are 1.
    let scale_log2 = &mut params.geometry.scale_log2;
    *scale_log2 = scale_log2.abs().clamp(f32::from_bits(1), f32::MAX);
    let mut items = (batch * problem.heads()) as u128;
    let sides = boxes.query_tile(warpgroups(kernel));
    let tiles = class.tiles(&sides);
    for (a, (&tiles, &residues)) in tiles.iter().zip(&class.residues).enumerate() {
        params.tiles[a] = Divisor::new("the tiles of an axis", tiles)?;
        params.residues[a] = Divisor::new("the residues of an axis", residues)?;
        items *= tiles as u128;
    }
    let limit = i32::MAX as u128;
    if items > limit {
        return Err(CudaError::TooLarge { what: "the number of tiles", value: items, limit });
    }
    params.items = to_i32("the number of tiles", items as usize)?;
    params.neighbours = neighbours(class, &sides, &tiles, multiprocessors as usize).map(|count| count as i32);
    let grid = multiprocessors.min(items as u32).max(1);
    Ok(Launch { grid, params, maps })
}

/// The kernel and tiles that [`prepare`] takes.
///
/// # Errors
/// The reason against the family.
pub fn boxes(
    problem: &Problem,
    axes: &[Axis; 3],
    entry: Option<&str>,
    multiprocessors: u32,
) -> Result<(&'static Kernel, Boxes), RejectionReason> {
    Ok(choose(problem, axes, &candidates(problem, axes, entry)?, multiprocessors))
}

/// [`boxes`] where the caller may ask for some.
pub(crate) fn boxes_as(
    problem: &Problem,
    axes: &[Axis; 3],
    request: &Request,
    multiprocessors: u32,
) -> Result<(&'static Kernel, Boxes), RejectionReason> {
    let Some(tiling) = &request.tiling else { return boxes(problem, axes, request.entry, multiprocessors) };
    let kernels = candidates(problem, axes, request.entry)?.into_iter();
    let mut asked = kernels.filter_map(|kernel| Some((kernel, of_tiling(problem, axes, kernel, tiling)?)));
    asked.next().ok_or(RejectionReason::NotAskedFor)
}

/// The `most` cheapest ways to cut the problem, cheapest first, over the kernels that can serve it.
///
/// # Errors
/// The reason against the family.
pub(crate) fn ranked(
    problem: &Problem,
    most: usize,
    multiprocessors: u32,
) -> Result<Vec<(&'static Kernel, Boxes)>, RejectionReason> {
    let axes = problem.axes();
    Ok(tiles::ranked(problem, axes, &candidates(problem, axes, None)?, multiprocessors, most))
}

/// Kernels whose rows are long enough but no longer than need be, or the one that is asked for if it can.
fn candidates(
    problem: &Problem,
    axes: &[Axis; 3],
    entry: Option<&str>,
) -> Result<Vec<&'static Kernel>, RejectionReason> {
    let head_dim = problem.head_dim().max(problem.head_dim_v());
    let asked = kernels().filter(|kernel| entry.is_none_or(|entry| entry == kernel.entry));
    let of_type: Vec<_> = asked.filter(|kernel| kernel.element_type() == problem.element_type()).collect();
    let Some(first) = of_type.first() else {
        return Err(RejectionReason::ElementType {
            kernel: ElementType::Bf16,
            problem: problem.element_type(),
        });
    };
    if axes.iter().any(|axis| axis.key_extent == 0) {
        return Err(RejectionReason::NoKeys);
    }
    let Some(bucket) = of_type.iter().map(|k| k.longest_row()).filter(|&d| d >= head_dim).min() else {
        let max = of_type.iter().map(|k| k.longest_row()).max().unwrap_or(first.longest_row());
        return Err(RejectionReason::HeadDim { max, found: head_dim });
    };
    Ok(of_type.into_iter().filter(|k| k.longest_row() == bucket).collect())
}

type Maps = [Option<TensorMapSpec>; 5];

/// The tensor maps, and parameters of which only the maps' steps are filled in.
fn maps(
    views: &Views,
    kernel: &Kernel,
    boxes: &Boxes,
    class: &Class,
) -> Result<(Maps, ForwardParamsSm90), MapError> {
    let tile = |log2: [u32; 3]| Tile {
        side: log2.map(|log2| 1 << log2),
        dilation: class.axes.map(|axis| axis.dilation),
        residues: class.residues,
        head_dim: kernel.longest_row(),
    };
    let (query_tile, key_tile) = (tile(boxes.query_log2), tile(boxes.key_log2));
    let list = Tile {
        side: [1, 1, keys(kernel)],
        dilation: [1; 3],
        residues: [1; 3],
        head_dim: kernel.longest_row(),
    };
    let lists = views.additional.iter().flatten().map(|view| (view, &list));
    let rows = [(&views.query, &query_tile), (&views.key, &key_tile), (&views.value, &key_tile)];
    let mut maps = [const { None }; 5];
    let mut steps = [MapSteps::default(); 5];
    for (i, (view, tile)) in rows.into_iter().chain(lists).enumerate() {
        let (spec, step) = tensor_map(view, tile)?;
        (maps[i], steps[i]) = (Some(spec), step);
    }
    let [query_steps, key_steps, value_steps, additional_key_steps, additional_value_steps] = steps;
    let params = ForwardParamsSm90 {
        query_steps,
        key_steps,
        value_steps,
        additional_key_steps,
        additional_value_steps,
        ..ForwardParamsSm90::default()
    };
    Ok((maps, params))
}
