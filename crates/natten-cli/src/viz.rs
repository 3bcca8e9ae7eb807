//! `natten viz`: pictures of what a query sees, as SVG, PNG or a page to play with.

mod cells;
mod font;
mod page;
mod raster;
mod scene;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use natten::{ElementType, Problem};
use serde_json::json;

use crate::error::CliError;
use crate::files;
use crate::names::escaped;
use crate::output;
use crate::plan::{StartName, TileChoice, TileFlags};
use crate::problem_args::ProblemArgs;
use crate::region_args::RegionArgs;
use cells::View;

/// Most tokens along an axis of a picture.
const MAX_EXTENT: usize = 256;

/// Draw what a query sees.
///
/// A sequence becomes the whole matrix of queries and keys, an image its plane of tokens, video a row of planes. With
/// --q-tile and --kv-tile, the key tiles that the query's tile visits are shown too: those that need no mask, and what
/// the others compute in vain.
///
/// Example: natten viz -i 16 16 -w 7 -s 4 -o window.svg
#[derive(Args)]
pub struct VizArgs {
    #[command(flatten)]
    problem: ProblemArgs,
    #[command(flatten)]
    regions: RegionArgs,
    /// The query's coordinates in the whole [default: the middle of the queries].
    #[arg(long, num_args = 1.., value_name = "TOKEN")]
    query: Vec<usize>,
    #[command(flatten)]
    tiles: TileFlags,
    /// File to write, by its ending: .svg, .png or .html; may be given several times [default: natten.svg].
    #[arg(short, long, value_name = "FILE")]
    out: Vec<PathBuf>,
    /// Write a self-contained page with a slider for every parameter to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print one JSON object about the picture.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &VizArgs) -> Result<ExitCode, CliError> {
    let problem = args.regions.problem(&args.problem, &args.problem.axes()?, ElementType::F32)?;
    let view = view(args, &problem)?;
    let mut files = args.out.clone();
    files.extend(args.html.clone());
    if files.is_empty() {
        files.push("natten.svg".into());
    }
    // All of them before one is written: a name that is refused must not leave the others behind.
    let pictures = files.iter().map(|file| Ok((file.as_path(), picture(&view, file)?)));
    files::write_all(&pictures.collect::<Result<Vec<_>, CliError>>()?)?;
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    if args.json {
        output::emit_json(&json!({
            "files": names,
            "query": view.query[3 - problem.rank()..],
            "keys": view.keys_seen(),
            "problem": args.problem.to_json(&problem),
        }))?;
    } else {
        output::emit(&format!("{}\nwrote {}\n", view.caption(), escaped(&names.join(", "))))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The bytes of a file, by its ending.
fn picture(view: &View, file: &Path) -> Result<Vec<u8>, CliError> {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("svg") => Ok(scene::draw(view).to_svg().into_bytes()),
        Some("png") => raster::to_png(&scene::draw(view)),
        Some("html") if view.is_part() => Err(CliError::RegionPage),
        Some("html") => Ok(page::html(view).into_bytes()),
        _ => Err(CliError::PictureFormat { path: file.to_owned() }),
    }
}

/// What is looked at, checked.
fn view(args: &VizArgs, problem: &Problem) -> Result<View, CliError> {
    let rank = problem.rank();
    let axes = *problem.axes();
    if let Some(i) = (0..3).find(|&i| axes[i].extent > MAX_EXTENT) {
        let extent = axes[i].extent;
        return Err(CliError::PictureExtent { axis: i + rank - 3, extent, max: MAX_EXTENT });
    }
    let mut query = axes.map(|axis| axis.query_start + axis.query_extent / 2);
    match args.query.len() {
        0 => (),
        found if found == rank => query[3 - rank..].copy_from_slice(&args.query),
        found => return Err(CliError::AxisCount { flag: "query", found, axes: rank }),
    }
    if let Some(i) = (0..3).find(|&i| query[i] >= axes[i].extent) {
        let (query, extent) = (query[i], axes[i].extent);
        return Err(CliError::QueryOutside { axis: i + rank - 3, query, extent });
    }
    let queries = |i: usize| axes[i].query_start..axes[i].query_start + axes[i].query_extent;
    if let Some(i) = (0..3).find(|&i| !queries(i).contains(&query[i])) {
        let std::ops::Range { start, end } = queries(i);
        return Err(CliError::QueryNotHeld { axis: i + rank - 3, query: query[i], start, end });
    }
    // The dynamic start is what our own kernels take.
    let start = args.tiles.kv_start.unwrap_or(StartName::Dynamic);
    let flags = TileFlags { kv_start: Some(start), ..args.tiles.clone() };
    let tiling = TileChoice::new(&flags, rank, (1, 1))?.tiling();
    Ok(View { rank, axes, query, tiling })
}
