//! Products of every arrangement, type and size, against the exact ones.

use natten_emulator::Options;

use crate::numbers::{Element, accumulate, accumulate_half};
use crate::oracle::{ARRANGEMENTS, Arrangement};
use crate::problem::{Draw, Problem};
use crate::support::all_orders;

/// A problem drawn at random, of these arrangements.
fn draw_problem(draw: &mut Draw, arrangements: [Arrangement; 2], a_in_tensor_memory: bool) -> Problem {
    let m = draw.of(&[64, 128]);
    let n = 8 * (1 + draw.below(16));
    let half = draw.below(4) == 0;
    let element = |draw: &mut Draw| if half { Element::F16 } else { draw.of(&[Element::F16, Element::Bf16]) };
    Problem {
        m,
        n,
        steps: 1 + draw.below(4),
        types: [element(draw), element(draw)],
        negate: [draw.below(2) == 1, draw.below(2) == 1],
        half,
        lane: if m == 64 { 16 * draw.below(2) } else { 0 },
        arrangements,
        a_in_tensor_memory,
    }
}

/// Small integers over a power of two: sums of their products are exact in f32, and of the integers alone in f16.
fn small(problem: &Problem) -> impl Fn(&mut Draw) -> f64 + use<> {
    let (range, unit) = if problem.half { (2, 1.0) } else { (63, 64.0) };
    move |draw| (draw.below(2 * range + 1) as f64 - range as f64) / unit
}

fn check(problem: &Problem, seed: u64, options: Options) {
    let mut draw = Draw::new(seed);
    let matrices = problem.matrices(&mut draw, small(problem));
    let (d, counters) = problem
        .run(&mut draw, &matrices, options)
        .unwrap_or_else(|fault| panic!("{problem:?}, seed {seed}, {options:?}: {fault}"));
    assert_eq!(counters.mma_flops, 2 * problem.m * problem.n * problem.k());
    for row in 0..problem.m {
        for column in 0..problem.n {
            let word = d[(row * problem.n + column) as usize];
            let exact = problem.exact(&matrices, row, column);
            // What lies above an element of 16 bits is nothing to rely on.
            assert!(!problem.half || word / 65536 != 0);
            let got = if problem.half {
                Element::F16.decode((word % 65536) as u16)
            } else {
                f64::from(f32::from_bits(word))
            };
            assert_eq!(got, exact, "({row}, {column}) of {problem:?}, seed {seed}");
        }
    }
}

#[test]
fn every_pair_of_arrangements() {
    let orders = all_orders();
    let mut seed = 0;
    for a in ARRANGEMENTS {
        for b in ARRANGEMENTS {
            for _ in 0..2 {
                seed += 1;
                let problem = draw_problem(&mut Draw::new(1000 + seed), [a, b], false);
                check(&problem, seed, orders[seed as usize % orders.len()]);
            }
        }
    }
}

#[test]
fn a_from_tensor_memory() {
    let orders = all_orders();
    let mut seed = 0;
    for b in ARRANGEMENTS {
        for _ in 0..4 {
            seed += 1;
            let problem = draw_problem(&mut Draw::new(2000 + seed), [b, b], true);
            check(&problem, seed, orders[seed as usize % orders.len()]);
        }
    }
}

#[test]
fn every_width() {
    let arrangements = [ARRANGEMENTS[3]; 2];
    for n in (8..=256).step_by(8) {
        let m = if n % 24 == 0 { 128 } else { 64 };
        let (types, negate) = ([Element::Bf16; 2], [false; 2]);
        let a_in_tensor_memory = n % 64 == 0;
        let problem =
            Problem { m, n, steps: 1, types, negate, half: false, lane: 0, arrangements, a_in_tensor_memory };
        check(&problem, n, Options::default());
    }
}

/// Numbers of many sizes, subnormal ones and zeros among them.
fn wild(of: Element) -> impl Fn(&mut Draw) -> f64 {
    move |draw| {
        let sign = if draw.below(2) == 0 { 1.0 } else { -1.0 };
        let (spread, least) = if of == Element::F16 { (24, -14) } else { (40, -20) };
        let exponent = draw.below(spread) as i32 + least;
        match draw.below(8) {
            0 => 0.0,
            1 if of == Element::F16 => sign * draw.below(1024) as f64 * f64::from(-24).exp2(),
            _ => sign * (1.0 + draw.below(128) as f64 / 128.0) * f64::from(exponent).exp2(),
        }
    }
}

#[test]
fn sums_are_those_of_mma_sim_bit_by_bit_and_near_the_exact_ones() {
    for (seed, of) in [(1, Element::F16), (2, Element::Bf16), (3, Element::F16), (4, Element::Bf16)] {
        let problem = Problem {
            m: 128,
            n: 64,
            steps: 5,
            types: [of; 2],
            negate: [false; 2],
            half: false,
            lane: 0,
            arrangements: [ARRANGEMENTS[3]; 2],
            a_in_tensor_memory: seed > 2,
        };
        let mut draw = Draw::new(seed);
        let matrices = problem.matrices(&mut draw, wild(of));
        let (d, _) = problem.run(&mut draw, &matrices, Options::default()).unwrap_or_else(|f| panic!("{f}"));
        let k = problem.k() as usize;
        for row in 0..128 {
            for column in 0..64 {
                let (a, b) = (&matrices.a[row * k..][..k], &matrices.b[column * k..][..k]);
                let (mut sum, mut allowed, mut exact) = (0f32, 0f64, 0f64);
                for (a, b) in a.chunks(16).zip(b.chunks(16)) {
                    let magnitudes = a.iter().zip(b).map(|(&a, &b)| (of.decode(a) * of.decode(b)).abs());
                    let largest = magnitudes.fold(f64::from(sum.abs()), f64::max);
                    exact += a.iter().zip(b).map(|(&a, &b)| of.decode(a) * of.decode(b)).sum::<f64>();
                    sum = accumulate(sum, a, b, [of; 2]);
                    // Seventeen addends lose less than a unit 25 bits below the largest exponent, the sum one of f32.
                    allowed +=
                        17.0 * f64::from(-25).exp2() * largest + f64::from(-23).exp2() * f64::from(sum.abs());
                }
                let got = f32::from_bits(d[row * 64 + column]);
                assert_eq!(got.to_bits(), sum.to_bits(), "({row}, {column}): {got} is not {sum}");
                let error = (f64::from(got) - exact).abs();
                assert!(
                    error <= allowed,
                    "({row}, {column}): {got} is {error:e} from {exact}, {allowed:e} allowed"
                );
            }
        }
    }
}

#[test]
fn sums_of_f16_are_rounded_to_nearest() {
    let problem = Problem {
        m: 64,
        n: 40,
        steps: 4,
        types: [Element::F16; 2],
        negate: [false; 2],
        half: true,
        lane: 16,
        arrangements: [ARRANGEMENTS[5]; 2],
        a_in_tensor_memory: false,
    };
    // Sums that need rounding; subnormal ones; ones beyond the range.
    for scale in [0, -13, 7] {
        let mut draw = Draw::new(6);
        let matrices = problem.matrices(&mut draw, |draw| {
            let sign = if draw.below(2) == 0 { 1.0 } else { -1.0 };
            sign * (1.0 + draw.below(1024) as f64 / 1024.0) * f64::from(scale - draw.below(2) as i32).exp2()
        });
        let (d, _) = problem.run(&mut draw, &matrices, Options::default()).unwrap_or_else(|f| panic!("{f}"));
        for (at, word) in d.iter().enumerate() {
            let (row, column) = (at / 40, at % 40);
            let (a, b) = (&matrices.a[row * 64..][..64], &matrices.b[column * 64..][..64]);
            let mut sum = 0;
            for (a, b) in a.chunks(16).zip(b.chunks(16)) {
                if Element::F16.decode(sum).is_finite() {
                    sum = accumulate_half(sum, a, b);
                }
            }
            assert_eq!(word % 65536, u32::from(sum), "({row}, {column}) at {scale}");
        }
    }
}

#[test]
fn sums_at_the_ends_of_the_range() {
    let problem = Problem {
        m: 128,
        n: 128,
        steps: 1,
        types: [Element::Bf16; 2],
        negate: [false; 2],
        half: false,
        lane: 0,
        arrangements: [ARRANGEMENTS[6]; 2],
        a_in_tensor_memory: false,
    };
    // Within a row all of one size, so that some sums overflow and some are subnormal.
    for scale in [-126, -100, -63, 0, 62, 63, 64, 120, 127] {
        let mut draw = Draw::new(77);
        let matrices = problem.matrices(&mut draw, |draw| {
            let sign = if draw.below(2) == 0 { 1.0 } else { -1.0 };
            sign * (1.0 + draw.below(128) as f64 / 128.0) * f64::from(scale).exp2()
        });
        let (d, _) = problem.run(&mut draw, &matrices, Options::default()).unwrap_or_else(|f| panic!("{f}"));
        for row in 0..128 {
            for column in 0..128 {
                let (a, b) = (&matrices.a[row * 16..][..16], &matrices.b[column * 16..][..16]);
                let expected = accumulate(0.0, a, b, problem.types);
                assert_eq!(f32::from_bits(d[row * 128 + column]), expected, "({row}, {column}) at {scale}");
            }
        }
    }
}

#[test]
fn numbers_that_are_not_finite() {
    let problem = Problem {
        m: 64,
        n: 8,
        steps: 1,
        types: [Element::Bf16; 2],
        negate: [false; 2],
        half: false,
        lane: 0,
        arrangements: [ARRANGEMENTS[0]; 2],
        a_in_tensor_memory: false,
    };
    let mut draw = Draw::new(5);
    let mut matrices = problem.matrices(&mut draw, |_| 1.0);
    // Rows of A: one infinity; two of opposite sign; infinity times zero; a NaN; the rest is finite.
    let (infinity, nan) = (0x7f80, 0x7fc0);
    matrices.a[3] = infinity;
    (matrices.a[16], matrices.a[17]) = (infinity, infinity + 0x8000);
    matrices.a[2 * 16 + 5] = infinity;
    matrices.b[5] = 0;
    matrices.a[3 * 16] = nan;
    let (d, _) = problem.run(&mut draw, &matrices, Options::default()).unwrap_or_else(|f| panic!("{f}"));
    let row = |row: usize| &d[8 * row..8 * row + 8];
    assert!(row(0).iter().all(|word| *word == f32::INFINITY.to_bits()));
    assert!(row(1).iter().all(|word| *word == 0x7fff_ffff));
    assert_eq!(row(2)[0], 0x7fff_ffff);
    assert!(row(2)[1..].iter().all(|word| *word == f32::INFINITY.to_bits()));
    assert!(row(3).iter().all(|word| *word == 0x7fff_ffff));
    assert_eq!(row(4)[0], 15f32.to_bits());
    assert!(row(4)[1..].iter().all(|word| *word == 16f32.to_bits()));
}
