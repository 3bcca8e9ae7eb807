//! The program as a whole: profile, devices, completions, help, and the handbook's own commands.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use support::{folder, json_lines, refuse, succeed, text};

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
    assert!(refuse("profile -i 8 --backend cuda").contains("cuda"));
    assert!(refuse("profile -i 8 --threads 0").contains("--threads"));
    assert!(refuse("profile -i 8 --budget nan").contains("--budget"));
    let absent = if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" };
    assert!(refuse(&format!("profile -i 8 --isa {absent}")).contains("this machine has no"));
}

#[test]
fn devices_name_a_chosen_kernel() {
    let report = &json_lines(&succeed("devices --json"))[0];
    let kernels = report["cpu"]["kernels"].as_array().unwrap();
    assert_eq!(kernels.iter().filter(|kernel| kernel["is_chosen"] == true).count(), 1);
    assert!(succeed("devices").contains("cpu_scalar"));
    let forced =
        Command::new(env!("CARGO_BIN_EXE_natten")).arg("devices").env("NATTEN_CPU_ISA", "scalar").output();
    assert!(text(&forced.unwrap().stdout).contains("chosen by NATTEN_CPU_ISA"));
    let unknown =
        Command::new(env!("CARGO_BIN_EXE_natten")).arg("devices").env("NATTEN_CPU_ISA", "mmx").output();
    assert_eq!(unknown.unwrap().status.code(), Some(2));
}

#[test]
fn help_and_completions_exist_for_every_verb() {
    let help = succeed("--help");
    for verb in ["plan", "profile", "verify", "viz", "devices", "completions"] {
        assert!(help.contains(verb), "{verb}");
        assert!(succeed(&format!("{verb} --help")).contains("Usage: natten"), "{verb}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(succeed(&format!("completions {shell}")).contains("input-size"), "{shell}");
    }
    assert!(refuse("completions tcsh").contains("tcsh"));
    assert!(refuse("frobnicate").contains("frobnicate"));
    assert!(succeed("--version").starts_with("natten "));
}

/// A reader that goes away, as `| head` does, is no failure and no panic.
#[test]
fn a_closed_pipe_is_quiet() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_natten"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
}

/// Runs every line of the handbook's shell blocks that calls the program.
#[test]
fn the_handbook_runs() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let folder = folder("handbook");
    let mut ran = 0;
    for page in ["cli.md", "choosing-parameters.md"] {
        let Ok(page) = std::fs::read_to_string(docs.join(page)) else { continue };
        let blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
        for line in blocks.flat_map(str::lines).filter_map(|line| line.trim().strip_prefix("natten ")) {
            let command = line.split(['|', '>']).next().unwrap_or_default();
            let output = Command::new(env!("CARGO_BIN_EXE_natten"))
                .args(command.split_whitespace())
                .current_dir(&folder)
                .output()
                .unwrap();
            // The golden files are a part of the repository that may not be there yet.
            if command.contains("tests/golden") {
                continue;
            }
            assert!(output.status.success(), "natten {command}: {}", text(&output.stderr));
            ran += 1;
        }
    }
    assert!(ran >= 10, "only {ran} commands ran");
}
