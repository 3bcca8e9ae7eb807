//! Compiles the matrix, lowers the PTX version, and writes or compares the files and their manifest.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::TaskError;
use crate::matrix::{Entry, Operation};
use crate::nvrtc::Nvrtc;
use crate::wheels;

/// What the manifest says of an entry.
#[derive(Serialize)]
struct Record<'a> {
    entry: &'a str,
    operation: Operation,
    arch: &'a str,
    ptx_version: &'a str,
    element_type: &'a str,
    head_dim: u32,
    aligned: bool,
    lanes: u32,
    items: u32,
    threads: u32,
    tile: [u32; 2],
    shared_bytes: u32,
    source: &'a str,
    source_hash: String,
}

/// Compiles `entries`; with `check`, compares instead of writing.
pub(crate) fn run(root: &Path, entries: &[Entry], check: bool) -> Result<(), TaskError> {
    let nvrtc = Nvrtc::load(&wheels::nvrtc(root)?)?;
    let out = root.join("crates/natten-cuda/ptx");
    std::fs::create_dir_all(&out).map_err(|source| TaskError::File { path: out.clone(), source })?;
    let mut records = Vec::new();
    let mut stale = 0;
    for entry in entries {
        let (ptx, source_hash) = compile(root, &nvrtc, entry)?;
        records.push(Record {
            entry: &entry.name,
            operation: entry.operation,
            arch: entry.target.arch,
            ptx_version: entry.target.version,
            element_type: entry.element_type,
            head_dim: entry.head_dim,
            aligned: entry.aligned,
            lanes: entry.lanes,
            items: entry.items,
            threads: entry.threads,
            tile: entry.tile,
            shared_bytes: entry.shared_bytes,
            source: entry.source,
            source_hash,
        });
        stale += settle(&out.join(format!("{}.ptx", entry.name)), &ptx, check)?;
    }
    if entries.len() == crate::matrix::entries().len() {
        let manifest = serde_json::to_string_pretty(&records)? + "\n";
        stale += settle(&out.join("manifest.json"), &manifest, check)?;
        stale += strangers(&out, entries, check)?;
    }
    println!("{} entries, {}", entries.len(), if check { "compared" } else { "written" });
    if stale > 0 { Err(TaskError::Stale { count: stale }) } else { Ok(()) }
}

/// PTX of one entry, and the hash of all sources it was made from.
fn compile(root: &Path, nvrtc: &Nvrtc, entry: &Entry) -> Result<(String, String), TaskError> {
    let kernels = root.join("kernels");
    let source = read(&kernels.join(entry.source))?;
    let include = kernels.join("include");
    let mut options = vec![
        format!("--gpu-architecture={}", entry.target.arch),
        "--std=c++17".to_owned(),
        "-default-device".to_owned(),
        "-w".to_owned(),
        format!("-I{}", include.display()),
        format!("-DNATTEN_ENTRY={}", entry.name),
    ];
    options.extend(entry.defines.iter().map(|define| format!("-D{define}")));
    let ptx = nvrtc.compile(&entry.name, &source, &options)?;

    let mut hash = Fnv::new();
    hash.add(&source);
    for header in headers(&include)? {
        hash.add(&read(&header)?);
    }
    entry.defines.iter().for_each(|define| hash.add(define));
    Ok((tidy(&ptx, entry.target.version), format!("{:016x}", hash.0)))
}

/// Lowers `.version` and drops what no assembler reads (comments, indentation, blank lines: a fifth of the text) and
/// one hint that old ones refuse.
fn tidy(ptx: &str, version: &str) -> String {
    let mut out = String::with_capacity(ptx.len());
    for line in ptx.lines() {
        let line = line.split("//").next().unwrap_or_default().trim();
        if line.is_empty() || line.starts_with(".pragma \"used_bytes_mask") {
            continue;
        }
        if line.starts_with(".version") {
            out.push_str(&format!(".version {version}"));
        } else {
            out.push_str(&line.replace('\t', " "));
        }
        out.push('\n');
    }
    out
}

/// Writes a file, or counts 1 if it differs from what is there.
fn settle(path: &Path, text: &str, check: bool) -> Result<usize, TaskError> {
    if !check {
        std::fs::write(path, text).map_err(|source| TaskError::File { path: path.to_owned(), source })?;
        return Ok(0);
    }
    let same = std::fs::read_to_string(path).is_ok_and(|committed| committed == text);
    if !same {
        eprintln!("differs: {}", path.display());
    }
    Ok(usize::from(!same))
}

/// PTX files that no entry makes any more: removed, or counted.
fn strangers(out: &Path, entries: &[Entry], check: bool) -> Result<usize, TaskError> {
    let mut count = 0;
    for path in list(out)? {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let is_ptx = path.extension().is_some_and(|extension| extension == "ptx");
        if !is_ptx || entries.iter().any(|entry| entry.name == stem) {
            continue;
        }
        if check {
            eprintln!("no entry makes {}", path.display());
            count += 1;
        } else {
            std::fs::remove_file(&path).map_err(|source| TaskError::File { path, source })?;
        }
    }
    Ok(count)
}

/// All headers below a folder, in a fixed order.
fn headers(folder: &Path) -> Result<Vec<PathBuf>, TaskError> {
    let mut found = Vec::new();
    for path in list(folder)? {
        if path.is_dir() {
            found.extend(headers(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, TaskError> {
    let failed = |source| TaskError::File { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for item in std::fs::read_dir(folder).map_err(failed)? {
        paths.push(item.map_err(failed)?.path());
    }
    paths.sort();
    Ok(paths)
}

pub(crate) fn read(path: &Path) -> Result<String, TaskError> {
    std::fs::read_to_string(path).map_err(|source| TaskError::File { path: path.to_owned(), source })
}

/// FNV-1a, 64 bits: enough to tell that sources changed, and the same everywhere.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, text: &str) {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
