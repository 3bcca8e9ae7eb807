//! What a `.target` has of the instructions that belong to one architecture alone.

use std::fmt;

/// A `.target` beside the `.version` it stands under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub name: String,
    pub version: (u32, u32),
}

impl Target {
    /// The number, and the letter of what is no common architecture: `sm_100a` is 100 and `a`.
    fn parts(&self) -> Option<(u32, &str)> {
        let number = self.name.strip_prefix("sm_")?;
        let letter = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
        let (number, letter) = number.split_at(letter);
        Some((number.parse().ok()?, letter))
    }

    /// PTX ISA: `tcgen05` came with 8.6 for sm_100a, and with 8.8 for its family.
    pub(crate) fn has_tcgen05(&self) -> bool {
        match self.parts() {
            Some((100, "a")) => self.version >= (8, 6),
            Some((100, "f") | (103, "a" | "f")) => self.version >= (8, 8),
            _ => false,
        }
    }

    /// `wgmma` is of compute capability 9.0 and went away with the next one.
    pub(crate) fn lost_wgmma(&self) -> bool {
        self.parts().is_some_and(|(number, _)| number >= 100)
    }

    /// Whether a device loads it: common text on its own capability and later ones, text of one architecture there
    /// alone, text of a family on later members too. What has no number is left to others.
    pub(crate) fn loads_on(&self, major: u32, minor: u32) -> bool {
        let Some((number, letter)) = self.parts() else { return true };
        let device = 10 * major + minor;
        match letter {
            "a" => number == device,
            "f" => number / 10 == major && number <= device,
            _ => number <= device,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of PTX {}.{}", self.name, self.version.0, self.version.1)
    }
}
