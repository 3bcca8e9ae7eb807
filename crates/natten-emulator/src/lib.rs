//! Runs CUDA kernels, given as PTX, on a machine with no GPU: correctly, with every access checked.
//!
//! The emulator is there to be disagreed with. It executes warps of 32 lanes with divergence and
//! reconvergence, tensor-core and asynchronous instructions included, up to `wgmma` on Hopper and `tcgen05` with its
//! tensor memory on data-center Blackwell, and reports as typed faults
//! what a GPU would let pass in silence: accesses out of bounds, reads of memory nobody wrote,
//! misalignment, races (with vector clocks that know barriers, mbarriers, commit groups and the
//! proxy fence, and between the lanes of a warp; in tensor memory that know its waits and its two fences), registers read
//! before they were written or without `wgmma.fence`, lanes that miss an aligned instruction, deadlocks with who waits for whom.
//! Asynchronous work completes as early, as late or as randomly as the manual allows.
//!
//! ```
//! use natten_emulator::{Launch, Memory, Module, Options, launch};
//!
//! let ptx = "
//! .version 7.0
//! .target sm_80
//! .address_size 64
//! .visible .entry twice(.param .u64 data)
//! {
//!     .reg .b32 %r<3>;
//!     .reg .b64 %rd<4>;
//!     ld.param.u64 %rd1, [data];
//!     mov.u32 %r1, %tid.x;
//!     mul.wide.u32 %rd2, %r1, 4;
//!     add.s64 %rd3, %rd1, %rd2;
//!     ld.global.u32 %r2, [%rd3];
//!     shl.b32 %r2, %r2, 1;
//!     st.global.u32 [%rd3], %r2;
//!     ret;
//! }";
//! let module = Module::parse(ptx)?;
//! let memory = Memory::new();
//! let data = memory.alloc(4 * 32);
//! memory.write(data, &[1; 4 * 32])?;
//! let shape = Launch::new([1, 1, 1], [32, 1, 1]).arg(data.to_le_bytes());
//! let counters = launch(&module, "twice", &shape, &memory, &Options::default())?;
//! let mut result = [0; 4];
//! memory.read(data, &mut result)?;
//! assert_eq!(result, [2; 4]);
//! assert_eq!(counters.global_load_sectors, 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]
// Lane loops index several arrays and a mask by the same lane; iterators would hide that.
#![allow(clippy::needless_range_loop)]

mod asynchronous;
mod counters;
mod decode;
mod device;
mod fault;
mod inst;
mod launch;
mod machine;
mod memory;
mod module;
pub mod mutate;
mod options;
mod ptx;
mod race;
mod scalar;
mod streams;
mod tensor;
mod tensor_memory;
mod timing;

pub use asynchronous::tma::{Swizzle, TensorMapDesc, TensorMapError};
pub use counters::{CLASSES, Class, Counters, Coverage};
pub use device::{Emulated, Function, GlobalMemory, Selection};
pub use fault::{
    Accessor, Actor, DescriptorProblem, Fault, FaultKind, MatrixOperand, MbarrierProblem, MemoryError,
    MemorySpace, ParseError, ParseProblem, Site, TargetError, TensorMemoryProblem, TensorOrderProblem, Wait,
    WaitReason, WgmmaProblem,
};
pub use launch::launch;
pub use memory::Memory;
pub use module::{Entry, Module, Param};
pub use options::{Completion, Launch, Options};
pub use streams::{Streamed, StreamedHost, StreamedMemory};
