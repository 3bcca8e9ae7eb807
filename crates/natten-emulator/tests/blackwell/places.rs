//! Accesses to tensor memory that reach where they must not, and registers that are not there yet.

use natten_emulator::{FaultKind, Options, TensorMemoryProblem};

use crate::support::all_orders;
use crate::text::{
    AFTER, COMMIT, DESCRIBE, EPILOGUE, FILL, MMA, PROLOGUE, WAIT_LOAD, WAIT_STORE, first, kernel, module,
    run, wait,
};

fn fault(text: &str) -> FaultKind {
    run(text, 128, 128, Options::default()).expect_err("a fault").kind
}

fn problem(body: &str) -> TensorMemoryProblem {
    match fault(&kernel(body)) {
        FaultKind::TensorMemory { problem, .. } => problem,
        other => panic!("{other}"),
    }
}

fn load(at: &str) -> String {
    format!("tcgen05.ld.sync.aligned.32x32b.x1.b32 {{%r2}}, [{at}];\n")
}

fn store(at: &str) -> String {
    format!("tcgen05.st.sync.aligned.32x32b.x1.b32 [{at}], {{%thread}};\n")
}

fn mma(d: &str, a: &str) -> String {
    MMA.replace("[%base]", &format!("[{d}]")).replace("%rd10", a)
}

/// An operation of the first thread, with matrices in shared memory.
fn issued(text: &str) -> String {
    format!("{FILL}{DESCRIBE}{}", first(text, "ISSUED"))
}

#[test]
fn beyond_the_last_column_and_lane() {
    let outside = |body: &str| match problem(body) {
        TensorMemoryProblem::OutOfRange { address, columns } => (address % 65536, columns),
        other => panic!("{other}"),
    };
    assert_eq!(outside(&load("%mine+512")), (512, 1));
    assert_eq!(outside(&store("%mine+512")), (512, 1));
    assert_eq!(outside(&load("%mine+8388608")), (0, 1));
    assert_eq!(outside(&store("%mine+65535")), (65535, 1));
    let wide = "tcgen05.st.sync.aligned.32x32b.x2.b32 [%mine+511], {%thread, %thread};\n";
    assert_eq!(outside(wide), (511, 2));
    assert_eq!(outside(&issued(&mma("%base+500", "%rd10"))), (500, 16));
    assert_eq!(outside(&issued(&mma("%base", "[%base+508]"))), (508, 8));
    let split = "tcgen05.st.sync.aligned.16x32bx2.x1.b32 [%mine], 512, {%thread};\n";
    assert_eq!(outside(split), (512, 1));
    let split = "tcgen05.st.sync.aligned.16x32bx2.x1.b32 [%mine], 4294967295, {%thread};\n";
    assert_eq!(outside(split).1, 1);
}

#[test]
fn columns_that_are_not_allocated() {
    // Only 64 columns, and what lies behind them, or before where a neighbour is.
    let less = |body: &str| module(&format!("{PROLOGUE}{body}{EPILOGUE}").replace("512;", "64;"));
    let problem = |body: &str| match fault(&less(body)) {
        FaultKind::TensorMemory { problem: TensorMemoryProblem::ColumnNotAllocated { column }, .. } => column,
        other => panic!("{other}"),
    };
    // Latest completion puts the neighbour in columns 0 to 447.
    assert_eq!(
        problem(
            "sub.u32 %mine, %mine, 1;\ntcgen05.st.sync.aligned.32x32b.x2.b32 [%mine], {%thread, %thread};\n"
        ),
        447
    );
    assert_eq!(problem(&issued(&mma("%base-16", "%rd10"))), 432);
    assert_eq!(problem(&issued(&mma("%base", "[%base-8]"))), 440);
}

#[test]
fn lanes_of_another_warp() {
    let of_first = format!("{}{WAIT_STORE}{}", store("%mine"), load("%base"));
    let problem_of = problem(&of_first);
    assert!(matches!(problem_of, TensorMemoryProblem::ForeignLane { lane: 0, warp: 1..=3 }), "{problem_of}");
    let body = "add.u32 %r1, %mine, 0x200000;\n@%others bra OVER;\n".to_owned() + &store("%r1") + "OVER:\n";
    assert_eq!(problem(&body), TensorMemoryProblem::ForeignLane { lane: 32, warp: 0 });
}

#[test]
fn first_lanes_that_cannot_be() {
    let at_16 = TensorMemoryProblem::LaneAlignment { lane: 16, alignment: 32 };
    let only_first = |text: &str| format!("@%others bra OVER;\n{text}OVER:\n");
    assert_eq!(problem(&only_first(&store("%mine+1048576"))), at_16);
    let at_8 = TensorMemoryProblem::LaneAlignment { lane: 8, alignment: 16 };
    assert_eq!(
        problem(&only_first("tcgen05.st.sync.aligned.16x64b.x1.b32 [%mine+524288], {%thread};\n")),
        at_8
    );
    let of_128 = TensorMemoryProblem::LaneAlignment { lane: 16, alignment: 128 };
    assert_eq!(problem(&issued(&mma("%base+1048576", "%rd10"))), of_128);
    let of_64 = "mov.u32 %r280, 0x04040010;\n".to_owned();
    let at_32 = TensorMemoryProblem::LaneAlignment { lane: 32, alignment: 16 };
    assert_eq!(problem(&issued(&(of_64.clone() + &mma("%base+2097152", "%rd10")))), at_32);
    let apart = TensorMemoryProblem::LaneMismatch { a: 0, d: 16 };
    assert_eq!(problem(&issued(&(of_64 + &mma("%base+1048576", "[%base+64]")))), apart);
}

#[test]
fn what_nobody_wrote() {
    let unwritten = |column: u32| TensorMemoryProblem::NeverWritten { lane: 0, column };
    assert_eq!(problem(&format!("@%others bra OVER;\n{}OVER:\n", load("%mine+7"))), unwritten(7));
    assert_eq!(problem(&issued(&mma("%base", "[%base+64]"))), unwritten(64));
    let add = "setp.eq.u32 %p1, %thread, %thread;\n".to_owned();
    assert_eq!(problem(&issued(&(add.clone() + MMA))), unwritten(0));
    assert_eq!(problem(&issued(&(MMA.replace("%p1", "!%p1")))), unwritten(0));
    assert_eq!(problem(&issued(&(MMA.replace("%p1", "1")))), unwritten(0));
    // Half of the words is not enough for a packed A.
    let halves = "tcgen05.st.sync.aligned.32x32b.x4.unpack::16b.b32 [%mine+64], {%thread, %thread, %thread, %thread};\n";
    let body = format!(
        "{halves}{WAIT_STORE}tcgen05.fence::before_thread_sync;\nbar.sync 0;\n{AFTER}{}",
        issued(&mma("%base", "[%base+64]"))
    );
    assert_eq!(problem(&body), unwritten(64));
}

#[test]
fn a_freed_column_is_forgotten() {
    let again = "@%others bra OVER;
        tcgen05.st.sync.aligned.32x32b.x1.b32 [%r1], {%thread};
        tcgen05.wait::st.sync.aligned;
        tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r1, 32;
        tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%slot], 32;
        ld.shared.b32 %r1, [%slot];
        tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r2}, [%r1];
        OVER:\n";
    let body =
        "ld.param.u64 %out, [p]; mov.u32 %thread, %tid.x; shr.u32 %warp, %thread, 5; mov.u32 %slot, slot;
        setp.ne.u32 %others, %warp, 0;
        tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%slot], 32;
        ld.shared.b32 %r1, [%slot];\n"
            .to_owned()
            + again;
    let fault = run(&module(&body), 32, 1, Options::default()).expect_err("a read of nothing").kind;
    assert!(
        matches!(fault, FaultKind::TensorMemory { problem: TensorMemoryProblem::NeverWritten { .. }, .. }),
        "{fault}"
    );
}

#[test]
fn one_thread_issues() {
    let body = format!("{FILL}{DESCRIBE}{MMA}");
    assert_eq!(problem(&body), TensorMemoryProblem::SeveralIssuers { lanes: 32 });
}

#[test]
fn lanes_agree_on_the_address() {
    assert_eq!(
        problem(&format!("add.u32 %r1, %mine, %thread;\n{}", load("%r1"))),
        TensorMemoryProblem::OperandsDiffer
    );
}

#[test]
fn registers_on_their_way() {
    let start = store("%mine") + WAIT_STORE + &load("%mine");
    for options in all_orders() {
        let kind = |use_: &str| {
            let text = kernel(&format!("{start}{use_}\n{WAIT_LOAD}"));
            run(&text, 128, 128, options).map(|_| ()).map_err(|fault| fault.kind)
        };
        let problem = |use_: &str| match kind(use_) {
            Err(FaultKind::TensorMemory { problem, .. }) => problem,
            other => panic!("{other:?}"),
        };
        assert_eq!(problem("add.u32 %r3, %r2, 1;"), TensorMemoryProblem::RegisterRead);
        assert_eq!(problem("st.global.u32 [%out], %r2;"), TensorMemoryProblem::RegisterRead);
        assert_eq!(problem("mov.u32 %r2, 1;"), TensorMemoryProblem::RegisterWritten);
        assert_eq!(problem(&load("%mine")), TensorMemoryProblem::RegisterWritten);
        assert_eq!(problem(&format!("{WAIT_STORE}add.u32 %r3, %r2, 1;")), TensorMemoryProblem::RegisterRead);
        // Another name for the register is what a compiler may give it at any time.
        assert_eq!(kind("mov.u32 %r3, %r2;"), Ok(()));
        assert_eq!(
            problem("mov.u32 %r3, %r2; mov.u32 %r4, %r3; add.u32 %r5, %r4, 1;"),
            TensorMemoryProblem::RegisterRead
        );
        assert_eq!(kind(&format!("mov.u32 %r3, %r2; {WAIT_LOAD} add.u32 %r5, %r3, 1;")), Ok(()));
        assert_eq!(kind(&format!("{WAIT_LOAD}add.u32 %r3, %r2, 1; mov.u32 %r2, 1;")), Ok(()));
    }
}

#[test]
fn renamed_registers_hold_what_was_loaded() {
    let body = store("%mine")
        + WAIT_STORE
        + &load("%mine")
        + "mov.b32 %r3, %r2;\n"
        + WAIT_LOAD
        + "mul.wide.u32 %rd1, %thread, 4; add.s64 %rd1, %out, %rd1; st.global.u32 [%rd1], %r3;\n";
    let out = run(&kernel(&body), 128, 128, Options::default()).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(out, (0..128).collect::<Vec<u32>>());
}

#[test]
fn matrices_that_lie_outside_or_nowhere() {
    let far = "add.s64 %rd10, %rd10, 8192;\n".to_owned() + MMA;
    assert!(matches!(fault(&kernel(&issued(&far))), FaultKind::OutOfBounds { bytes: 16, .. }));
    let unwritten = "add.s64 %rd11, %rd11, 1024;\n".to_owned() + MMA;
    assert!(matches!(fault(&kernel(&issued(&unwritten))), FaultKind::Uninitialised { .. }));
    let nowhere = MMA.to_owned() + &COMMIT.replace("[%bar]", "[%bar+56]") + &wait(7, "NEVER");
    assert!(matches!(fault(&kernel(&issued(&nowhere))), FaultKind::Mbarrier { .. }));
}
