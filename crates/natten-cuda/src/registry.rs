//! The table of kernels as this crate reads it.

use std::sync::LazyLock;

use natten_core::ElementType;
pub use natten_kernels::{KERNELS, Kernel, Operation, Shape, by_name};

use crate::capability::ComputeCapability;

/// How many queries a cta of a kernel on tiles has, and how many keys it takes at once. Their boxes are arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Queries.
    pub queries: usize,
    /// Keys.
    pub keys: usize,
}

/// The kernels of the operator, preferred ones first among those of a family for the same work.
pub fn kernels() -> impl Iterator<Item = &'static Kernel> {
    KERNELS.iter().filter(|kernel| kernel.family != "measure")
}

/// Kernels of one family for one operation.
struct Group {
    family: &'static str,
    operation: Operation,
    kernels: Vec<&'static Kernel>,
}

/// The table by family and operation: choosing asks for a few groups with every call that was not seen before.
static GROUPS: LazyLock<Vec<Group>> = LazyLock::new(|| {
    let mut groups: Vec<Group> = Vec::new();
    for kernel in KERNELS {
        let Kernel { family, operation, .. } = *kernel;
        match groups.iter_mut().find(|group| group.operation == operation && group.family == family) {
            Some(group) => group.kernels.push(kernel),
            None => groups.push(Group { family, operation, kernels: vec![kernel] }),
        }
    }
    groups
});

/// Those of a family for an operation.
pub fn kernels_of(family: &str, operation: Operation) -> impl Iterator<Item = &'static Kernel> {
    let group = GROUPS.iter().find(|group| group.operation == operation && group.family == family);
    group.into_iter().flat_map(|group| group.kernels.iter().copied())
}

/// What measures a device's limits and keeps it busy: no part of the operator. Fastest arithmetic first.
pub fn measuring_kernels() -> impl Iterator<Item = &'static Kernel> {
    KERNELS.iter().filter(|kernel| kernel.family == "measure")
}

/// What the table says of a kernel, in this crate's terms.
pub trait Facts {
    /// Of all tensors but statistics.
    fn element_type(&self) -> ElementType;
    /// Longest row, or 0 where any goes.
    fn longest_row(&self) -> usize;
    /// Queries and keys of a tile, for kernels that work on tiles.
    fn tile(&self) -> Option<Tile>;
    /// Lanes that share a row, and neighbouring items that share a lane group's loads.
    fn walk(&self) -> [usize; 2];
    /// Oldest architecture.
    fn min_capability(&self) -> ComputeCapability;
}

impl Facts for Kernel {
    fn element_type(&self) -> ElementType {
        match self.element {
            natten_kernels::Element::F32 => ElementType::F32,
            natten_kernels::Element::F16 => ElementType::F16,
            natten_kernels::Element::Bf16 => ElementType::Bf16,
        }
    }

    fn longest_row(&self) -> usize {
        self.max_head_dim as usize
    }

    fn tile(&self) -> Option<Tile> {
        match self.shape {
            Shape::Tiles { queries, keys } => Some(Tile { queries: queries as usize, keys: keys as usize }),
            _ => None,
        }
    }

    fn walk(&self) -> [usize; 2] {
        match self.shape {
            Shape::Walk { lanes, items } => [lanes as usize, items as usize],
            // A warp for each row.
            _ => [32, 1],
        }
    }

    fn min_capability(&self) -> ComputeCapability {
        ComputeCapability { major: self.capability.major, minor: self.capability.minor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::FAMILIES;
    use crate::{measure, params};

    /// A kernel's one parameter has the size of its mirror.
    #[test]
    fn kernels_take_the_mirrored_parameters() {
        for kernel in KERNELS {
            let family = FAMILIES.iter().find(|family| family.name() == kernel.family);
            let bytes = match (family, kernel.operation) {
                (Some(family), operation) => family.parameter_bytes(operation),
                (None, Operation::WindowDump) => size_of::<params::WindowDumpParams>(),
                (None, Operation::Peak) => size_of::<measure::PeakParams>(),
                (None, Operation::Wait) => size_of::<measure::WaitParams>(),
                (None, other) => panic!("{}: whose parameter mirrors {other:?}?", kernel.entry),
            };
            assert_eq!(kernel.param_bytes as usize, bytes, "{}", kernel.entry);
        }
    }

    /// The driver wants the tensor maps among a parameter at multiples of 64 bytes.
    #[test]
    fn tensor_maps_are_aligned() {
        for kernel in KERNELS.iter().filter(|kernel| kernel.ptx().contains("cp.async.bulk.tensor")) {
            let text = kernel.ptx();
            let parameter = text.lines().find(|line| line.starts_with(".param")).unwrap();
            assert!(parameter.starts_with(".param .align 64"), "{}: {parameter}", kernel.entry);
        }
    }
}
