//! Would the tests of kernels on tiles notice a broken kernel? Single edits of its PTX, each of which they must catch.

use natten_core::plan::{KeyStart, TileCounts, Tiling};
use natten_core::{Params, f16};
use natten_cuda::Cuda;
use natten_cuda::registry::{Kernel, kernels};
use natten_cuda::{Request, bytes_read};
use natten_emulator::Emulated;

use crate::case::{Case, OnDevice, Operands, close, forward};

const ENTRY: &str = "natten_forward_sm80_f16_d32_q64_k64";

/// Replaces `from` by `to` in the `nth` (from 0) line that holds `line`; an empty `to` drops the line.
struct Mutation {
    what: &'static str,
    line: &'static str,
    nth: usize,
    from: &'static str,
    to: &'static str,
}

const fn edit(
    what: &'static str,
    line: &'static str,
    nth: usize,
    from: &'static str,
    to: &'static str,
) -> Mutation {
    Mutation { what, line, nth, from, to }
}

/// Barriers and waits come in the order: keys described, (negative scale,) queries and tables there, the same for additional
/// keys, then two in each of the loops over full and partial tiles, and the end.
const MUTATIONS: &[Mutation] = &[
    edit("queries not awaited", "cp.async.wait_group", 0, "wait_group 2", "wait_group 3"),
    edit("full: K not awaited", "cp.async.wait_group", 1, "wait_group 1", "wait_group 2"),
    edit("full: V not awaited", "cp.async.wait_group", 2, "wait_group 1", "wait_group 2"),
    edit("partial: K not awaited", "cp.async.wait_group", 3, "wait_group 1", "wait_group 2"),
    edit("partial: V not awaited", "cp.async.wait_group", 4, "wait_group 1", "wait_group 2"),
    edit("the last zeros not awaited", "cp.async.wait_group", 5, "wait_group 0", "wait_group 2"),
    edit("keys described unseen", "bar.sync", 0, "bar.sync", ""),
    edit("queries turned while others copy", "bar.sync", 1, "bar.sync", ""),
    edit("tables read unseen", "bar.sync", 2, "bar.sync", ""),
    edit("tables of additional keys read unseen", "bar.sync", 3, "bar.sync", ""),
    edit("full: no barrier before K", "bar.sync", 4, "bar.sync", ""),
    edit("full: no barrier before V", "bar.sync", 5, "bar.sync", ""),
    edit("partial: no barrier before K", "bar.sync", 6, "bar.sync", ""),
    edit("partial: no barrier before V", "bar.sync", 7, "bar.sync", ""),
    edit("keys described anew too early", "bar.sync", 8, "bar.sync", ""),
    edit("rows of other lanes written out early", "bar.warp.sync", 0, "bar.warp.sync", ""),
    edit("full: a group left open", "cp.async.commit_group", 3, "cp.async", ""),
    edit("partial: a group left open", "cp.async.commit_group", 5, "cp.async", ""),
    edit("V not transposed", ".trans.", 0, ".trans.", "."),
    edit("V not transposed under masks", ".trans.", 8, ".trans.", "."),
    edit("full: a product dropped", "mma.sync", 5, "mma.sync", ""),
    edit("partial: a product dropped", "mma.sync", 60, "mma.sync", ""),
    edit("full: references never move", "setp.ne.u32 holds", 1, "setp.ne", "setp.lt"),
    edit("partial: references never move", "setp.ne.u32 holds", 2, "setp.ne", "setp.lt"),
    edit("full: a reference for each lane", "shfl.sync.bfly", 0, "bfly", "idx"),
    edit("partial: a reference for each lane", "shfl.sync.bfly", 5, "bfly", "idx"),
    edit("one quad lane not summed", "shfl.sync.bfly", 9, "bfly", "idx"),
    edit("queries of another row", "shfl.sync.idx", 2, "idx", "bfly"),
    edit("log-sum-exp of another row", "shfl.sync.idx", 4, "idx", "bfly"),
    edit("outputs of another row", "shfl.sync.idx", 8, "idx", "bfly"),
    edit("queries that exist taken for none", "setp.ne.u32 holds", 0, "setp.ne", "setp.lt"),
    edit("log-sum-exp of existing rows alone", "setp.ne.u32 holds", 3, "setp.ne", "setp.ge"),
    edit("outputs of existing rows alone", "setp.ne.u32 holds", 4, "setp.ne", "setp.ge"),
    edit("a masked key counts", ", -8388608,", 0, "-8388608", "0"),
    edit("no key counts", ", -8388608, 0", 0, ", 0", ", -8388608"),
    edit("starting scores of other keys", "prmt.b32", 3, "prmt.b32", "SWAP"),
    edit("a key of four forgotten", "252645135", 0, "252645135", "117901063"),
    edit("the other parity's keys", "selp.b32  %r1834", 0, "selp.b32", "SWAP"),
    edit("weights swapped", "cvt.rn.f16x2.f32", 0, "cvt.rn", "SWAP"),
    edit("log taken for exponential", "lg2.approx", 0, "lg2", "ex2"),
    edit("sum not inverted", "rcp.approx", 0, "rcp", "sqrt"),
    edit("queries beyond the edge read", "16, 0, is_valid", 0, "16, 0", "16, 16"),
    edit("columns beyond head_dim read", "16, 0, is_valid", 6, "16, 0", "16, 16"),
    edit("rows of no key read", "16, 0, is_valid", 10, "16, 0", "16, 16"),
    edit("the sign of the scale lost", "xor.b32", 6, "xor.b32", "or.b32"),
    edit("window ends along the line not removed", "max.s32", 27, "max.s32", "min.s32"),
    edit("window starts along the line not removed", "not.b32", 24, "not.b32", "mov.b32"),
    edit("window starts across lines not removed", "not.b32", 22, "not.b32", "mov.b32"),
    edit("the first partial tile's starts not removed", "not.b32", 20, "not.b32", "mov.b32"),
    edit("a tile moved back shows keys twice", "max.s32", 26, "max.s32", "min.s32"),
    edit("a tile moved back for masks alone", "neg.s32", 0, "neg.s32", "mov.u32"),
    edit("a tile not moved back for masks", "min.s32", 46, "min.s32", "max.s32"),
    edit("full tiles visited again", "+16564]", 4, "16564", "16552"),
    edit("a line of tiles left out", "add.s32  %r2414, %r2414, 1", 0, ", 1;", ", 2;"),
    edit("a plane of tiles left out", "add.s32  %r210, %r210, 1", 0, ", 1;", ", 2;"),
    edit("steps of K and V exchanged", "ld.shared.v2.u64", 18, "ld.shared.v2.u64", "EXCHANGE"),
    edit("full: steps of K and V exchanged", "ld.shared.v2.u64", 13, "ld.shared.v2.u64", "EXCHANGE"),
    edit("full: steps across lines exchanged", "ld.shared.v2.u64", 9, "ld.shared.v2.u64", "EXCHANGE"),
    edit("full: steps across planes exchanged", "ld.shared.v2.u64", 10, "ld.shared.v2.u64", "EXCHANGE"),
    edit("copies go on after the last tile", "selp.b32  %r207, 0, %r207, %p178", 0, "selp.b32", "SWAP"),
    edit("copies go on after the last full tile", "selp.b32  %r207, 0, %r207, %p123", 0, "selp.b32", "SWAP"),
];

fn kernel() -> &'static Kernel {
    kernels().find(|kernel| kernel.entry == ENTRY).expect("a shipped kernel")
}

impl Mutation {
    fn apply(&self) -> String {
        let mut seen = 0;
        let mut lines = Vec::new();
        for line in kernel().ptx().lines() {
            let hit = line.contains(self.line) && seen == self.nth;
            seen += usize::from(line.contains(self.line));
            match (hit, self.to) {
                (false, _) => lines.push(line.to_owned()),
                (true, "") => {}
                // Exchanges the first two sources, or the two results in braces.
                (true, "SWAP") => {
                    let mut parts: Vec<&str> = line.trim_end_matches(';').split(',').collect();
                    parts.swap(1, 2);
                    lines.push(parts.join(",") + ";");
                }
                (true, "EXCHANGE") => {
                    let (head, rest) = line.split_once('{').expect("two results");
                    let (pair, tail) = rest.split_once('}').expect("two results");
                    let (first, second) = pair.split_once(", ").expect("two results");
                    lines.push(format!("{head}{{{second}, {first}}}{tail}"));
                }
                (true, to) => {
                    assert!(line.contains(self.from), "{}: no {:?} in {line:?}", self.what, self.from);
                    lines.push(line.replacen(self.from, to, 1));
                }
            }
        }
        assert!(seen > self.nth, "{}: only {seen} lines with {:?}", self.what, self.line);
        lines.join("\n")
    }
}

/// A digest of the other tests: full and partial tiles, lines and planes of them, all flags, shared heads, additional keys,
/// short rows, poison, and the planner's counts.
fn suite(ptx: Option<String>) -> Result<(), String> {
    let device = Emulated::new(8, 0);
    if let Some(ptx) = ptx {
        device.replace(kernel().entry, ptx);
    }
    let flags = Params::new([2, 3, 5]).stride([1, 2, 1]).dilation([2, 1, 2]).is_causal([false, false, true]);
    let mut all = Case::new([5, 6, 13], flags.scale(-2.0)).dims(32, 24).heads(2, 1);
    all.additional = 70;
    run(&device, &all, [[1, 4, 16], [1, 8, 8]], false)?;
    let long = Case::new([1, 1, 420], Params::new([1, 1, 330]).scale(3.0)).dims(24, 32).heads(3, 3);
    run(&device, &long, [[1, 1, 64], [1, 1, 64]], true)?;
    let mut plane = Case::new([1, 11, 21], Params::new([1, 5, 9])).dims(24, 24).heads(3, 3);
    plane.additional = 5;
    run(&device, &plane, [[1, 4, 16], [1, 4, 16]], true)?;
    let mut volume = Case::new([11, 13, 20], Params::new([9, 10, 17])).dims(32, 16).heads(1, 1);
    volume.heads_first = true;
    run(&device, &volume, [[4, 4, 4], [4, 4, 4]], false)
}

/// Forward against the reference, on boxes of queries and keys; with poison, NaN fills all heads but one.
fn run(device: &Emulated, case: &Case, tiles: [[usize; 3]; 2], poison: bool) -> Result<(), String> {
    let [query_tile, key_tile] = tiles;
    let tiling = Tiling { query_tile, key_tile, key_start: KeyStart::Dynamic };
    let cuda = Cuda::new(device.clone()).with_request(Request { entry: Some(ENTRY), tiling: Some(tiling) });
    let mut operands = Operands::<f16>::draw(case);
    if poison {
        let (heads, dim, dim_v) = (case.heads, case.head_dim, case.head_dim_v);
        let tensors = [(&mut operands.query, dim), (&mut operands.key, dim), (&mut operands.value, dim_v)];
        for (tensor, length) in tensors {
            let rows = tensor.as_mut_slice().chunks_mut(length).enumerate();
            rows.filter(|(row, _)| row % heads != 1).for_each(|(_, values)| values.fill(f16::NAN));
        }
    }
    let problem = operands.problem(&case.params);
    device.take_counters();
    let (out, lse) = forward(&cuda, &problem, &OnDevice::upload(&cuda, &operands))?;
    close(&problem, &operands.inputs(), &out, &lse)?;
    let counters = device.take_counters().remove(ENTRY).unwrap_or_default();
    let (found, planned) = (counters.global_load_bytes, bytes_read(&problem, &tiling));
    let work = TileCounts::of(&problem, &tiling).issued * (problem.batch() * problem.heads()) as u64;
    if found != planned || counters.shared_bank_conflicts > 0 || counters.mma_flops != work * 4 * 32 {
        return Err(format!("{found} bytes read where {planned} were planned; {counters:?}"));
    }
    Ok(())
}

#[test]
fn mutations_are_caught() {
    suite(None).expect("the kernel as shipped");
    let survivors: Vec<&str> =
        MUTATIONS.iter().filter(|mutation| suite(Some(mutation.apply())).is_ok()).map(|m| m.what).collect();
    let caught = MUTATIONS.len() - survivors.len();
    println!("{caught} of {} mutations caught; not {survivors:?}", MUTATIONS.len());
    assert!(survivors.is_empty(), "not noticed: {survivors:?}");
}
