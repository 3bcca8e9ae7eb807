//! `natten viz`: its files, its page's mathematics held to the library's, and the page in a real browser.

mod support;

use std::path::Path;
use std::process::Command;

use natten::plan::{KeyStart, TileCounts, Tiling};
use natten::window::Axis;
use natten::{AxisParams, DynParams, Inputs, KernelSize, KernelSizePolicy, Layout, Problem};
use serde_json::{Value, json};
use support::{folder, json_lines, refuse, skip, succeed, text};

#[test]
fn pictures_are_what_their_names_say() {
    let folder = folder("viz_files");
    let name = |file: &str| folder.join(file).display().to_string();
    let (svg, png, html) = (name("a.svg"), name("a.png"), name("a.html"));
    let line = format!("viz -i 8 10 12 -w 3 5 5 -c 1 0 0 -s 1 2 1 -o {svg} -o {png} --html {html} --json");
    let report = &json_lines(&succeed(&line))[0];
    assert_eq!(report["keys"], 3 * 5 * 5);
    assert_eq!(report["query"], json!([4, 5, 6]));
    let picture = image::open(&png).unwrap().to_rgb8();
    let drawn = std::fs::read_to_string(&svg).unwrap();
    assert!(drawn.starts_with("<svg ") && drawn.contains(&format!("width=\"{}\"", picture.width())));
    assert!(drawn.trim_end().ends_with("</svg>"));
    // Seen tokens are blue: a window of 75 less the query, and the legend's.
    assert_eq!(drawn.matches("#3a7cb4").count(), 75 - 1 + 1);
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.contains("\"window\":5") && !page.contains("http"), "the page needs no network");
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().collect();
    assert_eq!(left.len(), 3, "no temporary files are left");
}

#[test]
fn bad_requests_are_refused() {
    assert!(refuse("viz -i 16 16 -w 5 --query 16 3").contains("query 16 is outside the token extent 16"));
    assert!(refuse("viz -i 16 16 -w 5 --query 1").contains("--query has 1 entries for 2 token axes"));
    assert!(refuse("viz -i 1000 -w 5").contains("up to 256 tokens"));
    assert!(refuse("viz -i 16 -w 5 -o picture.gif").contains(".svg, .png or .html"));
    assert!(refuse("viz -i 16 -w 5 -o /no/such/folder/a.svg").contains("cannot write"));
    assert!(refuse("viz -i 16 -w 5 --q-tile 0 --kv-tile 4").contains("--q-tile must hold"));
    assert!(refuse("viz -i 16 16 -w 5 --query 1 2 3 4").contains("--query has 4 entries for 2 token axes"));
}

/// Of a part the query is one of its own, and what it sees is what it sees in the whole.
#[test]
fn parts_of_a_whole_are_drawn() {
    let folder = folder("viz_parts");
    let line =
        |flags: &str| format!("viz -i 12 14 -w 5 3 -s 2 1 {flags} -o {}/a.svg --json", folder.display());
    let drawn = |flags: &str| {
        let report = json_lines(&succeed(&line(flags))).remove(0);
        (report, std::fs::read_to_string(folder.join("a.svg")).unwrap())
    };
    let (report, part) = drawn("--queries 5..9 .. --query 8 4");
    assert_eq!((&report["keys"], &report["problem"]["keys"]), (&json!(15), &json!([[3, 12], [0, 14]])));
    let (_, whole) = drawn("--query 8 4");
    for color in ["#3a7cb4", "#c8283c"] {
        assert_eq!(part.matches(color).count(), whole.matches(color).count(), "{color}");
    }
    // Three rows without keys, and the legend's square.
    assert_eq!(part.matches("#fceeec").count(), 3 * 14 + 1);
    assert_eq!(drawn("--queries 5..9 ..").0["query"], json!([7, 7]));
    assert!(
        refuse(&line("--queries 5..9 .. --query 3 3"))
            .contains("axis 0: query 3 is not among the queries 5..9")
    );
    let page = format!("viz -i 12 14 -w 5 3 --queries 5..9 .. --html {}/a.html", folder.display());
    assert!(refuse(&page).contains("the page to play with shows whole axes"));
}

#[test]
fn nothing_is_written_when_one_file_is_refused() {
    let folder = folder("viz_refused");
    std::fs::create_dir(folder.join("taken.svg")).unwrap();
    let folder_name = folder.display();
    for last in ["b.gif", "no/such/b.svg", "taken.svg"] {
        refuse(&format!("viz -i 16 -w 5 -o {folder_name}/a.svg -o {folder_name}/{last}"));
        refuse(&format!("viz -i 16 -w 5 -o {folder_name}/{last} --html {folder_name}/a.html"));
        let left: Vec<_> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["taken.svg"], "{last}");
    }
}

/// A file or a link of a likely temporary name is somebody's own.
#[cfg(unix)]
#[test]
fn temporary_names_touch_nobodys_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder("viz_temporary");
    let (part, victim) = (folder.join("a.svg.part"), folder.join("victim"));
    std::fs::write(&victim, "mine").unwrap();
    std::fs::write(&part, "mine too").unwrap();
    std::os::unix::fs::symlink(&victim, folder.join("b.svg.part")).unwrap();
    // The picture replaces a link of its own name, and does not write through it.
    std::os::unix::fs::symlink(&victim, folder.join("b.svg")).unwrap();
    succeed(&format!("viz -i 16 -w 5 -o {0}/a.svg -o {0}/b.svg", folder.display()));
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "mine");
    assert_eq!(std::fs::read_to_string(&part).unwrap(), "mine too");
    assert!(std::fs::symlink_metadata(folder.join("b.svg")).unwrap().is_file());
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 5);
    // Readable by whoever may read what this user writes.
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&folder.join("a.svg")), mode(&victim));
}

/// Small axes with every combination of parameters, as the page's script knows them.
fn small_axes() -> Vec<Axis> {
    let mut axes = Vec::new();
    for extent in [1, 2, 5, 8, 11] {
        for dilation in 1..=3.min(extent) {
            for kernel_size in 1..=extent / dilation {
                for stride in 1..=kernel_size {
                    for is_causal in [false, true] {
                        let whole = Axis::whole(extent);
                        axes.push(Axis { kernel_size, stride, dilation, is_causal, ..whole });
                    }
                }
            }
        }
    }
    axes
}

fn page_axis(axis: &Axis) -> Value {
    json!({
        "extent": axis.query_extent, "window": axis.kernel_size, "stride": axis.stride,
        "dilation": axis.dilation, "causal": axis.is_causal, "qTile": 4, "kvTile": 2,
    })
}

/// The windows and counts of an axis as the library has them.
fn expected(axis: &Axis) -> Value {
    let window = |x: usize| -> Vec<usize> {
        let g = x % axis.dilation;
        axis.residue(g).window(x / axis.dilation).map(|position| g + position * axis.dilation).collect()
    };
    let windows: Vec<_> = (0..axis.query_extent).map(window).collect();
    let counts = [false, true].map(|aligned| {
        let counts = counts(&[axis, axis], aligned);
        json!([
            counts.mean(),
            counts.worst,
            counts.full_share(),
            counts.issued_over_useful(),
            counts.flop_speedup()
        ])
    });
    json!([windows, counts])
}

fn counts(axes: &[&Axis], aligned: bool) -> TileCounts {
    let params: Vec<AxisParams> = axes
        .iter()
        .map(|axis| AxisParams {
            kernel_size: KernelSize::Tokens(axis.kernel_size),
            stride: axis.stride,
            dilation: axis.dilation,
            is_causal: axis.is_causal,
        })
        .collect();
    let extents: Vec<usize> = axes.iter().map(|axis| axis.query_extent).collect();
    let layout = Layout::contiguous(&[&[1], extents.as_slice(), &[1, 8]].concat()).unwrap();
    let params = DynParams::new(&params, None, KernelSizePolicy::Exact);
    let inputs = Inputs::new(layout, layout, layout);
    let problem = Problem::new(&params, &inputs, natten::ElementType::F32).unwrap();
    let key_start = if aligned { KeyStart::Aligned } else { KeyStart::Dynamic };
    TileCounts::of(&problem, &Tiling { query_tile: [1, 4, 4], key_tile: [1, 2, 2], key_start })
}

#[test]
fn the_page_computes_what_the_library_computes() {
    if Command::new("node").arg("--version").output().is_err() {
        skip("node is not installed, the page's mathematics is not checked");
        return;
    }
    let page = include_str!("../src/viz/page.html");
    let mathematics =
        page.split("// natten-math begin").nth(1).and_then(|rest| rest.split("// natten-math end").next());
    let mathematics = mathematics.expect("the page marks its mathematics");
    let axes = small_axes();
    let given: Vec<Value> = axes.iter().map(page_axis).collect();
    let script = format!(
        "//{mathematics}
        const axes = {};
        const counted = (axis, aligned) => Object.values(tileCounts([axis, axis], aligned));
        const answers = axes.map((axis) => [
            Array.from({{ length: axis.extent }}, (_, x) => axisWindow(axis, x)),
            [counted(axis, false), counted(axis, true)],
        ]);
        console.log(JSON.stringify(answers));",
        Value::from(given)
    );
    let file = folder("viz_node").join("check.js");
    std::fs::write(&file, script).unwrap();
    let output = Command::new("node").arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let answers: Vec<Value> = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert_eq!(answers.len(), axes.len());
    for (axis, answer) in axes.iter().zip(&answers) {
        let expected = expected(axis);
        assert_eq!(answer[0], expected[0], "windows of {axis:?}");
        for start in 0..2 {
            for value in 0..5 {
                let (a, b) = (answer[1][start][value].as_f64(), expected[1][start][value].as_f64());
                let close = a.zip(b).is_some_and(|(a, b)| (a - b).abs() <= 1e-12 * b.abs());
                assert!(close, "count {value} of {axis:?}: {a:?} but {b:?}");
            }
        }
    }
}

/// Loads the page in a headless browser, moves a slider, clicks a token and switches tiles on.
#[test]
fn the_page_works_in_a_browser() {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let runs = |program: &&str| Command::new(program).arg("--version").output().is_ok();
    let (Some(browser), true) = (names.iter().find(|name| runs(name)), runs(&"node")) else {
        skip("no chromium or no node, the page is not tried in a browser");
        return;
    };
    let folder = folder("viz_browser");
    let (page, screenshot) = (folder.join("page.html"), folder.join("page.png"));
    succeed(&format!("viz -i 16 16 -w 5 --html {}", page.display()));
    let driver = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser/drive.mjs");
    let output = Command::new("node")
        .arg(driver)
        .arg(browser)
        .arg(format!("file://{}", page.display()))
        .arg(&screenshot)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let seen: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert!(seen["before"].as_str().unwrap().contains("25 of 256 tokens"), "{seen}");
    assert!(seen["afterKey"].as_str().unwrap().contains("30 of 256 tokens"), "{seen}");
    assert_eq!(seen["query"], json!([0, 0]), "the click chose the query");
    assert!(seen["afterTiles"].as_str().unwrap().contains("issued over useful"), "{seen}");
    assert_eq!(seen["errors"], json!([]));
    let picture = image::open(&screenshot).unwrap().to_rgb8();
    let blue =
        picture.pixels().filter(|pixel| pixel.0 == [0x3a, 0x7c, 0xb4] || pixel.0 == [0x3c, 0x9d, 0x5d]);
    assert!(blue.count() > 5000, "seen tokens are on the screen");
}
