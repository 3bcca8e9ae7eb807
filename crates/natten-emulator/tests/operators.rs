//! The operators that break kernels: each has edits in the kernels that ship, and each edit makes a kernel.

use std::collections::BTreeSet;

use natten_cuda::registry::kernels;
use natten_emulator::Module;
use natten_emulator::mutate::{OPERATORS, sample};

#[test]
fn every_operator_has_edits_and_every_edit_applies() {
    let mut found = BTreeSet::new();
    for kernel in kernels() {
        let module = Module::parse(&kernel.ptx()).expect("a kernel that parses");
        let edits = module.edits(kernel.entry);
        found.extend(edits.iter().map(|edit| edit.operator));
        for edit in sample(edits, 60, 1) {
            assert_ne!(edit.to, edit.from);
            let edited = module.edited(kernel.entry, &edit);
            assert!(edited.entry(kernel.entry).is_some(), "{}: {edit:?}", kernel.entry);
        }
    }
    let missing: Vec<_> = OPERATORS.iter().filter(|operator| !found.contains(*operator)).collect();
    let unknown: Vec<_> = found.iter().filter(|operator| !OPERATORS.contains(operator)).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "without edits: {missing:?}, not listed: {unknown:?}");
}

/// The same seed draws the same edits, another one others, and no operator is left out while there is room.
#[test]
fn samples_are_drawn_by_seed_and_spread_over_operators() {
    let kernel = kernels().find(|kernel| kernel.entry == "natten_forward_sm90_f16_d64").expect("it ships");
    let module = Module::parse(&kernel.ptx()).expect("a kernel that parses");
    let drawn = |seed| -> Vec<_> {
        let edits = sample(module.edits(kernel.entry), 40, seed);
        edits.into_iter().map(|edit| (edit.operator, edit.instruction, edit.to)).collect()
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
    let all: BTreeSet<_> = module.edits(kernel.entry).iter().map(|edit| edit.operator).collect();
    let some: BTreeSet<_> = drawn(3).into_iter().map(|(operator, ..)| operator).collect();
    assert_eq!(all, some);
}

/// Places in parameters and tables are proven to fit in 32 bits; places in tensors are not.
#[test]
fn narrow_sums_are_proven_where_they_fit() {
    let text = r"
.version 7.0
.target sm_80
.address_size 64
.visible .entry places(.param .align 8 .b8 places_param_0[64])
{
.reg .b32 %r<8>;
.reg .b64 %rd<16>;
mov.b64 %rd1, places_param_0;
mov.u32 %r1, %tid.x;
mul.wide.s32 %rd2, %r1, 24;
add.s64 %rd3, %rd1, %rd2;
add.s64 %rd4, %rd3, 16;
ld.param.u64 %rd5, [places_param_0];
ld.param.u32 %r2, [places_param_0+8];
mul.wide.s32 %rd6, %r2, 4;
shl.b64 %rd7, %rd2, 3;
add.s64 %rd8, %rd5, %rd7;
add.s64 %rd9, %rd8, %rd6;
st.global.u64 [%rd9], %rd4;
ret;
}
";
    let module = Module::parse(text).expect("a kernel that parses");
    let proven: Vec<_> = module
        .edits("places")
        .iter()
        .filter(|edit| edit.operator == "narrow address")
        .map(|edit| (edit.from.clone(), module.proof("places", edit).is_some()))
        .collect();
    let expected = [
        ("mul.wide.s32 %rd2, %r1, 24", true),
        ("add.s64 %rd3, %rd1, %rd2", true),
        ("add.s64 %rd4, %rd3, 16", true),
        ("mul.wide.s32 %rd6, %r2, 4", false),
        ("shl.b64 %rd7, %rd2, 3", true),
        ("add.s64 %rd8, %rd5, %rd7", false),
        ("add.s64 %rd9, %rd8, %rd6", false),
    ];
    assert_eq!(proven, expected.map(|(text, is_proven)| (text.to_owned(), is_proven)));
}

/// What a compiler leaves of loops whose ends are known is proven to be out of reach; what follows a condition that can be either is
/// not.
#[test]
fn code_behind_branches_that_go_one_way_is_out_of_reach() {
    let text = r"
.version 7.0
.target sm_80
.address_size 64
.visible .entry walk(.param .align 8 .b8 walk_param_0[16])
{
.reg .pred %p<8>;
.reg .b32 %r<20>;
.reg .b64 %rd<4>;
ld.param.u64 %rd1, [walk_param_0];
ld.param.u32 %r15, [walk_param_0+8];
mov.u32 %r1, %tid.x;
shr.s32 %r2, %r1, 31;
shr.u32 %r3, %r2, 27;
add.s32 %r4, %r1, %r3;
and.b32 %r5, %r4, -32;
sub.s32 %r6, %r1, %r5;
setp.gt.s32 %p1, %r6, 31;
@%p1 bra $L_far;
max.s32 %r7, %r6, 224;
add.s32 %r8, %r7, 31;
sub.s32 %r9, %r8, %r6;
shr.u32 %r10, %r9, 5;
add.s32 %r11, %r10, 1;
and.b32 %r12, %r11, 3;
setp.ne.s32 %p2, %r12, 0;
@!%p2 bra $L_four;
add.s32 %r13, %r6, 1000;
st.global.u32 [%rd1], %r13;
$L_four:
setp.lt.s32 %p3, %r15, 5;
@%p3 bra $L_end;
add.s32 %r14, %r6, 2000;
st.global.u32 [%rd1], %r14;
bra.uni $L_end;
$L_far:
add.s32 %r16, %r6, 3000;
st.global.u32 [%rd1], %r16;
$L_end:
ret;
}
";
    let module = Module::parse(text).expect("a kernel that parses");
    let edits = module.edits("walk");
    let is_proven = |text: &str| {
        let of_text: Vec<_> = edits.iter().filter(|edit| edit.from == text).collect();
        assert!(!of_text.is_empty(), "no edit of {text}");
        of_text.iter().all(|edit| module.proof("walk", edit).is_some_and(|why| why.starts_with("no way")))
    };
    assert!(is_proven("add.s32 %r13, %r6, 1000"));
    assert!(is_proven("add.s32 %r16, %r6, 3000"));
    assert!(!is_proven("add.s32 %r14, %r6, 2000"));
    assert!(!is_proven("max.s32 %r7, %r6, 224"));
}

/// Edits that change nothing have proofs, and those beside them that change something have none.
#[test]
fn proofs_hold_for_what_changes_nothing_alone() {
    const TEXT: &str = r"
.version 7.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 out, .param .f32 of_scale)
{
.reg .pred %p<9>;
.reg .f32 %f<20>;
.reg .b32 %r<40>;
.reg .b64 %rd<20>;
ld.param.u64 %rd1, [out];
mov.u32 %r1, %tid.x;
shr.s32 %r2, %r1, 31;
shr.u32 %r3, %r2, 28;
add.s32 %r4, %r1, %r3;
cvt.rn.f32.s32 %f1, %r4;
mov.u32 %r5, 1;
shfl.sync.bfly.b32 %f2, %f1, %r5, 0x1f, 0xffffffff;
add.f32 %f3, %f1, %f2;
mov.u32 %r6, 2;
shfl.sync.bfly.b32 %f4, %f3, %r6, 0x1f, 0xffffffff;
add.f32 %f5, %f3, %f4;
mov.u32 %r7, 0;
shfl.sync.idx.b32 %f6, %f5, %r7, 0x1f, 0xffffffff;
ld.param.f32 %f7, [of_scale];
mov.b32 %r8, %f7;
and.b32 %r9, %r8, 2139095040;
setp.lt.u32 %p1, %r9, 1065353217;
selp.f32 %f8, %f6, %f7, %p1;
setp.lt.s32 %p2, %r1, %r8;
@%p2 bra OVER;
setp.eq.s32 %p3, %r8, 1;
OVER:
mul.wide.s32 %rd2, %r1, 4;
add.s64 %rd3, %rd1, %rd2;
st.global.f32 [%rd3], %f8;
ret;
}
";
    let module = Module::parse(TEXT).expect("a kernel that parses");
    let edits = module.edits("k");
    let has_proof = |from: &str, operator: &str, to: &str| {
        let is_it = |edit: &&natten_emulator::mutate::Edit| {
            edit.from.starts_with(from) && edit.operator == operator && edit.to.starts_with(to)
        };
        let edit = edits.iter().find(is_it).unwrap_or_else(|| panic!("no {operator} of {from} to {to}"));
        module.proof("k", edit).is_some()
    };
    // What reads a sign of 0 gives 0 for any small number.
    assert!(has_proof("shr.s32 %r2", "integer literal", "zero"));
    assert!(!has_proof("shr.s32 %r2", "operation", ""));
    // Lanes that one exchange made alike may be taken from instead of each other.
    assert!(has_proof("shfl.sync.bfly.b32 %f4", "shuffle lane", "one more"));
    assert!(!has_proof("shfl.sync.bfly.b32 %f2", "shuffle lane", "one more"));
    assert!(!has_proof("shfl.sync.bfly.b32 %f4", "shuffle mode", "shfl(down)"));
    assert!(has_proof("shfl.sync.idx.b32 %f6", "shuffle lane", "one more"));
    assert!(has_proof("shfl.sync.idx.b32 %f6", "shuffle mask", "one more"));
    // Multiples of 2^23.
    assert!(has_proof("setp.lt.u32 %p1", "integer literal", "one more"));
    assert!(has_proof("setp.lt.u32 %p1", "compare bound", ""));
    assert!(!has_proof("setp.lt.u32 %p1", "integer literal", "twice that"));
    // A branch that skips nothing that is read.
    assert!(has_proof("setp.lt.s32 %p2", "compare direction", ""));
    assert!(has_proof("setp.eq.s32 %p3", "compare direction", ""));
    assert!(!has_proof("setp.lt.u32 %p1", "compare direction", ""));
    // Bytes before a thread's number, and an address.
    assert!(has_proof("mul.wide.s32 %rd2", "narrow address", ""));
    assert!(!has_proof("add.s64 %rd3", "narrow address", ""));
}
