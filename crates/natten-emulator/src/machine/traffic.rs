//! Counting what a warp's request costs the memory system: sectors and bank conflicts.

/// Distinct 32-byte sectors of the enabled lanes' accesses of `bytes` each.
pub(crate) fn sectors(mask: u32, addresses: &[u64; 32], bytes: u32) -> u64 {
    let mut list = [0u64; 64];
    let mut len = 0;
    let mut sorted = true;
    for lane in 0..32 {
        if mask >> lane & 1 == 0 {
            continue;
        }
        let first = addresses[lane] / 32;
        let last = (addresses[lane] + u64::from(bytes) - 1) / 32;
        for sector in [first, last] {
            if len > 0 && list[len - 1] == sector {
                continue;
            }
            sorted &= len == 0 || list[len - 1] < sector;
            if len < list.len() {
                list[len] = sector;
                len += 1;
            }
        }
    }
    let list = &mut list[..len];
    if sorted {
        return len as u64;
    }
    list.sort_unstable();
    1 + list.windows(2).filter(|w| w[0] != w[1]).count() as u64
}

/// Extra passes over the banks: requests of 8 and 16 bytes go in halves and quarters of a warp, and
/// within one pass each of 32 banks serves one 4-byte word.
pub(crate) fn bank_conflicts(mask: u32, addresses: &[u64; 32], bytes: u32) -> u64 {
    let lanes_per_pass = match bytes {
        16 => 8,
        8 => 16,
        _ => 32,
    };
    let words = (bytes / 4).max(1) as u64;
    let mut extra = 0;
    for start in (0..32).step_by(lanes_per_pass) {
        let mut first = [u64::MAX; 32];
        let mut overflow: Vec<(usize, u64)> = Vec::new();
        for lane in (start..start + lanes_per_pass).filter(|l| mask >> l & 1 == 1) {
            for w in 0..words {
                let word = addresses[lane] / 4 + w;
                let bank = (word % 32) as usize;
                if first[bank] == u64::MAX {
                    first[bank] = word;
                } else if first[bank] != word && !overflow.contains(&(bank, word)) {
                    overflow.push((bank, word));
                }
            }
        }
        let mut per_bank = [0u64; 32];
        for (bank, _) in overflow {
            per_bank[bank] += 1;
        }
        extra += per_bank.iter().max().copied().unwrap_or(0);
    }
    extra
}
