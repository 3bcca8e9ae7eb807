//! Allocating tensor memory, right and wrong.

use natten_emulator::{Completion, FaultKind, Options, TensorMemoryProblem, WaitReason};

use crate::support::all_orders;
use crate::text::{module, run};

/// Registers that the bodies here use.
const START: &str =
    "ld.param.u64 %out, [p]; mov.u32 %thread, %tid.x; shr.u32 %warp, %thread, 5; mov.u32 %slot, slot;
    setp.ne.u32 %others, %warp, 0;\n";

fn alloc(columns: &str) -> String {
    format!(
        "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%slot], {columns};\nld.shared.b32 %base, [%slot];\n"
    )
}

fn dealloc(address: &str, columns: &str) -> String {
    format!("tcgen05.dealloc.cta_group::1.sync.aligned.b32 {address}, {columns};\n")
}

const RELINQUISH: &str = "tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;\n";

fn fault(body: &str, threads: u32) -> FaultKind {
    run(&module(&format!("{START}{body}")), threads, 4, Options::default()).expect_err("a fault").kind
}

fn problem(body: &str) -> TensorMemoryProblem {
    match fault(body, 32) {
        FaultKind::TensorMemory { problem, .. } => problem,
        other => panic!("{other}"),
    }
}

#[test]
fn every_size_comes_and_goes() {
    for options in all_orders() {
        for columns in [32, 64, 128, 256, 512] {
            let size = columns.to_string();
            let body =
                alloc(&size) + RELINQUISH + "st.global.u32 [%out], %base;\n" + &dealloc("%base", &size);
            let out =
                run(&module(&format!("{START}{body}")), 32, 1, options).unwrap_or_else(|f| panic!("{f}"));
            assert!(out[0].is_multiple_of(32) && out[0] + columns <= 512, "{columns} at {}", out[0]);
        }
    }
}

#[test]
fn an_address_is_seldom_zero() {
    let body = alloc("64") + "st.global.u32 [%out], %base;\n" + &dealloc("%base", "64");
    let text = module(&format!("{START}{body}"));
    let at =
        |completion| run(&text, 32, 1, Options { completion, ..Options::default() }).expect("no fault")[0];
    assert_eq!(at(Completion::Earliest), 0);
    assert_eq!(at(Completion::Latest), 448);
}

#[test]
fn several_allocations_do_not_overlap() {
    for options in all_orders() {
        let body = alloc("256")
            + "mov.u32 %r1, %base;\n"
            + &alloc("128")
            + "mov.u32 %r2, %base;\n"
            + &alloc("128")
            + "mov.u32 %r3, %base; st.global.v4.u32 [%out], {%r1, %r2, %r3, %r3};\n"
            + &dealloc("%r2", "128")
            + &dealloc("%r1", "256")
            + &dealloc("%r3", "128");
        let out = run(&module(&format!("{START}{body}")), 32, 4, options).unwrap_or_else(|f| panic!("{f}"));
        let mut ends = [(out[0], 256), (out[1], 128), (out[2], 128)];
        ends.sort_unstable();
        assert!(ends.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{ends:?}");
    }
}

#[test]
fn an_allocation_waits_for_room() {
    // Both warps want everything: one of them gets it when the other has given it back.
    let body = "shl.b32 %r1, %warp, 2; add.u32 %slot, %slot, %r1;\n".to_owned()
        + &alloc("512")
        + &dealloc("%base", "512");
    for options in all_orders() {
        run(&module(&format!("{START}{body}")), 64, 1, options)
            .unwrap_or_else(|fault| panic!("{options:?}: {fault}"));
    }
    // Nobody will give anything back.
    let FaultKind::Deadlock { waits } = fault(&(alloc("512") + &alloc("512")), 32) else {
        panic!("no deadlock")
    };
    assert_eq!(waits[0].reason, WaitReason::TensorMemory { columns: 512 });
}

#[test]
fn sizes_that_there_are_not() {
    for columns in [0, 16, 33, 48, 1024, 0x8000_0000u32] {
        let body = format!("mov.u32 %r1, {columns};\n") + &alloc("%r1");
        assert_eq!(problem(&body), TensorMemoryProblem::ColumnCount { columns });
        let body = alloc("32") + &format!("mov.u32 %r1, {columns};\n") + &dealloc("%base", "%r1");
        assert_eq!(problem(&body), TensorMemoryProblem::ColumnCount { columns });
    }
}

#[test]
fn allocations_may_not_grow() {
    let body = alloc("32") + &alloc("64");
    assert_eq!(problem(&body), TensorMemoryProblem::AllocationGrew { columns: 64, before: 32 });
}

#[test]
fn no_allocation_without_a_permit() {
    assert_eq!(problem(&(alloc("32") + RELINQUISH + &alloc("32"))), TensorMemoryProblem::PermitRelinquished);
}

#[test]
fn only_what_was_allocated_is_given_back() {
    // Latest completion puts an allocation of 64 columns behind 448 of a neighbour.
    let not_allocated = |address| TensorMemoryProblem::NotAllocated { address };
    let body = alloc("64") + "add.u32 %r1, %base, 32;\n" + &dealloc("%r1", "32");
    assert_eq!(problem(&body), not_allocated(480));
    let body = alloc("64") + "add.u32 %r1, %base, 65536;\n" + &dealloc("%r1", "64");
    assert_eq!(problem(&body), not_allocated(65536 + 448));
    let body = alloc("64") + &dealloc("%base", "64") + &dealloc("%base", "64");
    assert_eq!(problem(&body), not_allocated(448));
    let body = alloc("64") + &dealloc("%base", "32");
    assert_eq!(problem(&body), TensorMemoryProblem::DeallocatedSize { columns: 32, allocated: 64 });
}

#[test]
fn a_leak_is_found_where_the_memory_came_from() {
    let fault =
        run(&module(&format!("{START}{}", alloc("128"))), 32, 1, Options::default()).expect_err("a leak");
    let problem = TensorMemoryProblem::Leaked { columns: 128 };
    assert!(matches!(fault.kind, FaultKind::TensorMemory { problem: p, .. } if p == problem), "{fault}");
    assert!(fault.site.expect("a place").instruction.starts_with("tcgen05.alloc"));
}

#[test]
fn a_whole_warp_allocates_with_one_mind() {
    let body = "add.u32 %r1, %thread, 32;\n".to_owned() + &alloc("%r1");
    assert_eq!(problem(&body), TensorMemoryProblem::OperandsDiffer);
    let body = "shl.b32 %r1, %thread, 2; add.u32 %slot, %slot, %r1;\n".to_owned() + &alloc("32");
    assert_eq!(problem(&body), TensorMemoryProblem::OperandsDiffer);
    let of_half = fault(&alloc("32"), 16);
    assert!(matches!(of_half, FaultKind::TensorMemory { problem: TensorMemoryProblem::IncompleteWarp, .. }));
}

#[test]
fn the_address_goes_to_shared_memory() {
    let to = |address: &str| {
        let body = format!("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [{address}], 32;\n");
        fault(&body, 32)
    };
    assert!(matches!(to("%slot+2"), FaultKind::Misaligned { alignment: 4, .. }));
    assert!(matches!(to("%slot+1048576"), FaultKind::OutOfBounds { bytes: 4, .. }));
}

#[test]
fn other_warps_read_the_address_behind_a_barrier() {
    let body = |meet: &str| {
        let take = "ld.shared.b32 %r1, [%slot];\n";
        let give = "bar.sync 1;\n@%others bra OVER;\n".to_owned() + &dealloc("%base", "32") + "OVER:\n";
        "@%others bra BEHIND;\n".to_owned() + &alloc("32") + "BEHIND:\n" + meet + take + &give
    };
    for options in all_orders() {
        let run = |meet: &str| run(&module(&format!("{START}{}", body(meet))), 128, 1, options);
        run("bar.sync 0;\n").unwrap_or_else(|fault| panic!("{options:?}: {fault}"));
        let kind = run("").expect_err("a race").kind;
        assert!(
            matches!(kind, FaultKind::Race { .. } | FaultKind::Uninitialised { .. }),
            "{options:?}: {kind}"
        );
    }
}
