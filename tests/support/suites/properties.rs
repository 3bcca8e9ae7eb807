//! What must hold of any problem: equivalent formulations, partitions, symmetries. Each is two calls of the subject whose
//! results may differ by what both may err.

use natten::{Element, Inputs, Output, Tensor, TensorView};

use super::oracle::Expected;
use super::scope::Given;
use super::{Scope, Suite, list};
use crate::compare::{assert_close, same_bits, same_row};
use crate::in_type;
use crate::rng::Rng;
use crate::spec::{Case, Mask, Spec};
use crate::subject::{Subject, Unsupported, Weights};

/// Every property on drawn problems.
pub fn suite<S: Subject>(scope: &Scope) -> Suite<S> {
    let mut suite = Suite { name: "properties", checks: Vec::new() };
    if !scope.forward {
        return suite;
    }
    let drawn = |seed: u64| -> Vec<Spec> {
        let tiles = scope
            .has_tiles()
            .then(|| Spec::na(&[14, 31], &[7, 16]).dilation(&[1, 1]).dims(64, 64).heads(2, 1));
        list::random(seed, 24).into_iter().map(|spec| spec.additional(0)).chain(tiles).collect()
    };
    suite.each(scope, "whole windows are plain attention", &drawn(61), whole_windows::<S>);
    suite.each(scope, "stride equal to window is blocked attention", &blocked(), blocked_attention::<S>);
    suite.each(scope, "residues are independent", &drawn(62), independent_residues::<S>);
    suite.each(scope, "constant values come back", &list::random(63, 24), constant_values::<S>);
    suite.each(scope, "additional keys are more keys", &attended(), more_keys::<S>);
    suite.each(scope, "causal from the end is the end of a square", &ended(), end_of_a_square::<S>);
    suite.each(scope, "heads commute with permutation", &drawn(64), permuted_heads::<S>);
    suite.each(scope, "a causal axis ignores the future", &drawn(65), ignored_future::<S>);
    suite.each(scope, "scale multiplies the query", &drawn(66), scaled_query::<S>);
    suite.each(scope, "the same call gives the same bits", &drawn(67), repeated::<S>);
    suite.checks = scope.sampled(suite.checks);
    suite
}

/// Blocks of every length, whole ones.
fn blocked() -> Vec<Spec> {
    let of = |(w, blocks, causal)| Spec::na(&[w * blocks], &[w]).stride(&[w]).causal(&[causal]).dims(8, 16);
    [
        (1, 5, false),
        (3, 4, true),
        (6, 2, false),
        (5, 1, true),
        (7, 3, false),
        (4, 3, true),
        (64, 3, false),
        (40, 4, true),
    ]
    .map(of)
    .to_vec()
}

fn attended() -> Vec<Spec> {
    let of = |(queries, keys, extra)| {
        Spec::attention(queries, keys, false).heads(4, 2).dims(16, 8).additional(extra)
    };
    [(1, 3, 1), (8, 1, 6), (5, 0, 4), (3, 8, 2), (9, 9, 3), (70, 60, 70)].map(of).to_vec()
}

/// Fewer queries than keys, as many, and more.
fn ended() -> Vec<Spec> {
    let mut rng = Rng::new(69);
    let drawn = (0..12).map(|_| (rng.range(1, 70), rng.range(1, 70)));
    let lengths = [(1, 40), (9, 9), (17, 66), (70, 3), (5, 1), (130, 64)].into_iter().chain(drawn);
    let of = |(queries, keys)| Spec::attention(queries, keys, true).from_end().heads(4, 2).dims(16, 8);
    lengths.map(of).collect()
}

fn drawn(given: &Given, seed: u64) -> Case {
    given.spec.draw(seed + given.index as u64)
}

/// What a subject gives, and by how much it may err.
struct Bounded<E> {
    out: Tensor<E>,
    lse: Tensor<f32>,
    allowed: [f64; 2],
}

fn attend<E: Element, S: Subject>(subject: &S, case: &Case) -> Result<Bounded<E>, Unsupported> {
    attend_views(subject, case, &case.rounded::<E>().map(Tensor::view))
}

/// The views hold what the case does.
fn attend_views<E: Element, S: Subject>(
    subject: &S,
    case: &Case,
    views: &Inputs<TensorView<'_, E>>,
) -> Result<Bounded<E>, Unsupported> {
    let problem = case.spec.problem(E::TYPE);
    let mut out = Tensor::<E>::zeros(&problem.out_shape()).expect("small");
    let mut lse = Tensor::<f32>::zeros(&problem.lse_shape()).expect("small");
    let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
    let weights = subject.forward(&problem, views, output)?;
    let expected = Expected::<E>::of(case);
    Ok(Bounded { out, lse, allowed: expected.tolerances(weights) })
}

/// The results are the same numbers in the same order, whatever their shapes.
fn agree<E: Element>(what: &str, a: &Bounded<E>, b: &Bounded<E>) {
    let shape = |t: &Tensor<f32>, like: &Tensor<f32>| reshaped(t, like.shape());
    let allowed = [0, 1].map(|i| a.allowed[i] + b.allowed[i]);
    assert_close(&format!("{what}, out"), &a.out, &reshaped(&b.out, a.out.shape()), allowed[0]);
    assert_close(&format!("{what}, lse"), &a.lse, &shape(&b.lse, &a.lse), allowed[1]);
}

fn reshaped<E: Element>(tensor: &Tensor<E>, shape: &[usize]) -> Tensor<E> {
    Tensor::from_vec(shape, tensor.as_slice().to_vec()).expect("as many elements")
}

/// The same numbers as operands of another problem.
fn reinterpreted(case: &Case, spec: Spec) -> Case {
    let shapes = spec.shapes();
    let inputs = Inputs::new(
        reshaped(&case.inputs.query, &shapes.query),
        reshaped(&case.inputs.key, &shapes.key),
        reshaped(&case.inputs.value, &shapes.value),
    );
    let out_shape = [&shapes.query[..shapes.query.len() - 1], &[spec.head_dim_v]].concat();
    let d_out = reshaped(&case.d_out, &out_shape);
    let d_lse = case.d_lse.as_ref().map(|d_lse| reshaped(d_lse, &out_shape[..out_shape.len() - 1]));
    Case { spec, inputs, d_out, d_lse }
}

/// Heads, rows and scale of one spec with the mask of another.
fn with_mask(spec: &Spec, of: Spec) -> Spec {
    Spec { mask: of.mask, ..spec.clone() }
}

fn whole_windows<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let shape = given.spec.query_tokens();
        let tokens: usize = shape.iter().product();
        let spec = with_mask(&given.spec, Spec::na(&shape, &shape).stride(&shape));
        let case = drawn(&Given { spec, ..given.clone() }, 6100);
        let dense = reinterpreted(&case, with_mask(&case.spec, Spec::attention(tokens, tokens, false)));
        agree(&subject.name(), &attend::<E, S>(subject, &case)?, &attend(subject, &dense)?);
        Ok(())
    })
}

fn blocked_attention<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let Mask::Neighborhood { token_shape, axes } = &given.spec.mask else { unreachable!("blocks") };
        let case = drawn(given, 6200);
        let lengths = vec![axes[0].stride; token_shape[0] / axes[0].stride];
        let packed = Spec::packed(&lengths, &lengths, axes[0].is_causal);
        let packed = reinterpreted(&case, with_mask(&case.spec, packed));
        agree(&subject.name(), &attend::<E, S>(subject, &case)?, &attend(subject, &packed)?);
        Ok(())
    })
}

/// Dilation is the undilated operator on each residue, which is a view with strides `dilation` times as long.
fn independent_residues<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let Mask::Neighborhood { token_shape, axes } = &given.spec.mask else { unreachable!("drawn so") };
        let case = drawn(given, 6300);
        let whole = attend::<E, S>(subject, &case)?;
        let rounded = case.rounded::<E>();
        let dilation: Vec<usize> = axes.iter().map(|axis| axis.dilation).collect();
        let groups = dilation.iter().product::<usize>();
        for group in (0..groups).step_by(groups.div_ceil(4)) {
            let mut rest = group;
            let residues: Vec<usize> = dilation.iter().map(|d| (rest % d, rest /= d).0).collect();
            let views = rounded.map(|tensor| residue_view(tensor, &residues, &dilation));
            let mut own = axes.clone();
            own.iter_mut().for_each(|axis| axis.dilation = 1);
            let shape: Vec<usize> = views.query.shape()[1..=token_shape.len()].to_vec();
            let spec = Spec { mask: Mask::Neighborhood { token_shape: shape, axes: own }, ..given.spec.clone() };
            let inputs = views.map(|view| view.to_tensor().cast());
            let d_out = residue_view(&case.d_out, &residues, &dilation).to_tensor();
            let part = Case { spec, inputs, d_out, d_lse: None };
            let found = attend_views(subject, &part, &views)?;
            let expected = residue_view(&whole.out, &residues, &dilation).to_tensor();
            let what = format!("{} residue {residues:?} of {:?}", subject.name(), given.spec);
            assert_close(&what, &found.out, &expected, found.allowed[0] + whole.allowed[0]);
        }
        Ok(())
    })
}

/// Weights sum to one.
fn constant_values<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let mut case = drawn(given, 6400);
        let constant = |t: &Tensor<f64>| Tensor::from_fn(t.shape(), |_| -2.5).expect("its shape");
        case.inputs.value = constant(&case.inputs.value);
        if let Some([_, values]) = &mut case.inputs.additional {
            *values = constant(values);
        }
        let found = attend::<E, S>(subject, &case)?;
        // The result that the tolerance is of is no exact constant either.
        assert_close(&subject.name(), &found.out, &constant(&found.out.cast()), 2.0 * found.allowed[0]);
        Ok(())
    })
}

fn more_keys<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let case = drawn(given, 6500);
        let [more_keys, more_values] = case.inputs.additional.as_ref().expect("some");
        let (queries, keys) = (given.spec.query_tokens()[0], given.spec.key_tokens()[0] + given.spec.additional);
        let join = |a: &Tensor<f64>, b: &Tensor<f64>| {
            let shape = [1, keys, a.shape()[2], a.shape()[3]];
            Tensor::from_vec(&shape, [a.as_slice(), b.as_slice()].concat()).expect("one after the other")
        };
        let (key, value) = (join(&case.inputs.key, more_keys), join(&case.inputs.value, more_values));
        let spec = with_mask(&given.spec, Spec::attention(queries, keys, false)).additional(0);
        let joined = Case { spec, inputs: Inputs::new(case.inputs.query.clone(), key, value), ..case.clone() };
        agree(&subject.name(), &attend::<E, S>(subject, &case)?, &attend(subject, &joined)?);
        Ok(())
    })
}

/// The last queries of as many as there are keys, all causal; queries that are more than that see nothing.
fn end_of_a_square<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let case = drawn(given, 6950);
        let (queries, keys) = (given.spec.query_tokens()[0], given.spec.key_tokens()[0]);
        // The last queries of one, in the last places of the other.
        let shared = queries.min(keys);
        let last = |tensor: &Tensor<f64>, of: usize| {
            let row = tensor.as_slice().len() / of;
            tensor.as_slice()[(of - shared) * row..].to_vec()
        };
        let mut square = drawn(&Given { spec: with_mask(&given.spec, Spec::attention(keys, keys, true)), ..given.clone() }, 6951);
        square.inputs.key = case.inputs.key.clone();
        square.inputs.value = case.inputs.value.clone();
        let query = square.inputs.query.as_mut_slice();
        let ours = last(&case.inputs.query, queries);
        let first = query.len() - ours.len();
        query[first..].copy_from_slice(&ours);
        let (found, expected) = (attend::<E, S>(subject, &case)?, attend::<E, S>(subject, &square)?);
        let what = format!("{} {:?}", subject.name(), given.spec);
        let part = |tensor: Tensor<f64>, of: usize| {
            let kept = last(&tensor, of);
            Tensor::from_vec(&[kept.len()], kept).expect("as many")
        };
        let outs = (part(found.out.cast(), queries), part(expected.out.cast(), keys));
        let sums = (part(found.lse.cast(), queries), part(expected.lse.cast(), keys));
        let allowed = [0, 1].map(|i| found.allowed[i] + expected.allowed[i]);
        assert_close(&format!("{what}, out"), &outs.0, &outs.1, allowed[0]);
        assert_close(&format!("{what}, lse"), &sums.0, &sums.1, allowed[1]);
        let before = queries - shared;
        let (outs, sums) = (found.out.as_slice(), found.lse.as_slice());
        let nothing = outs[..before * (outs.len() / queries)].iter().all(|x| x.to_f64() == 0.0)
            && sums[..before * (sums.len() / queries)].iter().all(|&x| x == f32::NEG_INFINITY);
        assert!(nothing, "{what}: queries before the first key");
        Ok(())
    })
}

/// Heads know nothing of each other: reversed ones, by a negative stride, give reversed results.
fn permuted_heads<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let case = drawn(given, 6600);
        let forward = attend::<E, S>(subject, &case)?;
        let rounded = case.rounded::<E>();
        let reversed = rounded.map(heads_reversed);
        let turned = Case { inputs: reversed.map(|view| view.to_tensor().cast()), ..case };
        let found = attend_views(subject, &turned, &reversed)?;
        let expected = heads_reversed(&forward.out).to_tensor();
        assert_close(&subject.name(), &found.out, &expected, found.allowed[0] + forward.allowed[0]);
        Ok(())
    })
}

/// Changing what lies after a token of a causal first axis changes nothing up to it, not a bit; but on tensor cores, which work out
/// a tile's other rows anew where one row's scores are beyond 2^16, to the last bits if what lies there is so large.
fn ignored_future<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let mut spec = given.spec.clone();
        let Mask::Neighborhood { token_shape, axes } = &mut spec.mask else { unreachable!("drawn so") };
        axes[0].is_causal = true;
        let frames = token_shape[0];
        let drawn = spec.draw(6700);
        let inputs = drawn.rounded::<E>();
        let problem = spec.problem(E::TYPE);
        let clean = subject.attend(&problem, &inputs)?;
        let exactly = 0.0;
        let bads = match clean.weights {
            Weights::Unrounded => vec![(f64::NAN, exactly)],
            weights => {
                let allowed = Expected::<E>::of(&drawn).tolerances(weights)[0];
                vec![(12.0, exactly), (3e4, 2.0 * allowed)]
            }
        };
        let kept = frames.div_ceil(2);
        let (batch, width) = (problem.batch(), problem.head_dim_v());
        for (bad, allowed) in bads {
            let mut changed = inputs.clone();
            for tensor in [&mut changed.query, &mut changed.key, &mut changed.value] {
                let item = tensor.as_slice().len() / batch;
                for item in tensor.as_mut_slice().chunks_mut(item) {
                    let start = item.len() / frames * kept;
                    item[start..].fill(E::from_f64(bad));
                }
            }
            let found = subject.attend(&problem, &changed)?;
            let rows = problem.query_tokens() * problem.heads();
            for row in (0..batch * rows).filter(|row| row % rows < rows / frames * kept) {
                let of = |out: &Tensor<E>| out.as_slice()[row * width..][..width].to_vec();
                let pairs = of(&clean.out).into_iter().zip(of(&found.out));
                let is_close = pairs.into_iter().all(|(a, b)| (a.to_f64() - b.to_f64()).abs() <= allowed);
                let is_same = same_row(&clean.out, &found.out, row, width);
                assert!(is_same || is_close, "{} {spec:?}: row {row} saw the future {bad}", subject.name());
            }
        }
        Ok(())
    })
}

/// The scale is a factor on the scores: twice the scale is twice the query.
fn scaled_query<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let case = drawn(given, 6800);
        let mut doubled = case.clone();
        doubled.inputs.query.as_mut_slice().iter_mut().for_each(|x| *x *= 2.0);
        doubled.spec = doubled.spec.scale(0.5);
        let single = Case { spec: case.spec.clone().scale(1.0), ..case };
        agree(&subject.name(), &attend::<E, S>(subject, &single)?, &attend(subject, &doubled)?);
        Ok(())
    })
}

fn repeated<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let inputs = drawn(given, 6900).rounded::<E>();
        let problem = given.spec.problem(E::TYPE);
        let (a, b) = (subject.attend(&problem, &inputs)?, subject.attend(&problem, &inputs)?);
        assert!(same_bits(&a.out, &b.out) && same_bits(&a.lse, &b.lse), "{}", subject.name());
        Ok(())
    })
}

/// The tokens `residue, residue + dilation, ..` along each token axis, without a copy.
fn residue_view<'a, E: Element>(
    tensor: &'a Tensor<E>,
    residues: &[usize],
    dilation: &[usize],
) -> TensorView<'a, E> {
    let (mut shape, mut strides) = (tensor.shape().to_vec(), tensor.view().layout().strides().to_vec());
    let mut offset = 0;
    for (axis, (&g, &d)) in residues.iter().zip(dilation).enumerate() {
        offset += g * strides[axis + 1] as usize;
        shape[axis + 1] = (shape[axis + 1] - g).div_ceil(d);
        strides[axis + 1] *= d as isize;
    }
    TensorView::strided(tensor.as_slice(), offset, &shape, &strides).expect("a part of it")
}

/// The heads from last to first, without a copy.
fn heads_reversed<E: Element>(tensor: &Tensor<E>) -> TensorView<'_, E> {
    let mut strides = tensor.view().layout().strides().to_vec();
    let heads = strides.len() - 2;
    let offset = (tensor.shape()[heads] - 1) * strides[heads] as usize;
    strides[heads] = -strides[heads];
    TensorView::strided(tensor.as_slice(), offset, tensor.shape(), &strides).expect("the same elements")
}
