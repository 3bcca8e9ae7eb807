//! A device with one module loaded, and deterministic test data.
#![allow(dead_code)]

use natten_emulator::{Completion, Counters, Fault, Launch, Memory, Module, Options, launch};

pub struct Device {
    pub module: Module,
    pub memory: Memory,
    pub options: Options,
}

/// Plain numbers that go to and from the device.
pub trait Plain: Copy {
    fn to_bytes(self) -> Vec<u8>;
    fn from_bytes(bytes: &[u8]) -> Self;
}

macro_rules! plain {
    ($($t:ty),*) => {$(
        impl Plain for $t {
            fn to_bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
            fn from_bytes(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().expect("the size of the type"))
            }
        }
    )*};
}
plain!(u8, u16, u32, i32, u64, f32, f64);

impl Device {
    pub fn new(ptx: &str) -> Self {
        Self::with(ptx, Options::default())
    }

    pub fn with(ptx: &str, options: Options) -> Self {
        let module = Module::parse(ptx).unwrap_or_else(|e| panic!("{e}"));
        Self { module, memory: Memory::new(), options }
    }

    pub fn upload<T: Plain>(&self, data: &[T]) -> u64 {
        let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_bytes()).collect();
        let address = self.memory.alloc(bytes.len());
        self.memory.write(address, &bytes).expect("inside the allocation");
        address
    }

    pub fn download<T: Plain>(&self, address: u64, count: usize) -> Vec<T> {
        let mut bytes = vec![0; count * size_of::<T>()];
        self.memory.read(address, &mut bytes).expect("inside the allocation");
        bytes.chunks(size_of::<T>()).map(T::from_bytes).collect()
    }

    pub fn try_run(&self, entry: &str, shape: &Launch) -> Result<Counters, Fault> {
        launch(&self.module, entry, shape, &self.memory, &self.options)
    }

    pub fn run(&self, entry: &str, shape: &Launch) -> Counters {
        self.try_run(entry, shape).unwrap_or_else(|fault| panic!("{fault}"))
    }
}

/// Numbers in [-1, 1), the same for the same seed.
pub fn floats(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Every completion order, with a few seeds.
pub fn all_orders() -> Vec<Options> {
    let mut list = Vec::new();
    for completion in [Completion::Earliest, Completion::Latest, Completion::Random] {
        for seed in 0..3 {
            list.push(Options { completion, seed, ..Options::default() });
        }
    }
    list
}

/// To bf16, ties to even.
pub fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}
