//! Compiles the matrix, and writes or compares the texts and the table of them.

use std::path::{Path, PathBuf};

use crate::TaskError;
use crate::assemble::assemble;
use crate::facts::{Facts, tidy};
use crate::matrix::Entry;
use crate::nvrtc::Nvrtc;
use crate::pack;
use crate::table::{Row, table};
use crate::wheels;

/// Where the texts are committed, for readers, and packed, for users.
const TEXTS: &str = "crates/natten-kernels/ptx";
const PACKED: &str = "crates/natten-kernels/packed";
const TABLE: &str = "crates/natten-kernels/src/table.rs";

/// Compiles `entries`; with `check`, compares instead of writing. The table is made of all entries or not at all.
pub(crate) fn run(root: &Path, entries: &[Entry], check: bool) -> Result<(), TaskError> {
    let nvrtc = Nvrtc::load(&wheels::nvrtc(root)?)?;
    let scratch = scratch(root)?;
    let (texts, packed) = (folder(root, TEXTS)?, folder(root, PACKED)?);
    let mut rows = Vec::new();
    let mut stale = 0;
    for entry in entries {
        let text = compile(root, &nvrtc, entry)?;
        let twin = entry.twin().filter(|twin| of_twin(root, twin).is_ok_and(|same| same == text));
        if twin.is_none() {
            stale += settle(&texts.join(format!("{}.ptx", entry.name)), &text, check)?;
            stale += pack::settle(&packed.join(format!("{}.br", entry.name)), &text, check)?;
        }
        let facts = Facts::of(&text).ok_or_else(|| TaskError::Facts { entry: entry.name.clone() })?;
        let fresh = scratch.join(format!("{}.ptx", entry.name));
        write(&fresh, &text)?;
        let newest = *entry.target.assemblers.last().expect("every target names assemblers");
        let registers = assemble(root, newest, &fresh, &fresh.with_extension("cubin"))?.registers;
        rows.push(Row { entry, facts, registers, twin });
    }
    if entries.len() == crate::matrix::entries().len() {
        stale += settle(&root.join(TABLE), &table(&rows), check)?;
        stale += strangers(&texts, &rows, check)? + strangers(&packed, &rows, check)?;
    } else {
        println!("some entries only: the table was left as it is");
    }
    println!("{} entries, {}", entries.len(), if check { "compared" } else { "written" });
    if stale > 0 { Err(TaskError::Stale { count: stale }) } else { Ok(()) }
}

/// The committed text of an entry.
pub(crate) fn committed(root: &Path, entry: &Entry) -> Result<String, TaskError> {
    let own = root.join(TEXTS).join(format!("{}.ptx", entry.name));
    match entry.twin() {
        Some(twin) if !own.exists() => of_twin(root, &twin),
        _ => read(&own),
    }
}

/// The committed text of an f16 kernel with the type's name replaced, as natten-kernels does it at load. In a run that writes,
/// f16 kernels come first.
fn of_twin(root: &Path, twin: &str) -> Result<String, TaskError> {
    let text = read(&root.join(TEXTS).join(format!("{twin}.ptx")))?;
    Ok(text.replace(".f16", ".bf16").replace("_f16", "_bf16"))
}

/// The text of one entry, freshly compiled.
fn compile(root: &Path, nvrtc: &Nvrtc, entry: &Entry) -> Result<String, TaskError> {
    let kernels = root.join("kernels");
    let source = read(&kernels.join(entry.source))?;
    let mut options = vec![
        format!("--gpu-architecture={}", entry.target.arch),
        "--std=c++17".to_owned(),
        "-default-device".to_owned(),
        "-w".to_owned(),
        format!("-I{}", kernels.join("include").display()),
        format!("-DNATTEN_ENTRY={}", entry.name),
    ];
    options.extend(entry.defines.iter().map(|define| format!("-D{define}")));
    let ptx = nvrtc.compile(&entry.name, &source, &options)?;
    Ok(tidy(&ptx, entry.target.version))
}

/// Writes a file, or counts 1 if it differs from what is there.
fn settle(path: &Path, text: &str, check: bool) -> Result<usize, TaskError> {
    if !check {
        write(path, text)?;
        return Ok(0);
    }
    let same = std::fs::read_to_string(path).is_ok_and(|committed| committed == text);
    if !same {
        eprintln!("differs: {}", path.display());
    }
    Ok(usize::from(!same))
}

/// Files of no row's own: removed, or counted.
fn strangers(out: &Path, rows: &[Row<'_>], check: bool) -> Result<usize, TaskError> {
    let failed = |source| TaskError::File { path: out.to_owned(), source };
    let mut count = 0;
    for item in std::fs::read_dir(out).map_err(failed)? {
        let path = item.map_err(failed)?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if rows.iter().any(|row| row.twin.is_none() && row.entry.name == stem) {
            continue;
        }
        if check {
            eprintln!("no entry needs {}", path.display());
            count += 1;
        } else {
            std::fs::remove_file(&path).map_err(|source| TaskError::File { path, source })?;
        }
    }
    Ok(count)
}

/// A folder for what is made on the way.
pub(crate) fn scratch(root: &Path) -> Result<PathBuf, TaskError> {
    folder(root, ".kernels-env/scratch")
}

fn folder(root: &Path, path: &str) -> Result<PathBuf, TaskError> {
    let path = root.join(path);
    std::fs::create_dir_all(&path).map_err(|source| TaskError::File { path: path.clone(), source })?;
    Ok(path)
}

fn read(path: &Path) -> Result<String, TaskError> {
    std::fs::read_to_string(path).map_err(|source| TaskError::File { path: path.to_owned(), source })
}

pub(crate) fn write(path: &Path, text: &str) -> Result<(), TaskError> {
    std::fs::write(path, text).map_err(|source| TaskError::File { path: path.to_owned(), source })
}
