//! Every checker fires on a kernel that breaks its rule, and names the place.

mod support;

use natten_emulator::{
    Actor, Fault, FaultKind, Launch, MbarrierProblem, Memory, MemoryError, MemorySpace, Module, Options,
    WaitReason,
};
use support::{Device, eval, one_warp};

/// Runs a kernel of the given body, declarations first, on blocks of `threads`.
fn run(declarations: &str, body: &str, grid: u32, threads: u32, options: Options) -> Result<(), Fault> {
    let ptx = format!(
        ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 p) {{
        .reg .b32 %r<8>; .reg .b64 %rd<8>; .reg .pred %p<4>; {declarations}
        ld.param.u64 %rd1, [p]; mov.u32 %r1, %tid.x; mad.wide.u32 %rd2, %r1, 4, %rd1;\n{body}\nret; }}"
    );
    let device = Device::with(&ptx, options);
    let address = device.memory.alloc(4096);
    device.memory.fill(address, 0, 2048).expect("inside the allocation");
    device.try_run("k", &Launch::new([grid, 1, 1], [threads, 1, 1]).arg(address.to_le_bytes())).map(|_| ())
}

fn fault(declarations: &str, body: &str, grid: u32, threads: u32) -> Fault {
    run(declarations, body, grid, threads, Options::default()).expect_err("a fault")
}

#[test]
fn out_of_bounds_names_instruction_lane_and_address() {
    let fault = fault("", "st.global.u32 [%rd2+4032], %r1;", 1, 32);
    assert!(
        matches!(fault.kind, FaultKind::OutOfBounds { space: MemorySpace::Global, bytes: 4, .. }),
        "{fault}"
    );
    let site = fault.site.expect("a place");
    assert_eq!((site.lane, site.warp, site.cta), (Some(16), 0, [0, 0, 0]));
    assert_eq!(site.instruction, "st.global.u32 [%rd2+4032], %r1");
    assert_eq!(site.line, 7);
}

#[test]
fn uninitialised_reads_of_every_space() {
    let kind = |declarations: &str, body: &str| match fault(declarations, body, 1, 32).kind {
        FaultKind::Uninitialised { space, .. } => space,
        other => panic!("{other}"),
    };
    assert_eq!(kind("", "ld.global.u32 %r2, [%rd2+2048];"), MemorySpace::Global);
    assert_eq!(kind(".shared .align 4 .b8 s[64];", "ld.shared.u32 %r2, [s];"), MemorySpace::Shared);
    assert_eq!(
        kind(".local .align 4 .b8 l[64];", "mov.u64 %rd3, l; ld.local.u32 %r2, [%rd3];"),
        MemorySpace::Local
    );
    let off = Options { check_initialised: false, ..Options::default() };
    run("", "ld.global.u32 %r2, [%rd2+2048];", 1, 32, off).expect("nothing to find when the check is off");
}

#[test]
fn misalignment_and_foreign_spaces() {
    let fault_kind = |body: &str| fault(".shared .align 8 .b8 s[64];", body, 1, 32).kind;
    assert!(matches!(fault_kind("ld.global.u32 %r2, [%rd2+2];"), FaultKind::Misaligned { alignment: 4, .. }));
    assert!(matches!(fault_kind("st.shared.u32 [s+62], %r1;"), FaultKind::Misaligned { .. }));
    assert!(matches!(fault_kind("st.shared.u32 [s+64], %r1;"), FaultKind::OutOfBounds { .. }));
    assert!(matches!(fault_kind("st.shared.u32 [%r1], %r1;"), FaultKind::OutOfBounds { .. }));
    assert!(matches!(
        fault_kind("mov.u64 %rd3, 0; ld.global.u32 %r2, [%rd3];"),
        FaultKind::OutOfBounds { .. }
    ));
}

const EXCHANGE: &str = "mov.u32 %r2, s; mad.lo.u32 %r3, %r1, 4, %r2; st.shared.u32 [%r3], %r1; SYNC
    xor.b32 %r4, %r1, 32; mad.lo.u32 %r5, %r4, 4, %r2; ld.shared.u32 %r6, [%r5];";

#[test]
fn a_missing_barrier_is_a_race_for_every_seed() {
    let shared = ".shared .align 4 .b8 s[256];";
    for seed in 0..10 {
        let options = Options { seed, check_initialised: false, ..Options::default() };
        run(shared, &EXCHANGE.replace("SYNC", "bar.sync 0;"), 1, 64, options)
            .expect("ordered by the barrier");
        let fault = run(shared, &EXCHANGE.replace("SYNC", ""), 1, 64, options).expect_err("a race");
        assert!(matches!(fault.kind, FaultKind::Race { space: MemorySpace::Shared, .. }), "{fault}");
        // A barrier of its own for each warp orders nothing between them.
        let own = "shr.u32 %r7, %r1, 5; add.u32 %r7, %r7, 1; bar.sync %r7, 32;";
        let fault = run(shared, &EXCHANGE.replace("SYNC", own), 1, 64, options).expect_err("a race");
        assert!(matches!(fault.kind, FaultKind::Race { .. }), "{fault}");
    }
}

/// Each lane of one warp reads what its neighbour wrote.
const WITHIN_A_WARP: &str = "mov.u32 %r2, s; mad.lo.u32 %r3, %r1, 4, %r2; st.shared.u32 [%r3], %r1; SYNC
    xor.b32 %r4, %r1, 1; mad.lo.u32 %r5, %r4, 4, %r2; ld.shared.u32 %r6, [%r5]; AGAIN st.shared.u32 [%r3], %r6;";

#[test]
fn lanes_of_a_warp_must_meet_to_exchange() {
    let shared = ".shared .align 4 .b8 s[256];";
    let result = |sync: &str, again: &str, threads: u32| {
        let body = WITHIN_A_WARP.replace("SYNC", sync).replace("AGAIN", again);
        run(shared, &body, 1, threads, Options::default())
    };
    let meet = "bar.warp.sync 0xffffffff;";
    result(meet, meet, 64).expect("ordered within each warp");
    result("bar.sync 0;", "bar.sync 0;", 64).expect("a barrier of all orders them too");
    // Exchanging registers orders no memory.
    let exchange = "shfl.sync.bfly.b32 %r7, %r1, 1, 31, 0xffffffff;";
    for (sync, again) in [("", meet), (meet, ""), (exchange, meet), (meet, exchange)] {
        let fault = result(sync, again, 32).expect_err("a race within a warp");
        let FaultKind::Race { current, previous, .. } = &fault.kind else { panic!("{fault}") };
        assert!(
            matches!((&current.actor, &previous.actor), (Actor::Lane { lane: a, .. }, Actor::Lane { lane: b, .. }) if a ^ b == 1),
            "{fault}"
        );
    }
    let own =
        "mov.u32 %r2, s; mad.lo.u32 %r3, %r1, 4, %r2; st.shared.u32 [%r3], %r1; ld.shared.u32 %r6, [%r3];
        st.shared.u32 [%r3], %r6;";
    run(shared, own, 1, 64, Options::default()).expect("a lane needs no leave for what is its own");
    let halves =
        "mov.u32 %r2, s; mad.lo.u32 %r3, %r1, 2, %r2; st.shared.u16 [%r3], %r1; ld.shared.u16 %r6, [%r3];";
    run(shared, halves, 1, 32, Options::default()).expect("neighbouring halves belong to different lanes");
}

#[test]
fn a_lane_releases_for_itself() {
    // Warp 0 reads a word; its lane 0 arrives; warp 1 waits and overwrites the word.
    let shared = ".shared .align 4 .b8 s[256]; .shared .align 8 .b8 bar[8];";
    let body = "setp.ne.u32 %p1, %r1, 0; @!%p1 mbarrier.init.shared::cta.b64 [bar], 1; mov.u32 %r2, s;
        and.b32 %r3, %r1, 31; mad.lo.u32 %r4, %r3, 4, %r2; setp.lt.u32 %p2, %r1, 32; @%p2 st.shared.u32 [%r4], %r1;
        bar.sync 0; @!%p2 bra OTHER; WHO ld.shared.u32 %r5, [s]; SYNC
        @!%p1 mbarrier.arrive.shared::cta.b64 _, [bar]; bra OUT;
        OTHER: mbarrier.try_wait.parity.shared::cta.b64 %p3, [bar], 0; @!%p3 bra OTHER; st.shared.u32 [s], %r1; OUT:";
    for seed in 0..4 {
        let result = |who: &str, sync: &str| {
            let options = Options { seed, ..Options::default() };
            run(shared, &body.replace("WHO", who).replace("SYNC", sync), 1, 64, options)
        };
        result("", "bar.warp.sync 0xffffffff;").expect("all lanes had read when one arrived");
        result("@!%p1", "").expect("only the lane that arrives has read");
        let fault = result("", "").expect_err("31 lanes read with nobody to say so");
        assert!(matches!(fault.kind, FaultKind::Race { space: MemorySpace::Shared, .. }), "{fault}");
    }
}

#[test]
fn registers_are_written_before_they_are_read() {
    let unwritten = |body: &str| match run("", body, 1, 32, Options::default()) {
        Err(Fault { kind: FaultKind::UnwrittenRegister, site, .. }) => site.expect("a place").lane,
        other => panic!("{other:?}"),
    };
    assert_eq!(unwritten("add.u32 %r2, %r3, 1;"), Some(0));
    assert_eq!(unwritten("@%p1 add.u32 %r2, %r1, 1;"), Some(0));
    assert_eq!(unwritten("setp.lt.u32 %p1, %r1, 7; @%p1 mov.u32 %r2, 5; add.u32 %r3, %r2, 1;"), Some(7));
    assert_eq!(unwritten("mov.u32 %r2, %r3; add.u32 %r2, %r2, 1;"), Some(0));
    for fine in [
        "setp.lt.u32 %p1, %r1, 7; @%p1 mov.u32 %r2, 5; @%p1 add.u32 %r3, %r2, 1;",
        "mov.u32 %r2, %r3; mov.u32 %r2, 5; add.u32 %r2, %r2, 1;",
    ] {
        run("", fine, 1, 32, Options::default()).expect(fine);
    }
}

#[test]
fn neighbouring_halves_are_no_race() {
    let body = "mov.u32 %r2, s; mad.lo.u32 %r3, %r1, 2, %r2; shr.u32 %r4, %r1, 5; and.b32 %r5, %r1, 31;
        shl.b32 %r5, %r5, 2; shl.b32 %r4, %r4, 1; add.u32 %r5, %r5, %r4; add.u32 %r5, %r5, %r2; st.shared.u16 [%r5], %r1;";
    run(".shared .align 4 .b8 s[256];", body, 1, 64, Options::default()).expect("different bytes");
}

/// One warp reads one half of a word, and behind a barrier the other one, while another warp writes one of them.
#[test]
fn what_was_read_of_a_word_is_known_by_its_bytes() {
    let body = "setp.ge.u32 %p1, %r1, 32; setp.eq.u32 %p2, %r1, 0; @%p2 st.shared.u32 [s], %r1; bar.sync 0; @%p1 ld.shared.u16 %r2, [s];
        bar.sync 0; @%p1 ld.shared.u16 %r3, [s+2]; @%p2 st.shared.u16 [s+AT], %r1;";
    for seed in 0..10 {
        let options = Options { seed, ..Options::default() };
        let result = |at: &str| run(".shared .align 4 .b8 s[4];", &body.replace("AT", at), 1, 64, options);
        result("0").expect("of the first half the barrier is between them");
        let fault = result("2").expect_err("of the second half nothing is");
        assert!(matches!(fault.kind, FaultKind::Race { space: MemorySpace::Shared, .. }), "{fault}");
    }
}

#[test]
fn races_between_ctas_on_global_memory() {
    let write = fault("", "st.global.u32 [%rd2], %r1;", 2, 32);
    assert!(matches!(write.kind, FaultKind::Race { space: MemorySpace::Global, .. }), "{write}");
    run("", "red.global.add.u32 [%rd2], %r1;", 2, 32, Options::default()).expect("atomics do not race");
    run("", "ld.global.u32 %r2, [%rd2];", 2, 32, Options::default()).expect("reads do not race");
}

#[test]
fn divergent_aligned_instructions() {
    let fault = fault("", "setp.lt.u32 %p1, %r1, 16; @%p1 bra OUT; bar.sync 0; OUT: bar.sync 0;", 1, 32);
    assert!(matches!(fault.kind, FaultKind::Divergence { required: 0xffff_ffff, .. }), "{fault}");
}

#[test]
fn barrier_deadlocks_are_reported() {
    let fault =
        fault("", "setp.lt.u32 %p1, %r1, 32; @%p1 bar.sync 1, 64; @%p1 bra OUT; bar.sync 2, 64; OUT:", 1, 64);
    let FaultKind::Deadlock { waits } = &fault.kind else { panic!("{fault}") };
    assert_eq!(waits.len(), 2, "{fault}");
    for wait in waits {
        assert_eq!(wait.reason, WaitReason::Barrier { id: wait.warp + 1, arrived: 32, expected: 64 });
    }
}

#[test]
fn mbarrier_phases_follow_arrivals_and_bytes() {
    let barrier = ".shared .align 8 .b8 bar[8];";
    let wait = |phase: u32, p: u32| {
        format!("mbarrier.try_wait.parity.shared::cta.b64 %p{p}, [bar], {phase}; @!%p{p} trap;\n")
    };
    let pending =
        |phase: u32| format!("mbarrier.test_wait.parity.shared::cta.b64 %p1, [bar], {phase}; @%p1 trap;\n");
    let arrive = "mbarrier.arrive.shared::cta.b64 %rd3, [bar];\n";
    let expect = "mbarrier.arrive.expect_tx.shared::cta.b64 %rd3, [bar], 64;\n";
    let complete = "mbarrier.complete_tx.shared::cta.relaxed.cta.b64 [bar], 64;\n";
    let init = "mbarrier.init.shared::cta.b64 [bar], 2;\n";
    // A fresh barrier: the phase before the first counts as complete.
    let body =
        [init, &wait(1, 2), &pending(0), arrive, &pending(0), arrive, &wait(0, 2), &pending(1)].concat();
    run(barrier, &body, 1, 1, Options::default()).expect("two arrivals complete a phase");
    let body = [init, arrive, expect, &pending(0), complete, &wait(0, 2)].concat();
    run(barrier, &body, 1, 1, Options::default()).expect("bytes complete it");
    let body = [init, complete, arrive, &pending(0), expect, &wait(0, 2)].concat();
    run(barrier, &body, 1, 1, Options::default()).expect("bytes may come before they are expected");
    let problem = |body: &str| match fault(barrier, body, 1, 1).kind {
        FaultKind::Mbarrier { problem, .. } => problem,
        other => panic!("{other}"),
    };
    assert_eq!(problem(arrive), MbarrierProblem::NotInitialised);
    assert_eq!(problem(&[init, init].concat()), MbarrierProblem::AlreadyInitialised);
    let three = "mbarrier.arrive.shared::cta.b64 %rd3, [bar], 3;";
    assert_eq!(problem(&[init, three].concat()), MbarrierProblem::ArrivalUnderflow);
}

#[test]
fn register_reallocation_is_checked() {
    let refused = |count: u32| {
        matches!(
            fault("", &format!("setmaxnreg.dec.sync.aligned.u32 {count};"), 1, 128).kind,
            FaultKind::RegisterCount { .. }
        )
    };
    assert!(refused(41) && refused(16));
    run("", "setmaxnreg.dec.sync.aligned.u32 40;", 1, 128, Options::default()).expect("a legal count");
    // 384 threads start with 168 registers each, which is all that they can share.
    let shared = |low: u32, high: u32| {
        let body = format!(
            "setp.lt.u32 %p1, %r1, 128; @%p1 bra LOW; setmaxnreg.inc.sync.aligned.u32 {high}; bra OUT;
            LOW: setmaxnreg.dec.sync.aligned.u32 {low}; OUT:"
        );
        run("", &body, 1, 384, Options::default())
    };
    shared(40, 232).expect("40 + 2 * 232 is 3 * 168");
    for (low, high) in [(48, 232), (40, 240)] {
        let fault = shared(low, high).expect_err("too many");
        let FaultKind::Deadlock { waits } = &fault.kind else { panic!("{fault}") };
        assert!(waits.iter().all(|w| w.reason == WaitReason::Registers { count: high }), "{fault}");
    }
}

#[test]
fn launches_are_checked() {
    let device = Device::new(&one_warp(""));
    let kind = |entry: &str, launch: Launch| device.try_run(entry, &launch).expect_err("refused").kind;
    let shape = || Launch::new([1, 1, 1], [32, 1, 1]);
    assert!(matches!(kind("other", shape()), FaultKind::UnknownEntry { .. }));
    assert!(matches!(kind("k", shape()), FaultKind::ArgumentSize { expected: 1, got: 0, .. }));
    assert!(matches!(kind("k", shape().arg([0; 4])), FaultKind::ArgumentSize { expected: 8, got: 4, .. }));
    let large = Launch::new([1, 1, 1], [1025, 1, 1]).arg([0; 8]);
    assert!(matches!(kind("k", large), FaultKind::LaunchConfiguration { allowed: 1024, .. }));
    assert!(matches!(kind("k", shape().arg([0; 8]).shared(1 << 20)), FaultKind::LaunchConfiguration { .. }));
}

#[test]
fn unknown_forms_are_errors_with_their_line() {
    for wrong in [
        "frobnicate.u32 %d, %a;",
        "add.frob.u32 %d, %a, %b;",
        "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 %d, %a, %b, %c;",
        "add.u32 %d, %a;",
        "add.u32 %d, %a, %nosuch;",
        "ld.global.u32 %d, %a;",
        "cvt.s32.f32 %d, %fa;",
        "bra NOWHERE;",
        "call foo, (%d);",
        "add.u64 %d, %a, %b;",
    ] {
        let error = Module::parse(&one_warp(wrong)).expect_err(wrong);
        assert_eq!(error.line, 10, "{error}");
    }
    for text in
        ["", "garbage", ".version 8.0 .entry", ".visible .entry k( {", ".visible .entry k() { add", "}"]
    {
        let _ = Module::parse(text);
    }
}

#[test]
fn inline_assembly_scopes_keep_their_names_apart() {
    let body =
        "{ .reg .pred %s; .reg .u32 %d; setp.eq.u32 %s, %a, %a; W: @%s bra D; bra W; D: mov.u32 %d, 1; }
        { .reg .pred %s; setp.ne.u32 %s, %a, %a; @%s bra D; mov.u32 %d, 5; D: }";
    assert_eq!(eval(body, &[[1, 2, 3]]), vec![5; 32]);
}

#[test]
fn memory_errors_are_typed() {
    let memory = Memory::new();
    let (a, b) = (memory.alloc(100), memory.alloc(100));
    assert!(a % 256 == 0 && b % 256 == 0 && b - a > 100);
    assert!(matches!(memory.write(a + 90, &[0; 11]), Err(MemoryError::OutOfBounds { bytes: 11, .. })));
    assert!(matches!(memory.read(a + 100, &mut [0]), Err(MemoryError::NotAllocated { .. })));
    assert!(matches!(memory.free(a + 1), Err(MemoryError::NotABase { .. })));
    memory.free(a).expect("an allocation");
    assert!(matches!(memory.write(a, &[0]), Err(MemoryError::NotAllocated { .. })));
    let huge = memory.alloc_sparse(1 << 44);
    memory.write(huge + (1 << 43), &[7]).expect("a page appears");
    let mut byte = [0];
    memory.read(huge + (1 << 43), &mut byte).expect("inside");
    assert_eq!(byte, [7]);
    assert!(!memory.is_initialised(huge, 1).expect("inside"));
}
