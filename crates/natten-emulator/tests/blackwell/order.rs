//! Every rule of order: a kernel that keeps it runs, and the same without one instruction is told what is missing,
//! however late or early operations complete.

use natten_emulator::{Actor, FaultKind, Options, TensorOrderProblem};

use crate::support::all_orders;
use crate::text::{
    AFTER, BEFORE, COMMIT, DESCRIBE, FILL, MMA, PROLOGUE, WAIT_LOAD, WAIT_STORE, first, kernel, module, run,
    wait,
};

fn faults(text: &str) -> impl Iterator<Item = (Options, FaultKind)> + use<'_> {
    all_orders().into_iter().map(move |options| {
        let kind = match run(text, 128, 128, options) {
            Err(fault) => fault.kind,
            Ok(_) => panic!("no fault under {options:?} in {text}"),
        };
        (options, kind)
    })
}

/// The body, without the parts named, faults for want of `missing`.
fn lacks(body: &str, missing: TensorOrderProblem) {
    for (options, kind) in faults(&kernel(body)) {
        // By the access itself: giving memory back at the end asks for order as well.
        let is_access = |actor: Actor| !matches!(actor, Actor::TensorDealloc(_));
        let is_that = matches!(
            &kind,
            FaultKind::TensorOrder { missing: m, current, .. } if *m == missing && is_access(current.actor)
        );
        assert!(is_that, "{options:?}: {kind}, where {missing} was to be found, in {body}");
    }
}

fn runs(body: &str) {
    for options in all_orders() {
        run(&kernel(body), 128, 128, options)
            .unwrap_or_else(|fault| panic!("{options:?}: {fault} in {body}"));
    }
}

/// `text` without the only place of `part`.
fn without(text: &str, part: &str) -> String {
    assert_eq!(text.matches(part).count(), 1, "{part} in {text}");
    text.replace(part, "")
}

const LOAD: &str = "tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r2}, [%mine];\n";
const STORE: &str = "tcgen05.st.sync.aligned.32x32b.x1.b32 [%mine], {%thread};\n";
const MEET: &str = "bar.sync 1;\n";

/// One operation and its commit by the first thread.
fn multiply() -> String {
    format!("{FILL}{DESCRIBE}{}", first(&format!("{MMA}{COMMIT}"), "ISSUED"))
}

#[test]
fn an_accumulator_is_read_behind_its_commit() {
    let good = multiply() + &wait(0, "DONE") + AFTER + LOAD + WAIT_LOAD;
    runs(&good);
    // That it was issued is known, not that it is over.
    lacks(&good.replace(&wait(0, "DONE"), MEET), TensorOrderProblem::Commit);
    lacks(&without(&good, AFTER), TensorOrderProblem::AfterThreadSync);
    // A commit of another thread tells nothing of what the first one issued.
    let other = format!(
        "{FILL}{DESCRIBE}{}setp.ne.u32 %p2, %thread, 1;\n@%p2 bra ELSE;\n{COMMIT}ELSE: bar.warp.sync -1;\n",
        first(MMA, "ISSUED")
    );
    lacks(&(other + &wait(0, "DONE") + AFTER + LOAD + WAIT_LOAD), TensorOrderProblem::Commit);
    // Nor does one that came before.
    let early = format!("{FILL}{DESCRIBE}{}", first(&format!("{COMMIT}{MMA}"), "ISSUED"));
    lacks(&(early + &wait(0, "DONE") + AFTER + LOAD + WAIT_LOAD), TensorOrderProblem::Commit);
}

#[test]
fn the_product_is_there_behind_the_commit() {
    let body = multiply()
        + &wait(0, "DONE")
        + AFTER
        + LOAD
        + WAIT_LOAD
        + "mul.wide.u32 %rd1, %thread, 4; add.s64 %rd1, %out, %rd1; st.global.u32 [%rd1], %r2;\n";
    for options in all_orders() {
        let out = run(&kernel(&body), 128, 128, options).unwrap_or_else(|fault| panic!("{fault}"));
        assert!(out.iter().all(|word| *word == 16f32.to_bits()), "{options:?}");
    }
}

#[test]
fn late_operations_show_where_races_are_not_looked_for() {
    // Without the wait, what was in tensor memory before is what a load finds, if nothing has happened yet.
    let text = kernel(
        &(STORE.to_owned()
            + WAIT_STORE
            + &multiply()
            + LOAD
            + WAIT_LOAD
            + &wait(0, "DONE")
            + "mul.wide.u32 %rd1, %thread, 4; add.s64 %rd1, %out, %rd1; st.global.u32 [%rd1], %r2;\n"),
    );
    let seen = |options: Options| {
        run(&text, 128, 128, Options { check_races: false, ..options })
            .unwrap_or_else(|fault| panic!("{fault}"))
    };
    let is_product = |word: &u32| *word == 16f32.to_bits();
    use natten_emulator::Completion::{Latest, Random};
    assert!(!seen(Options { completion: Latest, ..Options::default() })[96..].iter().all(is_product));
    // A commit of another thread hurries nothing.
    let elsewhere =
        "setp.ne.u32 %p2, %thread, 1;\n@%p2 bra ELSE;\n".to_owned() + COMMIT + "ELSE: bar.warp.sync -1;\n";
    let other = text.replace(COMMIT, "").replace(LOAD, &format!("{elsewhere}{}{LOAD}", wait(0, "ALSO")));
    let other = other.replace(&wait(0, "DONE"), "");
    let options = Options { completion: Latest, check_races: false, ..Options::default() };
    let fault = run(&other, 128, 128, options);
    assert!(!fault.expect("nothing to find when the check is off").iter().any(is_product));
    // In pieces: some sixteen lanes have the product and others have not.
    let torn = (0..200).any(|seed| {
        let out = seen(Options { completion: Random, seed, ..Options::default() });
        let whole: Vec<bool> = out.chunks(16).map(|lanes| lanes.iter().all(is_product)).collect();
        // One load, which all lanes of a warp take part in, saw both.
        whole.chunks(2).any(|warp| warp[0] != warp[1])
    });
    assert!(torn);
}

#[test]
fn operations_of_one_thread_on_one_accumulator_need_nothing_between_them() {
    let again = "setp.eq.u32 %p1, %thread, %thread;\n";
    let issue = format!("{MMA}{again}{MMA}{MMA}{COMMIT}");
    let body = format!("{FILL}{DESCRIBE}{}", first(&issue, "ISSUED"))
        + &wait(0, "DONE")
        + AFTER
        + LOAD
        + WAIT_LOAD
        + "mul.wide.u32 %rd1, %thread, 4; add.s64 %rd1, %out, %rd1; st.global.u32 [%rd1], %r2;\n";
    for options in all_orders() {
        let out = run(&kernel(&body), 128, 128, options).unwrap_or_else(|fault| panic!("{fault}"));
        assert!(out.iter().all(|word| *word == 48f32.to_bits()), "{options:?}: {out:?}");
    }
    // Another shape, or accumulators that lie across these, are no such chain.
    let narrower = "mov.u32 %r280, 0x08080010;\n";
    lacks(
        &format!("{FILL}{DESCRIBE}{}", first(&format!("{MMA}{narrower}{MMA}"), "ISSUED")),
        TensorOrderProblem::Commit,
    );
    let across = MMA.replace("[%base]", "[%base+8]");
    lacks(
        &format!("{FILL}{DESCRIBE}{}", first(&format!("{MMA}{across}"), "ISSUED")),
        TensorOrderProblem::Commit,
    );
    // What one operation reads as A, the next may not write.
    let reader = MMA.replace("[%base], %rd10", "[%base+64], [%base]");
    let body = format!(
        "{STORE8}{WAIT_STORE}{BEFORE}{MEET}{AFTER}{FILL}{DESCRIBE}{}",
        first(&format!("{reader}{MMA}"), "ISSUED")
    );
    lacks(&body, TensorOrderProblem::Commit);
    // And what one writes, the next may not read as A.
    let reader = MMA.replace("[%base], %rd10", "[%base+64], [%base]");
    lacks(
        &format!("{FILL}{DESCRIBE}{}", first(&format!("{MMA}{reader}"), "ISSUED")),
        TensorOrderProblem::Commit,
    );
}

/// An A in tensor memory.
const STORE8: &str = "tcgen05.st.sync.aligned.32x32b.x8.b32 [%mine], {%thread, %thread, %thread, %thread, %thread, %thread, %thread, %thread};\n";

#[test]
fn a_second_thread_waits_for_the_first_ones_commit() {
    let second = |sync: &str| {
        format!(
            "{FILL}{DESCRIBE}{}{sync}setp.ne.u32 %p2, %thread, 64;\n@%p2 bra OVER;\n{MMA}OVER: bar.warp.sync -1;\n",
            first(&format!("{MMA}{COMMIT}"), "ISSUED")
        )
    };
    lacks(&second(MEET), TensorOrderProblem::Commit);
    let whole = second(&(wait(0, "DONE") + AFTER))
        .replace("OVER:", "tcgen05.commit.cta_group::1.mbarrier::arrive::one.b64 [%bar+8];\nOVER:")
        + &wait(1, "DONE2");
    runs(&whole);
}

#[test]
fn stores_and_loads_of_a_warp_wait_for_each_other() {
    let good = STORE.to_owned()
        + WAIT_STORE
        + LOAD
        + WAIT_LOAD
        + &STORE.replace("%thread", "%warp")
        + "tcgen05.wait::st.sync.aligned; \n";
    runs(&good);
    lacks(&without(&good, WAIT_STORE), TensorOrderProblem::WaitStore);
    lacks(&without(&good, WAIT_LOAD), TensorOrderProblem::WaitLoad);
    lacks(&(STORE.to_owned() + STORE), TensorOrderProblem::WaitStore);
}

#[test]
fn a_stored_operand_is_handed_to_the_issuer() {
    let mma = MMA.replace("[%base], %rd10", "[%base+64], [%base]");
    let good = FILL.to_owned()
        + DESCRIBE
        + STORE8
        + WAIT_STORE
        + BEFORE
        + MEET
        + AFTER
        + &first(&format!("{mma}{COMMIT}"), "ISSUED")
        + &wait(0, "DONE");
    runs(&good);
    // The first warp, whose thread issues, does it right: what the others leave out is found.
    let own = format!("{STORE8}{WAIT_STORE}");
    let split = |wait: &str, before: &str, after: &str| {
        format!(
            "{FILL}{DESCRIBE}@%others bra THEIRS;\n{own}bra MET;\nTHEIRS:\n{STORE8}{wait}{before}MET:\n{MEET}{after}{}",
            first(&format!("{mma}{COMMIT}"), "ISSUED")
        ) + &wait_done()
    };
    runs(&split(WAIT_STORE, BEFORE, AFTER));
    lacks(&split("", BEFORE, AFTER), TensorOrderProblem::Synchronisation);
    lacks(&split(WAIT_STORE, "", AFTER), TensorOrderProblem::BeforeThreadSync);
    lacks(&split(WAIT_STORE, BEFORE, ""), TensorOrderProblem::AfterThreadSync);
    lacks(&split(BEFORE, WAIT_STORE, AFTER), TensorOrderProblem::BeforeThreadSync);
    // No meeting at all.
    let apart = without(&split(WAIT_STORE, BEFORE, AFTER), MEET);
    for (options, kind) in faults(&kernel(&apart)) {
        // The operand may not even be there.
        let is_found = matches!(
            kind,
            FaultKind::TensorOrder { missing: TensorOrderProblem::Synchronisation, .. }
                | FaultKind::TensorMemory { .. }
        );
        assert!(is_found, "{options:?}: {kind}");
    }
}

fn wait_done() -> String {
    wait(0, "DONE")
}

#[test]
fn what_an_operation_reads_or_writes_is_left_alone() {
    // Its A, its D, and what a warp still loads where D will be.
    let from_tensor_memory = MMA.replace("[%base], %rd10", "[%base+64], [%base]");
    let with_a = FILL.to_owned()
        + DESCRIBE
        + STORE8
        + WAIT_STORE
        + BEFORE
        + MEET
        + AFTER
        + &first(&format!("{from_tensor_memory}{COMMIT}"), "ISSUED")
        + MEET
        + AFTER;
    lacks(&(with_a.clone() + STORE), TensorOrderProblem::Commit);
    lacks(&(with_a.clone() + &STORE.replace("[%mine]", "[%mine+64]")), TensorOrderProblem::Commit);
    lacks(&(with_a.clone() + &LOAD.replace("[%mine]", "[%mine+64]")), TensorOrderProblem::Commit);
    runs(&(with_a.clone() + LOAD + WAIT_LOAD + &wait_done()));
    runs(&(with_a + &wait_done() + AFTER + STORE + "tcgen05.wait::st.sync.aligned;\n"));
    let loading = FILL.to_owned()
        + DESCRIBE
        + STORE
        + WAIT_STORE
        + LOAD
        + WAIT_LOAD
        + BEFORE
        + MEET
        + AFTER
        + &first(&format!("{MMA}{COMMIT}"), "ISSUED")
        + &wait_done();
    runs(&loading);
    let others = |missing: &str| {
        loading.replace(&format!("{LOAD}{WAIT_LOAD}{BEFORE}"), &format!("{WAIT_LOAD_STORES}{LOAD}{missing}"))
    };
    lacks(&others(BEFORE), TensorOrderProblem::WaitLoad);
}

/// Makes the warps' stores known before their loads, so that only the loads are missing.
const WAIT_LOAD_STORES: &str =
    "tcgen05.fence::before_thread_sync;\nbar.sync 2;\ntcgen05.fence::after_thread_sync;\n";

#[test]
fn memory_is_given_back_when_all_is_over() {
    let end = |end: &str| format!("{PROLOGUE}{}{end}", multiply());
    let dealloc =
        "@%others bra P_DONE;\ntcgen05.dealloc.cta_group::1.sync.aligned.b32 %base, 512;\nP_DONE:\n";
    for (options, kind) in faults(&module(&end(&format!("bar.sync 0;\n{dealloc}")))) {
        let is_that = matches!(
            kind,
            FaultKind::TensorOrder { missing: TensorOrderProblem::Commit, ref current, .. }
                if current.actor == Actor::TensorDealloc(0)
        );
        assert!(is_that, "{options:?}: {kind}");
    }
    // No fences are asked for.
    let text = module(&end(&format!("{}bar.sync 0;\n{dealloc}", wait_done())));
    for options in all_orders() {
        run(&text, 128, 128, options).unwrap_or_else(|fault| panic!("{options:?}: {fault}"));
    }
    let loaded = format!("{PROLOGUE}{STORE}{WAIT_STORE}{LOAD}bar.sync 0;\n{dealloc}");
    for (options, kind) in faults(&module(&loaded)) {
        let is_that = matches!(kind, FaultKind::TensorOrder { ref current, .. } if current.actor == Actor::TensorDealloc(0));
        assert!(is_that, "{options:?}: {kind}");
    }
}

#[test]
fn a_commit_hands_on_what_its_operation_came_after() {
    // The second warp stores again and tells the first one's thread alone, whose commit tells a thread of the third.
    let reader = MMA.replace("[%base], %rd10", "[%base+64], [%base]");
    let arrive = "setp.ne.u32 %p3, %thread, 32;\n@%p3 bra TOLD;\nmbarrier.arrive.shared::cta.b64 %rd20, [%bar+8];\nTOLD:\n";
    let third = |text: &str| {
        format!("setp.ne.u32 %p4, %thread, 64;\n@%p4 bra THIRD;\n{text}THIRD: bar.warp.sync -1;\n")
    };
    let again = format!(
        "setp.ne.u32 %p2, %warp, 1;\n@%p2 bra STORED;\n{STORE8}tcgen05.wait::st.sync.aligned;\n{BEFORE}{arrive}STORED:\n"
    );
    let last = "tcgen05.commit.cta_group::1.mbarrier::arrive::one.b64 [%bar+16];\n";
    let issue =
        |hear: &str| first(&format!("{hear}{}{COMMIT}", MMA.replace("[%base]", "[%base+128]")), "ISSUED");
    let whole = |hear: &str| {
        format!("{STORE8}{WAIT_STORE}{BEFORE}{MEET}{AFTER}{FILL}{DESCRIBE}{again}{}", issue(hear))
            + &third(&format!("{}{AFTER}{reader}{last}", wait(0, "HEARD")))
            + &wait(0, "DONE")
            + &wait(1, "DONE1")
            + &wait(2, "DONE2")
    };
    let hear = wait(1, "TOLD1") + AFTER;
    runs(&whole(&hear));
    // Without the fence the operation does not come after the store, whatever the thread knows.
    lacks(&whole(&wait(1, "TOLD1")), TensorOrderProblem::Synchronisation);
}
