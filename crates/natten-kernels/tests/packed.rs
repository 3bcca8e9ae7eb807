//! What ships is what reviewers read, and small.

use std::path::Path;

use natten_kernels::KERNELS;

/// Bytes that the packed texts may have together: what users download and link.
const LIMIT: u64 = 1_500_000;

fn files(folder: &str) -> Vec<std::path::PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect()
}

#[test]
fn packed_texts_are_the_readable_ones() {
    for path in files("ptx") {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let kernel = natten_kernels::by_name(name).unwrap_or_else(|| panic!("{name} is in no row"));
        assert!(kernel.ptx() == std::fs::read_to_string(&path).unwrap(), "{name}");
    }
    assert_eq!(files("ptx").len(), KERNELS.len());
    assert_eq!(files("packed").len(), KERNELS.len());
}

#[test]
fn packed_texts_are_small() {
    let bytes: u64 = files("packed").iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(bytes < LIMIT, "{bytes} bytes");
}
