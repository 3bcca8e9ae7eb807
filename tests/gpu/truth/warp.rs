//! Instructions that exchange data between the lanes of a warp.

use super::inputs::{Random, integer};
use super::kernel::Kernel;
use super::{Case, Rule};

/// `shfl.sync` modes with a distance and the clamp-and-segment operand: whole warp, segments of 8 and 16, clamp 0.
const SHUFFLES: [(&str, &str, &str); 16] = [
    ("up", "1", "0x0"),
    ("up", "5", "0x1800"),
    ("up", "33", "0x0"),
    ("up", "3", "0x7"),
    ("down", "1", "0x1f"),
    ("down", "5", "0x181f"),
    ("down", "31", "0x1f"),
    ("down", "2", "0x1003"),
    ("bfly", "1", "0x1f"),
    ("bfly", "16", "0x1f"),
    ("bfly", "9", "0x181f"),
    ("bfly", "3", "0x1c02"),
    ("idx", "0", "0x1f"),
    ("idx", "37", "0x1f"),
    ("idx", "3", "0x181f"),
    ("idx", "6", "0x1804"),
];

/// Reductions and votes over the whole warp. `%a1` is small, so that equal values occur.
const COLLECTIVES: [(&str, &str); 16] = [
    ("redux_add_u32", "redux.sync.add.u32 %d0, %a0, 0xffffffff;"),
    ("redux_add_s32", "redux.sync.add.s32 %d0, %a0, 0xffffffff;"),
    ("redux_min_u32", "redux.sync.min.u32 %d0, %a0, 0xffffffff;"),
    ("redux_min_s32", "redux.sync.min.s32 %d0, %a0, 0xffffffff;"),
    ("redux_max_u32", "redux.sync.max.u32 %d0, %a0, 0xffffffff;"),
    ("redux_max_s32", "redux.sync.max.s32 %d0, %a0, 0xffffffff;"),
    ("redux_and", "redux.sync.and.b32 %d0, %a0, 0xffffffff;"),
    ("redux_or", "redux.sync.or.b32 %d0, %a0, 0xffffffff;"),
    ("redux_xor", "redux.sync.xor.b32 %d0, %a0, 0xffffffff;"),
    ("ballot", "setp.gt.s32 %p0, %a0, 0; vote.sync.ballot.b32 %d0, %p0, 0xffffffff;"),
    (
        "vote_any",
        "setp.eq.u32 %p0, %a1, 2; vote.sync.any.pred %p1, %p0, 0xffffffff; selp.b32 %d0, 1, 0, %p1;",
    ),
    (
        "vote_all",
        "setp.lt.u32 %p0, %a1, 4; vote.sync.all.pred %p1, %p0, 0xffffffff; selp.b32 %d0, 1, 0, %p1;",
    ),
    (
        "vote_uni",
        "setp.lt.u32 %p0, %a1, 2; vote.sync.uni.pred %p1, %p0, 0xffffffff; selp.b32 %d0, 1, 0, %p1;",
    ),
    ("match_any", "match.any.sync.b32 %d0, %a1, 0xffffffff;"),
    ("match_all", "match.all.sync.b32 %d0|%p0, %a1, 0xffffffff; selp.b32 %d1, 1, 0, %p0;"),
    ("activemask", "setp.lt.u32 %p0, %thread, 11; @%p0 activemask.b32 %d0;"),
];

/// Special registers of a warp, and movement of matrix rows.
const PLACES: [(&str, &str, &str, &str); 6] = [
    // Not %warpid: it names a slot of the multiprocessor, and may change.
    ("7.0", "sm_80", "lane", "mov.u32 %d0, %laneid;"),
    ("7.0", "sm_80", "lanemask", "mov.u32 %d0, %lanemask_lt; mov.u32 %d1, %lanemask_ge;"),
    ("7.8", "sm_80", "movmatrix", "movmatrix.sync.aligned.m8n8.trans.b16 %d0, %a0;"),
    ("8.0", "sm_90", "elect", "elect.sync %d0|%p0, 0xffffffff; selp.b32 %d1, 1, 0, %p0;"),
    ("8.0", "sm_90", "cluster", "mov.u32 %d0, %cluster_nctarank; mov.u32 %d1, %cluster_ctarank;"),
    (
        "8.0",
        "sm_90",
        "elect_part",
        "setp.lt.u32 %p0, %thread, 5; @%p0 bra SKIP; elect.sync %d0|%p1, 0xffffffe0; selp.b32 %d1, 1, 0, %p1; SKIP:",
    ),
];

/// All of them.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (mode, distance, clamp) in SHUFFLES {
        let body = format!(
            "shfl.sync.{mode}.b32 %d0|%p0, %a0, {distance}, {clamp}, 0xffffffff; selp.b32 %d1, 1, 0, %p0;"
        );
        cases.push(one("7.0", "sm_80", &format!("shfl_{mode}_{distance}_{clamp}"), &body));
    }
    // Distances and segments that differ between lanes.
    for mode in ["up", "down", "bfly", "idx"] {
        let body =
            format!("shfl.sync.{mode}.b32 %d0|%p0, %a0, %a1, %a2, 0xffffffff; selp.b32 %d1, 1, 0, %p0;");
        cases.push(one("7.0", "sm_80", &format!("shfl_{mode}_lanes"), &body));
    }
    cases.extend(COLLECTIVES.iter().map(|(name, body)| one("7.0", "sm_80", name, body)));
    cases.extend(PLACES.iter().map(|&(version, target, name, body)| one(version, target, name, body)));
    cases
}

fn one(version: &'static str, target: &'static str, name: &str, body: &str) -> Case {
    let kernel = Kernel::new(version, target, 3, 2, body.replace("; ", ";\n") + "\n");
    let mut random = Random::new(name);
    let mut input = Vec::new();
    for _ in 0..4 * 32 {
        let clamp = random.below(32) << 8 | random.below(32);
        input.extend([integer(&mut random), random.below(4), clamp]);
    }
    kernel.case(name, &input, Vec::new(), Rule::Exact)
}
