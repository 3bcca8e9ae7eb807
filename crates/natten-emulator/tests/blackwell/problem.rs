//! A product for `product.ptx`: matrices arranged in shared memory as tables say, descriptors, and what is to come out.

use natten_emulator::{Counters, Fault, Launch, Options};

use crate::numbers::Element;
use crate::oracle::{Arrangement, Described, Fields, Layouts};
use crate::support::Device;

pub const PTX: &str = include_str!("product.ptx");

/// Numbers drawn from a seed.
pub struct Draw(u64);

impl Draw {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % end
    }

    pub fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }
}

/// One operand in shared memory, all of its steps along k.
#[derive(Debug, Clone)]
pub struct Operand {
    pub rows: u64,
    pub described: Described,
    /// Steps that lie behind one another in one swizzled row, and bytes to the next such part.
    steps_together: u64,
    part_bytes: u64,
}

impl Operand {
    /// Draws strides with room between the parts, from `start` on.
    pub fn draw(draw: &mut Draw, rows: u64, steps: u64, arrangement: Arrangement, start: u64) -> Self {
        let width = arrangement.swizzle;
        let mut described = Described { arrangement, start, leading: 0, stride: 0, base: 0 };
        let (mut steps_together, mut part_bytes) = (steps, 0);
        if width == 0 {
            // Core matrices of 128 bytes, along the rows and along k, one of them outside the other.
            let inner = 128 + 16 * draw.below(3);
            let (along_rows, along_k) = match draw.below(2) {
                0 => (inner, inner * (rows / 8) + 16 * draw.below(5)),
                _ => (inner * 2 * steps + 16 * draw.below(5), inner),
            };
            described.stride = along_rows;
            described.leading = along_k;
        } else {
            // Whole patterns of eight rows; the pattern may begin at any row of addresses.
            let pattern = 8 * width;
            described.base = if draw.below(3) == 0 { draw.below(pattern / 128) } else { 0 };
            described.start = start.next_multiple_of(pattern) + 128 * described.base;
            if arrangement.mn_major {
                let blocks = (2 * rows).div_ceil(width);
                let (inner, gap) = (pattern * (1 + draw.below(2)), pattern * draw.below(2));
                match draw.below(2) {
                    0 => (described.leading, described.stride) = (inner, inner * blocks + gap),
                    _ => (described.stride, described.leading) = (inner, inner * 2 * steps + gap),
                }
            } else {
                described.stride = pattern * (1 + draw.below(2));
                // Not used, and drawn to see that.
                described.leading = 16 * draw.below(1000);
                steps_together = width / 32;
                part_bytes = described.stride * (rows / 8) + pattern * draw.below(2);
            }
        }
        Self { rows, described, steps_together, part_bytes }
    }

    /// The descriptor's view of a step.
    pub fn step(&self, layouts: &Layouts, step: u64) -> Described {
        let mut part = self.described;
        part.start += step / self.steps_together * self.part_bytes;
        let start = layouts.unswizzled(&part, 0, 16 * (step % self.steps_together));
        Described { start, ..part }
    }

    pub fn bits(fields: &Fields, step: &Described) -> u64 {
        let swizzle = match step.arrangement.swizzle {
            0 => 0,
            128 => 2,
            64 => 4,
            _ => 6,
        };
        // No row of addresses below the pattern's first one counts: three bits hold it.
        fields.build(&[
            ("start", step.start / 16),
            ("leading", step.leading / 16),
            ("stride", step.stride / 16),
            ("base", step.base),
            ("swizzle", swizzle),
        ])
    }
}

/// A product.
#[derive(Debug, Clone)]
pub struct Problem {
    pub m: u64,
    pub n: u64,
    pub steps: u64,
    pub types: [Element; 2],
    pub negate: [bool; 2],
    /// D of f16.
    pub half: bool,
    /// D's first lane.
    pub lane: u64,
    pub arrangements: [Arrangement; 2],
    /// A in tensor memory.
    pub a_in_tensor_memory: bool,
}

/// Its matrices: A of m rows by k, B of n rows by k, encoded.
pub struct Matrices {
    pub a: Vec<u16>,
    pub b: Vec<u16>,
}

impl Problem {
    pub fn k(&self) -> u64 {
        16 * self.steps
    }

    pub fn idesc(&self, fields: &Fields) -> u64 {
        let flag = |on: bool| u64::from(on);
        fields.build(&[
            ("d_type", flag(!self.half)),
            ("a_type", self.types[0].code()),
            ("b_type", self.types[1].code()),
            ("a_negate", flag(self.negate[0])),
            ("b_negate", flag(self.negate[1])),
            ("a_transpose", flag(self.arrangements[0].mn_major && !self.a_in_tensor_memory)),
            ("b_transpose", flag(self.arrangements[1].mn_major)),
            ("n", self.n / 8),
            ("m", self.m / 16),
        ])
    }

    /// Matrices of `number`s.
    pub fn matrices(&self, draw: &mut Draw, number: impl Fn(&mut Draw) -> f64) -> Matrices {
        let mut list = |rows: u64, of: Element| {
            (0..rows * self.k()).map(|_| of.encode(number(draw))).collect::<Vec<u16>>()
        };
        Matrices { a: list(self.m, self.types[0]), b: list(self.n, self.types[1]) }
    }

    /// The kernel that computes it.
    pub fn entry(&self) -> &'static str {
        if self.a_in_tensor_memory { "product_ts" } else { "product" }
    }

    /// Runs it; D's words by row.
    pub fn run(
        &self,
        draw: &mut Draw,
        matrices: &Matrices,
        options: Options,
    ) -> Result<(Vec<u32>, Counters), Fault> {
        self.run_on(&Device::with(PTX, options), draw, matrices)
    }

    /// The same with the kernel of a device that somebody has edited.
    pub fn run_on(
        &self,
        device: &Device,
        draw: &mut Draw,
        matrices: &Matrices,
    ) -> Result<(Vec<u32>, Counters), Fault> {
        let (layouts, fields) = (Layouts::read(), Fields::of_matrices());
        let mut image = Image { bytes: Vec::new(), layouts: &layouts };
        let mut steps = vec![[0, 0]; self.steps as usize];
        if !self.a_in_tensor_memory {
            let start = 16 * draw.below(9);
            let operand = Operand::draw(draw, self.m, self.steps, self.arrangements[0], start);
            image.put(&operand, self, &matrices.a, |step, bits| steps[step][0] = bits, &fields);
        }
        let start = image.bytes.len() as u64 + 16 * draw.below(9);
        let operand =
            Operand::draw(draw, self.n, self.steps, self.arrangements[1], start.next_multiple_of(16));
        image.put(&operand, self, &matrices.b, |step, bits| steps[step][1] = bits, &fields);

        let bytes = device.upload(&image.bytes);
        let descriptors = device.upload(&steps.into_iter().flatten().collect::<Vec<u64>>());
        let out = device.memory.alloc((4 * self.m * self.n) as usize);
        let word = |value: u64| (value as u32).to_le_bytes();
        let mut launch = Launch::new([1, 1, 1], [128, 1, 1])
            .shared(image.bytes.len() as u32)
            .arg(bytes.to_le_bytes())
            .arg(word(image.bytes.len() as u64))
            .arg(descriptors.to_le_bytes())
            .arg(word(self.steps))
            .arg(word(self.idesc(&Fields::of_instructions())))
            .arg(word(self.m))
            .arg(word(self.lane))
            .arg(word(self.n))
            .arg(out.to_le_bytes());
        if self.a_in_tensor_memory {
            let pairs = matrices.a.chunks(2).map(|pair| u32::from(pair[0]) + 65536 * u32::from(pair[1]));
            let words = device.upload(&pairs.collect::<Vec<u32>>());
            launch = launch.arg(words.to_le_bytes());
        }
        let counters = device.try_run(self.entry(), &launch)?;
        Ok((device.download::<u32>(out, (self.m * self.n) as usize), counters))
    }

    /// The exact product at (row, column).
    pub fn exact(&self, matrices: &Matrices, row: u64, column: u64) -> f64 {
        let k = self.k() as usize;
        let (a, b) = (&matrices.a[row as usize * k..][..k], &matrices.b[column as usize * k..][..k]);
        let sign = if self.negate[0] == self.negate[1] { 1.0 } else { -1.0 };
        let products = a.iter().zip(b).map(|(&a, &b)| self.types[0].decode(a) * self.types[1].decode(b));
        sign * products.sum::<f64>()
    }
}

/// The contents of shared memory.
struct Image<'l> {
    bytes: Vec<u8>,
    layouts: &'l Layouts,
}

/// Between the elements: a NaN in either format.
const NOTHING: u8 = 0xff;

impl Image<'_> {
    fn put(
        &mut self,
        operand: &Operand,
        problem: &Problem,
        elements: &[u16],
        mut descriptor: impl FnMut(usize, u64),
        fields: &Fields,
    ) {
        let first = self.bytes.len();
        for step in 0..problem.steps {
            let described = operand.step(self.layouts, step);
            descriptor(step as usize, Operand::bits(fields, &described));
            for row in 0..operand.rows {
                for k in 0..16 {
                    let address = self.layouts.address(&described, row, k) as usize;
                    if self.bytes.len() < address + 2 {
                        // In whole lines, since the swizzle stays in one.
                        self.bytes.resize((address + 2).next_multiple_of(128), NOTHING);
                    }
                    assert!(
                        address >= first && self.bytes[address..address + 2] == [NOTHING; 2],
                        "{operand:?}"
                    );
                    let element = elements[(row * problem.k() + 16 * step + k) as usize];
                    self.bytes[address..address + 2].copy_from_slice(&element.to_le_bytes());
                }
            }
        }
    }
}
