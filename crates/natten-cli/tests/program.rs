//! The program as a whole: devices, completions, help, and the handbook's own commands.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
#[cfg(target_os = "linux")]
use std::time::Duration;

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

/// Ctrl-C while a file is written leaves nothing of it. A pipe under the temporary name keeps the program at writing.
#[test]
#[cfg(target_os = "linux")]
fn an_interruption_leaves_no_file() {
    let folder = folder("interrupted");
    let (file, temporary) = (folder.join("a.svg"), folder.join("a.svg.part"));
    assert!(Command::new("mkfifo").arg(&temporary).status().unwrap().success());
    let mut child = Command::new(env!("CARGO_BIN_EXE_natten"))
        .args(["viz", "-i", "16", "-w", "5", "-o"])
        .arg(&file)
        .spawn()
        .unwrap();
    // Until it handles the signal, it has nothing to clean up.
    let handles = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(caught.trim(), 16).unwrap() & 2 != 0
    };
    while !handles(child.id()) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before the signal");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(100));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!file.exists() && !temporary.exists());
}

/// The pages of the handbook, as name and text.
fn handbook() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let read = |path: PathBuf| (path.display().to_string(), std::fs::read_to_string(&path).unwrap());
    pages.chain([root.join("README.md")]).map(read).collect()
}

/// The blocks of a page that are fenced with this language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    page.split(fence.as_str()).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

/// Runs every line of the handbook's shell blocks that calls the program.
#[test]
fn the_handbook_runs() {
    let folder = folder("handbook");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let mut ran = 0;
    for (name, page) in handbook() {
        let lines = blocks(&page, "sh").into_iter().flat_map(str::lines);
        for line in lines.filter_map(|line| line.trim().strip_prefix("natten ")) {
            let command = line.split(['|', '>']).next().unwrap_or_default();
            // Commands are given for the repository's root, and write files.
            let args = command.split_whitespace().map(|arg| match arg.strip_prefix("tests/golden") {
                Some(rest) => format!("{}{rest}", golden.display()),
                None => arg.to_owned(),
            });
            let output =
                Command::new(env!("CARGO_BIN_EXE_natten")).args(args).current_dir(&folder).output().unwrap();
            let message = text(&output.stderr) + &text(&output.stdout);
            assert!(output.status.success(), "{name}: natten {command}: {message}");
            ran += 1;
        }
    }
    assert!(ran >= 18, "only {ran} commands ran");
}

/// What the documents print below a `$ natten ..` is what the program prints.
#[test]
fn printed_outputs_are_real() {
    let mut compared = 0;
    for (name, page) in handbook() {
        for block in blocks(&page, "text") {
            let Some((command, printed)) =
                block.strip_prefix("$ natten ").and_then(|rest| rest.split_once('\n'))
            else {
                continue;
            };
            assert_eq!(succeed(command), printed, "{name}: natten {command}");
            compared += 1;
        }
    }
    assert!(compared >= 1);
}
