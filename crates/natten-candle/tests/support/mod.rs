//! Dense masked attention in candle's own operators, with the mask stated by itself: what the operator is held to.
#![allow(dead_code, reason = "each suite takes what it needs")]

use candle_core::{D, DType, Device, Result, Tensor, Var};
use natten_candle::{AxisParams, DynParams, KernelSize, KernelSizePolicy};

/// One axis of a neighborhood, in tokens.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    pub window: usize,
    pub stride: usize,
    pub dilation: usize,
    pub is_causal: bool,
}

pub fn axis(window: usize) -> Axis {
    Axis { window, stride: 1, dilation: 1, is_causal: false }
}

impl Axis {
    pub fn stride(self, stride: usize) -> Self {
        Axis { stride, ..self }
    }

    pub fn dilation(self, dilation: usize) -> Self {
        Axis { dilation, ..self }
    }

    pub fn causal(self) -> Self {
        Axis { is_causal: true, ..self }
    }

    /// Whether token `x` of `len` sees token `y`: of the tokens that lie a multiple of the dilation away, `window` in a row,
    /// with as many of them before the leader of the block of `stride` queries as come closest to half.
    fn sees(self, len: usize, x: usize, y: usize) -> bool {
        let Axis { window, stride, dilation, is_causal } = self;
        if x % dilation != y % dilation {
            return false;
        }
        let members = (0..len).filter(|token| token % dilation == x % dilation).count();
        let (i, j) = (x / dilation, y / dilation);
        let block = i - i % stride;
        if is_causal {
            let leader = (block + stride - 1).min(members - 1);
            return j <= i && j + window > leader;
        }
        let leader = (block + stride / 2).min(members - 1);
        let off_center = |start: &usize| (start + window / 2).abs_diff(leader);
        let start = (0..=members - window).min_by_key(off_center).expect("the window fits");
        (start..start + window).contains(&j)
    }
}

/// A neighborhood over some axes.
#[derive(Clone, Debug)]
pub struct Neighborhood {
    pub axes: Vec<Axis>,
    pub scale: Option<f32>,
}

pub fn neighborhood(axes: &[Axis]) -> Neighborhood {
    Neighborhood { axes: axes.to_vec(), scale: None }
}

impl Neighborhood {
    pub fn scale(self, scale: f32) -> Self {
        Neighborhood { scale: Some(scale), ..self }
    }

    pub fn params(&self) -> DynParams {
        let axes = self.axes.iter().map(|axis| AxisParams {
            kernel_size: KernelSize::Tokens(axis.window),
            stride: axis.stride,
            dilation: axis.dilation,
            is_causal: axis.is_causal,
        });
        DynParams::new(&axes.collect::<Vec<_>>(), self.scale, KernelSizePolicy::Exact)
    }

    /// 0 where query row sees key column, minus infinity elsewhere; every query sees the additional keys.
    fn mask(&self, tokens: &[usize], additional: usize) -> Result<Tensor> {
        let count: usize = tokens.iter().product();
        let place = |mut token: usize| {
            let mut place = vec![0; tokens.len()];
            for axis in (0..tokens.len()).rev() {
                (place[axis], token) = (token % tokens[axis], token / tokens[axis]);
            }
            place
        };
        let mut mask = Vec::new();
        for query in 0..count {
            let from = place(query);
            for key in 0..count {
                let to = place(key);
                let sees = (0..tokens.len()).all(|a| self.axes[a].sees(tokens[a], from[a], to[a]));
                mask.push(if sees { 0.0 } else { f64::NEG_INFINITY });
            }
            mask.extend(std::iter::repeat_n(0.0, additional));
        }
        Tensor::from_vec(mask, (count, count + additional), &Device::Cpu)
    }

    /// Output and log-sum-exp of dense masked attention.
    pub fn dense(&self, operands: &Operands) -> Result<(Tensor, Tensor)> {
        let Operands { query, key, value, additional } = operands;
        let [batch, tokens @ .., heads, head_dim] = query.dims() else { panic!("a query has axes") };
        let groups = heads / key.dim(D::Minus2)?;
        let rows = |tensor: &Tensor, groups: usize| -> Result<Tensor> {
            let dims = tensor.dims();
            let (heads, dim) = (dims[dims.len() - 2], dims[dims.len() - 1]);
            let count: usize = dims[1..dims.len() - 2].iter().product();
            let rows = tensor.reshape((*batch, count, heads, 1, dim))?;
            let rows = rows.broadcast_as((*batch, count, heads, groups, dim))?;
            rows.reshape((*batch, count, heads * groups, dim))?.transpose(1, 2)?.contiguous()
        };
        let (mut keys, mut values) = (rows(key, groups)?, rows(value, groups)?);
        let mut count = 0;
        if let Some([more_keys, more_values]) = additional {
            count = more_keys.dim(1)?;
            keys = Tensor::cat(&[keys, rows(more_keys, groups)?], 2)?;
            values = Tensor::cat(&[values, rows(more_values, groups)?], 2)?;
        }
        let scale = self.scale.map_or((*head_dim as f64).powf(-0.5), f64::from);
        let mask = self.mask(tokens, count)?.to_dtype(query.dtype())?;
        let scores = rows(query, 1)?.matmul(&keys.t()?)?.affine(scale, 0.0)?.broadcast_add(&mask)?;
        let largest = scores.max_keepdim(D::Minus1)?.detach();
        let weights = scores.broadcast_sub(&largest)?.exp()?;
        let sum = weights.sum_keepdim(D::Minus1)?;
        let out = weights.broadcast_div(&sum)?.matmul(&values)?.transpose(1, 2)?.contiguous()?;
        let lse = sum.log()?.add(&largest)?.transpose(1, 2)?.contiguous()?;
        let shape = [&[*batch], tokens, &[*heads]].concat();
        Ok((out.reshape([&shape[..], &[value.dim(D::Minus1)?]].concat())?, lse.reshape(shape)?))
    }
}

/// The operands of a call.
#[derive(Clone, Debug)]
pub struct Operands {
    pub query: Tensor,
    pub key: Tensor,
    pub value: Tensor,
    pub additional: Option<[Tensor; 2]>,
}

/// How large operands are.
#[derive(Clone, Copy, Debug)]
pub struct Sizes<'a> {
    pub batch: usize,
    pub tokens: &'a [usize],
    pub heads: usize,
    pub heads_kv: usize,
    pub head_dim: usize,
    pub head_dim_v: usize,
    pub additional: usize,
}

pub fn sizes(tokens: &[usize]) -> Sizes<'_> {
    Sizes { batch: 2, tokens, heads: 2, heads_kv: 2, head_dim: 8, head_dim_v: 8, additional: 0 }
}

impl Sizes<'_> {
    /// Variables of random numbers, rounded to what an element type holds.
    pub fn variables(&self, dtype: DType) -> Result<(Vec<Var>, Operands)> {
        let Sizes { batch, tokens, heads, heads_kv, head_dim, head_dim_v, additional } = *self;
        let shape = |tokens: &[usize], heads, dim| [&[batch], tokens, &[heads, dim]].concat();
        let mut shapes = vec![
            shape(tokens, heads, head_dim),
            shape(tokens, heads_kv, head_dim),
            shape(tokens, heads_kv, head_dim_v),
        ];
        if additional > 0 {
            shapes.extend([
                shape(&[additional], heads_kv, head_dim),
                shape(&[additional], heads_kv, head_dim_v),
            ]);
        }
        let variable = |(i, shape)| Var::from_tensor(&random(shape, i as u64 + 1)?.to_dtype(dtype)?);
        let variables: Vec<Var> = shapes.into_iter().enumerate().map(variable).collect::<Result<_>>()?;
        let operands = Operands::of(&variables.iter().map(|var| var.as_tensor().clone()).collect::<Vec<_>>());
        Ok((variables, operands))
    }
}

impl Operands {
    pub fn of(tensors: &[Tensor]) -> Self {
        let [query, key, value, more @ ..] = tensors else { panic!("a query, a key and a value") };
        let additional = match more {
            [keys, values] => Some([keys.clone(), values.clone()]),
            _ => None,
        };
        Operands { query: query.clone(), key: key.clone(), value: value.clone(), additional }
    }

    pub fn call(&self) -> natten_candle::Call<'_> {
        let call = natten_candle::Call::new(&self.query, &self.key, &self.value);
        match &self.additional {
            Some([keys, values]) => call.additional(keys, values),
            None => call,
        }
    }
}

/// Numbers of about -1 to 1, the same for the same seed.
pub fn random(shape: Vec<usize>, seed: u64) -> Result<Tensor> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    let numbers: Vec<f64> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu)
}

/// The largest difference; infinite where the two are not comparable.
pub fn difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    assert_eq!(a.dims(), b.dims());
    if a.elem_count() == 0 {
        return Ok(0.0);
    }
    let apart = a.to_dtype(DType::F64)?.sub(&b.to_dtype(DType::F64)?)?.abs()?.flatten_all()?;
    let numbers = apart.to_vec1::<f64>()?;
    Ok(numbers.into_iter().fold(0.0, |most, x| if x.is_nan() { f64::INFINITY } else { f64::max(most, x) }))
}

pub fn assert_close(found: &Tensor, expected: &Tensor, most: f64, what: &str) {
    let apart = difference(found, expected).expect("comparable tensors");
    assert!(apart <= most, "{what}: {apart:.3e} apart, at most {most:.1e} expected");
}

/// A weighted sum of everything: a loss that no symmetry helps.
pub fn loss(tensor: &Tensor, seed: u64) -> Result<Tensor> {
    let weights = random(tensor.dims().to_vec(), seed)?.to_dtype(tensor.dtype())?;
    tensor.mul(&weights)?.sum_all()
}
