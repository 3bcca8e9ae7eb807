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

/// Wraps a few instructions into a kernel of one warp. Inputs per lane: words %a, %b, %c, also as
/// floats %fa, %fb, %fc and low halves %ha, %hb; %lane. Result: %d (word), or %fd.
pub fn one_warp(body: &str) -> String {
    let result = if body.contains("%fd") { "mov.b32 %d, %fd;" } else { "" };
    format!(
        ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 p) {{
        .reg .b32 %a, %b, %c, %d, %lane, %t, %u, %v; .reg .f32 %fa, %fb, %fc, %fd; .reg .b16 %ha, %hb, %h;
        .reg .pred %p, %q; .reg .b64 %rd<8>, %x, %y, %z;
        ld.param.u64 %rd1, [p]; mov.u32 %lane, %laneid; mad.wide.u32 %rd1, %lane, 16, %rd1;
        ld.global.v4.u32 {{%a, %b, %c, %d}}, [%rd1];
        mov.b32 %fa, %a; mov.b32 %fb, %b; mov.b32 %fc, %c; cvt.u16.u32 %ha, %a; cvt.u16.u32 %hb, %b;
        {body}
        {result}
        st.global.u32 [%rd1+12], %d; ret; }}"
    )
}

/// Runs `body` on lanes holding `inputs` (the last repeats) and returns %d of each lane.
pub fn eval(body: &str, inputs: &[[u32; 3]]) -> Vec<u32> {
    let device = Device::new(&one_warp(body));
    let row = |lane: usize| inputs[lane.min(inputs.len() - 1)];
    let data: Vec<u32> = (0..32).flat_map(|lane| [row(lane)[0], row(lane)[1], row(lane)[2], 0]).collect();
    let address = device.upload(&data);
    device.run("k", &Launch::new([1, 1, 1], [32, 1, 1]).arg(address.to_le_bytes()));
    device.download::<u32>(address, 128).chunks(4).map(|lane| lane[3]).collect()
}
