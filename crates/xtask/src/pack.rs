//! Packs texts for the crate that ships them. One file a kernel: an archive of all would have to be unpacked up to the
//! kernel that is wanted, and a changed kernel would change all of it.

use std::path::Path;

use brotli::enc::BrotliEncoderParams;

use crate::TaskError;

/// Leaves a packed file that holds the text as it is; otherwise writes it, or with `check` counts 1.
pub(crate) fn settle(path: &Path, text: &str, check: bool) -> Result<usize, TaskError> {
    let holds = std::fs::read(path).is_ok_and(|packed| unpack(&packed).as_deref() == Some(text.as_bytes()));
    if holds {
        return Ok(0);
    }
    if check {
        eprintln!("differs: {}", path.display());
        return Ok(1);
    }
    std::fs::write(path, pack(text)).map_err(|source| TaskError::File { path: path.to_owned(), source })?;
    Ok(0)
}

fn pack(text: &str) -> Vec<u8> {
    let params = BrotliEncoderParams { quality: 11, lgwin: 22, size_hint: text.len(), ..Default::default() };
    let mut packed = Vec::new();
    brotli::BrotliCompress(&mut text.as_bytes(), &mut packed, &params).expect("memory takes everything");
    packed
}

fn unpack(mut packed: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    brotli::BrotliDecompress(&mut packed, &mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_texts_come_back() {
        let text = "mov.u32  %r1, %ctaid.x;\n".repeat(500);
        let packed = pack(&text);
        assert!(packed.len() < 100, "{}", packed.len());
        assert_eq!(unpack(&packed).as_deref(), Some(text.as_bytes()));
        assert_eq!(unpack(&packed[..packed.len() - 1]), None);
    }
}
