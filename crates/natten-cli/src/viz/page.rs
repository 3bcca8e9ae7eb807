//! The page to play with: one file, no network.

use natten::plan::KeyStart;
use serde_json::json;

use super::cells::View;

const TEMPLATE: &str = include_str!("page.html");

/// Where the template takes its first parameters from.
const START: &str = "/*START*/null/*END*/";

/// The page, opened on a view.
pub fn html(view: &View) -> String {
    let skip = 3 - view.rank;
    let axes: Vec<_> = (skip..3)
        .map(|i| {
            let axis = &view.axes[i];
            json!({
                "extent": axis.query_extent,
                "window": axis.kernel_size,
                "stride": axis.stride,
                "dilation": axis.dilation,
                "causal": axis.is_causal,
                "query": view.query[i],
                "qTile": view.tiling.map_or(8, |tiling| tiling.query_tile[i]),
                "kvTile": view.tiling.map_or(8, |tiling| tiling.key_tile[i]),
            })
        })
        .collect();
    let is_aligned = view.tiling.is_some_and(|tiling| tiling.key_start == KeyStart::Aligned);
    let start = json!({"axes": axes, "showTiles": view.tiling.is_some(), "aligned": is_aligned});
    TEMPLATE.replace(START, &start.to_string())
}
