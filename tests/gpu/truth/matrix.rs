//! Warp-wide matrix instructions: `mma.sync` fragments and sums, `ldmatrix` and `stmatrix` layouts.

use super::inputs::{Half, Random, bytes, bytes16, words};
use super::kernel::{Kernel, registers};
use super::{Case, Rule};

/// Error allowed on a sum of products, as a share of the sum of their magnitudes: the tensor cores align the addends of
/// one instruction to the largest and cut off what lies below, a few bits under the last place of f32.
pub const SUM_TOLERANCE: f32 = 1.0 / (1 << 19) as f32;

/// Rows of A and D of one `mma.sync`.
const M: usize = 16;
/// Columns of B and D.
const N: usize = 8;

/// Operand type of `mma.sync`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Half(Half),
    Tf32,
}

impl Type {
    fn k(self) -> usize {
        if self == Type::Tf32 { 8 } else { 16 }
    }

    fn name(self) -> &'static str {
        match self {
            Type::Half(half) => half.name(),
            Type::Tf32 => "tf32",
        }
    }

    /// The nearest value that the type holds.
    fn rounded(self, value: f32) -> f32 {
        match self {
            Type::Half(half) => half.truncated(value),
            Type::Tf32 => f32::from_bits(value.to_bits() & 0xffff_e000),
        }
    }

    /// A fragment register that starts at (row, column), its second value one column further.
    fn register(self, at: impl Fn(usize, usize) -> f32, row: usize, column: usize) -> u32 {
        match self {
            Type::Half(half) => half.pair(at(row, column), at(row, column + 1)),
            Type::Tf32 => at(row, column).to_bits(),
        }
    }
}

/// All of them.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for ty in [Type::Half(Half::F16), Type::Half(Half::Bf16), Type::Tf32] {
        let mut random = Random::new(ty.name());
        cases.push(mma(ty, "layout", Rule::Exact, |_| random.small(8)));
        for range in [0, 4, 10] {
            let mut random = Random::new(&format!("{}{range}", ty.name()));
            let rule = Rule::Within(Vec::new());
            cases.push(mma(ty, &format!("sums_{range}"), rule, |_| random.scaled(range)));
        }
        // One huge addend, then smaller and smaller ones: shows how many bits below the largest survive.
        let mut random = Random::new("cancel");
        let sum =
            |i: usize| if i.is_multiple_of(5) { 4096.0 } else { 2.0_f32.powi(-(random.below(14) as i32)) };
        cases.push(mma(ty, "cancel", Rule::Within(Vec::new()), sum));
    }
    cases.push(low_bits());
    for trans in ["", ".trans"] {
        for count in [1, 2, 4] {
            cases.push(ldmatrix(count, trans));
            cases.push(stmatrix(count, trans));
        }
    }
    cases
}

/// D = A B + C with the values drawn for A, then B, then C; the fragments are laid out as documented.
fn mma(ty: Type, what: &str, rule: Rule, mut draw: impl FnMut(usize) -> f32) -> Case {
    let k = ty.k();
    let mut matrix = |len: usize, ty: Option<Type>| -> Vec<f32> {
        (0..len).map(|i| ty.map_or(draw(i), |ty| ty.rounded(draw(i)))).collect()
    };
    let (a, b) = (matrix(M * k, Some(ty)), matrix(k * N, Some(ty)));
    let c = matrix(M * N, None);
    let mut input = Vec::new();
    for lane in 0..32 {
        let (group, thread) = (lane / 4, lane % 4);
        let at = |row: usize, column: usize| a[row * k + column];
        let bt = |column: usize, row: usize| b[row * N + column];
        // tf32 holds one value a register: columns t and t + 4, not pairs.
        let columns = if ty == Type::Tf32 { [thread, thread + 4] } else { [2 * thread, 2 * thread + 8] };
        for column in columns {
            input.extend([ty.register(at, group, column), ty.register(at, group + 8, column)]);
        }
        input.extend(columns.map(|row| ty.register(bt, group, row)));
        let ct = |row: usize, i: usize| c[row * N + 2 * thread + i].to_bits();
        input.extend([ct(group, 0), ct(group, 1), ct(group + 8, 0), ct(group + 8, 1)]);
    }
    let mut product = Vec::new();
    let mut allowed = Vec::new();
    for lane in 0..32 {
        for i in 0..4 {
            let (row, column) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
            let start = f64::from(c[row * N + column]);
            let terms = (0..k).map(|x| f64::from(a[row * k + x]) * f64::from(b[x * N + column]));
            product.push((start + terms.clone().sum::<f64>()) as f32);
            allowed.push((start.abs() + terms.map(f64::abs).sum::<f64>()) as f32 * SUM_TOLERANCE);
        }
    }
    let ordered = if ty == Type::Tf32 { "m16n8k8" } else { "m16n8k16" };
    let t = ty.name();
    let body = format!(
        "mma.sync.aligned.{ordered}.row.col.f32.{t}.{t}.f32 {}, {}, {}, {};\n",
        registers("d", 0..4),
        registers("a", 0..4),
        registers("a", 4..6),
        registers("a", 6..10)
    );
    let rule = if matches!(rule, Rule::Within(_)) { Rule::Within(allowed) } else { rule };
    let output: Vec<u32> = product.iter().map(|v| v.to_bits()).collect();
    Kernel::new("7.0", "sm_80", 10, 4, body)
        .case(format!("mma_{t}_{what}"), &input, Vec::new(), rule)
        .documented(bytes(&output))
}

/// tf32 operands with bits below the type's: whether they are ignored.
fn low_bits() -> Case {
    let body = format!(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {}, {}, {}, {};\n",
        registers("d", 0..4),
        registers("a", 0..4),
        registers("a", 4..6),
        registers("a", 6..10)
    );
    let input: Vec<u32> = (0..32 * 10_u32)
        .map(|i| match i % 10 {
            0 if (i / 10) % 4 == 0 => 0x3f80_0000 | (i / 10) << 8 | 0xff,
            4 if (i / 10) % 4 == 0 => 0x3f80_0000,
            _ => 0,
        })
        .collect();
    Kernel::new("7.0", "sm_80", 10, 4, body).case("mma_tf32_low_bits", &input, Vec::new(), Rule::Exact)
}

/// Rows at permuted addresses; shared memory holds its own half-word indices.
fn ldmatrix(count: usize, trans: &str) -> Case {
    let body = format!(
        "add.u32 %r0, %s, %a0;\nldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {}, [%r0];\n",
        registers("d", 0..count)
    );
    let rows: Vec<u32> = (0..32).map(|lane| (lane * 5 + 3) % 32 * 16).collect();
    let fill: Vec<u16> = (0..256).map(|i| i * 3 + 1).collect();
    let mut documented = Vec::new();
    for lane in 0..32 {
        for matrix in 0..count {
            let half = |row: usize, column: usize| fill[rows[8 * matrix + row] as usize / 2 + column];
            let [low, high] = [0, 1].map(|i| match trans {
                "" => half(lane / 4, 2 * (lane % 4) + i),
                _ => half(2 * (lane % 4) + i, lane / 4),
            });
            documented.push(u32::from(low) | u32::from(high) << 16);
        }
    }
    Kernel::new("7.0", "sm_80", 1, count, body)
        .shared(512)
        .case(format!("ldmatrix_x{count}{}", trans.replace('.', "_")), &rows, bytes16(&fill), Rule::Exact)
        .documented(bytes(&documented))
}

/// The inverse: fragments to rows at permuted addresses, all of shared memory read back.
fn stmatrix(count: usize, trans: &str) -> Case {
    let body = format!(
        "add.u32 %r0, %s, %a0;\nstmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r0], {};\n",
        registers("a", 1..1 + count)
    );
    let mut kernel = Kernel::new("8.0", "sm_90", 1 + count, 0, body).shared(512);
    kernel.dump = true;
    let rows: Vec<u32> = (0..32).map(|lane| (lane * 7 + 5) % 32 * 16).collect();
    let mut input = Vec::new();
    let mut documented = vec![0xeeee_u16; 256];
    for lane in 0..32 {
        input.push(rows[lane]);
        for matrix in 0..count {
            let value = |i: usize| (lane * 8 + matrix * 2 + i + 1) as u16;
            input.push(u32::from(value(0)) | u32::from(value(1)) << 16);
            for i in 0..2 {
                let (row, column) = match trans {
                    "" => (lane / 4, 2 * (lane % 4) + i),
                    _ => (2 * (lane % 4) + i, lane / 4),
                };
                documented[rows[8 * matrix + row] as usize / 2 + column] = value(i);
            }
        }
    }
    kernel
        .case(format!("stmatrix_x{count}{}", trans.replace('.', "_")), &input, vec![0xee; 512], Rule::Exact)
        .documented(bytes16(&documented))
}

/// Whole numbers of an output, for those who look at one.
pub fn as_floats(output: &[u8]) -> Vec<f32> {
    words(output).into_iter().map(f32::from_bits).collect()
}
