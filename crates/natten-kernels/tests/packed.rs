//! What ships is what reviewers read, and small.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use natten_kernels::KERNELS;

/// Bytes that the packed texts may have together: what users download and link. Of 199 kernels for four generations of GPUs; that a call
/// may be a part of a whole took 92 kB of them.
const LIMIT: u64 = 2200 << 10;

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect()
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn packed_texts_are_the_readable_ones() {
    let readable: HashMap<String, String> =
        files("ptx").into_iter().map(|path| (name(&path), std::fs::read_to_string(&path).unwrap())).collect();
    for kernel in KERNELS {
        let own = readable.get(kernel.entry).cloned();
        let of_f16 = || {
            let text = readable.get(&kernel.entry.replace("bf16", "f16"))?;
            Some(text.replace(".f16", ".bf16").replace("_f16", "_bf16"))
        };
        let expected = own.or_else(of_f16).unwrap_or_else(|| panic!("{} has no text", kernel.entry));
        assert!(kernel.ptx() == expected, "{}", kernel.entry);
    }
    let packed: HashSet<String> = files("packed").iter().map(|path| name(path)).collect();
    assert_eq!(packed, readable.into_keys().collect());
    assert!(packed.iter().all(|name| natten_kernels::by_name(name).is_some()));
}

#[test]
fn packed_texts_are_small() {
    let bytes: u64 = files("packed").iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(bytes < LIMIT, "{bytes} bytes");
}
