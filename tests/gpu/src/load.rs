//! Loads every PTX text that ships at its own `.version`: does the driver take it, how long does it compile, what does it
//! say, how many registers.

use std::path::{Path, PathBuf};

use natten_cuda::registry::KERNELS;
use serde_json::{Value, json};

use crate::driver::{Checked, Failure, Gpu};

/// Loads all kernels as they ship and all `*.ptx` below the folders, and reports one object a text.
pub fn run(gpu: &Gpu, folders: &[PathBuf]) -> Value {
    let mut paths = Vec::new();
    folders.iter().for_each(|folder| collect(folder, &mut paths));
    paths.sort();
    let shipped = KERNELS.iter().map(|kernel| (kernel.entry.to_owned(), kernel.ptx()));
    let below = paths.iter().filter_map(|path| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Some((name, std::fs::read_to_string(path).ok()?))
    });
    let mut files = Vec::new();
    let (mut refused, mut skipped, mut spilling, mut total_ms) = (0, 0, 0, 0.0);
    for (name, text) in shipped.chain(below) {
        let target = directive(&text, ".target");
        if !runs_here(target, gpu.compute_capability) {
            skipped += 1;
            files.push(json!({ "file": name, "target": target, "state": "skipped: another architecture" }));
            continue;
        }
        match one(gpu, &text) {
            Ok(mut report) => {
                total_ms += report["load_ms"].as_f64().unwrap_or(0.0);
                spilling += u32::from(report["local_bytes"].as_i64().unwrap_or(0) > 0);
                report["file"] = json!(name);
                report["target"] = json!(target);
                files.push(report);
            }
            Err(failure) => {
                refused += 1;
                println!("REFUSED {name} ({target}): {failure}");
                files.push(
                    json!({ "file": name, "target": target, "state": "refused", "error": failure.text }),
                );
            }
        }
    }
    let loaded = files.len() - refused - skipped;
    println!(
        "{loaded} of {} texts loaded in {total_ms:.0} ms, {refused} refused, {skipped} for other architectures, \
         {spilling} use local memory",
        files.len()
    );
    let mut slow: Vec<&Value> = files.iter().filter(|f| f["load_ms"].is_number()).collect();
    slow.sort_by(|a, b| {
        b["load_ms"].as_f64().partial_cmp(&a["load_ms"].as_f64()).unwrap_or(std::cmp::Ordering::Equal)
    });
    for file in slow.iter().take(5) {
        println!("  {:>8.1} ms  {} ({} registers)", file["load_ms"], file["file"], file["registers"]);
    }
    json!({ "loaded": loaded, "refused": refused, "skipped": skipped, "spilling": spilling, "files": files })
}

fn one(gpu: &Gpu, text: &str) -> Checked<Value> {
    let module = gpu.load(text)?;
    let entry = text
        .split(".entry")
        .nth(1)
        .and_then(|rest| rest.split(|c: char| c == '(' || c.is_whitespace()).find(|word| !word.is_empty()))
        .ok_or(Failure { text: "the text has no entry".to_owned() })?;
    let [registers, local_bytes, shared_bytes, threads] = module.function(entry)?.resources()?;
    Ok(json!({
        "state": "loaded",
        "entry": entry,
        "version": directive(text, ".version"),
        "load_ms": module.took.as_secs_f64() * 1e3,
        "registers": registers,
        "local_bytes": local_bytes,
        "static_shared_bytes": shared_bytes,
        "max_threads": threads,
        "log": module.log,
    }))
}

/// The first word after a directive.
fn directive<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
    line.and_then(|rest| rest.split(|c: char| c == ',' || c.is_whitespace()).find(|w| !w.is_empty()))
        .unwrap_or("?")
}

/// Plain targets run on anything at least as new, `a` targets on exactly their chip, `f` on their family.
fn runs_here(target: &str, (major, minor): (i32, i32)) -> bool {
    let number = target.trim_start_matches("sm_").trim_end_matches(['a', 'f']);
    let Ok(number) = number.parse::<i32>() else { return true };
    let here = major * 10 + minor;
    match target.chars().last() {
        Some('a') => number == here,
        Some('f') => number / 10 == major && number <= here,
        _ => number <= here,
    }
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for item in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = item.path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|e| e == "ptx") {
            paths.push(path);
        }
    }
}
