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

struct Instruction {
    opcode: String,
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
        for Instruction { opcode, .. } in &self.instructions[start..=end] {
            let base = opcode.split('.').next().unwrap_or_default();
            mix.total += u32::from(base != "NOP");
            match base {
                "FFMA" | "FFMA2" => mix.multiply_adds += 1,
                "MUFU" => mix.special += 1,
                "LDG" | "LD" | "LDS" | "LDSM" => mix.loads += 1,
                "SHFL" => mix.shuffles += 1,
                "HMMA" | "HGMMA" | "UTCHMMA" | "IMMA" => mix.tensor += 1,
                _ => {}
            }
        }
        mix
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
        if opcode.starts_with('@') {
            let Some(next) = words.next() else { continue };
            opcode = next;
        }
        if !opcode.starts_with(|c: char| c.is_ascii_uppercase()) {
            continue;
        }
        let target = rest.split_once("`(").and_then(|(_, label)| label.split_once(')'));
        code.instructions.push(Instruction {
            opcode: opcode.trim_end_matches(';').to_owned(),
            target: target.map(|(label, _)| label.to_owned()),
        });
    }
    code
}
