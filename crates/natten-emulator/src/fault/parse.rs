//! PTX that cannot be parsed, and host calls that memory refuses.

use thiserror::Error;

/// PTX text that the emulator does not understand. An unknown form is an error, never ignored.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("PTX line {line}: {problem} in `{text}`")]
#[non_exhaustive]
pub struct ParseError {
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// The statement, white space normalised.
    pub text: String,
    /// What is wrong with it.
    pub problem: ParseProblem,
}

/// The kinds of [`ParseError`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ParseProblem {
    /// The text breaks PTX's grammar.
    #[error("expected {expected}")]
    Syntax {
        /// What should have stood here.
        expected: &'static str,
    },
    /// The opcode, or this combination of modifiers, is not implemented.
    #[error("unsupported instruction: {reason}")]
    Unsupported {
        /// The modifier or property that is not known.
        reason: String,
    },
    /// A name that no declaration in scope introduces.
    #[error("unknown name `{name}`")]
    UnknownName {
        /// The name.
        name: String,
    },
    /// An operand of the wrong kind or type.
    #[error("operand {index} should be {expected}")]
    Operand {
        /// Position from 0.
        index: usize,
        /// What the instruction needs.
        expected: &'static str,
    },
}

/// A device that does not load what its text is for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("target {target} does not run on compute capability {major}.{minor}")]
#[non_exhaustive]
pub struct TargetError {
    /// The text's `.target`.
    pub target: String,
    /// First number of the device's compute capability.
    pub major: u32,
    /// Second number.
    pub minor: u32,
}

/// A host-side use of [`Memory`](crate::Memory) that is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// No allocation holds this address.
    #[error("no allocation at {address:#x}")]
    NotAllocated {
        /// The address asked for.
        address: u64,
    },
    /// The range runs past the end of its allocation.
    #[error("{bytes} bytes at {address:#x} run past the allocation's end at {end:#x}")]
    OutOfBounds {
        /// First address.
        address: u64,
        /// Length of the access.
        bytes: u64,
        /// End of the allocation.
        end: u64,
    },
    /// `free` of an address that is not the start of an allocation.
    #[error("{address:#x} is not the start of an allocation")]
    NotABase {
        /// The address given.
        address: u64,
    },
}
