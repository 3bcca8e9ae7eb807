//! What an operation reads from shared memory, beside those who write there.

use natten_emulator::{Actor, FaultKind};

use crate::support::all_orders;
use crate::text::{AFTER, COMMIT, DESCRIBE, FILL, MMA, first, kernel, run, wait};

fn each_fault(body: &str, is_right: impl Fn(&FaultKind) -> bool) {
    for options in all_orders() {
        let kind = run(&kernel(body), 128, 128, options).expect_err("a fault").kind;
        assert!(is_right(&kind), "{options:?}: {kind}");
    }
}

fn runs(body: &str) {
    for options in all_orders() {
        run(&kernel(body), 128, 128, options).unwrap_or_else(|fault| panic!("{options:?}: {fault}"));
    }
}

const ISSUER: Actor = Actor::TensorMma { warp: 0, lane: 0 };

#[test]
fn ordinary_writes_are_shown_to_the_asynchronous_proxy() {
    let fill = FILL.replace("fence.proxy.async.shared::cta;", "");
    assert_ne!(fill, FILL);
    each_fault(
        &format!("{fill}{DESCRIBE}{}", first(MMA, "ISSUED")),
        |kind| matches!(kind, FaultKind::MissingProxyFence { current, .. } if current.actor == ISSUER),
    );
    // Behind the meeting the fence is too late for the other warps' part.
    let late = format!(
        "{fill}fence.proxy.async.shared::cta;\n{DESCRIBE}{}",
        first(&format!("{MMA}{COMMIT}"), "ISSUED")
    );
    runs(&(late + &wait(0, "DONE")));
    let unmet = FILL.replace("bar.sync 0;", "");
    each_fault(&format!("{unmet}{DESCRIBE}{}", first(MMA, "ISSUED")), |kind| {
        matches!(kind, FaultKind::Race { .. } | FaultKind::Uninitialised { .. })
    });
}

#[test]
fn matrices_stay_until_the_operation_is_over() {
    let issue = format!("{FILL}{DESCRIBE}{}", first(&format!("{MMA}{COMMIT}"), "ISSUED"));
    let write = "mad.lo.u32 %r3, %thread, 4, %mem;\nst.shared.u32 [%r3], %thread;\n";
    let overwritten = |kind: &FaultKind| matches!(kind, FaultKind::Race { previous, .. } if previous.actor == ISSUER && !previous.is_write);
    each_fault(&format!("{issue}bar.sync 1;\n{write}"), overwritten);
    // The fence orders nothing of shared memory, and a commit that was waited for does.
    each_fault(&format!("{issue}bar.sync 1;\n{AFTER}{write}"), overwritten);
    runs(&format!("{issue}{}{write}", wait(0, "DONE")));
    // The copy engine as well.
    let copy = |waits: &str| {
        let text = format!(
            "{waits}add.u32 %r4, %bar, 8;
            mbarrier.arrive.expect_tx.shared::cta.b64 %rd20, [%r4], 128;
            cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%mem], [%out], 128, [%r4];
            COPIED: mbarrier.try_wait.parity.shared::cta.b64 %p6, [%bar+8], 0;
            @!%p6 bra COPIED;\n"
        );
        format!("{FILL}{DESCRIBE}{}", first(&format!("{MMA}{COMMIT}{text}"), "ISSUED"))
    };
    each_fault(&copy(""), overwritten);
    runs(&copy(&wait(0, "DONE")));
}

#[test]
fn an_operation_without_commit_is_never_heard_of() {
    let body = format!("{FILL}{DESCRIBE}{}{}", first(MMA, "ISSUED"), wait(0, "DONE"));
    each_fault(&body, |kind| matches!(kind, FaultKind::Deadlock { .. }));
}

#[test]
fn several_commits_tell_several_mbarriers() {
    let other = COMMIT.replace("[%bar]", "[%bar+8]");
    // The second covers the same operation, and so does one with nothing behind it.
    let body = format!("{FILL}{DESCRIBE}{}", first(&format!("{MMA}{COMMIT}{other}"), "ISSUED"));
    runs(&(body + &wait(0, "DONE") + &wait(1, "TOO")));
}

#[test]
fn a_commit_of_nothing_arrives() {
    runs(&(first(COMMIT, "COMMITTED") + &wait(0, "DONE")));
}
