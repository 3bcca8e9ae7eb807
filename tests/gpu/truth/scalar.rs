//! One-instruction kernels: approximate functions, conversions, NaN and subnormal rules, shifts and bit fields.

use super::inputs::{Random, float, integer};
use super::kernel::Kernel;
use super::{Case, FLOAT, Rule};

const SM80: (&str, &str) = ("7.0", "sm_80");
const SM90: (&str, &str) = ("8.0", "sm_90");
const ITEMS: usize = 256;

/// What the three inputs of an instruction are.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Special and random floats.
    Float,
    /// Special and random integers.
    Integer,
    /// Floats spread evenly over a range.
    Range(f32, f32),
    /// Pairs of 16-bit values.
    Halves,
}

fn ulp(ulp: u32) -> Rule {
    Rule::F32 { ulp, absolute: 0.0 }
}

const F16_PAIR: Rule = Rule::Halves { ulp: 0, infinity: 0x7c00 };
const BF16_PAIR: Rule = Rule::Halves { ulp: 0, infinity: 0x7f80 };

/// Approximate functions of one float, with the range their sweep covers: what a dense run on a device measures too.
/// The units are the documentation's maximal error plus one for the exact side's own rounding.
pub const APPROXIMATE: [(&str, &str, u32, (f32, f32)); 9] = [
    ("ex2_approx_ftz", "ex2.approx.ftz.f32 %d0, %a0;", 3, (-160.0, 130.0)),
    ("ex2_approx", "ex2.approx.f32 %d0, %a0;", 3, (-160.0, 130.0)),
    ("lg2_approx_ftz", "lg2.approx.ftz.f32 %d0, %a0;", 3, (0.0, 1e4)),
    ("lg2_approx", "lg2.approx.f32 %d0, %a0;", 3, (0.0, 1e4)),
    ("rcp_approx_ftz", "rcp.approx.ftz.f32 %d0, %a0;", 2, (-1e3, 1e3)),
    ("rcp_approx", "rcp.approx.f32 %d0, %a0;", 2, (-1e3, 1e3)),
    ("rsqrt_approx_ftz", "rsqrt.approx.ftz.f32 %d0, %a0;", 3, (0.0, 1e4)),
    ("sqrt_approx_ftz", "sqrt.approx.ftz.f32 %d0, %a0;", 3, (0.0, 1e4)),
    ("tanh_approx", "tanh.approx.f32 %d0, %a0;", 1 << 13, (-10.0, 10.0)),
];

/// Exact results on floats.
const FLOATS: [(&str, &str); 34] = [
    ("min", "min.f32 %d0, %a0, %a1;"),
    ("max", "max.f32 %d0, %a0, %a1;"),
    ("min_ftz", "min.ftz.f32 %d0, %a0, %a1;"),
    ("max_nan", "max.NaN.f32 %d0, %a0, %a1;"),
    ("add", "add.rn.f32 %d0, %a0, %a1;"),
    ("add_ftz", "add.ftz.f32 %d0, %a0, %a1;"),
    ("add_rz", "add.rz.f32 %d0, %a0, %a1;"),
    ("sub", "sub.f32 %d0, %a0, %a1;"),
    ("mul", "mul.rn.f32 %d0, %a0, %a1;"),
    ("mul_ftz", "mul.ftz.f32 %d0, %a0, %a1;"),
    ("mul_rm", "mul.rm.f32 %d0, %a0, %a1;"),
    ("mul_rp", "mul.rp.f32 %d0, %a0, %a1;"),
    ("fma", "fma.rn.f32 %d0, %a0, %a1, %a2;"),
    ("fma_ftz", "fma.rn.ftz.f32 %d0, %a0, %a1, %a2;"),
    ("fma_rz", "fma.rz.f32 %d0, %a0, %a1, %a2;"),
    ("fma_sat", "fma.rn.sat.f32 %d0, %a0, %a1, %a2;"),
    ("div", "div.rn.f32 %d0, %a0, %a1;"),
    ("rcp", "rcp.rn.f32 %d0, %a0;"),
    ("sqrt", "sqrt.rn.f32 %d0, %a0;"),
    ("abs_ftz", "abs.ftz.f32 %d0, %a0;"),
    ("neg_ftz", "neg.ftz.f32 %d0, %a0;"),
    ("copysign", "copysign.f32 %d0, %a0, %a1;"),
    ("set_lt", "set.lt.u32.f32 %d0, %a0, %a1;"),
    ("set_ltu", "set.ltu.u32.f32 %d0, %a0, %a1;"),
    ("set_ne", "set.ne.u32.f32 %d0, %a0, %a1;"),
    ("set_neu", "set.neu.u32.f32 %d0, %a0, %a1;"),
    ("set_num", "set.num.u32.f32 %d0, %a0, %a1;"),
    ("setp_ftz", "setp.eq.ftz.f32 %p0, %a0, %a1; selp.b32 %d0, 7, 9, %p0;"),
    ("setp_gt", "setp.gt.f32 %p0, %a0, %a1; selp.b32 %d0, %a0, %a1, %p0;"),
    ("round_even", "cvt.rni.f32.f32 %d0, %a0;"),
    ("round_down", "cvt.rmi.f32.f32 %d0, %a0;"),
    ("round_up_ftz", "cvt.rpi.ftz.f32.f32 %d0, %a0;"),
    ("saturate", "cvt.sat.f32.f32 %d0, %a0;"),
    ("testp_subnormal", "testp.subnormal.f32 %p0, %a0; selp.b32 %d0, 1, 0, %p0;"),
];

/// Conversions from a float; results of 16 bits land in the lower half.
const CONVERSIONS: [(&str, &str, &str, &Rule); 21] = [
    ("7.0", "f16_rn", "cvt.rn.f16.f32 %h0, %a0; cvt.u32.u16 %d0, %h0;", &F16_PAIR),
    ("7.0", "f16_rz", "cvt.rz.f16.f32 %h0, %a0; cvt.u32.u16 %d0, %h0;", &F16_PAIR),
    ("7.0", "f16_rn_ftz", "cvt.rn.ftz.f16.f32 %h0, %a0; cvt.u32.u16 %d0, %h0;", &F16_PAIR),
    ("7.0", "bf16_rn", "cvt.rn.bf16.f32 %h0, %a0; cvt.u32.u16 %d0, %h0;", &BF16_PAIR),
    ("7.0", "bf16_rz", "cvt.rz.bf16.f32 %h0, %a0; cvt.u32.u16 %d0, %h0;", &BF16_PAIR),
    ("7.0", "f16x2_rn", "cvt.rn.f16x2.f32 %d0, %a0, %a1;", &F16_PAIR),
    ("7.0", "bf16x2_rn", "cvt.rn.bf16x2.f32 %d0, %a0, %a1;", &BF16_PAIR),
    ("7.0", "bf16x2_rn_relu", "cvt.rn.relu.bf16x2.f32 %d0, %a0, %a1;", &BF16_PAIR),
    ("7.0", "f16x2_rz", "cvt.rz.f16x2.f32 %d0, %a0, %a1;", &F16_PAIR),
    ("7.0", "tf32_rna", "cvt.rna.tf32.f32 %d0, %a0;", &FLOAT),
    ("8.1", "f16_satfinite", "cvt.rn.satfinite.f16.f32 %h0, %a0; cvt.u32.u16 %d0, %h0;", &F16_PAIR),
    ("8.1", "bf16_satfinite", "cvt.rn.satfinite.bf16.f32 %h0, %a0; cvt.u32.u16 %d0, %h0;", &BF16_PAIR),
    ("8.1", "bf16x2_satfinite", "cvt.rn.satfinite.bf16x2.f32 %d0, %a0, %a1;", &BF16_PAIR),
    ("7.0", "s32_rni", "cvt.rni.s32.f32 %d0, %a0;", &Rule::Exact),
    ("7.0", "s32_rzi", "cvt.rzi.s32.f32 %d0, %a0;", &Rule::Exact),
    ("7.0", "u32_rzi", "cvt.rzi.u32.f32 %d0, %a0;", &Rule::Exact),
    ("7.0", "u32_rmi_ftz", "cvt.rmi.ftz.u32.f32 %d0, %a0;", &Rule::Exact),
    ("7.0", "from_f16", "cvt.u16.u32 %h0, %a0; cvt.f32.f16 %d0, %h0;", &FLOAT),
    ("7.1", "from_bf16", "cvt.u16.u32 %h0, %a0; mov.b32 %d0, {0, %h0};", &Rule::Exact),
    ("7.0", "from_s32", "cvt.rn.f32.s32 %d0, %a0;", &Rule::Exact),
    ("7.0", "from_u32", "cvt.rz.f32.u32 %d0, %a0;", &Rule::Exact),
];

/// Arithmetic on pairs of halves.
const PAIRS: [(&str, &str, &Rule); 10] = [
    ("fma_f16x2", "fma.rn.f16x2 %d0, %a0, %a1, %a2;", &F16_PAIR),
    ("fma_bf16x2", "fma.rn.bf16x2 %d0, %a0, %a1, %a2;", &BF16_PAIR),
    ("add_f16x2", "add.f16x2 %d0, %a0, %a1;", &F16_PAIR),
    ("mul_ftz_f16x2", "mul.ftz.f16x2 %d0, %a0, %a1;", &F16_PAIR),
    ("max_f16x2", "max.f16x2 %d0, %a0, %a1;", &F16_PAIR),
    ("max_nan_bf16x2", "max.NaN.bf16x2 %d0, %a0, %a1;", &BF16_PAIR),
    ("min_bf16x2", "min.bf16x2 %d0, %a0, %a1;", &BF16_PAIR),
    ("neg_bf16x2", "neg.bf16x2 %d0, %a0;", &BF16_PAIR),
    ("ex2_f16x2", "ex2.approx.f16x2 %d0, %a0;", &Rule::Halves { ulp: 1, infinity: 0x7c00 }),
    ("fma_relu_f16x2", "fma.rn.relu.f16x2 %d0, %a0, %a1, %a2;", &F16_PAIR),
];

/// Integers: exact, all of them.
const INTEGERS: [(&str, &str); 47] = [
    ("prmt", "prmt.b32 %d0, %a0, %a1, %a2;"),
    ("prmt_f4e", "prmt.b32.f4e %d0, %a0, %a1, %a2;"),
    ("prmt_b4e", "prmt.b32.b4e %d0, %a0, %a1, %a2;"),
    ("prmt_rc8", "prmt.b32.rc8 %d0, %a0, %a1, %a2;"),
    ("prmt_ecl", "prmt.b32.ecl %d0, %a0, %a1, %a2;"),
    ("prmt_ecr", "prmt.b32.ecr %d0, %a0, %a1, %a2;"),
    ("prmt_rc16", "prmt.b32.rc16 %d0, %a0, %a1, %a2;"),
    ("bfe_u32", "bfe.u32 %d0, %a0, %a1, %a2;"),
    ("bfe_s32", "bfe.s32 %d0, %a0, %a1, %a2;"),
    ("bfi", "bfi.b32 %d0, %a0, %a1, %a2, 9;"),
    ("bfi_length", "bfi.b32 %d0, %a0, %a1, 5, %a2;"),
    ("shf_l_wrap", "shf.l.wrap.b32 %d0, %a0, %a1, %a2;"),
    ("shf_r_wrap", "shf.r.wrap.b32 %d0, %a0, %a1, %a2;"),
    ("shf_l_clamp", "shf.l.clamp.b32 %d0, %a0, %a1, %a2;"),
    ("shf_r_clamp", "shf.r.clamp.b32 %d0, %a0, %a1, %a2;"),
    ("shl", "shl.b32 %d0, %a0, %a1;"),
    ("shr_u32", "shr.u32 %d0, %a0, %a1;"),
    ("shr_s32", "shr.s32 %d0, %a0, %a1;"),
    ("shl_b64", "mov.b64 %q0, {%a0, %a2}; shl.b64 %q0, %q0, %a1; mov.b64 {%d0, %d1}, %q0;"),
    ("shr_s64", "mov.b64 %q0, {%a0, %a2}; shr.s64 %q0, %q0, %a1; mov.b64 {%d0, %d1}, %q0;"),
    ("mul_hi_u32", "mul.hi.u32 %d0, %a0, %a1;"),
    ("mul_hi_s32", "mul.hi.s32 %d0, %a0, %a1;"),
    ("mul24_lo", "mul24.lo.s32 %d0, %a0, %a1;"),
    ("mad_lo", "mad.lo.s32 %d0, %a0, %a1, %a2;"),
    ("mad_hi", "mad.hi.u32 %d0, %a0, %a1, %a2;"),
    ("mad_wide", "mov.b64 %q0, {%a2, %a2}; mad.wide.s32 %q0, %a0, %a1, %q0; mov.b64 {%d0, %d1}, %q0;"),
    ("mul_wide", "mul.wide.u32 %q0, %a0, %a1; mov.b64 {%d0, %d1}, %q0;"),
    ("add_carry", "add.cc.u32 %d0, %a0, %a1; addc.u32 %d1, %a2, 0;"),
    ("div_u32", "div.u32 %d0, %a0, %a1;"),
    ("rem_u32", "rem.u32 %d0, %a0, %a1;"),
    ("div_s32", "div.s32 %d0, %a0, %a1;"),
    ("rem_s32", "rem.s32 %d0, %a0, %a1;"),
    ("lop3", "lop3.b32 %d0, %a0, %a1, %a2, 0x96;"),
    ("lop3_2", "lop3.b32 %d0, %a0, %a1, %a2, 0xca;"),
    ("brev", "brev.b32 %d0, %a0;"),
    ("clz", "clz.b32 %d0, %a0;"),
    ("popc", "popc.b32 %d0, %a0;"),
    ("bfind_u32", "bfind.u32 %d0, %a0;"),
    ("bfind_s32", "bfind.s32 %d0, %a0;"),
    ("bfind_shift", "bfind.shiftamt.u32 %d0, %a0;"),
    ("sad", "sad.s32 %d0, %a0, %a1, %a2;"),
    ("min_s32", "min.s32 %d0, %a0, %a1;"),
    ("max_u32", "max.u32 %d0, %a0, %a1;"),
    ("abs_s32", "abs.s32 %d0, %a0;"),
    ("neg_s32", "neg.s32 %d0, %a0;"),
    ("slct", "slct.u32.s32 %d0, %a0, %a1, %a2;"),
    ("dp4a", "dp4a.s32.s32 %d0, %a0, %a1, %a2;"),
];

/// Needs Hopper.
const HOPPER: [(&str, &str, Kind, &Rule); 5] = [
    (
        "ex2_bf16x2",
        "ex2.approx.ftz.bf16x2 %d0, %a0;",
        Kind::Halves,
        &Rule::Halves { ulp: 1, infinity: 0x7f80 },
    ),
    ("add_bf16x2", "add.bf16x2 %d0, %a0, %a1;", Kind::Halves, &BF16_PAIR),
    ("cvt_f32_bf16", "cvt.u16.u32 %h0, %a0; cvt.f32.bf16 %d0, %h0;", Kind::Halves, &FLOAT),
    (
        "cvt_e4m3x2",
        "cvt.rn.satfinite.e4m3x2.f32 %h0, %a0, %a1; cvt.u32.u16 %d0, %h0;",
        Kind::Float,
        &Rule::Exact,
    ),
    (
        "cvt_bf16_f16",
        "cvt.u16.u32 %h0, %a0; cvt.f32.f16 %r0, %h0; cvt.rn.bf16.f32 %h1, %r0; cvt.u32.u16 %d0, %h1;",
        Kind::Halves,
        &BF16_PAIR,
    ),
];

/// All of them.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, body, limit, (low, high)) in APPROXIMATE {
        // tanh is 2^-11 relative by the documentation; near a zero of the logarithm the error is absolute.
        let absolute = if name.starts_with("lg2") { 2.0_f32.powi(-22) } else { 0.0 };
        let rule = Rule::F32 { ulp: limit, absolute };
        cases.push(one(name, SM80, body, Kind::Range(low, high), rule.clone()));
        cases.push(one(&format!("{name}_special"), SM80, body, Kind::Float, rule));
    }
    cases.push(one("div_approx", SM80, "div.approx.f32 %d0, %a0, %a1;", Kind::Range(-100.0, 100.0), ulp(3)));
    cases.push(one("div_full", SM80, "div.full.f32 %d0, %a0, %a1;", Kind::Range(-100.0, 100.0), ulp(3)));
    for (name, body) in FLOATS {
        cases.push(one(name, SM80, body, Kind::Float, FLOAT));
    }
    for (version, name, body, rule) in CONVERSIONS {
        let kind = match name {
            "from_s32" | "from_u32" => Kind::Integer,
            "from_f16" | "from_bf16" => Kind::Halves,
            _ => Kind::Float,
        };
        let target = if version == "8.1" { "sm_90" } else { "sm_80" };
        cases.push(one(&format!("cvt_{name}"), (version, target), body, kind, rule.clone()));
    }
    for (name, body, rule) in PAIRS {
        cases.push(one(name, SM80, body, Kind::Halves, rule.clone()));
    }
    for (name, body) in INTEGERS {
        cases.push(one(name, SM80, body, Kind::Integer, Rule::Exact));
    }
    for (name, body, kind, rule) in HOPPER {
        cases.push(one(name, SM90, body, kind, rule.clone()));
    }
    cases
}

/// A case of one instruction over [`ITEMS`] threads; the second output is there where the body uses it.
fn one(name: &str, isa: (&'static str, &'static str), body: &str, kind: Kind, rule: Rule) -> Case {
    let outputs = if body.contains("%d1") { 2 } else { 1 };
    let kernel = Kernel::new(isa.0, isa.1, 3, outputs, body.replace("; ", ";\n") + "\n");
    let mut random = Random::new(name);
    let mut input = Vec::new();
    for i in 0..ITEMS {
        for operand in 0..3 {
            input.push(match kind {
                Kind::Float => float(&mut random, i + operand),
                Kind::Integer if operand == 0 => integer(&mut random),
                // Shift amounts and positions matter most when small.
                Kind::Integer => {
                    if random.below(2) == 0 {
                        random.below(70)
                    } else {
                        integer(&mut random)
                    }
                }
                Kind::Range(low, high) => {
                    let step = random.below(1 << 20) as f32 / (1 << 20) as f32;
                    (low + (high - low) * (i as f32 + step) / ITEMS as f32).to_bits()
                }
                Kind::Halves => half_pair(&mut random, i),
            });
        }
    }
    kernel.case(name, &input, Vec::new(), rule)
}

/// Upper halves of special floats, halves of special f16, or random bits.
pub fn half_pair(random: &mut Random, index: usize) -> u32 {
    const F16: [u16; 14] = [
        0, 0x8000, 1, 0x8001, 0x03ff, 0x0400, 0x3c00, 0xbc00, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 0x7c01,
    ];
    let mut one = |i: usize| match random.below(3) {
        0 => (float(random, i) >> 16) as u16,
        1 => F16[random.below(14) as usize],
        _ => random.word() as u16,
    };
    u32::from(one(index)) | u32::from(one(index + 1)) << 16
}

/// The dense sweep of an approximate function: `items` words of input at stride 4, no more than the word itself.
pub fn sweep_kernel(body: &str) -> Kernel {
    Kernel::new(SM80.0, SM80.1, 1, 1, body.to_owned() + "\n").threads(256)
}
