//! What tables say of `tcgen05`, read one entry after the other: no arithmetic of the emulator's is used or repeated.

use std::collections::HashMap;

/// Lines of a table, split at bars and blanks.
fn table(text: &'static str) -> impl Iterator<Item = Vec<Vec<&'static str>>> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines.map(|line| line.split('|').map(|part| part.split_whitespace().collect()).collect())
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("{word} is a number"))
}

/// Major-ness and swizzle of a matrix in shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Arrangement {
    pub mn_major: bool,
    /// Bytes of a swizzled row, 0 for none.
    pub swizzle: u64,
}

pub const ARRANGEMENTS: [Arrangement; 8] = {
    let mut all = [Arrangement { mn_major: false, swizzle: 0 }; 8];
    let swizzles = [0, 32, 64, 128];
    let mut i = 0;
    while i < 8 {
        all[i] = Arrangement { mn_major: i >= 4, swizzle: swizzles[i % 4] };
        i += 1;
    }
    all
};

/// Where matrices lie, by table.
pub struct Layouts {
    modes: HashMap<Arrangement, [Vec<(String, String)>; 2]>,
    swizzles: HashMap<u64, Vec<Vec<u64>>>,
}

/// Byte offsets and addresses that a descriptor gives a matrix.
#[derive(Debug, Clone, Copy)]
pub struct Described {
    pub arrangement: Arrangement,
    pub start: u64,
    pub leading: u64,
    pub stride: u64,
    pub base: u64,
}

const T: u64 = 8;

impl Layouts {
    pub fn read() -> Self {
        let width = |word: &str| if word == "none" { 0 } else { number(word) };
        let mut modes = HashMap::new();
        for line in table(include_str!("../truth/tcgen05/matrix_layouts.txt")) {
            let arrangement = Arrangement { mn_major: line[0][0] == "MN", swizzle: width(line[0][1]) };
            let list = |words: &[&str]| {
                words
                    .iter()
                    .map(|word| word.split_once(':').expect("extent:stride"))
                    .map(|(e, s)| (e.to_owned(), s.to_owned()))
                    .collect::<Vec<_>>()
            };
            modes.insert(arrangement, [list(&line[1]), list(&line[2])]);
        }
        let mut swizzles: HashMap<u64, Vec<Vec<u64>>> = HashMap::new();
        for line in table(include_str!("../truth/tcgen05/swizzles.txt")) {
            let chunks = line[1].iter().map(|word| number(word)).collect();
            swizzles.entry(width(line[0][0])).or_default().push(chunks);
        }
        Self { modes, swizzles }
    }

    /// Bytes from the start to element `index` along one of the two directions.
    fn along(modes: &[(String, String)], matrix: &Described, mut index: u64) -> u64 {
        let mut bytes = 0;
        for (extent, stride) in modes {
            let extent = match extent.as_str() {
                "T" => T,
                "m" | "k" => u64::MAX,
                other => number(other),
            };
            let stride_bytes = match stride.as_str() {
                "LBO" => matrix.leading,
                "SBO" => matrix.stride,
                "T" => 2 * T,
                other => 2 * other.strip_suffix('T').map_or_else(|| number(other), |times| T * number(times)),
            };
            bytes += index % extent * stride_bytes;
            index /= extent;
        }
        bytes
    }

    /// Where element (mn, k) would lie without a swizzle.
    pub fn unswizzled(&self, matrix: &Described, mn: u64, k: u64) -> u64 {
        let [of_mn, of_k] = &self.modes[&matrix.arrangement];
        matrix.start + Self::along(of_mn, matrix, mn) + Self::along(of_k, matrix, k)
    }

    /// The address of element (mn, k).
    pub fn address(&self, matrix: &Described, mn: u64, k: u64) -> u64 {
        let plain = self.unswizzled(matrix, mn, k);
        let (line, chunk) = (plain / 128, plain / 16 % 8);
        let pattern = &self.swizzles[&matrix.arrangement.swizzle];
        let row = (line + 8 - matrix.base) as usize % pattern.len();
        128 * line + 16 * pattern[row][chunk as usize] + plain % 16
    }
}

/// Fields of a descriptor: name, first and last bit, and what they may be.
pub struct Fields(Vec<(&'static str, u32, u32, Option<Vec<u64>>)>);

impl Fields {
    fn read(text: &'static str) -> Self {
        let field = |line: Vec<Vec<&'static str>>| {
            let (first, last) = (number(line[0][1]) as u32, number(line[0][2]) as u32);
            let any = line[1] == ["any"];
            let values = (!any).then(|| line[1].iter().map(|word| number(word)).collect());
            (line[0][0], first, last, values)
        };
        Self(table(text).map(field).collect())
    }

    pub fn of_matrices() -> Self {
        Self::read(include_str!("../truth/tcgen05/matrix_descriptor.txt"))
    }

    pub fn of_instructions() -> Self {
        Self::read(include_str!("../truth/tcgen05/instruction_descriptor.txt"))
    }

    /// Names and numbers of bits.
    pub fn names(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.0.iter().map(|&(name, first, last, _)| (name, last - first + 1))
    }

    pub fn allowed(&self, name: &str) -> Option<&[u64]> {
        self.0.iter().find(|field| field.0 == name).and_then(|field| field.3.as_deref())
    }

    /// A descriptor of fields; those not named are what they must be.
    pub fn build(&self, values: &[(&str, u64)]) -> u64 {
        for (name, _) in values {
            assert!(self.0.iter().any(|field| field.0 == *name), "no field {name}");
        }
        let mut bits = 0;
        for (name, first, last, allowed) in &self.0 {
            let given = values.iter().find(|(other, _)| other == name).map(|&(_, value)| value);
            let value = given.unwrap_or_else(|| allowed.as_ref().map_or(0, |values| values[0]));
            assert!(value < 2u64.pow(last - first + 1), "{name} = {value}");
            bits += value * 2u64.pow(*first);
        }
        bits
    }

    /// The first field that is not what it may be.
    pub fn illegal(&self, bits: u64) -> Option<&'static str> {
        let of = |first: u32, last: u32| {
            (u128::from(bits) / 2u128.pow(first) % 2u128.pow(last - first + 1)) as u64
        };
        let wrong = self.0.iter().find(|(_, first, last, allowed)| {
            allowed.as_ref().is_some_and(|values| !values.contains(&of(*first, *last)))
        });
        wrong.map(|field| field.0)
    }
}

/// How a shape of `tcgen05.ld` and `.st` lies in the registers of a warp.
pub struct Movement {
    pub shape: &'static str,
    pub repeats: usize,
    pub lanes: u64,
    lane_bits: u64,
    thread: Vec<(u64, u64)>,
    value: Vec<(u64, u64)>,
}

impl Movement {
    pub fn all() -> Vec<Self> {
        let modes = |words: &[&'static str]| {
            let split = |word: &&'static str| word.split_once(':').expect("extent:stride");
            words.iter().map(split).map(|(extent, stride)| (number(extent), number(stride))).collect()
        };
        table(include_str!("../truth/tcgen05/movements.txt"))
            .map(|line| Self {
                shape: line[0][0],
                repeats: number(line[0][1]) as usize,
                lanes: number(line[0][2]),
                lane_bits: number(line[0][3]),
                thread: modes(&line[1]),
                value: modes(&line[2]),
            })
            .collect()
    }

    pub fn registers(&self) -> u64 {
        self.value.iter().map(|mode| mode.0).product::<u64>() / 32
    }

    /// Columns of 32 bits.
    pub fn columns(&self) -> u64 {
        self.lane_bits / 32
    }

    fn walk(modes: &[(u64, u64)], mut index: u64) -> u64 {
        let mut bits = 0;
        for (extent, stride) in modes {
            bits += index % extent * stride;
            index /= extent;
        }
        bits
    }

    /// Lane and column, from the first of each, that a register of a thread holds.
    pub fn cell(&self, thread: u64, register: u64) -> (u64, u64) {
        let bit = Self::walk(&self.thread, thread) + Self::walk(&self.value, 32 * register);
        (bit / self.lane_bits, bit % self.lane_bits / 32)
    }
}

/// M, D's first lane, and the lane of each row.
pub fn data_paths() -> Vec<(u64, u64, Vec<u64>)> {
    let path = |line: Vec<Vec<&'static str>>| {
        let (m, first) = (number(line[0][0]), number(line[0][1]));
        let lane = |mut row: u64| {
            let mut lane = first;
            for (extent, stride) in line[1].iter().map(|word| word.split_once(':').expect("extent:lanes")) {
                lane += row % number(extent) * number(stride);
                row /= number(extent);
            }
            lane
        };
        (m, first, (0..m).map(lane).collect())
    };
    table(include_str!("../truth/tcgen05/data_paths.txt")).map(path).collect()
}
