//! Wrong regions: each rule is broken once through the public API, and the error has the variant, the values and the name of the
//! argument.

use natten::region::RegionError;
use natten::{
    AxisParams, DynParams, Error, KernelSizePolicy, Params, ProblemError, Region, Role, Tensor, na1d, na2d,
};

fn zeros(shape: &[usize]) -> Tensor<f32> {
    Tensor::zeros(shape).expect("small")
}

/// A sequence of these queries and keys breaks this rule, and its message says so in these words.
fn expect(queries: usize, keys: usize, params: &Params<1>, rule: impl Into<ProblemError>, message: &str) {
    let rule = rule.into();
    let [query, key] = [queries, keys].map(|tokens| zeros(&[1, tokens, 1, 4]));
    match na1d(&query, &key, &key, params) {
        Err(Error::Problem(found)) => {
            assert_eq!(found, rule);
            assert_eq!(found.to_string(), message);
        }
        other => panic!("expected {rule:?}, got {other:?}"),
    }
}

fn region(extent: usize, queries: [usize; 2], keys: [usize; 2]) -> Params<1> {
    let region = Region::of(extent).queries(queries[0]..queries[1]).keys(keys[0]..keys[1]);
    Params::new([3]).region(0, region)
}

#[test]
fn regions_outside_of_the_whole() {
    let (axis, tensor) = (0, Role::Query);
    let rule = RegionError::Outside { tensor, axis, start: 5, end: 12, extent: 10 };
    let message = "axis 0: the region 5..12 of query leaves the 10 tokens of the axis";
    expect(7, 10, &region(10, [5, 12], [0, 10]), rule, message);
    let rule = RegionError::Outside { tensor: Role::Key, axis, start: 11, end: 11, extent: 10 };
    let message = "axis 0: the region 11..11 of key leaves the 10 tokens of the axis";
    expect(0, 0, &region(10, [3, 3], [11, 11]), rule, message);
    let rule = RegionError::Reversed { tensor, axis, start: 6, end: 4 };
    let message = "axis 0: the region of query ends before it begins, 6..4";
    expect(2, 10, &region(10, [6, 4], [0, 10]), rule, message);
    let (extent, limit) = (usize::MAX, isize::MAX as usize);
    let rule = RegionError::TooLong { axis, extent, limit };
    let message = format!("axis 0: a whole of {extent} tokens, expected at most {limit}");
    expect(2, 2, &region(extent, [extent - 2, extent], [extent - 2, extent]), rule, &message);
}

#[test]
fn tensors_of_other_extents_than_their_region() {
    let rule = RegionError::Extent { tensor: Role::Query, axis: 0, start: 2, end: 5, found: 4 };
    let message = "query: token axis 0 has extent 4, its region 2..5 has 3";
    expect(4, 10, &region(10, [2, 5], [0, 10]), rule, message);
    let rule = RegionError::Extent { tensor: Role::Key, axis: 0, start: 1, end: 6, found: 6 };
    let message = "key: token axis 0 has extent 6, its region 1..6 has 5";
    expect(3, 6, &region(10, [2, 5], [1, 6]), rule, message);
    // Along the other axis nothing was said, so both must be alike.
    let [query, key] = [zeros(&[1, 3, 6, 1, 4]), zeros(&[1, 5, 7, 1, 4])];
    let params = Params::new([3, 3]).region(0, Region::of(10).queries(2..5).keys(1..6));
    let error = na2d(&query, &key, &key, &params).expect_err("7 for 6").to_string();
    assert_eq!(error, "key: token axis 1 has extent 7, expected 6");
    // Values that are not as many as keys are an older rule.
    let error = na2d(&query, &key, &zeros(&[1, 5, 6, 1, 4]), &params).expect_err("6 for 7").to_string();
    assert_eq!(error, "value: token axis 1 has extent 6, expected 7");
}

#[test]
fn keys_that_are_needed_and_not_held() {
    let rule = |query, key, start, end| RegionError::KeyNotHeld { axis: 0, key, query, start, end };
    let message = "axis 0: query 2 needs key 1, the call holds the keys 2..6";
    expect(3, 4, &region(10, [2, 5], [2, 6]), rule(2, 1, 2, 6), message);
    let message = "axis 0: query 4 needs key 5, the call holds the keys 0..5";
    expect(3, 5, &region(10, [2, 5], [0, 5]), rule(4, 5, 0, 5), message);
    // Of no keys at all the first is the first that is needed.
    let message = "axis 0: query 2 needs key 1, the call holds the keys 9..9";
    expect(3, 0, &region(10, [2, 5], [9, 9]), rule(2, 1, 9, 9), message);
    // Query 4 is of the block 3..6 of the whole, whose windows begin at key 3.
    let blocks = |keys| region(10, [4, 5], keys).stride(3).is_causal(true);
    let message = "axis 0: query 4 needs key 3, the call holds the keys 4..5";
    expect(1, 1, &blocks([4, 5]), rule(4, 3, 4, 5), message);
    let [query, key] = [zeros(&[1, 1, 1, 4]), zeros(&[1, 2, 1, 4])];
    assert!(na1d(&query, &key, &key, &blocks([3, 5])).is_ok());
    // Queries 3 and 4, two residues: key 0 is query 3's.
    let dilated = region(12, [3, 5], [1, 8]).dilation(3);
    expect(2, 7, &dilated, rule(3, 0, 1, 8), "axis 0: query 3 needs key 0, the call holds the keys 1..8");
    // The second axis, and its own number.
    let params = Params::new([3, 3]).region(1, Region::of(9).queries(4..6).keys(4..7));
    let [query, key] = [zeros(&[1, 5, 2, 1, 4]), zeros(&[1, 5, 3, 1, 4])];
    let error = na2d(&query, &key, &key, &params).expect_err("key 3").to_string();
    assert_eq!(error, "axis 1: query 4 needs key 3, the call holds the keys 4..7");
    // Nobody needs anything where there are no queries.
    let params = params.region(0, Region::of(5).queries(2..2));
    let out = na2d(&zeros(&[1, 0, 2, 1, 4]), &key, &key, &params).expect("no query");
    assert_eq!(out.shape(), [1, 0, 2, 1, 4]);
}

#[test]
fn windows_are_held_against_the_whole() {
    let (axis, token_extent) = (0, 4);
    let whole = Region::of(4).queries(1..3);
    let rule = ProblemError::KernelSizeTooLarge { axis, kernel_size: 5, dilation: 1, token_extent };
    let message = "axis 0: kernel_size 5 x dilation 1 exceeds the token extent 4";
    expect(2, 4, &Params::new([5]).region(0, whole), rule, message);
    // It fits the whole, though not the keys at hand.
    let [query, key] = [zeros(&[1, 1, 1, 4]), zeros(&[1, 5, 1, 4])];
    let params = Params::new([5]).region(0, Region::of(9).queries(3..4).keys(1..6));
    assert!(na1d(&query, &key, &key, &params).is_ok());
    let clamped =
        Params::new([99]).policy(KernelSizePolicy::Clamp).region(0, Region::of(9).queries(3..4).keys(1..6));
    let error = na1d(&query, &key, &key, &clamped).expect_err("all nine").to_string();
    assert_eq!(error, "axis 0: query 3 needs key 0, the call holds the keys 1..6");
    let all = Params::<1>::new([1]).whole_axis(0).region(0, Region::of(5).queries(3..4));
    assert!(na1d(&query, &key, &key, &all).is_ok());
}

#[test]
fn axes_that_there_are_not() {
    let rule = ProblemError::NoSuchAxis { axis: 1, rank: 1 };
    let params = Params::new([1]).region(1, Region::of(4));
    expect(4, 4, &params, rule.clone(), "axis 1: there are 1 token axes, counted from 0");
    let dynamic = DynParams::new(&[AxisParams::new(1)], None, KernelSizePolicy::Exact);
    let x = zeros(&[1, 4, 1, 4]);
    let call = natten::Call::new(&x, &x, &x).expect("one device");
    match call.forward(&dynamic.region(1, Region::of(4))) {
        Err(Error::Problem(found)) => assert_eq!(found, rule),
        other => panic!("expected {rule:?}, got {other:?}"),
    }
    assert_eq!(dynamic.axis(3, 10), Err(ProblemError::NoSuchAxis { axis: 3, rank: 1 }));
}
