//! Would these tests notice a broken Hopper kernel? Single edits of the shipped PTX: every wait, arrival, fence, byte
//! count, descriptor, turn and store, one at a time.

use natten_core::{Params, f16};
use natten_cuda::Cuda;
use natten_cuda::registry::{Facts, by_name};
use natten_emulator::{Completion, Emulated, Options};

use crate::case::Case;
use crate::sm90::verify;

/// In each line that holds `line`, one at a time, `from` becomes `to`.
struct Mutation {
    what: &'static str,
    line: &'static str,
    from: &'static str,
    to: &'static str,
}

const fn edit(what: &'static str, line: &'static str, from: &'static str, to: &'static str) -> Mutation {
    Mutation { what, line, from, to }
}

/// Edits that change nothing but speed (the first turn), that ptxas undoes (a fence before the second product), or that the
/// emulator does not model are here too, and count as not noticed.
const MUTATIONS: &[Mutation] = &[
    edit("a wait that never waits", "mbarrier.try_wait", "1, 0, over", "1, 1, over"),
    edit("a wait for the other phase", "mbarrier.try_wait", "mbarrier.try_wait", "{FLIP}mbarrier.try_wait"),
    edit("an arrival less", "mbarrier.arrive.shared", "mbarrier.arrive", "//"),
    edit("bytes announced wrong", "mbarrier.arrive.expect_tx", "], %r", "], 64;//"),
    edit("one arrival more expected", "mbarrier.init", ";", "_MORE;"),
    edit("products never committed", "wgmma.commit_group", "wgmma", "//"),
    edit("a wait for one group less", "wgmma.wait_group.sync.aligned 0", "aligned 0", "aligned 1"),
    edit("a wait for no group", "wgmma.wait_group.sync.aligned 1", "aligned 1", "aligned 2"),
    edit("barriers not shown to the copy engine", "fence.mbarrier_init", "{TWO}", "//"),
    edit("turns not taken", "barrier.cta.sync.aligned", "barrier", "//"),
    edit("turns not passed", "barrier.cta.arrive.aligned", "barrier", "//"),
    edit("the block not synchronised", "barrier.sync \t0;", "barrier", "//"),
    edit("values not transposed", "wgmma.mma_async", ", 1, 1, 1, 1;", ", 1, 1, 1, 0;"),
    edit("scores added up over tiles", "wgmma.mma_async", ", 0, 1, 1, 0, 0;", ", 1, 1, 1, 0, 0;"),
    edit("a box at the wrong place", "cp.async.bulk.tensor", "], [%r", "+128], [%r"),
    edit("tiles of all residues taken for residues", "ld.param.u32", "+36];", "+0];"),
    edit("residues of the next axis", "add.s64", ", 912;", ", 924;"),
    edit("a wrong swizzle", "4611686", "4611686", "9223372"),
    edit("a hidden score kept", "0fFF800000", "0fFF800000", "0f447A0000"),
    edit("the reference never moved", "0f41000000", "0f41000000", "0f7F000000"),
    edit("an exchange between the wrong lanes", "shfl.sync.bfly", ", 1, 31", ", 4, 31"),
    edit("an exchange between the wrong lanes", "shfl.sync.bfly", ", 2, 31", ", 8, 31"),
    edit("one of each two queries' signs kept", "xor.b32", ", -2147450880;", ", -2147483648;"),
    edit("writes not fenced from the copy engine and products", "fence.proxy.async", "fence", "//"),
    edit("registers not fenced from products", "wgmma.fence", "wgmma", "//"),
    edit("lanes not awaited", "bar.warp.sync", "bar", "//"),
    edit("registers not given up", "setmaxnreg.dec", "setmaxnreg", "//"),
    edit("registers not taken", "setmaxnreg.inc", "setmaxnreg", "//"),
    edit("the producer keeps too many registers", "setmaxnreg.dec", "40;", "48;"),
    edit("consumers ask for too many registers", "setmaxnreg.inc", "232;", "240;"),
    edit("weights in another base", "ex2.approx", "ex2.approx.ftz.f32", "lg2.approx.ftz.f32"),
    edit("pairs packed wrongly", "cvt.rn.f16x2", "cvt.rn.f16x2.f32", "cvt.rn.bf16x2.f32"),
];

/// Items of one tile, of residues that differ in length; a grid of masked tiles, grouped heads, additional keys, a negative scale; a row of full
/// tiles with scores so large that weights overflow unless the reference moves.
fn suite(entry: &'static str, ptx: &str) -> Result<(), String> {
    let head_dim = by_name(entry).expect("a shipped kernel").longest_row();
    let small = Case::new([1, 1, 32], Params::new([1, 1, 5]).dilation([1, 1, 5])).heads(3, 3);
    let params = Params::new([1, 9, 13]).is_causal([false, true, false]);
    let mut grid = Case::new([1, 12, 25], params.scale(-0.5)).heads(2, 1);
    grid.additional = 125;
    let row = Case::new([1, 1, 640], Params::new([1, 1, 540]).scale(2.0)).heads(1, 1);
    for case in [small, grid, row] {
        let random = (1..4).map(|seed| (seed, Completion::Random));
        for (seed, completion) in [(0, Completion::Latest)].into_iter().chain(random) {
            let device = Emulated::new(9, 0);
            device.set_options(Options { seed, completion, ..Options::default() });
            device.replace(entry, ptx.to_owned());
            let case = case.clone().dims(head_dim, head_dim);
            verify::<f16>(&Cuda::new(device), Some(entry), &case)
                .map_err(|error| format!("{completion:?}: {error}"))?;
        }
    }
    Ok(())
}

/// Edits after which the kernel is still right by the ISA survive. Of the two fences that publish fresh barriers to the copy
/// engine one is enough, so they also go together ("{TWO}": the line and the next). A fence before the second product of a
/// step is one more than the rules ask for, since nothing touches its registers after the first. Where a warp's lanes
/// meet after describing rows, a barrier follows before anyone reads them.
fn run(entry: &'static str) -> (usize, Vec<String>) {
    let kernel = by_name(entry).expect("a shipped kernel");
    let text = kernel.ptx();
    let lines: Vec<&str> = text.lines().collect();
    let (mut caught, mut survivors) = (0, Vec::new());
    for mutation in MUTATIONS {
        let places = (0..lines.len())
            .filter(|&at| lines[at].contains(mutation.line))
            .filter(|&at| lines[at].contains(mutation.from) || mutation.from == "{TWO}");
        let places: Vec<usize> = places.collect();
        // Long runs of the same instruction: the ends and the middle stand for all.
        let picked: Vec<usize> = if places.len() > 14 {
            vec![0, places.len() / 2, places.len() - 1]
        } else {
            (0..places.len()).collect()
        };
        for nth in picked {
            let mut edited: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
            edited[places[nth]] = change(lines[places[nth]], mutation);
            if mutation.from == "{TWO}" {
                edited[places[nth]..places[nth] + 2].fill("//".to_owned());
            }
            match suite(entry, &edited.join("\n")) {
                Err(_) => caught += 1,
                Ok(()) => survivors.push(format!(
                    "{} ({nth} of {}): {}",
                    mutation.what,
                    places.len(),
                    lines[places[nth]]
                )),
            }
        }
    }
    (caught, survivors)
}

fn change(line: &str, mutation: &Mutation) -> String {
    if mutation.to.starts_with("{FLIP}") {
        // `[%bar], %parity;` becomes a wait for the other parity.
        let (head, tail) = line.split_once("], ").expect("a parity");
        let (parity, rest) = tail.split_once(';').expect("an end");
        let head = head.replacen("{ .reg .pred over;", "{ .reg .pred over; .reg .b32 other;", 1);
        let head =
            head.replacen("mbarrier.try_wait", &format!("xor.b32 other, {parity}, 1; mbarrier.try_wait"), 1);
        return format!("{head}], other;{rest}");
    }
    if mutation.to == "_MORE;" {
        let (head, count) = line.trim_end_matches(';').rsplit_once(", ").expect("a count");
        return format!("{{ .reg .b32 more; add.s32 more, {count}, 1; {head}, more; }}");
    }
    line.replacen(mutation.from, mutation.to, 1)
}

#[test]
fn broken_kernels_are_noticed() {
    let kernel = "natten_forward_sm90_f16_d128";
    let shipped = by_name(kernel).expect("a shipped kernel");
    suite(shipped.entry, &shipped.ptx()).expect("the kernel as it ships");
    let (caught, survivors) = run(shipped.entry);
    println!("{caught} noticed, {} not: {survivors:#?}", survivors.len());
    let all = caught + survivors.len();
    assert!(all >= 100 && caught * 100 >= all * 95, "{caught} of {all} noticed, not: {survivors:#?}");
}
