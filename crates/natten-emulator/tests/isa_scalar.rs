//! Scalar instructions against values worked out from the PTX manual, never from the emulator.

mod support;

use support::eval;

/// Instruction, inputs a b c, expected d.
type Case = (&'static str, [u32; 3], u32);

fn check(cases: &[Case]) {
    for (body, inputs, expected) in cases {
        let got = eval(body, &[*inputs])[0];
        assert_eq!(got, *expected, "{body} of {inputs:x?}: {got:#x} is not {expected:#x}");
    }
}

const fn f(x: f32) -> u32 {
    x.to_bits()
}

const M: u32 = u32::MAX;
const MIN: u32 = 0x8000_0000;
const NAN: u32 = 0x7fff_ffff;
const INF: u32 = 0x7f80_0000;

#[test]
fn integers() {
    check(&[
        ("add.s32 %d, %a, %b;", [M, 2, 0], 1),
        ("add.sat.s32 %d, %a, %b;", [0x7fff_ffff, 1, 0], 0x7fff_ffff),
        ("sub.sat.s32 %d, %a, %b;", [MIN, 1, 0], MIN),
        ("mul.hi.u32 %d, %a, %b;", [M, M, 0], M - 1),
        ("mul.hi.s32 %d, %a, %b;", [M, M, 0], 0),
        ("mul24.lo.s32 %d, %a, %b;", [0x00ff_ffff, 3, 0], (-3i32) as u32),
        ("div.s32 %d, %a, %b;", [(-7i32) as u32, 2, 0], (-3i32) as u32),
        ("rem.s32 %d, %a, %b;", [(-7i32) as u32, 2, 0], M),
        ("mad.hi.u32 %d, %a, %b, %c;", [MIN, 4, 5], 7),
        ("sad.s32 %d, %a, %b, %c;", [MIN, 0x7fff_ffff, 1], 0),
        ("popc.b32 %d, %a;", [0xf0f0_0001, 0, 0], 9),
        ("clz.b32 %d, %a;", [0, 0, 0], 32),
        ("bfind.u32 %d, %a;", [0x0000_8000, 0, 0], 15),
        ("bfind.s32 %d, %a;", [0xffff_7fff, 0, 0], 15),
        ("bfind.u32 %d, %a;", [0, 0, 0], M),
        ("bfind.shiftamt.u32 %d, %a;", [0x0000_8000, 0, 0], 16),
        ("brev.b32 %d, %a;", [1, 0, 0], MIN),
        ("dp4a.s32.s32 %d, %a, %b, %c;", [0x01ff_0203, 0x0102_0304, 10], 10 + 1 - 2 + 6 + 12),
        ("min.s32 %d, %a, %b;", [M, 1, 0], M),
        ("min.u32 %d, %a, %b;", [M, 1, 0], 1),
        ("cnot.b32 %d, %a;", [0, 0, 0], 1),
        ("abs.s32 %d, %a;", [(-5i32) as u32, 0, 0], 5),
    ]);
}

#[test]
fn shifts_clamp_and_funnels_wrap() {
    check(&[
        ("shl.b32 %d, %a, %b;", [1, 32, 0], 0),
        ("shr.s32 %d, %a, %b;", [MIN, 40, 0], M),
        ("shr.u32 %d, %a, %b;", [MIN, 31, 0], 1),
        ("shf.l.clamp.b32 %d, %a, %b, %c;", [0x1234_5678, 0x9abc_def0, 32], 0x1234_5678),
        ("shf.l.wrap.b32 %d, %a, %b, %c;", [0x1234_5678, 0x9abc_def0, 36], 0xabcd_ef01),
        ("shf.r.wrap.b32 %d, %a, %b, %c;", [0x1234_5678, 0x9abc_def0, 4], 0x0123_4567),
        ("shf.r.clamp.b32 %d, %a, %b, %c;", [0x1234_5678, 0x9abc_def0, 99], 0x9abc_def0),
        ("shl.b16 %h, %ha, %b; cvt.u32.u16 %d, %h;", [0xffff, 16, 0], 0),
        ("shr.s16 %h, %ha, %b; cvt.u32.u16 %d, %h;", [0x8000, 99, 0], 0xffff),
        ("mov.b64 %x, {%a, %b}; shl.b64 %x, %x, %c; mov.b64 {%t, %d}, %x;", [M, 0, 4], 15),
        ("mov.b64 %x, {%a, %b}; shr.s64 %x, %x, %c; mov.b64 {%d, %t}, %x;", [0, MIN, 63], M),
    ]);
}

#[test]
fn bit_fields_and_bytes() {
    check(&[
        ("bfe.u32 %d, %a, %b, %c;", [0x1234_5678, 8, 8], 0x56),
        ("bfe.s32 %d, %a, %b, %c;", [0x0000_8000, 8, 8], 0xffff_ff80),
        // A field past the top is filled with the operand's sign.
        ("bfe.s32 %d, %a, %b, %c;", [MIN, 28, 8], 0xffff_fff8),
        ("bfe.u32 %d, %a, %b, %c;", [M, 0, 0], 0),
        ("bfi.b32 %d, %a, %b, 8, 8;", [0xab, 0x1122_3344, 0], 0x1122_ab44),
        ("bfi.b32 %d, %a, %b, 28, 8;", [0xff, 0, 0], 0xf000_0000),
        ("lop3.b32 %d, %a, %b, %c, 0xe8;", [0b1100, 0b1010, 0b0110], 0b1110),
        ("lop3.b32 %d, %a, %b, %c, 0x96;", [0b1100, 0b1010, 0b0110], 0b0000),
        // The manual's immediates: 0xf0 is a, 0xcc is b, 0xaa is c.
        ("lop3.b32 %d, %a, %b, %c, 0xf0;", [1, 2, 4], 1),
        ("lop3.b32 %d, %a, %b, %c, 0xcc;", [1, 2, 4], 2),
        ("lop3.b32 %d, %a, %b, %c, 0xaa;", [1, 2, 4], 4),
        ("prmt.b32 %d, %a, %b, %c;", [0x3322_1100, 0x7766_5544, 0x7531], 0x7755_3311),
        ("prmt.b32 %d, %a, %b, %c;", [0x0000_8000, 0, 0x0009], 0x0000_00ff),
        ("prmt.b32.f4e %d, %a, %b, %c;", [0x3322_1100, 0x7766_5544, 1], 0x4433_2211),
        ("prmt.b32.b4e %d, %a, %b, %c;", [0x3322_1100, 0x7766_5544, 1], 0x6677_0011),
        ("prmt.b32.rc16 %d, %a, %b, %c;", [0x3322_1100, 0, 1], 0x3322_3322),
        ("add.cc.u32 %t, %a, %b; addc.u32 %d, %c, 0;", [M, 1, 5], 6),
        ("sub.cc.u32 %t, %a, %b; subc.u32 %d, %c, 0;", [0, 1, 5], 4),
    ]);
}

#[test]
fn floats_round_flush_and_saturate() {
    let tiny = 1; // smallest subnormal
    check(&[
        ("add.f32 %fd, %fa, %fb;", [f(1.0), f(2f32.powi(-24)), 0], f(1.0)),
        ("add.rp.f32 %fd, %fa, %fb;", [f(1.0), f(2f32.powi(-60)), 0], f(1.0) + 1),
        ("add.rz.f32 %fd, %fa, %fb;", [f(1.0), f(-2f32.powi(-60)), 0], f(1.0) - 1),
        ("add.rm.f32 %fd, %fa, %fb;", [f(1.0), f(-1.0), 0], MIN),
        ("mul.ftz.f32 %fd, %fa, %fb;", [f(f32::MIN_POSITIVE), f(-0.5), 0], MIN),
        ("mul.f32 %fd, %fa, %fb;", [f(f32::MIN_POSITIVE), f(0.5), 0], 0x0040_0000),
        ("add.ftz.f32 %fd, %fa, %fb;", [tiny, tiny, 0], 0),
        ("add.sat.f32 %fd, %fa, %fb;", [f(1.0), f(3.0), 0], f(1.0)),
        ("add.sat.f32 %fd, %fa, %fb;", [INF, 0xff80_0000, 0], 0),
        ("sub.f32 %fd, %fa, %fb;", [INF, INF, 0], NAN),
        ("div.rn.f32 %fd, %fa, %fb;", [f(1.0), f(3.0), 0], 0x3eaa_aaab),
        ("div.rz.f32 %fd, %fa, %fb;", [f(1.0), f(3.0), 0], 0x3eaa_aaaa),
        ("sqrt.rp.f32 %fd, %fa;", [f(2.0), 0, 0], 0x3fb5_04f4),
        ("sqrt.rn.f32 %fd, %fa;", [f(2.0), 0, 0], 0x3fb5_04f3),
        ("rcp.rn.f32 %fd, %fa;", [0, 0, 0], INF),
        ("ex2.approx.ftz.f32 %fd, %fa;", [f(-3.0), 0, 0], f(0.125)),
        ("ex2.approx.ftz.f32 %fd, %fa;", [0xff80_0000, 0, 0], 0),
        ("ex2.approx.f32 %fd, %fa;", [f(-149.0), 0, 0], tiny),
        ("lg2.approx.f32 %fd, %fa;", [f(8.0), 0, 0], f(3.0)),
        ("rsqrt.approx.f32 %fd, %fa;", [f(4.0), 0, 0], f(0.5)),
        ("min.f32 %fd, %fa, %fb;", [NAN, f(2.0), 0], f(2.0)),
        ("min.NaN.f32 %fd, %fa, %fb;", [NAN, f(2.0), 0], NAN),
        ("max.f32 %fd, %fa, %fb;", [MIN, 0, 0], 0),
        ("min.f32 %fd, %fa, %fb;", [0, MIN, 0], MIN),
    ]);
}

#[test]
fn fma_rounds_once() {
    let a = f(1.0 + 2f32.powi(-12));
    check(&[
        // (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24: a tie without the addend, above it with it.
        ("fma.rn.f32 %fd, %fa, %fb, %fc;", [a, a, 0], f(1.0 + 2f32.powi(-11))),
        ("fma.rn.f32 %fd, %fa, %fb, %fc;", [a, a, f(2f32.powi(-80))], f(1.0 + 2f32.powi(-11)) + 1),
        ("fma.rn.f32 %fd, %fa, %fb, %fc;", [a, a, f(-2f32.powi(-80))], f(1.0 + 2f32.powi(-11))),
        ("fma.rz.f32 %fd, %fa, %fb, %fc;", [a, a, f(-1.0)], f(2f32.powi(-11) + 2f32.powi(-24))),
        // A subnormal result: 2^-149 * 1.5 lies on a tie, and a bit more goes up.
        ("fma.rn.f32 %fd, %fa, %fb, %fc;", [f(2f32.powi(-100)), f(1.5 * 2f32.powi(-49)), 0], 2),
        ("fma.rn.f32 %fd, %fa, %fb, %fc;", [f(2f32.powi(-100)), f(2f32.powi(-50)), 0], 0),
    ]);
}

#[test]
fn comparisons_with_nan() {
    for (name, on_nan, on_less) in [
        ("eq", 0, 0),
        ("ne", 0, 1),
        ("lt", 0, 1),
        ("le", 0, 1),
        ("gt", 0, 0),
        ("ge", 0, 0),
        ("equ", 1, 0),
        ("neu", 1, 1),
        ("ltu", 1, 1),
        ("leu", 1, 1),
        ("gtu", 1, 0),
        ("geu", 1, 0),
        ("num", 0, 1),
        ("nan", 1, 0),
    ] {
        let body = format!("setp.{name}.f32 %p, %fa, %fb; selp.u32 %d, 1, 0, %p;");
        assert_eq!(eval(&body, &[[NAN, f(1.0), 0]])[0], on_nan, "{name}");
        assert_eq!(eval(&body, &[[f(-1.0), f(1.0), 0]])[0], on_less, "{name}");
    }
    check(&[
        ("setp.lt.u32 %p, %a, %b; selp.u32 %d, 1, 0, %p;", [1, M, 0], 1),
        ("setp.lt.s32 %p, %a, %b; selp.u32 %d, 1, 0, %p;", [1, M, 0], 0),
        ("setp.ne.s32 %q, %c, 0; setp.lt.and.s32 %p, %a, %b, !%q; selp.u32 %d, 1, 0, %p;", [0, 1, 0], 1),
        ("set.lt.f32.s32 %fd, %a, %b;", [0, 1, 0], f(1.0)),
        ("slct.b32.s32 %d, %a, %b, %c;", [7, 8, M], 8),
    ]);
}

#[test]
fn conversions() {
    check(&[
        ("cvt.rzi.s32.f32 %d, %fa;", [f(-2.7), 0, 0], (-2i32) as u32),
        ("cvt.rni.s32.f32 %d, %fa;", [f(2.5), 0, 0], 2),
        ("cvt.rpi.s32.f32 %d, %fa;", [f(2.1), 0, 0], 3),
        ("cvt.rmi.s32.f32 %d, %fa;", [f(-2.1), 0, 0], (-3i32) as u32),
        ("cvt.rzi.u32.f32 %d, %fa;", [f(-5.0), 0, 0], 0),
        ("cvt.rzi.s32.f32 %d, %fa;", [f(3e10), 0, 0], 0x7fff_ffff),
        ("cvt.rzi.s32.f32 %d, %fa;", [NAN, 0, 0], 0),
        ("cvt.rn.f32.s32 %fd, %a;", [0x0100_0001, 0, 0], f(16_777_216.0)),
        ("cvt.rp.f32.u32 %fd, %a;", [0x0100_0001, 0, 0], f(16_777_218.0)),
        ("cvt.rn.f16.f32 %h, %fa; cvt.u32.u16 %d, %h;", [f(65519.0), 0, 0], 0x7bff),
        ("cvt.rn.f16.f32 %h, %fa; cvt.u32.u16 %d, %h;", [f(65520.0), 0, 0], 0x7c00),
        ("cvt.rz.f16.f32 %h, %fa; cvt.u32.u16 %d, %h;", [f(1e9), 0, 0], 0x7bff),
        ("cvt.rn.f16.f32 %h, %fa; cvt.u32.u16 %d, %h;", [f(2f32.powi(-25)), 0, 0], 0),
        ("cvt.rn.f16.f32 %h, %fa; cvt.u32.u16 %d, %h;", [f(1.5 * 2f32.powi(-25)), 0, 0], 1),
        ("cvt.f32.f16 %fd, %ha;", [0x0001, 0, 0], f(2f32.powi(-24))),
        ("cvt.f32.f16 %fd, %ha;", [0xfc00, 0, 0], 0xff80_0000),
        ("cvt.rn.bf16.f32 %h, %fa; cvt.u32.u16 %d, %h;", [0x3f80_8000, 0, 0], 0x3f80),
        ("cvt.rn.bf16.f32 %h, %fa; cvt.u32.u16 %d, %h;", [0x3f81_8000, 0, 0], 0x3f82),
        // The first source goes to the upper half.
        ("cvt.rn.bf16x2.f32 %d, %fa, %fb;", [f(1.0), f(2.0), 0], 0x3f80_4000),
        ("cvt.rn.f16x2.f32 %d, %fa, %fb;", [f(1.0), f(2.0), 0], 0x3c00_4000),
        ("cvt.rn.relu.f16x2.f32 %d, %fa, %fb;", [f(-1.0), f(2.0), 0], 0x0000_4000),
        ("cvt.rna.tf32.f32 %d, %fa;", [0x3f80_1000, 0, 0], 0x3f80_2000),
        ("cvt.sat.f32.f32 %fd, %fa;", [f(-3.0), 0, 0], 0),
        ("cvt.rni.f32.f32 %fd, %fa;", [f(3.5), 0, 0], f(4.0)),
        ("cvt.s32.s8 %d, %a;", [0x80, 0, 0], 0xffff_ff80),
        ("cvt.sat.u8.s32 %d, %a;", [300, 0, 0], 255),
        ("cvt.s64.s32 %x, %a; mov.b64 {%t, %d}, %x;", [MIN, 0, 0], M),
        ("cvt.f64.f32 %x, %fa; cvt.rz.f32.f64 %fd, %x;", [f(0.1), 0, 0], f(0.1)),
    ]);
}

#[test]
fn half_precision() {
    check(&[
        ("add.f16x2 %d, %a, %b;", [0x3c00_4000, 0x3c00_3c00, 0], 0x4000_4200),
        ("mul.f16x2 %d, %a, %b;", [0x7bff_3c00, 0x4000_3c00, 0], 0x7c00_3c00),
        ("fma.rn.f16x2 %d, %a, %b, %c;", [0x4200_3c00, 0x4200_3c00, 0x3c00_3c00], 0x4900_4000),
        ("fma.rn.bf16x2 %d, %a, %b, %c;", [0x4040_3f80, 0x4040_3f80, 0x3f80_3f80], 0x4120_4000),
        // (1 + 2^-7)^2 in bf16: 1 + 2^-6 + 2^-14 rounds down, and a nudge over the tie goes up.
        ("fma.rn.bf16x2 %d, %a, %b, %c;", [0x3f81, 0x3f81, 0x3b7c], 0x3f82),
        ("max.bf16x2 %d, %a, %b;", [0x7fff_bf80, 0x3f80_3f80, 0], 0x3f80_3f80),
        ("min.NaN.f16x2 %d, %a, %b;", [0x7e00_bc00, 0x3c00_3c00, 0], 0x7fff_bc00),
        ("neg.f16x2 %d, %a;", [0x3c00_bc00, 0, 0], 0xbc00_3c00),
        ("setp.lt.f16 %p, %ha, %hb; selp.u32 %d, 1, 0, %p;", [0xbc00, 0x3c00, 0], 1),
    ]);
}

/// What an H100 answered where the manual leaves room: NaN payloads and clamped zeros.
#[test]
fn corners_as_the_hardware_has_them() {
    check(&[
        ("abs.f32 %fd, %fa;", [0xffc1_2345, 0, 0], NAN),
        ("neg.f32 %fd, %fa;", [0x7f80_0001, 0, 0], NAN),
        ("neg.f16x2 %d, %a;", [0xff80_0000, 0, 0], 0x7fff_8000),
        ("abs.bf16x2 %d, %a;", [0xffc1_2345, 0, 0], 0x7fff_2345),
        ("neg.bf16x2 %d, %a;", [0x7f80_0001, 0, 0], 0xff80_8001),
        ("cvt.rn.relu.f16x2.f32 %d, %fa, %fb;", [MIN, M, 0], 0x0000_7fff),
        ("cvt.rn.relu.bf16x2.f32 %d, %fa, %fb;", [0x7f7f_ffff, 0xff7f_ffff, 0], 0x7f80_0000),
        ("fma.rn.relu.f16x2 %d, %a, %b, %c;", [0xbf80_8000, 0x3c00_3c00, 0], 0),
        ("cvt.rna.tf32.f32 %d, %fa;", [0xffc1_2345, 0, 0], 0xffc1_2000),
        ("cvt.rna.tf32.f32 %d, %fa;", [0x7f7f_ffff, 0, 0], INF),
        ("cvt.rna.tf32.f32 %d, %fa;", [0x7f80_0001, 0, 0], INF),
    ]);
}

/// `shfl` by the manual's pseudo-code.
fn shuffle(mode: &str, a: &[u32; 32], b: u32, c: u32) -> Vec<u32> {
    (0..32u32)
        .map(|lane| {
            let segment = (c >> 8) & 0x1f;
            let clamp = c & 0x1f;
            let max_lane = (lane & segment) | (clamp & !segment);
            let min_lane = lane & segment;
            let (b, lane_i) = ((b & 0x1f) as i32, lane as i32);
            let (j, p) = match mode {
                "up" => (lane_i - b, lane_i - b >= max_lane as i32),
                "down" => (lane_i + b, lane_i + b <= max_lane as i32),
                "bfly" => (lane_i ^ b, (lane_i ^ b) <= max_lane as i32),
                _ => {
                    let j = (min_lane | (b as u32 & !segment)) as i32;
                    (j, j <= max_lane as i32)
                }
            };
            let source = if p { j as usize } else { lane as usize };
            2 * a[source] + u32::from(p)
        })
        .collect()
}

#[test]
fn shuffles_of_every_mode_and_segment() {
    let a: [u32; 32] = std::array::from_fn(|i| (i as u32).wrapping_mul(2654435761) >> 4);
    for mode in ["up", "down", "bfly", "idx"] {
        for c in [0x00u32, 0x1f, 0x101f, 0x181f, 0x1c1f, 0x1000, 0x1e01] {
            for b in [0u32, 1, 5, 16, 31] {
                let body = format!(
                    "shfl.sync.{mode}.b32 %t|%p, %a, {b}, {c}, 0xffffffff; selp.u32 %u, 1, 0, %p; mad.lo.u32 %d, %t, 2, %u;"
                );
                let inputs: Vec<[u32; 3]> = a.iter().map(|&x| [x, 0, 0]).collect();
                assert_eq!(eval(&body, &inputs), shuffle(mode, &a, b, c), "{mode} b={b} c={c:#x}");
            }
        }
    }
}

#[test]
fn votes_matches_and_reductions() {
    let inputs: Vec<[u32; 3]> = (0..32u32).map(|i| [i % 3, i, 0]).collect();
    let mask_of = |k: u32| (0..32u32).filter(|i| i % 3 == k).map(|i| 1 << i).sum::<u32>();
    let ballot = "setp.eq.u32 %p, %a, 1; vote.sync.ballot.b32 %d, %p, 0xffffffff;";
    assert_eq!(eval(ballot, &inputs), vec![mask_of(1); 32]);
    let matches = eval("match.any.sync.b32 %d, %a, 0xffffffff;", &inputs);
    assert!((0..32).all(|i| matches[i] == mask_of(i as u32 % 3)));
    assert_eq!(eval("redux.sync.add.u32 %d, %b, 0xffffffff;", &inputs), vec![496; 32]);
    assert_eq!(eval("redux.sync.max.s32 %d, %a, 0xffffffff;", &inputs), vec![2; 32]);
    let elect = "mov.u32 %d, 0; elect.sync %t|%p, 0xffffffff; @%p mov.u32 %d, 1;";
    assert_eq!(eval(elect, &inputs).iter().sum::<u32>(), 1);
    // Only half the warp votes; the others are not counted and do not wait.
    let half = "mov.u32 %d, 7; setp.lt.u32 %q, %lane, 16; @!%q bra OUT; setp.eq.u32 %p, %a, 0;
        vote.sync.ballot.b32 %d, %p, 0xffff; OUT:";
    let got = eval(half, &inputs);
    assert_eq!(got[..16], vec![mask_of(0) & 0xffff; 16]);
    assert_eq!(got[16..], [7; 16]);
}
