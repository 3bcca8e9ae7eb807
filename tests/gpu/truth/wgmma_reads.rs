//! Which half-word of shared memory `wgmma` reads as which element, for any descriptor: no layout is assumed.
//!
//! Shared memory holds its own half-word indices, low or high byte. For B, A comes from registers and picks row k of B
//! into row k of D. For A, B picks column k of A into column k of D; its layout is one that the reads of B settle.

use super::inputs::{Half, bytes, bytes16};
use super::kernel::Kernel;
use super::wgmma::{K, M, Major, Operand, PLACE, descriptor, group, instruction};
use super::{Case, Rule, Swizzle};

/// Bytes of shared memory that hold indices.
const WINDOW: usize = 32 * 1024;
const HALF: Half = Half::F16;

/// A descriptor to look at, relative to the start of shared memory.
struct Probe {
    name: String,
    operand: Operand,
    /// Instead of the operand's own, where the question is what other fields do.
    descriptor: Option<u64>,
    /// Where element (w, k) lies, if that is known of a descriptor of its own.
    place: Option<Box<dyn Fn(usize, usize) -> usize>>,
}

impl Probe {
    /// With the operand's own descriptor.
    fn own(name: String, operand: Operand) -> Self {
        let place = move |w, k| operand.address(w, k);
        Probe { name, operand, descriptor: None, place: Some(Box::new(place)) }
    }
}

/// All of them: each once for the low and once for the high byte of the index.
pub fn cases() -> Vec<Case> {
    let mut probes = Vec::new();
    for major in [Major::K, Major::Mn] {
        for swizzle in Swizzle::ALL {
            let depth = if major == Major::K { (swizzle.span() / 2).max(16) } else { 32 };
            let operand = |width| Operand { major, swizzle, width, depth, base: 0 };
            let name = format!("{major:?}_{}", swizzle.name()).to_lowercase();
            for n in [8, 64, 128] {
                probes.push(Probe::own(format!("b_{name}_n{n}"), operand(n)));
            }
            probes.push(Probe::own(format!("a_{name}"), operand(M)));
        }
    }
    probes.extend(unusual());
    let halves = [("low", 0), ("high", 8)];
    probes.iter().flat_map(|p| halves.iter().map(|&(part, shift)| probe(p, part, shift))).collect()
}

/// Fields that should not matter, later k steps, and starts that are not at a multiple of the swizzle's period.
fn unusual() -> Vec<Probe> {
    let mut probes = Vec::new();
    let mut add = |name: &str, major: Major, swizzle: Swizzle, descriptor: u64| {
        let operand = Operand { major, swizzle, width: 64, depth: 16, base: 0 };
        probes.push(Probe { name: name.to_owned(), operand, descriptor: Some(descriptor), place: None });
    };
    let sw128 = Swizzle::B128;
    add("b_k_sw128_leading_0", Major::K, sw128, descriptor(0, 0, 1024, sw128));
    add("b_k_sw128_leading_4096", Major::K, sw128, descriptor(0, 4096, 1024, sw128));
    add("b_k_sw128_stride_2048", Major::K, sw128, descriptor(0, 16, 2048, sw128));
    for step in 1..4 {
        add(&format!("b_k_sw128_step_{step}"), Major::K, sw128, descriptor(32 * step, 16, 1024, sw128));
    }
    add("b_k_sw64_step_1", Major::K, Swizzle::B64, descriptor(32, 16, 512, Swizzle::B64));
    add("b_mn_sw128_step_1", Major::Mn, sw128, descriptor(2048, 4096, 1024, sw128));
    add("b_k_plain_swapped", Major::K, Swizzle::None, descriptor(0, 128, 1152, Swizzle::None));
    add("b_mn_plain_swapped", Major::Mn, Swizzle::None, descriptor(0, 128, 1152, Swizzle::None));
    add("b_mn_sw64_swapped", Major::Mn, Swizzle::B64, descriptor(0, 512, 2048, Swizzle::B64));
    probes.extend(based());
    probes
}

/// Matrices that start in the middle of a swizzle's period, with base offsets: rows are counted from the offset on.
fn based() -> Vec<Probe> {
    let one = |swizzle: Swizzle, start: usize, offset: usize| {
        let (row, period) = (swizzle.span(), 8 * swizzle.span());
        let bits = descriptor(start, 16, period, swizzle) | (offset as u64) << 49;
        let operand = Operand { major: Major::K, swizzle, width: 64, depth: 16, base: 0 };
        let place = move |w: usize, k: usize| {
            let address = start + w / 8 * period + w % 8 * row + 2 * k;
            swizzle.apply_from(address, offset)
        };
        let name = format!("b_k_{}_start_{start}_base_{offset}", swizzle.name());
        Probe { name, operand, descriptor: Some(bits), place: Some(Box::new(place)) }
    };
    let mut probes: Vec<Probe> =
        [(256, 0), (256, 2), (512, 0), (512, 4), (128, 1), (0, 3), (896, 7), (256, 5)]
            .map(|(start, offset)| one(Swizzle::B128, start, offset))
            .into();
    probes.extend([(256, 2), (128, 1), (0, 5)].map(|(start, offset)| one(Swizzle::B64, start, offset)));
    probes.extend([(128, 1), (0, 1)].map(|(start, offset)| one(Swizzle::B32, start, offset)));
    probes
}

fn probe(probe: &Probe, part: &str, shift: u32) -> Case {
    let index = |byte: usize| f32::from(((byte as u32 / 2) >> shift) as u8);
    let mut shared: Vec<u16> = (0..WINDOW / 2).map(|i| HALF.bits(index(2 * i))).collect();
    let of_a = probe.name.starts_with("a_");
    let operand = probe.operand;
    let own = probe.descriptor.unwrap_or_else(|| operand.descriptor(0));
    let n = if of_a { K } else { operand.width };
    // Picks k: B for the reads of A, behind the window.
    let picker = Operand { major: Major::K, swizzle: Swizzle::None, width: K, depth: K, base: WINDOW };
    if of_a {
        shared.resize(picker.end().next_multiple_of(1024) / 2, 0);
        (0..K).for_each(|k| shared[picker.address(k, k) / 2] = HALF.bits(1.0));
    }
    let (a, b, values) = match of_a {
        true => (Some(operand.major), Major::K, (own, picker.descriptor(0))),
        false => (None, operand.major, (0, own)),
    };
    let body = format!("{PLACE}{}", group(&instruction(HALF, n, a, b, false, (false, false))));

    // Registers of A: the identity in the first 16 rows, which are the first warp's.
    let mut input = Vec::new();
    for thread in 0..128 {
        let (row, column) = (thread % 32 / 4, 2 * (thread % 4));
        for (r, c) in [(row, column), (row + 8, column), (row, column + 8), (row + 8, column + 8)] {
            let one = |column: usize| f32::from(u8::from(thread < 32 && r == column));
            input.push(HALF.pair(one(c), one(c + 1)));
        }
    }
    let storing = if of_a { 128 } else { 32 };
    let mut kernel = Kernel::new("8.0", "sm_90a", 4, n / 2, body).threads(128).shared(shared.len() * 2);
    kernel.storing = storing;
    let case = kernel
        .case(format!("wgmma_reads_{}_{part}", probe.name), &input, bytes16(&shared), Rule::Exact)
        .values(values.0, values.1);
    let Some(place) = &probe.place else { return case };
    let mut documented = Vec::new();
    for thread in 0..storing as usize {
        for i in 0..n / 2 {
            let row = thread / 32 * 16 + thread % 32 / 4 + 8 * (i / 2 % 2);
            let column = i / 4 * 8 + 2 * (thread % 4) + i % 2;
            let (w, k) = if of_a { (row, column) } else { (column, row) };
            documented.push(index(place(w, k)).to_bits());
        }
    }
    case.documented(bytes(&documented))
}
