//! `natten plan` against the figures published for NATTEN's simulator, and its manners.

mod support;

use serde_json::{Value, json};
use support::{json_lines, refuse, succeed};

fn plan(line: &str) -> Value {
    json_lines(&succeed(&format!("plan {line} --json"))).remove(0)
}

/// Asserts mean and worst key tiles, share of full ones and issued/useful, as published: to the digits printed.
fn expect(line: &str, mean: f64, worst: u64, full: f64, ratio: f64) {
    let report = plan(line);
    let near = |name: &str, expected: f64, half_a_digit: f64| {
        let found = report[name].as_f64().unwrap();
        assert!((found - expected).abs() <= half_a_digit, "{line}: {name} is {found}, published {expected}");
    };
    near("kv_tiles_mean", mean, 0.0501);
    near("full_tile_share", full, 0.00501);
    near("issued_over_useful", ratio, 0.00501);
    assert_eq!(report["kv_tiles_worst"], worst, "{line}");
}

const HUNYUAN: &str = "-i 30 48 80 -w 18 24 24 -d 128 -n 24";
const FLUX: &str = "-i 256 256 -w 80 -d 128 -n 24";

#[test]
fn published_tile_counts() {
    let with = |problem: &str, rest: &str| format!("{problem} {rest}");
    let square = "--q-tile 2 8 8 --kv-tile 2 8 8";
    expect(&with(HUNYUAN, &format!("{square} --kv-start aligned")), 165.4, 250, 0.17, 2.04);
    expect(&with(HUNYUAN, &format!("{square} --kv-start dynamic")), 131.0, 160, 0.34, 1.62);
    expect(&with(HUNYUAN, &format!("-s 16 8 8 {square} --kv-start aligned")), 81.0, 81, 1.0, 1.0);
    expect(&with(HUNYUAN, &format!("-s 1 8 8 {square} --kv-start aligned")), 84.6, 90, 0.91, 1.04);
    expect(&with(FLUX, "--q-tile 16 8 --kv-tile 16 8 --kv-start aligned"), 68.1, 77, 0.50, 1.36);
    expect(&with(FLUX, "--q-tile 16 8 --kv-tile 16 8 --kv-start dynamic"), 61.5, 66, 0.64, 1.23);
    expect("-i 32768 -w 2048 --q-tile 128 --kv-tile 128 --kv-start aligned", 16.9, 17, 0.89, 1.06);
    expect("-i 64 64 -w 16 -s 8 --q-tile 8 8 --kv-tile 8 8 --kv-start dynamic", 4.0, 4, 1.0, 1.0);
    expect("-i 64 64 -w 16 -s 8 --q-tile 8 8 --kv-tile 8 8 --kv-start aligned", 7.6, 9, 0.21, 1.89);
}

/// The speed-ups that the paper prints: dense key tiles over those of the worst query tile.
#[test]
fn published_speedups() {
    let blackwell = "--q-tile 4 8 8 --kv-tile 2 8 8 --kv-start aligned";
    let cosmos = "-i 16 44 80 -w 16 24 16 -d 128 -n 32 --q-tile 4 4 8 --kv-tile 4 4 8 --kv-start aligned";
    let flux = "--q-tile 16 16 --kv-tile 16 8 --kv-start aligned";
    for (line, published) in [
        (format!("{HUNYUAN} {blackwell}"), 3.3),
        (format!("{HUNYUAN} -s 16 8 8 {blackwell}"), 11.1),
        (format!("{FLUX} {flux}"), 6.1),
        (format!("{FLUX} -s 16 {flux}"), 10.2),
        (cosmos.to_owned(), 5.2),
        (format!("{cosmos} -s 1 8 16"), 9.2),
    ] {
        let found = plan(&line)["predicted_speedup_worst"].as_f64().unwrap();
        assert!((found - published).abs() <= 0.051, "{line}: {found}, published {published}");
    }
}

#[test]
fn the_best_tiles_and_the_work_are_reported() {
    let report = plan(&format!("{HUNYUAN} -s 16 8 8 --dtype bf16"));
    assert_eq!(report["q_tile"], serde_json::json!([2, 8, 8]));
    assert!((report["flop_speedup"].as_f64().unwrap() - 11.111).abs() < 1e-3);
    let flops = &report["flops"];
    assert!((flops["dense"].as_f64().unwrap() / 1.6307e14 - 1.0).abs() < 1e-3);
    assert!((flops["useful"].as_f64().unwrap() / 1.468e13 - 1.0).abs() < 1e-3);
    assert_eq!(report["predicted"].as_array().unwrap().len(), 6);
    // A backward is 2.5 forwards.
    let both = plan(&format!("{HUNYUAN} -s 16 8 8 --backprop"));
    let ratio = both["flops"]["useful"].as_f64().unwrap() / flops["useful"].as_f64().unwrap();
    assert!((ratio - 3.5).abs() < 1e-9);
}

/// An H100 took 23.2 ms for this, where its maker's limit allows for 14.8.
#[test]
#[cfg(feature = "cuda")]
fn kernels_are_foreseen_on_each_gpu() {
    let report = plan(&format!("{HUNYUAN} -s 16 8 8 --dtype bf16 --on a100,h100,cpu"));
    let [a100, h100, cpu] = [0, 1, 2].map(|i| &report["predicted"][i]["expected_forward"]);
    assert_eq!(h100["kernel"], "natten_forward_sm90_bf16_d128");
    let seconds = h100["seconds"].as_f64().unwrap();
    assert!((0.020..0.027).contains(&seconds), "{seconds}");
    assert!(seconds > report["predicted"][1]["seconds"].as_f64().unwrap());
    let tile: u64 = h100["q_tile"].as_array().unwrap().iter().map(|side| side.as_u64().unwrap()).product();
    assert_eq!(tile, 128);
    // The rates are an H100's.
    assert_eq!(a100["kernel"], "natten_forward_sm80_bf16_d128_q128_k64");
    assert!(a100["seconds"].is_null() && cpu.is_null());
}

/// Rows of either pass have tiles of their own, so its ratio is none of the forward's.
#[test]
#[cfg(feature = "cuda")]
fn both_passes_of_a_backward_have_their_ratios() {
    let report = plan(&format!("{HUNYUAN} --dtype bf16 --backprop --on h100,a100,cpu"));
    let passes = |backward: &Value| -> Vec<(String, f64)> {
        let pass = |pass: &Value| {
            (pass["kernel"].as_str().unwrap().to_owned(), pass["issued_over_useful"].as_f64().unwrap())
        };
        backward["passes"].as_array().unwrap().iter().map(pass).collect()
    };
    let of_arch = passes(&report["backward"]);
    let [(query_kernel, of_queries), (key_kernel, of_keys)] = &of_arch[..] else { panic!("{of_arch:?}") };
    assert_eq!(query_kernel, "natten_backward_query_sm90_bf16_d128");
    assert_eq!(key_kernel, "natten_backward_key_sm90_bf16_d128");
    assert!((1.4..1.7).contains(of_queries) && (1.4..1.7).contains(of_keys) && of_queries != of_keys);
    let backward = &report["predicted"][0]["expected_backward"];
    assert_eq!(passes(backward), of_arch);
    assert!(backward["seconds"].as_f64().unwrap() > 0.05, "{backward}");
    let elsewhere = &report["predicted"][1]["expected_backward"];
    assert!(elsewhere["seconds"].is_null() && passes(elsewhere).len() == 2, "{elsewhere}");
    assert!(report["predicted"][2]["expected_backward"].is_null());
    // What is issued in all: the forward on its tiles, the backward on its own.
    let number = |name: &str| report["flops"][name].as_f64().unwrap();
    let forward = number("useful") / 3.5;
    let ratio = report["issued_over_useful"].as_f64().unwrap();
    let expected = forward * (ratio + 2.5 * (3.0 * of_queries + 4.0 * of_keys) / 7.0);
    assert!((number("issued") / expected - 1.0).abs() < 1e-9);
    let text = succeed(&format!("plan {HUNYUAN} --dtype bf16 --backprop"));
    for (kernel, ratio) in of_arch {
        let line = text.lines().find(|line| line.ends_with(&kernel)).unwrap_or_else(|| panic!("{text}"));
        assert!(line.contains(&format!("{ratio:.2}")), "{line}");
    }
    assert!(!succeed(&format!("plan {HUNYUAN}")).contains("backward"));
}

/// Exit code and processor time of a command, which other work on the machine does not lengthen.
#[cfg(unix)]
fn timed(line: &str) -> (i32, f64) {
    let script = "\"$0\" \"$@\" > /dev/null 2>&1; echo $?; times";
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_natten")]).args(line.split_whitespace());
    let printed = support::text(&shell.output().unwrap().stdout);
    let lines: Vec<&str> = printed.lines().collect();
    // The shell's own times, then those of what it ran: minutes and seconds of the program and of the system.
    let seconds = lines[2].split_whitespace().map(|time| {
        let (minutes, seconds) = time.trim_end_matches('s').split_once('m').unwrap();
        60.0 * minutes.parse::<f64>().unwrap() + seconds.parse::<f64>().unwrap()
    });
    (lines[0].parse().unwrap(), seconds.sum())
}

/// Extents far beyond any device, on boxes, strips and lines.
#[test]
#[cfg(unix)]
fn any_extents_are_planned_within_a_second() {
    for problem in [
        "-i 2 67108864 -w 2 3",
        "-i 2 67108864 -w 2 3 -s 1 2",
        "-i 268435456 -w 101 -s 7 -c",
        "-i 1024 262144 -w 33 4099 --dilation 3 5",
        "-i 64 2048 2048 -w 7 33 33 -s 1 3 5 --dilation 2 1 3 -c 1 0 0",
        "-i 1 1099511627776 -w 1 3",
        "-i 1099511627776 1099511627776 -w 3",
    ] {
        for flags in
            ["--suggest", "--backprop --suggest --dtype bf16", "--backprop --arch sm_80 --dtype fp32"]
        {
            let (code, seconds) = timed(&format!("plan {problem} {flags}"));
            // A plan, or a sentence.
            assert!(matches!(code, 0 | 2) && seconds < 1.0, "{problem} {flags}: code {code}, {seconds} s");
        }
    }
}

/// Counting takes as long on a strip as on a short line.
#[test]
fn strips_of_any_length_are_planned() {
    let short = plan("-i 4 4096 -w 2 99");
    let long = plan("-i 4 1048576 -w 2 99");
    assert_eq!((&short["q_tile"], &short["kv_tile"]), (&long["q_tile"], &long["kv_tile"]));
}

#[test]
fn suggestions_find_block_sparse_neighbours() {
    let report = plan(&format!("{HUNYUAN} --suggest --max-configs 3"));
    let suggestions = report["suggestions"].as_array().unwrap();
    assert_eq!(suggestions.len(), 3);
    assert_eq!(suggestions[0]["stride"], serde_json::json!([2, 8, 8]));
    assert_eq!(suggestions[0]["is_perfect"], true);
}

#[test]
fn tables_are_for_people_and_pipes() {
    let text = succeed(&format!("plan {HUNYUAN} -s 16 8 8 --suggest"));
    assert!(text.contains("predicted") && text.contains("11.11") && text.contains("perfect"), "{text}");
    assert!(!text.contains('\u{1b}'));
    assert!(succeed("plan -i 8 -w 3 -c --add-kv 5 --on h100,a100 --heads-kv 1 -n 2").contains("causal"));
    assert!(succeed("plan -i 8 8 -w 3 --on H100,RTX4090 --dtype BF16 --arch SM_80").contains("RTX 4090"));
    let all = succeed("plan -i 64 64 -w 9 --max-configs 0");
    assert!(all.lines().count() > succeed("plan -i 64 64 -w 9").lines().count());
    assert!(succeed("plan -i 8 8 -w 3 --causal False True --dilation 2 1").contains("open x causal"));
}

#[test]
fn bad_problems_are_refused() {
    assert!(refuse("plan -i 30 48 -w 40").contains("axis 0: kernel_size 40 x dilation 1 exceeds"));
    assert!(refuse("plan -i 30 48 80 -w 3 3").contains("--window-size has 2 entries for 3 token axes"));
    assert!(refuse("plan -i 4 4 4 4 -w 1").contains('4'));
    assert!(refuse("plan -i 16 -w 4 -s 5").contains("stride 5 exceeds kernel_size 4"));
    assert!(refuse("plan -i 16 -n 4 --heads-kv 3").contains("not a multiple"));
    assert!(refuse("plan -i 99999999999 99999999999 4").contains("beyond planning"));
    assert!(refuse("plan -i 16 --q-tile 3000 3000").contains("--q-tile"));
    assert!(refuse("plan -i 16 --causal maybe").contains("true or false"));
    assert!(refuse("plan -i 16 --dtype fp64").contains("f64"));
    assert!(refuse("plan -w 3").contains("--input-size"));
    assert!(refuse("plan -i 8 -w 3 -b 0").contains("--batch-size is 0"));
    assert!(refuse("plan -i 8 -w 3 --on b300").contains("rtx5090"));
}

/// Parts of a clip have its work between them, and each the keys that it needs.
#[test]
fn parts_of_a_whole_are_planned() {
    let clip = "-i 33 24 20 -w 5 7 3 -s 2 1 1 -c 1 0 0 -n 2";
    let useful = |report: &Value| report["flops"]["useful"].as_f64().unwrap();
    let parts = ["..7", "7..20", "20.."].map(|frames| plan(&format!("{clip} --queries {frames} .. ..")));
    let sum: f64 = parts.iter().map(useful).sum();
    assert_eq!(sum, useful(&plan(clip)));
    // Frames 6 and 7 are one block of the whole, which sees what frame 7 sees first.
    assert_eq!(parts[1]["problem"]["queries"], json!([[7, 20], [0, 24], [0, 20]]));
    assert_eq!(parts[1]["problem"]["keys"], json!([[3, 20], [0, 24], [0, 20]]));
    assert!(plan(clip)["problem"].get("queries").is_none());
    let text = succeed(&format!("plan {clip} --queries 7..20 .. .."));
    assert!(
        text.contains("33 x 24 x 20 tokens, queries 7..20 x 0..24 x 0..20, keys 3..20 x 0..24 x 0..20,"),
        "{text}"
    );
    succeed(&format!("plan {clip} --queries 7..20 .. .. --keys 2..21 .. .. --suggest"));
    // A part is expected to take its share of the whole's time, and a little more for its borders.
    let expected = |flags: &str| {
        let report = plan(&format!("{clip} --dtype fp16 --on h100 {flags}"));
        let forward = &report["predicted"][0]["expected_forward"];
        forward["seconds"].as_f64().unwrap_or_else(|| panic!("nothing is expected: {report}"))
    };
    let (whole, part) = (expected(""), expected("--queries 7..20 .. .."));
    assert!(0.3 * whole < part && part < whole, "{part} of {whole}");
}

#[test]
fn wrong_parts_are_refused() {
    let refuse = |flags: &str| refuse(&format!("plan -i 33 20 -w 5 3 {flags}"));
    assert!(
        refuse("--queries 7..9 .. --keys 6..11 ..")
            .contains("axis 0: query 7 needs key 5, the call holds the keys 6..11")
    );
    assert!(refuse("--queries .. 9..7").contains("axis 1: the region of query ends before it begins, 9..7"));
    assert!(
        refuse("--queries 30..34 ..").contains("axis 0: the region 30..34 of query leaves the 33 tokens")
    );
    assert!(refuse("--queries 3..3 ..").contains("--queries names no token"));
    assert!(refuse("--queries .. .. ..").contains("--queries has 3 entries for 2 token axes"));
    assert!(refuse("--keys 1").contains("a range of tokens is needed, as 16..20"));
    assert!(refuse("--queries 2..99999999999999999999 ..").contains("a range of tokens is needed"));
}
