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

/// Help is output like any other: where it cannot be written, that is no success.
#[test]
#[cfg(target_os = "linux")]
fn output_that_cannot_be_written_is_a_failure() {
    for args in [&["--help"][..], &["--version"], &["viz", "--help"], &["completions", "bash"], &["devices"]]
    {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_natten"))
            .args(args)
            .stdout(full)
            .stderr(Stdio::piped())
            .output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).starts_with("error: cannot write to standard output"), "{args:?}");
    }
}

#[test]
fn more_axes_than_there_are_get_a_sentence() {
    for verb in ["plan", "profile", "viz"] {
        for line in ["-i 2 3 4 5", "-i 2 3 4 5 -w 1 2 3 4", "-i 2 3 4 5 6 7 8 9 -w 1"] {
            let message = refuse(&format!("{verb} {line}"));
            assert!(message.contains("token extents, a sequence has 1, an image 2 and video 3"), "{message}");
        }
        let message = refuse(&format!("{verb} -i 4 5 6 -w 1 2 3 4"));
        assert!(message.contains("--window-size has 4 entries for 3 token axes"), "{message}");
    }
}

/// Ctrl-C while files are written leaves nothing of them. Many files make it likely that it comes at the right time;
/// when it came after the end, it is tried again.
#[test]
#[cfg(target_os = "linux")]
fn an_interruption_leaves_no_file() {
    let interrupted = (0..20).any(|attempt| {
        let folder = folder(&format!("interrupted_{attempt}"));
        let outputs = (0..2000).flat_map(|i| ["-o".into(), folder.join(format!("{i}.svg"))]);
        let mut child = Command::new(env!("CARGO_BIN_EXE_natten"))
            .args(["viz", "-i", "16", "-w", "5"])
            .args(outputs)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let left = || std::fs::read_dir(&folder).unwrap().count();
        while left() == 0 {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let code = child.wait().unwrap().code();
        // Once renaming has begun there may be whole files.
        if code == Some(0) || folder.join("0.svg").exists() {
            return false;
        }
        assert_eq!((code, left()), (Some(130), 0));
        true
    });
    assert!(interrupted, "no interruption came in time");
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
