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
