//! What becomes of ranks when one of them fails, and calls that do not fit: an error that says so, on every rank, in bounded time.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use natten::cpu::Cpu;
use natten::exchange::{Message, Messages};
use natten::region::SplitError;
use natten::sharded::{InProcess, Sharded, ShardedError, Whole};
use natten::{
    Call, ElementType, Exchange, ExchangeError, Inputs, Layout, Params, Ranks, Saved, Tensor, TensorView,
    TensorViewMut, bf16,
};

/// Longer than anything here takes, on a machine that is busy with other things too.
const BOUND: Duration = Duration::from_secs(50);

fn whole() -> Whole {
    let layout = Layout::contiguous(&[1, 40, 2, 4]).expect("small");
    Whole::new(Params::new([7]), &Inputs::new(layout, layout, layout), ElementType::F32).expect("valid")
}

fn numbers(tokens: usize) -> Tensor<f32> {
    Tensor::from_fn(&[1, tokens, 2, 4], |i| (i as f32 * 0.7).sin()).expect("small")
}

fn forward(sharded: &Sharded<InProcess>) -> Result<Tensor<f32>, ShardedError> {
    let x = numbers(sharded.tokens().len());
    sharded.forward(&Call::new(&x, &x, &x).expect("one device"))
}

/// Calls until one fails, and says how.
fn until_it_fails(sharded: &Sharded<InProcess>) -> ExchangeError {
    let began = Instant::now();
    while began.elapsed() < BOUND {
        match forward(sharded) {
            Ok(_) => continue,
            Err(ShardedError::Exchange(error)) => return error,
            Err(other) => panic!("not a failure of the exchange: {other}"),
        }
    }
    panic!("no failure in {BOUND:?}");
}

fn part(exchange: InProcess) -> Sharded<InProcess> {
    Sharded::new(exchange, &whole(), 0).expect("a valid split")
}

/// What each rank but `lost` learns when that one does something after a call that all made.
fn when_one(lost: usize, patience: Duration, does: fn(Sharded<InProcess>)) -> Vec<ExchangeError> {
    let began = Instant::now();
    let group = InProcess::group(5).expect("a few ranks");
    // Whoever waits for others still would learn of the failure in the call that all are to make.
    let made = Barrier::new(group.len());
    let errors = thread::scope(|scope| {
        let start = |exchange: InProcess| {
            let made = &made;
            scope.spawn(move || {
                let sharded = part(exchange.patience(patience));
                let first = forward(&sharded);
                made.wait();
                first.expect("every rank is there");
                if sharded.exchange().rank() == lost {
                    does(sharded);
                    return None;
                }
                let error = until_it_fails(&sharded);
                // It stays so, whatever is asked.
                assert!(matches!(forward(&sharded), Err(ShardedError::Exchange(_))));
                assert!(sharded.poll().is_err() && sharded.wait(BOUND).is_err());
                Some(error)
            })
        };
        let threads: Vec<_> = group.into_iter().map(start).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap_or(None)).collect()
    });
    assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
    errors
}

#[test]
fn every_rank_learns_of_one_that_is_gone() {
    for lost in [0, 2, 4] {
        let errors = when_one(lost, BOUND, drop);
        assert_eq!(errors.len(), 4, "{errors:?}");
        let is_lost = |error: &&ExchangeError| matches!(error, ExchangeError::Lost { lost: named, .. } if *named == lost);
        let (first, others): (Vec<_>, Vec<_>) = errors.iter().partition(is_lost);
        assert!(!first.is_empty(), "nobody names rank {lost}: {errors:?}");
        for error in others {
            assert!(matches!(error, ExchangeError::FailedElsewhere { .. }), "{error}");
        }
    }
}

#[test]
fn every_rank_learns_of_one_that_panicked() {
    let errors =
        when_one(3, BOUND, |_sharded| std::panic::resume_unwind(Box::new("as a rank's own code might")));
    assert_eq!(errors.len(), 4, "{errors:?}");
    for error in errors {
        assert!(matches!(error, ExchangeError::FailedElsewhere { failed: 3, .. }), "{error}");
    }
}

#[test]
fn nobody_waits_forever_for_a_rank_that_does_nothing() {
    let errors = when_one(1, Duration::from_secs(2), |sharded| {
        // Alive for longer than the others wait; then it learns what it missed.
        let began = Instant::now();
        while sharded.poll().is_ok() && began.elapsed() < BOUND {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(matches!(
            forward(&sharded),
            Err(ShardedError::Exchange(ExchangeError::FailedElsewhere { .. }))
        ));
    });
    assert_eq!(errors.len(), 4, "{errors:?}");
    // Whose patience ends first may be one who waits for a rank that waits itself.
    let timed_out =
        errors.iter().filter(|error| matches!(error, ExchangeError::TimedOut { other: Some(_), .. }));
    assert!(timed_out.count() >= 1, "{errors:?}");
    for error in &errors {
        let is_told = matches!(error, ExchangeError::TimedOut { .. } | ExchangeError::FailedElsewhere { .. });
        assert!(is_told, "{error}");
    }
}

/// What it had sent before is received, and its going is no failure.
#[test]
fn a_rank_that_is_done_may_go() {
    let mut group = InProcess::group(2).expect("two ranks").into_iter();
    let (first, second) = (group.next().expect("rank 0"), group.next().expect("rank 1"));
    let sent = numbers(3);
    let sends = vec![Message { rank: 1, view: sent.view() }];
    first.exchange(&Cpu::new(), Messages { sends, receives: Vec::new() }, || ()).expect("nobody waits");
    drop(first);
    let mut found = Tensor::zeros(&[1, 3, 2, 4]).expect("small");
    fn receive<S>(view: TensorViewMut<'_, f32>) -> Messages<S, TensorViewMut<'_, f32>> {
        Messages { sends: Vec::new(), receives: vec![Message { rank: 0, view }] }
    }
    let messages = receive(found.view_mut());
    assert_eq!(second.exchange::<f32, _>(&Cpu::new(), messages, || 7).expect("it is there"), 7);
    assert_eq!((&found, second.received_bytes()), (&sent, 3 * 2 * 4 * 4));
    assert!(second.poll().expect("nothing failed"));
    let error = second.exchange::<f32, _>(&Cpu::new(), receive(found.view_mut()), || ()).expect_err("gone");
    assert!(matches!(error, ExchangeError::Lost { rank: 1, lost: 0 }), "{error}");
    let error = second.poll().expect_err("it has failed");
    assert!(matches!(error, ExchangeError::Unusable { rank: 1, .. }), "{error}");
}

#[test]
fn ranks_of_different_problems_are_told() {
    let exchange = |of: fn(InProcess) -> Result<(), ExchangeError>, with: fn(InProcess)| {
        let mut group = InProcess::group(2).expect("two ranks").into_iter();
        let (first, second) = (group.next().expect("rank 0"), group.next().expect("rank 1"));
        with(second);
        of(first).expect_err("another problem")
    };
    let send = |second: InProcess| {
        let numbers = numbers(3);
        let sends = vec![Message { rank: 0, view: numbers.view() }];
        second.exchange(&Cpu::new(), Messages { sends, receives: Vec::new() }, || ()).expect("nobody waits");
    };
    fn receive<E: natten::Element>(first: InProcess, shape: &[usize]) -> Result<(), ExchangeError> {
        let mut found = Tensor::<E>::zeros(shape).expect("small");
        let receives = vec![Message { rank: 1, view: found.view_mut() }];
        first.exchange::<E, _>(&Cpu::new(), Messages { sends: Vec::new(), receives }, || ())
    }
    let shape = exchange(|first| receive::<f32>(first, &[1, 2, 2, 4]), send);
    assert_eq!(shape.to_string(), "rank 0 expects [1, 2, 2, 4] of f32 from rank 1, which sent [1, 3, 2, 4]");
    let of_type = exchange(|first| receive::<bf16>(first, &[1, 3, 2, 4]), send);
    assert!(matches!(of_type, ExchangeError::Message { other: 1, .. }), "{of_type}");
}

#[test]
fn messages_that_make_no_sense_are_refused() {
    let group = InProcess::group(2).expect("two ranks");
    let (numbers, cpu) = (numbers(4), Cpu::new());
    for found in [0, 2, usize::MAX] {
        let sends = vec![Message { rank: found, view: numbers.view() }];
        let error = group[0]
            .exchange(&cpu, Messages { sends, receives: Vec::new() }, || ())
            .expect_err("no such rank");
        assert!(matches!(error, ExchangeError::Rank { found: named, rank: 0, ranks: 2 } if named == found));
    }
    let apart = TensorView::strided(numbers.as_slice(), 0, &[4], &[2]).expect("a view");
    let sends = vec![Message { rank: 1, view: apart }];
    let error = group[0].exchange(&cpu, Messages { sends, receives: Vec::new() }, || ()).expect_err("gaps");
    assert!(matches!(error, ExchangeError::NotContiguous { rank: 0, other: 1 }), "{error}");
    let mut room = [0.0_f32; 9];
    let apart = TensorViewMut::strided(&mut room, 0, &[4], &[2]).expect("a view");
    let receives = vec![Message { rank: 1, view: apart }];
    let error = group[0].exchange(&cpu, Messages { sends: Vec::new(), receives }, || ()).expect_err("gaps");
    assert!(matches!(error, ExchangeError::NotContiguous { rank: 0, other: 1 }), "{error}");
    // None of these was sent, so the ranks can go on.
    assert!(group[0].poll().expect("nothing failed"));
    assert_eq!(InProcess::group(0).expect_err("nobody"), SplitError::NoRanks);
    let too_many = InProcess::group(usize::MAX).expect_err("too many");
    assert_eq!(too_many, SplitError::TooManyRanks { ranks: usize::MAX, max: natten::region::MAX_RANKS });
}

fn alone(ranks: usize) -> InProcess {
    InProcess::group(ranks).expect("a few ranks").swap_remove(0)
}

#[test]
fn splits_that_do_not_fit_are_refused() {
    let whole = whole();
    let error = Sharded::new(alone(2), &whole, 1).expect_err("one axis");
    assert!(matches!(error, ShardedError::Split(SplitError::Axis { axis: 1, rank: 1 })), "{error}");
    let error = Sharded::at(alone(2), &whole, 0, &[10, 20, 40]).expect_err("three parts");
    assert!(matches!(error, ShardedError::Parts { parts: 3, ranks: 2 }), "{error}");
    let error = Sharded::at(alone(2), &whole, 0, &[10, 39]).expect_err("too short");
    assert!(matches!(error, ShardedError::Split(SplitError::Ends { .. })), "{error}");
    let error = Sharded::new(alone(2), &whole, 0).and_then(|sharded| sharded.grid(0)).expect_err("no grid");
    assert!(matches!(error, ShardedError::Split(SplitError::Grid { .. })), "{error}");
}

/// Before anything is sent: the other ranks, who are not even there, are not waited for.
#[test]
fn calls_that_do_not_fit_are_refused() {
    let sharded = Sharded::new(alone(2), &whole(), 0).expect("valid");
    let (own, all) = (numbers(20), numbers(40));
    let refused = |error: Result<Tensor<f32>, ShardedError>| error.expect_err("it does not fit");
    let error = refused(sharded.forward(&Call::new(&all, &all, &all).expect("one device")));
    assert_eq!(
        error.to_string(),
        "rank 0: query has shape [1, 40, 2, 4], its shard of the whole has [1, 20, 2, 4]"
    );
    let error = refused(sharded.forward(&Call::new(&own, &own, &all).expect("one device")));
    assert!(matches!(error, ShardedError::Shape { tensor: natten::Role::Value, .. }), "{error}");
    let call = Call::new(&own, &own, &own).expect("one device");
    let more = call.additional(&own, &own).expect("one device");
    let error = refused(sharded.forward(&more));
    assert!(matches!(error, ShardedError::AdditionalKeys { expected: 0, found: 20 }), "{error}");
    let half: Tensor<bf16> = own.cast();
    let error =
        sharded.forward(&Call::new(&half, &half, &half).expect("one device")).expect_err("another type");
    assert!(matches!(error, ShardedError::ElementType { found: ElementType::Bf16, .. }), "{error}");
    let gaps = TensorView::strided(all.as_slice(), 0, &[1, 20, 2, 4], &[0, 16, 8, 2]).expect("a view");
    let error = refused(sharded.forward(&Call::new(&own, &gaps, &own).expect("one device")));
    assert!(matches!(error, ShardedError::Problem(_)), "{error}");
    let (lse, short) = (Tensor::zeros(&[1, 20, 2]).expect("small"), numbers(19));
    let call = Call::new(&own, &own, &own).expect("one device");
    let saved = Saved { out: &own, lse: &lse, d_out: &short, d_lse: None };
    let error = sharded.backward(&call, &saved, None).expect_err("a short gradient");
    assert!(matches!(error, ShardedError::Problem(_)), "{error}");
    // Halos of another split, of one rank and so without any.
    let one = Sharded::new(alone(1), &whole(), 0).expect("valid");
    let (_, none) = one.forward_keeping(&Call::new(&all, &all, &all).expect("one device")).expect("alone");
    let saved = Saved { d_out: &own, ..saved };
    let error = sharded.backward(&call, &saved, Some(&none)).expect_err("other halos");
    assert!(matches!(&error, ShardedError::Halos { found, .. } if found.is_empty()), "{error}");
    assert!(sharded.poll().expect("nothing was tried"));
}
