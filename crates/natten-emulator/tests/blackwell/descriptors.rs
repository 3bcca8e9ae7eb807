//! Descriptors with fields drawn at random: legal by the tables or refused by name, and nothing in between.

use natten_emulator::{DescriptorProblem, FaultKind, Launch, MatrixOperand, Options};

use crate::oracle::Fields;
use crate::problem::Draw;
use crate::support::Device;
use crate::text::{EPILOGUE, PROLOGUE, first, module};

/// One operation of descriptors that lie behind the parameter.
fn text() -> String {
    let mma = "ld.global.v2.u64 {%rd10, %rd11}, [%out];
        ld.global.u32 %r280, [%out+16];
        setp.ne.u32 %p1, %thread, %thread;
        tcgen05.mma.cta_group::1.kind::f16 [%base], %rd10, %rd11, %r280, %p1;
        tcgen05.commit.cta_group::1.mbarrier::arrive::one.b64 [%bar];
        DONE: mbarrier.try_wait.parity.shared::cta.b64 %p7, [%bar], 0;
        @!%p7 bra DONE;\n";
    module(&format!("{PROLOGUE}{}{EPILOGUE}", first(mma, "ISSUED")))
}

/// What became of it.
fn outcome(device: &Device, a: u64, b: u64, idesc: u64) -> Option<FaultKind> {
    let data = device.upload(&[a, b, idesc]);
    let launch = Launch::new([1, 1, 1], [32, 1, 1]).shared(224 << 10).arg(data.to_le_bytes());
    device.try_run("k", &launch).err().map(|fault| fault.kind)
}

/// Every field as it may be, or one of them as it happens.
fn draw_fields(draw: &mut Draw, fields: &Fields, small: &[(&str, u64)]) -> u64 {
    let names: Vec<(&str, u32)> = fields.names().collect();
    let spoilt = draw.below(2 * names.len() as u64) as usize;
    let value = |draw: &mut Draw, index: usize| {
        let (name, bits) = names[index];
        let limit =
            small.iter().find(|(other, _)| *other == name).map_or(2u64.pow(bits), |&(_, limit)| limit);
        match fields.allowed(name) {
            Some(values) if index != spoilt => draw.of(values),
            Some(_) => draw.below(2u64.pow(bits)),
            None => draw.below(limit),
        }
    };
    let values: Vec<(&str, u64)> =
        (0..names.len()).map(|index| (names[index].0, value(draw, index))).collect();
    fields.build(&values)
}

/// What the table of fields cannot say alone.
fn combines(idesc: u64) -> bool {
    let field = |first: u32, count: u32| idesc / 2u64.pow(first) % 2u64.pow(count);
    let half = field(4, 2) == 0;
    let elements = (field(7, 3), field(10, 3));
    !half || elements == (0, 0)
}

#[test]
fn every_field_is_looked_at() {
    // Contents do not matter here.
    let device = Device::with(&text(), Options { check_initialised: false, ..Options::default() });
    let (instructions, matrices) = (Fields::of_instructions(), Fields::of_matrices());
    let mut draw = Draw::new(9);
    let small = [("start", 2048), ("leading", 80), ("stride", 80)];
    let (mut ran, mut refused) = (0, 0);
    for _ in 0..4000 {
        let idesc = draw_fields(&mut draw, &instructions, &[]);
        let [a, b] = [0, 1].map(|_| draw_fields(&mut draw, &matrices, &small));
        // A base offset has no meaning without a swizzle.
        let strange = |bits: u64| bits / 2u64.pow(61) == 0 && !(bits / 2u64.pow(49)).is_multiple_of(8);
        let legal = |bits: u64| matrices.illegal(bits).is_none() && !strange(bits);
        let got = outcome(&device, a, b, idesc);
        let name = format!("A {a:#x}, B {b:#x}, idesc {idesc:#x}: {got:?}");
        let expected = if instructions.illegal(idesc).is_some() || !combines(idesc) {
            matches!(got, Some(FaultKind::InstructionDescriptor { bits, .. }) if u64::from(bits) == idesc)
        } else if !legal(a) {
            matches!(got, Some(FaultKind::MatrixDescriptor { bits, operand: MatrixOperand::A, .. }) if bits == a)
        } else if !legal(b) {
            matches!(got, Some(FaultKind::MatrixDescriptor { bits, operand: MatrixOperand::B, .. }) if bits == b)
        } else {
            ran += usize::from(got.is_none());
            // Where matrices lie is drawn too: beyond shared memory, or over the mbarriers.
            matches!(got, None | Some(FaultKind::OutOfBounds { .. } | FaultKind::MissingProxyFence { .. }))
        };
        refused += usize::from(got.is_some());
        assert!(expected, "{name}");
    }
    assert!(ran > 300 && refused > 1000, "{ran} ran, {refused} refused");
}

#[test]
fn what_is_not_modelled_is_called_so() {
    let device = Device::with(&text(), Options { check_initialised: false, ..Options::default() });
    let (instructions, matrices) = (Fields::of_instructions(), Fields::of_matrices());
    let good = matrices.build(&[("start", 128), ("leading", 8), ("stride", 16)]);
    let idesc = instructions.build(&[("d_type", 1), ("n", 2), ("m", 8)]);
    assert_eq!(outcome(&device, good, good, idesc), None);
    let problem = |a: u64, idesc: u64| match outcome(&device, a, good, idesc) {
        Some(
            FaultKind::InstructionDescriptor { problem, .. } | FaultKind::MatrixDescriptor { problem, .. },
        ) => problem,
        other => panic!("{other:?}"),
    };
    let is_not_modelled = |problem| matches!(problem, DescriptorProblem::NotModelled { .. });
    assert!(is_not_modelled(problem(good, idesc + 4)), "a sparse A");
    assert!(is_not_modelled(problem(good + 2u64.pow(52), idesc)), "an absolute leading dimension");
    assert!(is_not_modelled(problem(good + 2u64.pow(61), idesc)), "32-byte atoms");
}
