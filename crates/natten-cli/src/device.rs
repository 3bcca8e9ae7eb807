//! Devices by name, with the limits that their makers state: what a roofline needs.

use clap::ValueEnum;
use natten::ElementType;
#[cfg(feature = "cuda")]
use natten::cuda::{ComputeCapability, device::Properties};

/// A device to predict for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceName {
    A100,
    H100,
    H200,
    B200,
    Rtx4090,
    Rtx5090,
    /// The CPU that this runs on: its arithmetic is measured, which takes a moment.
    Cpu,
}

impl DeviceName {
    /// The GPUs.
    pub const GPUS: [DeviceName; 6] = [
        DeviceName::A100,
        DeviceName::H100,
        DeviceName::H200,
        DeviceName::B200,
        DeviceName::Rtx4090,
        DeviceName::Rtx5090,
    ];

    /// What selects kernels on a GPU.
    #[cfg(feature = "cuda")]
    pub fn properties(self) -> Option<Properties> {
        // Compute capability, multiprocessors, KiB of shared memory for a block, GB of memory.
        let ((major, minor), multiprocessors, shared, memory) = match self {
            DeviceName::A100 => ((8, 0), 108, 163, 80),
            DeviceName::H100 => ((9, 0), 132, 227, 80),
            DeviceName::H200 => ((9, 0), 132, 227, 141),
            DeviceName::B200 => ((10, 0), 148, 227, 180),
            DeviceName::Rtx4090 => ((8, 9), 128, 99, 24),
            DeviceName::Rtx5090 => ((12, 0), 170, 99, 32),
            DeviceName::Cpu => return None,
        };
        Some(Properties {
            name: format!("{self:?}"),
            compute_capability: ComputeCapability { major, minor },
            multiprocessors,
            shared_bytes_per_block: shared << 10,
            memory_bytes: memory * 1_000_000_000,
        })
    }
}

/// What bounds a device.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub device: DeviceName,
    pub name: &'static str,
    /// Dense floating-point operations a second for the element type asked for.
    pub flops: f64,
    /// Bytes a second to and from device memory; infinite where it is not known.
    pub bandwidth_bytes: f64,
}

impl Limits {
    /// The stated limits of a GPU: tensor cores with f32 sums for 16-bit types, plain cores for f32. `None` for
    /// f64, which has no GPU kernels, and for the CPU, which must be measured.
    pub fn stated(device: DeviceName, element_type: ElementType) -> Option<Self> {
        // Name, 16-bit and f32 TFLOP/s, TB/s.
        let (name, half, single, memory) = match device {
            DeviceName::A100 => ("A100 SXM", 312.0, 19.5, 2.04),
            DeviceName::H100 => ("H100 SXM", 989.0, 66.9, 3.35),
            DeviceName::H200 => ("H200", 989.0, 66.9, 4.8),
            DeviceName::B200 => ("B200", 2250.0, 75.0, 8.0),
            DeviceName::Rtx4090 => ("RTX 4090", 165.2, 82.6, 1.008),
            DeviceName::Rtx5090 => ("RTX 5090", 209.5, 104.8, 1.792),
            DeviceName::Cpu => return None,
        };
        let tera = match element_type {
            ElementType::F16 | ElementType::Bf16 => half,
            ElementType::F32 => single,
            _ => return None,
        };
        Some(Limits { device, name, flops: tera * 1e12, bandwidth_bytes: memory * 1e12 })
    }

    /// The shortest time that so many operations and bytes can take.
    pub fn seconds(&self, flops: f64, bytes: f64) -> f64 {
        (flops / self.flops).max(bytes / self.bandwidth_bytes)
    }

    /// Which of the two limits it is.
    pub fn bound(&self, flops: f64, bytes: f64) -> &'static str {
        if flops / self.flops >= bytes / self.bandwidth_bytes { "arithmetic" } else { "memory" }
    }
}

/// A GPU architecture, which decides how many queries and keys a tile has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Arch {
    /// Ampere.
    #[value(name = "sm_80", alias = "sm_86", alias = "sm_87")]
    Sm80,
    /// Ada.
    #[value(name = "sm_89")]
    Sm89,
    /// Hopper.
    #[value(name = "sm_90a", alias = "sm_90")]
    Sm90,
    /// Blackwell of data centers.
    #[value(name = "sm_100a", alias = "sm_100", alias = "sm_100f", alias = "sm_103a")]
    Sm100,
    /// Blackwell of consumers.
    #[value(name = "sm_120", alias = "sm_120a")]
    Sm120,
}

impl Arch {
    /// Queries and keys of a tile.
    pub fn tile_tokens(self) -> (usize, usize) {
        match self {
            Arch::Sm80 | Arch::Sm89 | Arch::Sm120 => (128, 64),
            Arch::Sm90 => (128, 128),
            Arch::Sm100 => (256, 128),
        }
    }

    /// The GPU of it that stands for all.
    pub fn device(self) -> DeviceName {
        match self {
            Arch::Sm80 => DeviceName::A100,
            Arch::Sm89 => DeviceName::Rtx4090,
            Arch::Sm90 => DeviceName::H100,
            Arch::Sm100 => DeviceName::B200,
            Arch::Sm120 => DeviceName::Rtx5090,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Arch::Sm80 => "sm_80",
            Arch::Sm89 => "sm_89",
            Arch::Sm90 => "sm_90a",
            Arch::Sm100 => "sm_100a",
            Arch::Sm120 => "sm_120",
        }
    }
}
