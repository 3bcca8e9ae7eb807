//! Files that are written whole or not at all, all of them or none.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use tempfile::{Builder, NamedTempFile};

use crate::error::CliError;

/// Writes every file under a fresh name beside its own, and renames them once all are there. Neither an interruption
/// (Ctrl-C) nor a failure leaves a part of one, and nobody's file or link is written through.
pub fn write_all(files: &[(&Path, Vec<u8>)]) -> Result<(), CliError> {
    remove_on_interruption();
    let finish = || {
        let mut written = Vec::new();
        for (path, bytes) in files {
            let failed = |source| CliError::Write { path: (*path).to_owned(), source };
            written.push((*path, write_beside(path, bytes).map_err(failed)?));
        }
        for (path, file) in written {
            file.persist(path)
                .map_err(|error| CliError::Write { path: path.to_owned(), source: error.error })?;
        }
        Ok(())
    };
    // What was not renamed is removed as it is dropped, before it is forgotten here.
    let done = finish();
    unfinished().clear();
    done
}

/// A file of a random name in the same folder, created by this call and by no other.
fn write_beside(path: &Path, bytes: &[u8]) -> io::Result<NamedTempFile> {
    if path.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut builder = Builder::new();
    builder.prefix(".natten-").suffix(".part");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = {
        // Under the lock: an interruption must know of every file that exists.
        let mut unfinished = unfinished();
        let file = builder.tempfile_in(folder)?;
        unfinished.push(file.path().to_owned());
        file
    };
    file.write_all(bytes)?;
    Ok(file)
}

/// The files that are being written, under their temporary names.
fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on Ctrl-C removes what is unfinished before it ends the program.
fn remove_on_interruption() {
    static ONCE: Once = Once::new();
    /// As a shell reports a program that SIGINT ended.
    const INTERRUPTED: i32 = 130;
    ONCE.call_once(|| {
        // Without a handler the default one ends the program, too.
        let _ = ctrlc::set_handler(|| {
            let unfinished = unfinished();
            for path in unfinished.iter() {
                let _ = std::fs::remove_file(path);
            }
            std::process::exit(INTERRUPTED);
        });
    });
}
