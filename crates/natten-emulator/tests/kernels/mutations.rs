//! Would these tests notice a broken kernel? Single edits of the shipped PTX, each of which they must catch.

use natten_core::{Params, Tensor, bf16, reference};
use natten_cuda::registry::kernels;
use natten_cuda::{Cuda, CudaError};
use natten_emulator::{Emulated, Options};

use crate::case::{Case, Numbers, OnDevice, Operands, backward, compare, forward, verify};

/// Replaces `from` by `to` in the one line that is the `nth` (from 0) of exactly `of` lines holding `line`.
struct Mutation {
    entry: &'static str,
    what: &'static str,
    line: &'static str,
    nth: usize,
    of: usize,
    from: &'static str,
    to: &'static str,
}

impl Mutation {
    fn apply(&self) -> String {
        let kernel = kernels().find(|kernel| kernel.entry == self.entry).expect("a shipped kernel");
        let places: Vec<usize> = kernel
            .ptx
            .lines()
            .enumerate()
            .filter(|(_, line)| line.contains(self.line))
            .map(|(number, _)| number)
            .collect();
        assert_eq!(places.len(), self.of, "{}: lines with {:?} in {}", self.what, self.line, self.entry);
        let edited = kernel.ptx.lines().enumerate().map(|(number, line)| {
            if number != places[self.nth] {
                return line.to_owned();
            }
            assert_eq!(line.matches(self.from).count(), 1, "{}: {:?} in {line:?}", self.what, self.from);
            line.replace(self.from, self.to)
        });
        edited.collect::<Vec<_>>().join("\n")
    }
}

/// A digest of the other tests, small enough to run for every mutation: shapes with borders in every axis, all flags,
/// grouped heads, additional keys, extreme scores, and poisoned tokens.
fn suite(cuda: &Cuda<Emulated>) -> Result<(), String> {
    let flags = Params::new([2, 3, 3]).stride([1, 2, 1]).dilation([2, 1, 2]).is_causal([false, false, true]);
    let mut all = Case::new([5, 6, 7], flags.scale(-0.4)).dims(64, 48).heads(4, 2);
    (all.batch, all.additional) = (2, 3);
    verify::<f32>(cuda, &all)?;
    all.heads_first = true;
    verify::<bf16>(cuda, &all)?;
    let plain = Case::new([3, 9, 11], Params::new([3, 5, 5])).dims(64, 64).heads(2, 2);
    verify::<f32>(cuda, &plain)?;
    verify::<bf16>(cuda, &plain)?;
    let odd = Case::new([1, 9, 8], Params::new([1, 4, 3]).is_causal([false, true, false])).dims(61, 37);
    verify::<f32>(cuda, &odd)?;
    extreme_scores(cuda)?;
    poisoned_token(cuda)
}

/// Rising scores far apart move the lazy maximum again and again; far below zero they test where it starts.
fn extreme_scores(cuda: &Cuda<Emulated>) -> Result<(), String> {
    let case = Case::new([1, 1, 24], Params::new([1, 1, 9]).scale(1.0)).dims(64, 64).heads(1, 1);
    for slope in [12.0, -25.0] {
        let mut operands = Operands::<f32>::draw(&case);
        for (query, key) in operands
            .query
            .as_mut_slice()
            .chunks_mut(64)
            .zip(operands.key.as_mut_slice().chunks_mut(64).enumerate())
        {
            query.fill(0.0);
            query[5] = slope;
            key.1.fill(0.0);
            key.1[5] = (key.0 + 1) as f32;
        }
        let problem = operands.problem(&case.params);
        let (out, lse) = forward(cuda, &problem, &OnDevice::upload(cuda, &operands))?;
        let expected = reference::forward(&problem, &operands.inputs());
        compare("out of extreme scores", &out, &expected.out)?;
        compare("lse of extreme scores", &lse, &expected.lse)?;
    }
    Ok(())
}

fn poisoned_token(cuda: &Cuda<Emulated>) -> Result<(), String> {
    let case = Case::new([1, 5, 8], Params::new([1, 3, 3])).dims(64, 64).heads(2, 2);
    let mut operands = Operands::<f32>::draw(&case);
    let row = ((2 * 8 + 5) * 2 + 1) * 64;
    operands.key.as_mut_slice()[row..row + 64].fill(f32::NAN);
    operands.value.as_mut_slice()[row..row + 64].fill(f32::INFINITY);
    let problem = operands.problem(&case.params);
    let device = OnDevice::upload(cuda, &operands);
    let (out, lse) = forward(cuda, &problem, &device)?;
    let expected = reference::forward(&problem, &operands.inputs());
    compare("out beside a poisoned token", &out, &expected.out)?;
    compare("lse beside a poisoned token", &lse, &expected.lse)?;
    let (out, lse): (Tensor<f32>, Tensor<f32>) = (expected.out.cast(), expected.lse.cast());
    let gradients = backward(cuda, &problem, &operands, &device, (&out, &lse, false))?;
    let is_nan = |row: &[f32]| row.iter().all(|x| x.is_nan());
    let poisoned: Vec<bool> = gradients.query.as_slice().chunks(64).map(is_nan).collect();
    let seeing: Vec<bool> = lse.as_slice().iter().map(|x| x.is_nan()).collect();
    if poisoned == seeing { Ok(()) } else { Err("d_query beside a poisoned token".to_owned()) }
}

#[test]
fn explore() {
    let Ok(entry) = std::env::var("MUT_ENTRY") else { return };
    let ops = [
        ("setp.lt.", "setp.le."),
        ("setp.ge.", "setp.gt."),
        ("setp.gt.", "setp.ge."),
        ("setp.eq.", "setp.ne."),
        ("min.s32", "max.s32"),
        ("max.s32", "min.s32"),
        ("add.f32", "sub.f32"),
        ("sub.f32", "add.f32"),
        ("shfl.sync.bfly", "shfl.sync.idx"),
        ("shfl.sync.idx", "shfl.sync.bfly"),
        ("setp.neu", "setp.ne"),
        ("and.pred", "or.pred"),
        ("or.pred", "and.pred"),
        ("add.s32", "sub.s32"),
        ("sub.s32", "add.s32"),
        ("add.s64", "sub.s64"),
        ("ld.param.u64", "XX"),
        ("selp.f32", "SWAP"),
    ];
    let kernel = kernels().find(|kernel| kernel.entry == entry).unwrap();
    let lines: Vec<&str> = kernel.ptx.lines().collect();
    let (mut total, mut caught) = (0, 0);
    let mut numbers = Numbers::new(3);
    for (from, to) in ops {
        let places: Vec<usize> = (0..lines.len()).filter(|&i| lines[i].contains(from)).collect();
        for (nth, &place) in places.iter().enumerate() {
            if places.len() > 14 && (numbers.draw() + 2.0) / 4.0 > 14.0 / places.len() as f64 {
                continue;
            }
            let mut edited: Vec<String> = lines.iter().map(|l| l.to_string()).collect();
            edited[place] = match to {
                "XX" => {
                    let l = lines[place];
                    let i = l.rfind(']').unwrap();
                    format!("{}+8{}", &l[..i], &l[i..]).replace("+8+8", "+8")
                }
                "SWAP" => {
                    let l = lines[place];
                    let parts: Vec<&str> = l.trim_end_matches(';').split(',').collect();
                    format!("{},{},{},{};", parts[0], parts[2], parts[1], parts[3])
                }
                _ => lines[place].replacen(from, to, 1),
            };
            let device = Emulated::new(8, 0);
            device.set_options(Options { ..Options::default() });
            device.replace(kernel.entry, edited.join("\n"));
            let cuda = Cuda::new(device);
            let result = suite(&cuda);
            total += 1;
            if result.is_err() {
                caught += 1
            } else {
                println!("SURVIVED {from}->{to} nth {nth}/{} : {}", places.len(), lines[place]);
            }
        }
    }
    println!("{caught} of {total}");
    let _: Option<CudaError> = None;
}
