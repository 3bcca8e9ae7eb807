//! Counting what a warp's request costs the memory system: sectors and bank conflicts.

/// Distinct 32-byte sectors of the enabled lanes' accesses of `bytes` each.
pub(crate) fn sectors(mask: u32, addresses: &[u64; 32], bytes: u32) -> u64 {
    let mut list = [0u64; 32];
    let mut len = 0;
    let mut sorted = true;
    let mut last = u64::MAX;
    for lane in 0..32 {
        // Accesses are aligned to their length, so up to 32 bytes never cross a sector.
        let sector = addresses[lane] / 32;
        if mask >> lane & 1 == 0 || sector == last {
            continue;
        }
        sorted &= last == u64::MAX || last < sector;
        last = sector;
        list[len] = sector;
        len += 1;
    }
    debug_assert!(bytes <= 32, "lanes load at most one sector");
    let list = &mut list[..len];
    if sorted {
        return len as u64;
    }
    list.sort_unstable();
    1 + list.windows(2).filter(|w| w[0] != w[1]).count() as u64
}

/// Extra passes over the banks: requests of 8 and 16 bytes go in halves and quarters of a warp, and
/// within one pass each of 32 banks serves one 4-byte word. Since accesses are aligned, two of them
/// conflict exactly when they meet in a bank as wide as the access. Lanes that are not enabled repeat
/// the offset of one that is.
pub(crate) fn bank_conflicts(mask: u32, offsets: &[u32; 32], bytes: u32) -> u64 {
    match bytes {
        0..=4 => conflicts::<32>(mask, offsets, 2),
        8 => conflicts::<16>(mask, offsets, 3),
        _ => conflicts::<8>(mask, offsets, 4),
    }
}

/// The same for groups of as many lanes as there are banks of `1 << shift` bytes.
#[inline(always)]
fn conflicts<const BANKS: usize>(mask: u32, offsets: &[u32; 32], shift: u32) -> u64 {
    let mut extra = 0;
    for (group, lanes) in offsets.as_chunks::<BANKS>().0.iter().enumerate() {
        // Words closer together than there are banks lie in different ones.
        let (mut low, mut high) = (i32::MAX, 0);
        for &offset in lanes {
            low = low.min((offset >> shift) as i32);
            high = high.max((offset >> shift) as i32);
        }
        if high - low >= BANKS as i32 {
            extra += passes(mask >> (group * BANKS), lanes, shift) - 1;
        }
    }
    extra
}

/// Most distinct words that one bank must serve.
fn passes<const BANKS: usize>(mask: u32, offsets: &[u32; BANKS], shift: u32) -> u64 {
    let mut seen = 0u32;
    let mut word_in = [0u32; BANKS];
    let mut clash = false;
    for lane in 0..BANKS {
        let word = offsets[lane] >> shift;
        let bank = word as usize % BANKS;
        clash |= mask >> lane & 1 == 1 && seen >> bank & 1 == 1 && word_in[bank] != word;
        if mask >> lane & 1 == 1 {
            seen |= 1 << bank;
            word_in[bank] = word;
        }
    }
    if clash { count_passes(mask, offsets, shift) } else { 1 }
}

#[cold]
fn count_passes<const BANKS: usize>(mask: u32, offsets: &[u32; BANKS], shift: u32) -> u64 {
    let lanes = offsets.iter().enumerate().filter(|(lane, _)| mask >> lane & 1 == 1);
    let mut words: Vec<u32> = lanes.map(|(_, offset)| offset >> shift).collect();
    words.sort_unstable();
    words.dedup();
    let mut per_bank = [0u64; BANKS];
    words.iter().for_each(|word| per_bank[*word as usize % BANKS] += 1);
    per_bank.iter().max().copied().unwrap_or(1)
}
