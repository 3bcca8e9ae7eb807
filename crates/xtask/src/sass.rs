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
    /// Loads from tensor memory and stores to it.
    pub moves: u32,
}

/// The shortest loop that holds most of the arithmetic. A kernel may have its loop twice, for rows that fill the lanes and, longer,
/// for others, in one around both.
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
    loops.into_iter().filter(|mix| 5 * arithmetic(mix) >= 2 * most).min_by_key(|mix| mix.total)
}

/// The loops over tiles of a warpgroup kernel, two for each kind of item: those with fewest products first, and of either kind
/// the one without masks. Only the usual way through them counts: code that a branch can jump over (rescaling, masks of
/// additional keys) is rare, but for products.
pub(crate) fn warpgroup_loops(listing: &str, kinds: usize) -> Vec<Mix> {
    let mut loops = parse(listing).shortest_loops(2 * kinds, |mix| mix.tensor > 0 && mix.special > 0);
    loops.sort_by_key(|mix| (mix.tensor, mix.total));
    loops
}

/// The loops of a softmax warpgroup, whose products are another warp's: without masks, and with them. The usual way through
/// them, as above: it has an exponential for each of so many scores of a thread.
pub(crate) fn softmax_loops(listing: &str, scores: u32) -> Vec<Mix> {
    let mut loops = parse(listing).shortest_loops(2, |mix| mix.moves > 0 && mix.special >= scores);
    loops.sort_by_key(|mix| mix.total);
    loops
}

/// A loop over tiles: all its code, and the common way through it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TileLoop {
    pub mix: Mix,
    /// Instructions on the shortest way through the loop that leaves out no tensor instruction and no asynchronous copy:
    /// without the rare blocks that move the softmax's reference or go to the next row of tiles.
    pub trip: u32,
}

/// The innermost loops with tensor instructions, in the order of the code.
pub(crate) fn tile_loops(listing: &str) -> Vec<TileLoop> {
    let code = parse(listing);
    let mut loops: Vec<(usize, usize)> = Vec::new();
    for (end, instruction) in code.instructions.iter().enumerate() {
        let start = instruction.target.as_ref().and_then(|label| code.labels.get(label).copied());
        if let Some(start) = start.filter(|&start| start <= end && instruction.opcode.starts_with("BRA"))
            && code.mix(start, end).tensor > 0
        {
            loops.push((start, end));
        }
    }
    let holds_another = |&(start, end): &(usize, usize)| {
        loops.iter().any(|&(s, e)| (s, e) != (start, end) && s >= start && e <= end)
    };
    let mut innermost: Vec<_> = loops.iter().copied().filter(|range| !holds_another(range)).collect();
    innermost.sort_unstable();
    let tile_loop = |(start, end)| TileLoop { mix: code.mix(start, end), trip: code.trip(start, end) };
    innermost.into_iter().map(tile_loop).collect()
}

struct Instruction {
    opcode: String,
    target: Option<String>,
    /// Executed, or branching, under a condition.
    conditional: bool,
}

impl Instruction {
    fn is_essential(&self) -> bool {
        ["HMMA", "HGMMA", "UTCHMMA", "LDGSTS"].iter().any(|opcode| self.opcode.starts_with(opcode))
    }
}

#[derive(Default)]
struct Code {
    instructions: Vec<Instruction>,
    labels: HashMap<String, usize>,
}

impl Code {
    /// The usual way through the shortest loops that hold what is asked for. Waits for barriers that ptxas moved behind the end
    /// jump back too, which makes longer loops.
    fn shortest_loops(&self, count: usize, holds: impl Fn(&Mix) -> bool) -> Vec<Mix> {
        let mut spans: Vec<(usize, usize)> = Vec::new();
        for (at, instruction) in self.instructions.iter().enumerate() {
            let start = instruction.target.as_ref().and_then(|label| self.labels.get(label));
            if let Some(&start) = start.filter(|&&start| start <= at && instruction.opcode.starts_with("BRA"))
            {
                spans.push((start, at));
            }
        }
        spans.sort_by_key(|&(start, end)| end - start);
        let holding = spans.into_iter().filter(|&(start, end)| holds(&self.mix(start, end)));
        holding.take(count).map(|(start, end)| self.usual_mix(start, end)).collect()
    }

    fn mix(&self, start: usize, end: usize) -> Mix {
        let mut mix = Mix::default();
        self.instructions[start..=end].iter().for_each(|instruction| mix.add(&instruction.opcode));
        mix
    }

    /// As if every conditional branch forward were taken but those past products, where a tile is not met at all.
    fn usual_mix(&self, start: usize, end: usize) -> Mix {
        let mut mix = Mix::default();
        let mut at = start;
        while at <= end {
            let Instruction { opcode, conditional, target } = &self.instructions[at];
            mix.add(opcode);
            let target = target.as_ref().and_then(|label| self.labels.get(label).copied());
            let jumps = *conditional && opcode.starts_with("BRA");
            let is_rare = |to: usize| !self.instructions[at + 1..to].iter().any(Instruction::is_essential);
            at = target.filter(|&to| jumps && to > at && to <= end && is_rare(to)).unwrap_or(at + 1);
        }
        mix
    }

    /// See [`TileLoop::trip`].
    fn trip(&self, start: usize, end: usize) -> u32 {
        let mut shortest = vec![u32::MAX; end - start + 2];
        shortest[0] = 0;
        for at in start..=end {
            let so_far = shortest[at - start];
            if so_far == u32::MAX {
                continue;
            }
            let instruction = &self.instructions[at];
            let cost = so_far + u32::from(instruction.opcode != "NOP");
            let reach = |to: usize, shortest: &mut Vec<u32>| {
                shortest[to - start] = shortest[to - start].min(cost);
            };
            let target = instruction.target.as_ref().and_then(|label| self.labels.get(label).copied());
            if let Some(to) =
                target.filter(|&to| instruction.opcode.starts_with("BRA") && to > at && to <= end)
            {
                if !self.instructions[at + 1..to].iter().any(Instruction::is_essential) {
                    reach(to, &mut shortest);
                }
                if !instruction.conditional {
                    continue;
                }
            }
            reach(at + 1, &mut shortest);
        }
        shortest[end - start + 1]
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
            "LDTM" | "STTM" => self.moves += 1,
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
        let guarded = opcode.starts_with('@');
        if guarded {
            let Some(next) = words.next() else { continue };
            opcode = next;
        }
        // A branch may have its condition as an operand too: `BRA.DIV ~URZ, ..`, `BRA P0, ..`.
        let conditional = guarded || words.next().is_some_and(|operand| !operand.starts_with('`'));
        if !opcode.starts_with(|c: char| c.is_ascii_uppercase()) {
            continue;
        }
        let target = rest.split_once("`(").and_then(|(_, label)| label.split_once(')'));
        code.instructions.push(Instruction {
            opcode: opcode.trim_end_matches(';').to_owned(),
            target: target.map(|(label, _)| label.to_owned()),
            conditional,
        });
    }
    code
}
