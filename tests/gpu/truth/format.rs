//! The record of a device's outputs: a plain file of named byte strings, small integers in f32 packed to 16 bits, runs
//! of equal words counted.
//!
//! `natten truth 1\n`, then per record: name length (u16), encoding (u8), payload length (u32), name, payload. All little
//! endian. The first record, `device`, names the GPU and its driver.

use super::inputs;

const MAGIC: &[u8] = b"natten truth 1\n";
const RAW: u8 = 0;
/// f32 words that are all whole numbers of 16 bits.
const SMALL: u8 = 1;

/// Runs: how often (u16), then the word.
const RUNS: u8 = 2;

/// One output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of the case.
    pub name: String,
    /// The output buffer.
    pub bytes: Vec<u8>,
}

/// A file's records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records(pub Vec<Record>);

impl Records {
    /// The output of a case.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|r| r.name == name).map(|r| r.bytes.as_slice())
    }

    /// Adds an output.
    pub fn push(&mut self, name: impl Into<String>, bytes: Vec<u8>) {
        self.0.push(Record { name: name.into(), bytes });
    }

    /// The file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        for record in &self.0 {
            let raw = (RAW, record.bytes.clone());
            let others = [packed(&record.bytes).map(|p| (SMALL, p)), runs(&record.bytes).map(|p| (RUNS, p))];
            let shorter = |best: (u8, Vec<u8>), next: (u8, Vec<u8>)| {
                if next.1.len() < best.1.len() { next } else { best }
            };
            let (encoding, payload) = others.into_iter().flatten().fold(raw, shorter);
            file.extend((record.name.len() as u16).to_le_bytes());
            file.push(encoding);
            file.extend((payload.len() as u32).to_le_bytes());
            file.extend(record.name.as_bytes());
            file.extend(payload);
        }
        file
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it is not one, or ends early.
    pub fn from_bytes(file: &[u8]) -> Result<Self, String> {
        let mut rest = file.strip_prefix(MAGIC).ok_or("not a truth file of version 1")?;
        let mut records = Records::default();
        while !rest.is_empty() {
            let header = take(&mut rest, 7)?;
            let name_length = usize::from(u16::from_le_bytes([header[0], header[1]]));
            let length = u32::from_le_bytes([header[3], header[4], header[5], header[6]]) as usize;
            let name = String::from_utf8_lossy(take(&mut rest, name_length)?).into_owned();
            let payload = take(&mut rest, length)?;
            let bytes = match header[2] {
                RAW => payload.to_vec(),
                SMALL => unpacked(payload),
                RUNS => unrolled(payload),
                other => return Err(format!("{name}: unknown encoding {other}")),
            };
            records.push(name, bytes);
        }
        Ok(records)
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], String> {
    let (head, tail) = rest.split_at_checked(length).ok_or("the file ends early")?;
    *rest = tail;
    Ok(head)
}

/// The words as 16-bit whole numbers, if that loses nothing.
fn packed(bytes: &[u8]) -> Option<Vec<u8>> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(4) {
        return None;
    }
    let small = |word: u32| {
        let value = f32::from_bits(word);
        let whole = value as i16;
        (f32::from(whole).to_bits() == word).then_some(whole)
    };
    let whole: Option<Vec<i16>> = inputs::words(bytes).into_iter().map(small).collect();
    Some(whole?.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn unpacked(payload: &[u8]) -> Vec<u8> {
    payload.chunks_exact(2).flat_map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])).to_le_bytes()).collect()
}

fn runs(bytes: &[u8]) -> Option<Vec<u8>> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(4) {
        return None;
    }
    let words = inputs::words(bytes);
    let same = |a: &u32, b: &u32| a == b;
    let pieces = words.chunk_by(same).flat_map(|run| run.chunks(usize::from(u16::MAX)));
    Some(
        pieces
            .flat_map(|run| [&(run.len() as u16).to_le_bytes()[..], &run[0].to_le_bytes()].concat())
            .collect(),
    )
}

fn unrolled(payload: &[u8]) -> Vec<u8> {
    let piece = |b: &[u8]| b[2..6].repeat(usize::from(u16::from_le_bytes([b[0], b[1]])));
    payload.chunks_exact(6).flat_map(piece).collect()
}
