//! Would the tests of kernels on tiles notice a broken kernel? Single edits of its PTX, each of which they must catch.

use natten_core::{Params, f16};
use natten_cuda::Cuda;
use natten_cuda::registry::{Kernel, kernels};
use natten_cuda::tiles::Request;
use natten_emulator::Emulated;

use crate::case::{Case, OnDevice, Operands, forward};
use crate::tiles::close;

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

/// Barriers and waits come in the order: start, keys described, (negative scale,) queries there, then two in each of the
/// loops over full and partial tiles, and the end. One edit is not here because nothing here can see it: the barrier at the
/// end matters only where a list of keys is empty.
const MUTATIONS: &[Mutation] = &[
    edit("queries not awaited", "cp.async.wait_group", 0, "wait_group 2", "wait_group 3"),
    edit("full: K not awaited", "cp.async.wait_group", 1, "wait_group 1", "wait_group 2"),
    edit("full: V not awaited", "cp.async.wait_group", 2, "wait_group 1", "wait_group 2"),
    edit("partial: K not awaited", "cp.async.wait_group", 3, "wait_group 1", "wait_group 2"),
    edit("partial: V not awaited", "cp.async.wait_group", 4, "wait_group 1", "wait_group 2"),
    edit("keys described unseen", "bar.sync", 1, "bar.sync", ""),
    edit("queries of other threads", "bar.sync", 3, "bar.sync", ""),
    edit("full: no barrier before K", "bar.sync", 4, "bar.sync", ""),
    edit("full: no barrier before V", "bar.sync", 5, "bar.sync", ""),
    edit("partial: no barrier before K", "bar.sync", 6, "bar.sync", ""),
    edit("partial: no barrier before V", "bar.sync", 7, "bar.sync", ""),
    edit("lanes of a warp not synchronised", "bar.warp.sync", 0, "bar.warp.sync", ""),
    edit("full: a group left open", "cp.async.commit_group", 3, "cp.async", ""),
    edit("V not transposed", ".trans.", 0, ".trans.", "."),
    edit("V not transposed under masks", ".trans.", 8, ".trans.", "."),
    edit("full: a product dropped", "mma.sync", 5, "mma.sync", ""),
    edit("partial: a product dropped", "mma.sync", 60, "mma.sync", ""),
    edit("full: references never move", "setp.ne.u32 holds", 6, "setp.ne", "setp.lt"),
    edit("a masked score counts", "0fFF800000, %p", 1, "0fFF800000", "0f00000000"),
    edit("weights swapped", "cvt.rn.f16x2.f32", 0, "cvt.rn", "SWAP"),
    edit("one quad lane not summed", "shfl.sync.bfly", 11, "bfly", "idx"),
    edit("mask of another row", "shfl.sync.idx", 1, "shfl.sync.idx", "shfl.sync.bfly"),
    edit("log taken for exponential", "lg2.approx", 0, "lg2", "ex2"),
    edit("sum not inverted", "rcp.approx", 0, "rcp", "sqrt"),
    edit("borders not zeroed", "0, 16, %p", 0, "0, 16", "16, 16"),
    edit("columns beyond head_dim read", "16, 0, %p", 0, "16, 0", "16, 16"),
    edit("the sign of the scale lost", "xor.b32", 6, "xor.b32", "or.b32"),
    edit("window ends not removed", "not.b64", 0, "not.b64", "mov.b64"),
    edit("window starts not removed", "not.b64", 2, "not.b64", "mov.b64"),
];

fn kernel() -> &'static Kernel {
    kernels().find(|kernel| kernel.entry == ENTRY).expect("a shipped kernel")
}

impl Mutation {
    fn apply(&self) -> String {
        let mut seen = 0;
        let mut lines = Vec::new();
        for line in kernel().ptx.lines() {
            let hit = line.contains(self.line) && seen == self.nth;
            seen += usize::from(line.contains(self.line));
            match (hit, self.to) {
                (false, _) => lines.push(line.to_owned()),
                (true, "") => {}
                (true, "SWAP") => {
                    let parts: Vec<&str> = line.trim_end_matches(';').split(',').collect();
                    lines.push(format!("{},{},{};", parts[0], parts[2], parts[1]));
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

/// A digest of the other tests: full and partial tiles, all flags, shared heads, additional keys, short rows, poison.
fn suite(ptx: Option<String>) -> Result<(), String> {
    let device = Emulated::new(8, 0);
    if let Some(ptx) = ptx {
        device.replace(kernel().entry, ptx);
    }
    let cuda = Cuda::new(device).with_request(Request { entry: Some(ENTRY), tiling: None });
    let flags = Params::new([2, 3, 5]).stride([1, 2, 1]).dilation([2, 1, 2]).is_causal([false, false, true]);
    let mut all = Case::new([5, 6, 13], flags.scale(-2.0)).dims(32, 24).heads(2, 1);
    all.additional = 70;
    run(&cuda, &all, false)?;
    let long = Case::new([1, 1, 420], Params::new([1, 1, 330]).scale(3.0)).dims(24, 32).heads(3, 3);
    run(&cuda, &long, true)?;
    run(&cuda, &Case::new([1, 11, 21], Params::new([1, 5, 9])).dims(24, 24).heads(3, 3), true)
}

/// Forward against the reference; with poison, NaN fills all heads but one.
fn run(cuda: &Cuda<Emulated>, case: &Case, poison: bool) -> Result<(), String> {
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
    let (out, lse) = forward(cuda, &problem, &OnDevice::upload(cuda, &operands))?;
    close(&problem, &operands.inputs(), &out, &lse)
}

#[test]
fn every_mutation_is_caught() {
    suite(None).expect("the kernel as shipped");
    let survivors: Vec<&str> =
        MUTATIONS.iter().filter(|mutation| suite(Some(mutation.apply())).is_ok()).map(|m| m.what).collect();
    assert!(survivors.is_empty(), "of {}: {survivors:#?}", MUTATIONS.len());
}
