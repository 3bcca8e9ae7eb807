//! Runs every truth case on the device and records its output; sweeps the approximate functions densely.
//!
//! A kernel that faults breaks its process's context for good, so the cases run in a child process, and a new child goes on
//! behind the one that broke.

use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::driver::{Checked, Gpu, Parameter};
use crate::maps;
use crate::truth::{self, Arg, Case, Records, inputs, kernel, scalar};

/// A child that wrote no new case for so long hangs.
const PATIENCE: Duration = Duration::from_secs(20);
const CHILDREN: usize = 60;
/// Exit code of a child whose context a kernel broke, after it has written that kernel's line.
const BROKEN: i32 = 3;

/// Runs all cases; writes `truth.bin` into `folder`, and reports.
pub fn run(gpu: &Gpu, folder: &Path) -> std::io::Result<Value> {
    let lines = folder.join("truth.lines");
    let _ = std::fs::remove_file(&lines);
    let names: Vec<String> = truth::all().into_iter().map(|c| c.name).collect();
    let mut broken = Vec::new();
    let mut next = 0;
    for _ in 0..CHILDREN {
        if next >= names.len() {
            break;
        }
        let status = child(&lines, next)?;
        next = finished(&lines);
        // A child that could still say which case broke its context has written that case's line.
        let told = status.is_some_and(|s| s.success() || s.code() == Some(BROKEN));
        if !told && next < names.len() {
            let how = status.map_or("hung".to_owned(), |s| s.to_string());
            append(&lines, &json!({ "name": names[next], "error": format!("broke its process: {how}") }))?;
            broken.push(names[next].clone());
            next += 1;
        }
    }
    let mut records = Records::default();
    let device = format!(
        "{}, compute capability {}.{}, CUDA {}",
        gpu.name, gpu.compute_capability.0, gpu.compute_capability.1, gpu.cuda
    );
    records.push("device", device.into_bytes());
    let text = std::fs::read_to_string(&lines).unwrap_or_default();
    let mut cases: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    for case in &mut cases {
        if let Some(hex) = case["bytes"].as_str() {
            records.push(case["name"].as_str().unwrap_or_default(), unhex(hex));
            case["bytes"] = json!(hex.len() / 2);
        }
    }
    let file = records.to_bytes();
    std::fs::write(folder.join("truth.bin"), &file)?;
    let _ = std::fs::remove_file(&lines);
    let count = |key: &str| cases.iter().filter(|c| c[key].is_string()).count();
    let (failed, surprising) = (count("error"), count("surprise"));
    for case in cases.iter().filter(|c| c["surprise"].is_string() || c["error"].is_string()) {
        let what = if case["error"].is_string() {
            ("ERROR", &case["error"])
        } else {
            ("NOT AS DOCUMENTED", &case["surprise"])
        };
        println!("{} {}: {}", what.0, case["name"].as_str().unwrap_or("?"), what.1.as_str().unwrap_or("?"));
    }
    println!(
        "{} of {} truth cases recorded ({} bytes), {failed} failed, {surprising} not as documented",
        records.0.len() - 1,
        names.len(),
        file.len()
    );
    let recorded = records.0.len() - 1;
    Ok(
        json!({ "recorded": recorded, "failed": failed, "not_as_documented": surprising, "broken": broken, "cases": cases }),
    )
}

/// One record of two: the newer's outputs, and the older's of cases that still exist and that the newer lacks.
pub fn merge(older: &Path, newer: &Path) -> std::io::Result<Vec<u8>> {
    let read = |path: &Path| {
        Records::from_bytes(&std::fs::read(path)?)
            .map_err(|text| std::io::Error::other(format!("{}: {text}", path.display())))
    };
    let (older, newer) = (read(older)?, read(newer)?);
    let mut merged = Records::default();
    let names = std::iter::once("device".to_owned()).chain(truth::all().into_iter().map(|case| case.name));
    let (mut kept, mut missing) = (0, 0);
    for name in names {
        match newer.get(&name).or_else(|| older.get(&name).inspect(|_| kept += 1)) {
            Some(bytes) => merged.push(name, bytes.to_vec()),
            None => missing += 1,
        }
    }
    eprintln!("{} records: {kept} of the older file, {missing} cases in neither", merged.0.len() - 1);
    Ok(merged.to_bytes())
}

/// Runs the cases from `first` on in a child; `None` if it hung.
fn child(lines: &Path, first: usize) -> std::io::Result<Option<ExitStatus>> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("truth-child")
        .arg(lines)
        .arg(first.to_string())
        .spawn()?;
    let (mut seen, mut since) = (finished(lines), Instant::now());
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let now = finished(lines);
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        if since.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What the child does.
pub fn run_child(gpu: &Gpu, lines: &Path, first: usize) -> std::io::Result<()> {
    for case in truth::all().iter().skip(first) {
        let line = match execute(gpu, case) {
            Ok(output) if case.refused => {
                let surprise = "ran, where a fault was expected";
                json!({ "name": case.name, "bytes": hex(&output), "documented": true, "surprise": surprise })
            }
            Err(failure) if case.refused => {
                let text = [truth::FAULT, failure.text.as_bytes()].concat();
                json!({ "name": case.name, "bytes": hex(&text), "documented": true, "fault": failure.text })
            }
            Ok(output) => {
                let documented = case.documented.as_ref();
                let surprise = documented.and_then(|want| case.rule.compare(&output, want).err());
                json!({ "name": case.name, "bytes": hex(&output), "documented": documented.is_some(), "surprise": surprise })
            }
            Err(failure) => json!({ "name": case.name, "error": failure.text }),
        };
        append(lines, &line)?;
        if (line["error"].is_string() || line["fault"].is_string()) && gpu.synchronize().is_err() {
            std::process::exit(BROKEN);
        }
    }
    Ok(())
}

fn execute(gpu: &Gpu, case: &Case) -> Checked<Vec<u8>> {
    let module = gpu.load(&case.ptx)?;
    let function = module.function(kernel::ENTRY)?;
    let mut buffers = Vec::new();
    for arg in &case.args {
        buffers.push(match arg {
            Arg::Input(content) | Arg::Output(content) => Some(gpu.upload(content)?),
            Arg::Value(_) | Arg::Map { .. } => None,
        });
    }
    let mut parameters = Vec::new();
    for (arg, buffer) in case.args.iter().zip(&buffers) {
        parameters.push(match (arg, buffer) {
            (Arg::Value(value), _) => Parameter::value(*value),
            (Arg::Map { map, buffer }, _) => match &buffers[*buffer] {
                Some(tensor) => maps::encode(map, tensor)?,
                None => Parameter::value(0),
            },
            (_, Some(buffer)) => Parameter::value(buffer.address),
            (_, None) => Parameter::value(0),
        });
    }
    gpu.launch(function, case.blocks, case.threads, &mut parameters)?;
    gpu.synchronize()?;
    let output = case.args.iter().position(|arg| matches!(arg, Arg::Output(_)));
    match output.and_then(|index| buffers[index].as_ref()) {
        Some(buffer) => gpu.download(buffer),
        None => Ok(Vec::new()),
    }
}

/// Sweeps each approximate function over 2^24 bit patterns and reports its largest error and a hash of its outputs.
pub fn sweep(gpu: &Gpu) -> Checked<Value> {
    const ITEMS: u32 = 1 << 24;
    // Every sign, exponent and 15 leading bits of the mantissa; the 8 last bits vary along the way.
    let patterns: Vec<u32> = (0..ITEMS).map(|i| i << 8 | (i.wrapping_mul(0x9e37_79b9) >> 24)).collect();
    let input = gpu.upload(&inputs::bytes(&patterns))?;
    let mut functions = Vec::new();
    for (name, body, _, _) in scalar::APPROXIMATE {
        let module = gpu.load(&scalar::sweep_kernel(body).ptx())?;
        let output = gpu.alloc(4 * ITEMS as usize)?;
        let mut parameters = [input.address, output.address, input.address, 0, 0].map(Parameter::value);
        gpu.launch(module.function(kernel::ENTRY)?, ITEMS / 256, 256, &mut parameters)?;
        let words = inputs::words(&gpu.download(&output)?);
        let report = errors(name, &patterns, &words);
        println!("{name}: {report}");
        functions.push(report);
    }
    Ok(json!(functions))
}

/// Largest error of a function in units of the result's last place, over results that are normal numbers.
fn errors(name: &str, patterns: &[u32], words: &[u32]) -> Value {
    let exact = |x: f64| match name.split('_').next() {
        Some("ex2") => x.exp2(),
        Some("lg2") => x.log2(),
        Some("rcp") => 1.0 / x,
        Some("rsqrt") => 1.0 / x.sqrt(),
        Some("sqrt") => x.sqrt(),
        _ => x.tanh(),
    };
    let (mut worst, mut at, mut absolute) = (0.0_f64, 0, 0.0_f64);
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for (&pattern, &word) in patterns.iter().zip(words) {
        hash = (hash ^ u64::from(word)).wrapping_mul(0x0100_0000_01b3);
        let (x, got) = (f32::from_bits(pattern), f32::from_bits(word));
        let want = exact(f64::from(x));
        if !x.is_normal() || !(f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX)).contains(&want.abs()) {
            continue;
        }
        let place = 2.0_f64.powi(want.abs().log2().floor() as i32 - 23);
        let error = (f64::from(got) - want).abs();
        absolute = absolute.max(if want.abs() <= 1.0 { error } else { 0.0 });
        if error.is_nan() || error / place > worst {
            (worst, at) = (error / place, pattern);
        }
    }
    json!({
        "function": name, "max_ulp": worst, "at": format!("{at:#010x}"), "max_error_below_1": absolute,
        "hash": format!("{hash:016x}"), "items": words.len(),
    })
}

fn append(lines: &Path, line: &Value) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(lines)?;
    writeln!(file, "{line}")
}

fn finished(lines: &Path) -> usize {
    std::fs::read_to_string(lines).map_or(0, |text| text.matches('\n').count())
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let nibble = |c: u8| (c as char).to_digit(16).unwrap_or(0) as u8;
    text.as_bytes().chunks_exact(2).map(|pair| nibble(pair[0]) << 4 | nibble(pair[1])).collect()
}
