//! `wgmma`: products with the accumulator's fragment layout, A from registers and from shared memory, both majors of
//! B, k steps inside a swizzled row, and the options of the instruction.

use super::inputs::{Half, Random, bytes, bytes16};
use super::kernel::{Kernel, registers};
use super::matrix::SUM_TOLERANCE;
use super::{Case, Rule, Swizzle};

/// Rows of D: 16 for each of the four warps.
pub const M: usize = 64;
/// Depth of one instruction.
pub const K: usize = 16;

/// Which index of an operand is contiguous in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Major {
    /// The depth.
    K,
    /// Rows of A, columns of B.
    Mn,
}

/// How an operand of `width x depth` lies in shared memory, and what its descriptor says.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    /// What is contiguous.
    pub major: Major,
    /// Of 16-byte chunks.
    pub swizzle: Swizzle,
    /// Rows of A or columns of B.
    pub width: usize,
    /// Depth held, a multiple of 16.
    pub depth: usize,
    /// Bytes from the start of shared memory, a multiple of 1024.
    pub base: usize,
}

impl Operand {
    /// Leading and stride byte offsets of the descriptor. Both differ wherever both are used, so that a swap shows.
    pub fn offsets(&self) -> (usize, usize) {
        let span = self.swizzle.span();
        match (self.major, self.swizzle) {
            // Core matrices of 8 rows of 16 bytes: along the width first, then along the depth.
            (Major::K, Swizzle::None) => (self.width.div_ceil(8) * 128 + 128, 128),
            (Major::K, _) => (16, 8 * span),
            (Major::Mn, Swizzle::None) => (self.width.div_ceil(8) * 128 + 128, 128),
            // Blocks of one row of the swizzle along the width; groups of 8 along the depth follow one another.
            (Major::Mn, _) => (self.depth / 8 * 8 * span, 8 * span),
        }
    }

    /// Where the element (width index, depth index) lies, in bytes.
    pub fn address(&self, w: usize, k: usize) -> usize {
        let (leading, stride) = self.offsets();
        let span = self.swizzle.span();
        let (row, column) = match self.major {
            Major::K => (w, k),
            Major::Mn => (k, w),
        };
        let plain = match (self.major, self.swizzle) {
            (_, Swizzle::None) => {
                let inside = row % 8 * 16 + column % 8 * 2;
                // Without swizzle the stride offset runs along the width in both majors.
                inside + w / 8 * stride + k / 8 * leading
            }
            (Major::K, _) => {
                assert!(column * 2 < span, "one swizzle row holds the whole depth");
                row / 8 * stride + row % 8 * span + column * 2
            }
            (Major::Mn, _) => {
                let elements = span / 2;
                column / elements * leading + row / 8 * stride + row % 8 * span + column % elements * 2
            }
        };
        self.base + self.swizzle.apply(plain)
    }

    /// The descriptor of the k step at `depth`, without the start of shared memory.
    pub fn descriptor(&self, depth: usize) -> u64 {
        let (leading, stride) = self.offsets();
        let start = match (self.major, self.swizzle) {
            (Major::K, Swizzle::None) | (Major::Mn, Swizzle::None) => depth / 8 * leading,
            (Major::K, _) => depth * 2,
            (Major::Mn, _) => depth / 8 * stride,
        };
        descriptor(self.base + start, leading, stride, self.swizzle)
    }

    /// One past the last byte.
    pub fn end(&self) -> usize {
        let corners = (0..self.width).flat_map(|w| (0..self.depth).map(move |k| (w, k)));
        corners.map(|(w, k)| self.address(w, k)).max().unwrap_or(0) + 2
    }
}

/// A matrix descriptor.
pub fn descriptor(start: usize, leading: usize, stride: usize, swizzle: Swizzle) -> u64 {
    let field = |bytes: usize| (bytes as u64 >> 4) & 0x3fff;
    field(start) | field(leading) << 16 | field(stride) << 32 | swizzle.descriptor_bits() << 62
}

/// One `wgmma` into `%d`, with descriptors in `%x` (A; unused with A in registers) and `%y` (B), both without the start
/// of shared memory, which this adds.
pub fn instruction(
    half: Half,
    n: usize,
    a: Option<Major>,
    b: Major,
    scale_d: bool,
    negate: (bool, bool),
) -> String {
    let t = half.name();
    let imm = |minus: bool| if minus { "-1" } else { "1" };
    let transposed = |major: Major| u8::from(major == Major::Mn);
    let operand = a.map_or_else(|| registers("a", 0..4), |_| "%q2".to_owned());
    let majors = a.map_or_else(String::new, |a| format!("{}, ", transposed(a)));
    format!(
        "setp.ne.b32 %p0, {}, 0;\nwgmma.mma_async.sync.aligned.m64n{n}k16.f32.{t}.{t} {}, {operand}, %q3, %p0, {}, {}, {majors}{};\n",
        u8::from(scale_d),
        registers("d", 0..n / 2),
        imm(negate.0),
        imm(negate.1),
        transposed(b),
    )
}

/// Adds the start of shared memory to both descriptors: `%q2` and `%q3`.
pub const PLACE: &str =
    "cvt.u64.u32 %q0, %s;\nshr.u64 %q0, %q0, 4;\nadd.u64 %q2, %x, %q0;\nadd.u64 %q3, %y, %q0;\n";

/// Between fence and wait.
pub fn group(instructions: &str) -> String {
    format!(
        "wgmma.fence.sync.aligned;\n{instructions}wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n"
    )
}

/// All of them.
pub fn cases() -> Vec<Case> {
    use Major::{K as KMajor, Mn};
    let mut cases = Vec::new();
    for half in Half::ALL {
        for n in [8, 64, 128] {
            cases.push(product(half, n, None, KMajor, Swizzle::B128, 16, ""));
        }
        cases.push(product(half, 64, Some(KMajor), KMajor, Swizzle::B128, 64, ""));
        cases.push(product(half, 64, None, Mn, Swizzle::B128, 64, ""));
        cases.push(product(half, 64, Some(KMajor), KMajor, Swizzle::B128, 64, "sums"));
    }
    for swizzle in [Swizzle::B32, Swizzle::B64, Swizzle::None] {
        let depth = if swizzle == Swizzle::B64 { 32 } else { 16 };
        cases.push(product(Half::Bf16, 64, Some(KMajor), KMajor, swizzle, depth, ""));
        cases.push(product(Half::Bf16, 64, Some(Mn), Mn, swizzle, 32, ""));
    }
    cases.push(product(Half::Bf16, 128, Some(Mn), Mn, Swizzle::B128, 32, ""));
    cases.push(product(Half::Bf16, 256, None, Mn, Swizzle::B128, 16, ""));
    for what in ["keep", "drop", "minus_a", "minus_b"] {
        cases.push(product(Half::Bf16, 8, None, KMajor, Swizzle::None, 16, what));
    }
    cases
}

/// D = A B over `depth`, the registers of A from its documented fragment (then the depth is 16).
fn product(
    half: Half,
    n: usize,
    a: Option<Major>,
    b: Major,
    swizzle: Swizzle,
    depth: usize,
    what: &str,
) -> Case {
    let source = a.map_or("r".to_owned(), |major| format!("s{major:?}"));
    let name = format!("wgmma_{}_n{n}_{source}_{b:?}_{}_k{depth}{what}", half.name(), swizzle.name());
    let name = name.to_lowercase();
    let mut random = Random::new(&name);
    let mut draw = |len: usize| -> Vec<f32> {
        let value = |random: &mut Random| if what == "sums" { random.scaled(6) } else { random.small(6) };
        (0..len).map(|_| half.truncated(value(&mut random))).collect()
    };
    let (left, right) = (draw(M * depth), draw(n * depth));
    let at = |row: usize, k: usize| left[row * depth + k];

    let mut operands = Vec::new();
    let first = a.map(|major| Operand { major, swizzle, width: M, depth, base: 0 });
    let base = first.map_or(0, |o| o.end().next_multiple_of(1024));
    let second = Operand { major: b, swizzle, width: n, depth, base };
    operands.extend(first.map(|o| (o, &left)));
    operands.push((second, &right));
    let mut shared = vec![0_u16; second.end().next_multiple_of(1024) / 2];
    for (operand, values) in &operands {
        for w in 0..operand.width {
            for k in 0..depth {
                shared[operand.address(w, k) / 2] = half.bits(values[w * depth + k]);
            }
        }
    }

    // Where accumulators are kept the instruction runs twice; where they are dropped they start as 5.
    let (scale_d, negate) = (what != "drop", (what == "minus_a", what == "minus_b"));
    let mut body = PLACE.to_owned();
    if what == "drop" {
        (0..n / 2).for_each(|i| body += &format!("mov.f32 %d{i}, 0f40A00000;\n"));
    }
    let mut instructions = String::new();
    let passes = if what == "keep" { 2 } else { 1 };
    // With A in registers one step of 16 reads all of A; a deeper B is read at its last step, to try the offset.
    let steps: Vec<usize> = if a.is_none() { vec![depth - 16] } else { (0..depth).step_by(16).collect() };
    let a_step = |step: usize| first.map_or(0, |o| o.descriptor(step));
    let start = (a_step(steps[0]), second.descriptor(steps[0]));
    for _ in 0..passes {
        for &step in &steps {
            let ahead = (a_step(step) - start.0, second.descriptor(step) - start.1);
            instructions += &format!("add.u64 %q2, %q2, {};\nadd.u64 %q3, %q3, {};\n", ahead.0, ahead.1);
            instructions += &instruction(half, n, a, b, scale_d, negate);
            instructions += &format!("sub.u64 %q2, %q2, {};\nsub.u64 %q3, %q3, {};\n", ahead.0, ahead.1);
        }
    }
    body += &group(&instructions);

    let mut input = Vec::new();
    for thread in 0..128 {
        let (row, column) = (thread / 32 * 16 + thread % 32 / 4, 2 * (thread % 4));
        for (r, c) in [(row, column), (row + 8, column), (row, column + 8), (row + 8, column + 8)] {
            input.push(if a.is_none() { half.pair(at(r, c), at(r, c + 1)) } else { 0 });
        }
    }
    let mut output = Vec::new();
    let mut allowed = Vec::new();
    let sign = if negate.0 || negate.1 { -1.0 } else { 1.0 };
    for thread in 0..128 {
        for i in 0..n / 2 {
            let row = thread / 32 * 16 + thread % 32 / 4 + 8 * (i / 2 % 2);
            let column = i / 4 * 8 + 2 * (thread % 4) + i % 2;
            let terms = steps.iter().flat_map(|&step| (0..16).map(move |k| (step, k))).map(|(step, k)| {
                let a_column = if a.is_none() { k } else { step + k };
                f64::from(at(row, a_column)) * f64::from(right[column * depth + step + k])
            });
            output.push((terms.clone().sum::<f64>() * sign * f64::from(passes)) as f32);
            allowed.push(terms.map(f64::abs).sum::<f64>() as f32 * SUM_TOLERANCE);
        }
    }
    let output: Vec<u32> = output.iter().map(|v: &f32| (v + 0.0).to_bits()).collect();
    let rule = if what == "sums" { Rule::Within(allowed) } else { Rule::F32 { ulp: 0, absolute: 1e-30 } };
    Kernel::new("8.0", "sm_90a", 4, n / 2, body)
        .threads(128)
        .shared(shared.len() * 2)
        .case(name, &input, bytes16(&shared), rule)
        .values(start.0, start.1)
        .documented(bytes(&output))
}
