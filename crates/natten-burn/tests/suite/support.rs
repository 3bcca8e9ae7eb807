//! Attention as it is defined: every score, a mask over them, a softmax; in burn's own operations, whose gradients are burn's.

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, DType, Device, Tensor, TensorData};
use natten_burn::{AxisParams, DynParams, KernelSize, KernelSizePolicy};

/// Numbers between -1 and 1, the same for the same seed.
pub fn numbers(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// A tensor of such numbers.
pub fn random<const D: usize>(shape: [usize; D], seed: u64, device: &Device, dtype: DType) -> Tensor<D> {
    let data = TensorData::new(numbers(shape.iter().product(), seed), shape);
    Tensor::<D>::from_data(data, (device, DType::F64)).cast(dtype)
}

/// All numbers of a tensor, widened.
pub fn listed<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    tensor.clone().into_data().convert::<f64>().try_to_vec().expect("converted")
}

/// Panics if any two numbers are further apart than `most`, taken relative to numbers above 1.
#[track_caller]
pub fn assert_close<const D: usize>(what: &str, found: &Tensor<D>, expected: &Tensor<D>, most: f64) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let pairs = listed(found).into_iter().zip(listed(expected));
    for (i, (found, expected)) in pairs.enumerate() {
        let apart = (found - expected).abs() / expected.abs().max(1.0);
        // A number that is none is close to nothing.
        assert!(apart <= most || found == expected, "{what}, number {i}: {found}, expected {expected}");
    }
}

/// Along one axis, does the query at `q` see the key at `k`? After docs/operator.md, token by token.
pub fn sees(q: usize, k: usize, len: usize, axis: &AxisParams) -> bool {
    let &AxisParams { kernel_size, stride, dilation, is_causal } = axis;
    let KernelSize::Tokens(window) = kernel_size else { panic!("a window of so many tokens") };
    if q % dilation != k % dilation {
        return false;
    }
    let len = len / dilation + usize::from(q % dilation < len % dilation);
    let (q, k) = (q / dilation, k / dilation);
    let block = q / stride * stride;
    if is_causal {
        let leader = (block + stride - 1).min(len - 1);
        return (k + window > leader) && k <= q;
    }
    let leader = (block + stride / 2).min(len - 1);
    let start = leader.saturating_sub(window / 2).min(len - window);
    (start..start + window).contains(&k)
}

/// One axis with all of its parameters.
pub fn axis(window: usize, stride: usize, dilation: usize, is_causal: bool) -> AxisParams {
    AxisParams { kernel_size: KernelSize::Tokens(window), stride, dilation, is_causal }
}

/// A problem on some tokens.
#[derive(Clone, Debug)]
pub struct Case {
    /// Extent and parameters of each axis.
    pub axes: Vec<(usize, AxisParams)>,
    pub batch: usize,
    pub heads: usize,
    pub heads_kv: usize,
    pub head_dim: usize,
    pub head_dim_v: usize,
    /// Additional keys.
    pub additional: usize,
    pub scale: Option<f32>,
}

impl Case {
    /// Two batches, two heads of four numbers.
    pub fn new(axes: &[(usize, AxisParams)]) -> Self {
        let axes = axes.to_vec();
        Case { axes, batch: 2, heads: 2, heads_kv: 2, head_dim: 4, head_dim_v: 4, additional: 0, scale: None }
    }

    pub fn params(&self) -> DynParams {
        let axes: Vec<_> = self.axes.iter().map(|(_, axis)| *axis).collect();
        DynParams::new(&axes, self.scale, KernelSizePolicy::Exact)
    }

    pub fn tokens(&self) -> usize {
        self.axes.iter().map(|(len, _)| len).product()
    }

    /// `[batch, tokens.., heads, numbers]`
    pub fn shape<const D: usize>(&self, heads: usize, numbers: usize) -> [usize; D] {
        let mut shape = [self.batch; D];
        self.axes.iter().zip(&mut shape[1..]).for_each(|((len, _), extent)| *extent = *len);
        (shape[D - 2], shape[D - 1]) = (heads, numbers);
        shape
    }

    /// `[tokens, tokens]`, true where a key is hidden.
    pub fn hidden(&self, device: &Device) -> Tensor<2, Bool> {
        let tokens = self.tokens();
        let at = |mut token: usize| {
            let mut places = vec![0; self.axes.len()];
            for (place, (len, _)) in places.iter_mut().zip(&self.axes).rev() {
                (*place, token) = (token % len, token / len);
            }
            places
        };
        let is_hidden = |(q, k): (usize, usize)| {
            let places = at(q).into_iter().zip(at(k));
            !places.zip(&self.axes).all(|((q, k), (len, axis))| sees(q, k, *len, axis))
        };
        let pairs = (0..tokens).flat_map(|q| (0..tokens).map(move |k| (q, k)));
        let hidden: Vec<bool> = pairs.map(is_hidden).collect();
        Tensor::from_data(TensorData::new(hidden, [tokens, tokens]), device)
    }
}

/// Attention of `[batch, tokens, heads, numbers]` under a mask `[queries, keys]`: output and log-sum-exp.
pub fn dense(
    [query, key, value]: [Tensor<4>; 3],
    additional: Option<[Tensor<4>; 2]>,
    hidden: Tensor<2, Bool>,
    scale: Option<f32>,
) -> (Tensor<4>, Tensor<3>) {
    let [batch, queries, heads, head_dim] = query.dims();
    let scale = scale.map_or((head_dim as f64).powf(-0.5), f64::from);
    let (key, value, hidden) = match additional {
        None => (key, value, hidden),
        Some([keys, values]) => {
            let seen = Tensor::<2, Bool>::full([queries, keys.dims()[1]], false, &hidden.device());
            (
                Tensor::cat(vec![key, keys], 1),
                Tensor::cat(vec![value, values], 1),
                Tensor::cat(vec![hidden, seen], 1),
            )
        }
    };
    let for_each_head = |tensor: Tensor<4>| {
        let [batch, keys, heads_kv, numbers] = tensor.dims();
        let tensor = tensor.reshape([batch, keys, heads_kv, 1, numbers]).repeat_dim(3, heads / heads_kv);
        tensor.reshape([batch, keys, heads, numbers]).swap_dims(1, 2)
    };
    let (key, value) = (for_each_head(key), for_each_head(value));
    let [_, _, keys, _] = key.dims();
    let scores = query.swap_dims(1, 2).matmul(key.transpose()).mul_scalar(scale);
    let hidden = hidden.reshape([1, 1, queries, keys]).expand([batch, heads, queries, keys]);
    let scores = scores.mask_fill(hidden, f64::NEG_INFINITY);
    let largest = scores.clone().max_dim(3).detach();
    let lse = (scores.clone() - largest.clone()).exp().sum_dim(3).log() + largest;
    let out = softmax(scores, 3).matmul(value).swap_dims(1, 2);
    (out, lse.reshape([batch, heads, queries]).swap_dims(1, 2))
}
