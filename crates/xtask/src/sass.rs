//! Reads nvdisasm's listing: the main loop and what it is made of.

use std::collections::HashMap;

/// Instruction counts of one trip through a loop, every branch inside taken as if all its code ran.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mix {
    pub total: u32,
    pub multiply_adds: u32,
    pub special: u32,
    pub loads: u32,
    pub shuffles: u32,
    pub tensor: u32,
}

/// The shortest loop that holds most of the arithmetic of the whole kernel.
///
/// Rare paths that ptxas moved behind the end jump back too, which makes them look like longer loops.
pub(crate) fn main_loop(listing: &str) -> Option<Mix> {
    let code = parse(listing);
    let loops = code.instructions.iter().enumerate().filter_map(|(at, instruction)| {
        let start = *code.labels.get(instruction.target.as_ref()?)?;
        (start <= at && instruction.opcode.starts_with("BRA")).then(|| code.mix(start, at))
    });
    let loops: Vec<Mix> = loops.collect();
    let arithmetic = |mix: &Mix| mix.multiply_adds + mix.tensor;
    let most = loops.iter().map(arithmetic).max()?;
    loops.into_iter().filter(|mix| 5 * arithmetic(mix) >= 4 * most).min_by_key(|mix| mix.total)
}

/// The loops over tiles of a warpgroup kernel, the one without masks first. Only the usual way through them counts:
/// code that a branch can jump over (rescaling, masks of additional keys) is rare.
pub(crate) fn tile_loops(listing: &str) -> Vec<Mix> {
    let code = parse(listing);
    let mut spans: Vec<(usize, usize)> = Vec::new();
    for (at, instruction) in code.instructions.iter().enumerate() {
        let start = instruction.target.as_ref().and_then(|label| code.labels.get(label));
        if let Some(&start) = start.filter(|&&start| start <= at && instruction.opcode.starts_with("BRA")) {
            spans.push((start, at));
        }
    }
    // Waits for barriers that ptxas moved behind the end jump back too: the two real loops are the shortest.
    spans.sort_by_key(|&(start, end)| end - start);
    let holds_tile = |&(start, end): &(usize, usize)| {
        let mix = code.mix(start, end);
        mix.tensor > 0 && mix.special > 0
    };
    let mut loops: Vec<Mix> = spans
        .iter()
        .copied()
        .filter(holds_tile)
        .take(2)
        .map(|(start, end)| code.usual_mix(start, end))
        .collect();
    loops.sort_by_key(|mix| mix.total);
    loops
}

struct Instruction {
    opcode: String,
    is_conditional: bool,
    target: Option<String>,
}

#[derive(Default)]
struct Code {
    instructions: Vec<Instruction>,
    labels: HashMap<String, usize>,
}

impl Code {
    fn mix(&self, start: usize, end: usize) -> Mix {
        let mut mix = Mix::default();
        self.instructions[start..=end].iter().for_each(|instruction| mix.add(&instruction.opcode));
        mix
    }

    /// As if every conditional branch forward were taken.
    fn usual_mix(&self, start: usize, end: usize) -> Mix {
        let mut mix = Mix::default();
        let mut at = start;
        while at <= end {
            let Instruction { opcode, is_conditional, target } = &self.instructions[at];
            mix.add(opcode);
            let target = target.as_ref().and_then(|label| self.labels.get(label).copied());
            let jumps = *is_conditional && opcode.starts_with("BRA");
            at = target.filter(|&to| jumps && to > at && to <= end).unwrap_or(at + 1);
        }
        mix
    }
}

impl Mix {
    fn add(&mut self, opcode: &str) {
        let base = opcode.split('.').next().unwrap_or_default();
        self.total += u32::from(base != "NOP");
        match base {
            "FFMA" | "FFMA2" => self.multiply_adds += 1,
            "MUFU" => self.special += 1,
            "LDG" | "LD" | "LDS" | "LDSM" => self.loads += 1,
            "SHFL" => self.shuffles += 1,
            "HMMA" | "HGMMA" | "UTCHMMA" | "IMMA" => self.tensor += 1,
            _ => {}
        }
    }
}

/// Lines are `.L_x_1:` or `/*0010*/ @P0 FFMA R1, R2, R3, R4 ;`, with the branch target as `` `(.L_x_1) ``.
fn parse(listing: &str) -> Code {
    let mut code = Code::default();
    for line in listing.lines() {
        let line = line.trim();
        if let Some(label) = line.strip_suffix(':').filter(|label| label.starts_with(".L")) {
            code.labels.insert(label.to_owned(), code.instructions.len());
            continue;
        }
        let Some((_, rest)) = line.strip_prefix("/*").and_then(|rest| rest.split_once("*/")) else {
            continue;
        };
        let mut words = rest.trim().trim_start_matches('{').split_whitespace();
        let Some(mut opcode) = words.next() else { continue };
        let is_conditional = opcode.starts_with('@');
        if is_conditional {
            let Some(next) = words.next() else { continue };
            opcode = next;
        }
        if !opcode.starts_with(|c: char| c.is_ascii_uppercase()) {
            continue;
        }
        let target = rest.split_once("`(").and_then(|(_, label)| label.split_once(')'));
        code.instructions.push(Instruction {
            opcode: opcode.trim_end_matches(';').to_owned(),
            is_conditional,
            target: target.map(|(label, _)| label.to_owned()),
        });
    }
    code
}
