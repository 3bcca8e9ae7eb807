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
/// conflict exactly when they meet in a bank as wide as the access.
pub(crate) fn bank_conflicts(mask: u32, addresses: &[u64; 32], bytes: u32) -> u64 {
    let shift = bytes.max(4).trailing_zeros();
    let banks = 32usize >> (shift - 2);
    let mut extra = 0;
    for start in (0..32).step_by(banks) {
        let mut seen = 0u32;
        let mut word_in = [0u64; 32];
        let mut clash = false;
        let mut previous = u64::MAX;
        for lane in start..start + banks {
            if mask >> lane & 1 == 0 || addresses[lane] == previous {
                continue;
            }
            previous = addresses[lane];
            let word = addresses[lane] >> shift;
            let bank = word as usize & (banks - 1);
            clash |= seen >> bank & 1 == 1 && word_in[bank] != word;
            seen |= 1 << bank;
            word_in[bank] = word;
        }
        if clash {
            extra += passes(mask, &addresses[start..start + banks], start, shift) - 1;
        }
    }
    extra
}

/// Most distinct words that one bank must serve.
#[cold]
fn passes(mask: u32, addresses: &[u64], start: usize, shift: u32) -> u64 {
    let banks = addresses.len() as u64;
    let lanes = addresses.iter().enumerate().filter(|(l, _)| mask >> (start + l) & 1 == 1);
    let mut words: Vec<u64> = lanes.map(|(_, a)| a >> shift).collect();
    words.sort_unstable();
    words.dedup();
    let mut per_bank = [0u64; 32];
    words.iter().for_each(|w| per_bank[(w % banks) as usize] += 1);
    per_bank.iter().max().copied().unwrap_or(1)
}
