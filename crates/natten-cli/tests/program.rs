//! The program as a whole: devices, completions, help, and the handbook's own commands.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use support::{folder, json_lines, refuse, succeed, text};

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
