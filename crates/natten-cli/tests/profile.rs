//! `natten profile` on the CPU, and on GPU kernels in the emulator: times mean nothing there, all else does.

mod support;

use serde_json::{Value, json};
use support::{json_lines, refuse, succeed};

const SMALL: &str =
    "-i 10 11 -w 3 5 -s 1 2 --dilation 2 1 -c 0 1 -d 8 -n 4 --heads-kv 2 --add-kv 3 --budget 0.05";

#[test]
fn profiles_report_rates_and_check_results() {
    let lines =
        json_lines(&succeed(&format!("profile {SMALL} --backprop --compare dense --threads 1 --json")));
    let passes: Vec<_> = lines.iter().map(|line| line["pass"].as_str().unwrap()).collect();
    assert_eq!(passes, ["forward", "backward", "dense"]);
    for line in &lines {
        for name in ["median_s", "useful_gflops", "issued_gflops", "peak_gflops"] {
            assert!(line[name].as_f64().unwrap() > 0.0, "{name}: {line}");
        }
        assert!(line["issued_gflops"].as_f64() >= line["useful_gflops"].as_f64());
        assert_eq!((&line["backend"], &line["threads"]), (&"cpu".into(), &1.into()));
        assert!(line["kernel"].as_str().unwrap().starts_with("cpu_"));
    }
    for line in &lines[..2] {
        let error = &line["sample_error"];
        assert!(error["error"].as_f64().unwrap() <= error["allowed"].as_f64().unwrap(), "{line}");
    }
    for dtype in ["bf16", "fp16", "fp64"] {
        let text = succeed(&format!("profile {SMALL} --dtype {dtype} --backprop"));
        assert!(text.contains("backward") && !text.contains("WRONG"), "{text}");
    }
}

/// The limit is the one that the benchmarks print, and no run is above it. Other work on the machine lowers what is
/// measured, so what fails is tried again: only a limit that is too low by construction fails every time.
#[test]
fn the_limit_is_that_of_the_machine() {
    use natten::cpu::peak::{Arithmetic, measure};
    let dense = "profile -i 512 -d 64 --threads 1 --budget 0.2 --repeats 200 --json";
    let mut seen = Vec::new();
    let is_limit = (0..20).any(|_| {
        let line = &json_lines(&succeed(dense))[0];
        let number = |name: &str| line[name].as_f64().unwrap();
        let fastest = number("useful_gflops") * number("median_s") / number("min_s");
        let machine = measure(Arithmetic::Fma, 1, std::time::Duration::from_millis(100)).unwrap() * 1e-9;
        seen.push([fastest, number("peak_gflops"), machine]);
        fastest <= number("peak_gflops") && number("peak_gflops") >= 0.8 * machine
    });
    assert!(is_limit, "fastest run, limit, machine: {seen:.1?}");
}

#[test]
fn candidates_are_listed_and_timed() {
    let listed = json_lines(&succeed(&format!("profile {SMALL} --dry-run --json")));
    assert!(listed.iter().any(|line| line["kernel"] == "cpu_scalar"));
    let timed = json_lines(&succeed(&format!("profile {SMALL} --optimize --json")));
    assert_eq!(timed[0]["trials"].as_array().unwrap().len(), if listed.len() > 1 { listed.len() } else { 0 });
    let one = json_lines(&succeed(&format!("profile {SMALL} --isa scalar --json")));
    assert_eq!(one[0]["kernel"], "cpu_scalar");
}

#[test]
fn profiles_refuse_what_cannot_be() {
    assert!(refuse("profile -i 2000000 -w 7 -d 128 -n 4000").contains("are available"));
    assert!(refuse("profile -i 8 -w 9").contains("exceeds the token extent 8"));
    assert!(refuse("profile -i 8 --threads 0").contains("--threads"));
    assert!(refuse("profile -i 8 --budget nan").contains("--budget"));
    let absent = if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" };
    assert!(refuse(&format!("profile -i 8 --isa {absent}")).contains("this machine has no"));
}

/// A problem that the emulator runs in a moment.
const TINY: &str = "-i 9 12 -w 5 7 -n 2 --heads-kv 1 -d 32 --budget 0.01 --backend emulator";

/// What every line of a profile on a GPU must say.
fn expect_gpu_line(line: &Value) {
    for name in [
        "median_s",
        "useful_gflops",
        "issued_gflops",
        "peak_gflops",
        "copy_bytes_per_s",
        "share_of_peak",
        "threads",
    ] {
        assert!(line[name].as_f64().unwrap() > 0.0, "{name}: {line}");
    }
    assert!(line["issued_gflops"].as_f64() >= line["useful_gflops"].as_f64(), "{line}");
    assert_eq!(line["backend"], "emulator");
    if line["pass"] != "dense" {
        let error = &line["sample_error"];
        assert!(error["error"].as_f64().unwrap() <= error["allowed"].as_f64().unwrap(), "{line}");
    }
}

#[test]
fn gpu_profiles_report_rates_limits_and_check_results() {
    for (dtype, capability, kernel, peak) in [
        ("fp16", "8.0", "sm80", "f16 products of matrices (mma)"),
        // Which family selection takes for so little is its own affair.
        ("bf16", "9.0", "natten_forward", "bf16 products of matrices (wgmma)"),
        ("bf16", "7.0", "simt", "f32 multiply-adds on CUDA cores"),
        ("fp32", "9.0", "simt", "f32 multiply-adds on CUDA cores"),
    ] {
        let flags = format!("{TINY} --dtype {dtype} --capability {capability}");
        let lines =
            json_lines(&succeed(&format!("profile {flags} --add-kv 3 --backprop --compare dense --json")));
        let passes: Vec<_> = lines.iter().map(|line| line["pass"].as_str().unwrap()).collect();
        assert_eq!(passes, ["forward", "backward", "dense"]);
        lines.iter().for_each(expect_gpu_line);
        assert!(lines[0]["kernel"].as_str().unwrap().contains(kernel), "{}", lines[0]);
        // Both passes of the backward, each with what it issues.
        let passes = lines[1]["kernels"].as_array().unwrap();
        let named = |i: usize, part: &str| {
            let kernel = passes[i]["kernel"].as_str().unwrap();
            assert!(
                kernel.starts_with(part) && lines[1]["kernel"].as_str().unwrap().contains(kernel),
                "{}",
                lines[1]
            );
            assert!(passes[i]["issued_over_useful"].as_f64().unwrap() >= 1.0, "{}", lines[1]);
        };
        named(0, "natten_backward_query_");
        named(1, "natten_backward_key_");
        assert_eq!(lines[0]["peak_of"], peak);
        assert_eq!(lines[0]["cuda_core_gflops"].is_null(), peak.contains("CUDA cores"));
        // Every other kernel for these tensors has its reason, and none for others.
        let rejected = lines[0]["rejected"].as_array().unwrap();
        assert!(rejected.len() >= 5 && rejected.iter().all(|other| other["kernel"] != lines[0]["kernel"]));
        assert!(rejected.iter().all(|other| !other["reason"].as_str().unwrap().contains("the tensors are")));
    }
    // Without a type, what GPUs are good at.
    let text = succeed(&format!("profile {TINY} --backprop"));
    let kernels =
        text.lines().find(|line| line.starts_with("backward natten_")).unwrap_or_else(|| panic!("{text}"));
    assert!(
        kernels.contains("natten_backward_query_") && kernels.contains("; natten_backward_key_"),
        "{kernels}"
    );
    assert!(text.contains("f16") && text.contains("copy ") && !text.contains("WRONG"), "{text}");
}

#[test]
fn gpu_candidates_are_kernels_and_boxes() {
    let flags = format!("{TINY} --dtype bf16 --capability 9.0");
    let listed = json_lines(&succeed(&format!("profile {flags} --dry-run --max-configs 9 --json")));
    assert_eq!(listed.len(), 9);
    let named = |family: &str| listed.iter().any(|way| way["kernel"].as_str().unwrap().contains(family));
    assert!(named("sm90") && named("sm80") && named("simt"), "{listed:?}");
    for way in &listed {
        let size = |name: &str| {
            way[name].as_array().map(|sides| sides.iter().map(|side| side.as_u64().unwrap()).product::<u64>())
        };
        let kernel = way["kernel"].as_str().unwrap();
        match (size("q_tile"), size("kv_tile")) {
            (None, None) => assert!(kernel.contains("simt"), "{way}"),
            (Some(queries), Some(keys)) => {
                assert!([64, 128, 192].contains(&queries) && (1..=128).contains(&keys), "{way}");
            }
            _ => panic!("half a tiling: {way}"),
        }
        assert!(way["issued_over_useful"].as_f64().unwrap() >= 1.0);
    }

    let timed = &json_lines(&succeed(&format!("profile {flags} --optimize --max-configs 5 --json")))[0];
    expect_gpu_line(timed);
    let trials = timed["trials"].as_array().unwrap();
    assert_eq!(trials.len(), 5);
    let median = |trial: &Value| trial["median_s"].as_f64().unwrap_or(f64::INFINITY);
    let best = trials.iter().min_by(|a, b| median(a).total_cmp(&median(b))).unwrap();
    assert_eq!(
        (&best["kernel"], &best["q_tile"], &best["kv_tile"]),
        (&timed["kernel"], &timed["q_tile"], &timed["kv_tile"])
    );
    let code = timed["code"].as_str().unwrap();
    assert!(code.contains(timed["kernel"].as_str().unwrap()) || code.contains("nothing to set"), "{code}");
}

/// Tiles that waste little leave the CUDA cores out of it.
#[test]
fn hopeless_candidates_are_left_out() {
    let big = "-i 64 64 -w 32 -s 32 -d 64 --backend emulator --dtype fp16 --capability 8.0";
    let listed = json_lines(&succeed(&format!("profile {big} --dry-run --json")));
    assert!(listed.iter().all(|way| way["kernel"].as_str().unwrap().contains("sm80")), "{listed:?}");
    assert_eq!(listed[0]["issued_over_useful"], json!(1.0));
}

/// A tensor of more numbers than are drawn is filled on the device, and samples of the results know with what.
#[test]
fn long_operands_are_repeated_on_the_device() {
    let long = "-i 4200 -w 3 -d 256 --dtype fp16 --budget 0.001 --repeats 1 --warmup-steps 0 --backprop";
    let lines = json_lines(&succeed(&format!("profile {long} --backend emulator --json")));
    assert!(lines.len() == 2 && lines[0]["problem"]["input_size"] == json!([4200]));
    lines.iter().for_each(expect_gpu_line);
}

/// One sentence, and every kernel with its reason on request.
#[test]
fn an_unsupported_problem_gets_a_sentence() {
    let line = format!("profile {TINY} --dtype fp64");
    let short = refuse(&line);
    assert!(short.len() < 300 && short.contains("would serve (--verbose lists all "), "{short}");
    let output = support::run(&format!("{line} --verbose"));
    let long = support::text(&output.stderr);
    assert!(long.starts_with("error: ") && long.lines().count() > 20, "{long}");
    assert!(long.contains("\n  natten_forward_sm80_f16_d64_q64_k64 "), "{long}");
}

#[test]
fn gpu_profiles_refuse_what_cannot_be() {
    let refused = refuse(&format!("profile {TINY} --dtype fp64"));
    assert!(refused.contains("the tensors are f64"), "{refused}");
    let refused = refuse("profile -i 9 -w 3 -d 1030 --backend emulator");
    assert!(refused.contains("takes a head_dim up to 1024, the tensors have 1030"), "{refused}");
    assert!(refuse("profile -i 8 --backend cuda --isa scalar").contains("for the CPU"));
    let devices = &json_lines(&succeed("devices --json"))[0];
    // Where there is a GPU, its absence cannot be tried.
    if devices["gpus"].as_array().unwrap().is_empty() {
        assert!(refuse("profile -i 8 --backend cuda").contains("CUDA"));
        let chosen = &json_lines(&succeed("profile -i 8 --budget 0.01 --json"))[0];
        assert_eq!((&chosen["backend"], &chosen["problem"]["dtype"]), (&json!("cpu"), &json!("f32")));
    }
}
