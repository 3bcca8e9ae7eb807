//! Which processor this is, where its instructions do not say what is fast.

/// Whether Intel made this processor.
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(crate) fn is_intel() -> bool {
    vendor() == *b"GenuineIntel"
}

/// Whether it begins two 512-bit multiply-adds a clock, by its family and model: the answer never changes, so results do not either.
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(crate) fn has_two_wide_units() -> bool {
    static ANSWER: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *ANSWER.get_or_init(|| two_wide_units(&vendor(), family_and_model(leaf(1).eax)))
}

/// Elsewhere there are none.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
pub(crate) fn has_two_wide_units() -> bool {
    false
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[allow(
    unused_unsafe,
    reason = "newer compilers know the intrinsic as safe, the oldest that we build with does not"
)]
fn leaf(number: u32) -> std::arch::x86_64::CpuidResult {
    // SAFETY: every x86-64 processor has the instruction, and the leaves 0 and 1 that are asked for here.
    unsafe { std::arch::x86_64::__cpuid(number) }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
fn vendor() -> [u8; 12] {
    let name = leaf(0);
    let mut vendor = [0; 12];
    vendor.copy_from_slice([name.ebx, name.edx, name.ecx].map(u32::to_le_bytes).as_flattened());
    vendor
}

/// As the vendors' manuals put them together from leaf 1.
#[cfg(any(test, all(target_arch = "x86_64", not(miri))))]
fn family_and_model(signature: u32) -> (u32, u32) {
    let (family, extended) = (signature >> 8 & 0xf, signature >> 20 & 0xff);
    let family = if family == 0xf { family + extended } else { family };
    (family, signature >> 4 & 0xf | signature >> 12 & 0xf0)
}

/// AMD's Zen 5 and what follows it, but for its mobile chips whose registers are handled in halves, and Intel's servers. Zen 4
/// (family 25) handles all registers in halves; Intel's chips for clients have one such unit.
#[cfg(any(test, all(target_arch = "x86_64", not(miri))))]
fn two_wide_units(vendor: &[u8; 12], (family, model): (u32, u32)) -> bool {
    match vendor {
        b"AuthenticAMD" => family > 26 || family == 26 && !matches!(model, 0x20..=0x2f | 0x60..=0x6f),
        b"GenuineIntel" => family == 6 && matches!(model, 0x55 | 0x6a | 0x6c | 0x8f | 0xad | 0xae | 0xcf),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_processors() {
        let known = [
            (b"AuthenticAMD", 0x00b0_0f21, (26, 0x02), true),
            (b"AuthenticAMD", 0x00b2_0f40, (26, 0x24), false),
            (b"AuthenticAMD", 0x00a1_0f11, (25, 0x11), false),
            (b"GenuineIntel", 0x000c_06f2, (6, 0xcf), true),
            (b"GenuineIntel", 0x0008_06c1, (6, 0x8c), false),
        ];
        for (vendor, signature, expected, two) in known {
            assert_eq!(family_and_model(signature), expected);
            assert_eq!(two_wide_units(vendor, expected), two, "{expected:?}");
        }
    }
}
