//! The same attention in candle's own operators: with the mask over all keys, and by blocks over the union of their keys.

use candle_core::{D, Device, Result, Tensor};
use candle_nn::ops::{softmax, softmax_last_dim};

/// First key of a query's window along an axis.
fn start(token: usize, window: usize, len: usize) -> usize {
    token.saturating_sub(window / 2).min(len - window)
}

fn sees(query: &[usize], key: &[usize], window: &[usize], len: &[usize]) -> bool {
    (0..len.len()).all(|a| {
        let first = start(query[a], window[a], len[a]);
        (first..first + window[a]).contains(&key[a])
    })
}

fn places(len: &[usize]) -> Vec<Vec<usize>> {
    len.iter().fold(vec![Vec::new()], |places, &extent| {
        let longer =
            |place: &Vec<usize>| (0..extent).map(|at| [&place[..], &[at]].concat()).collect::<Vec<_>>();
        places.iter().flat_map(longer).collect()
    })
}

/// 0 where a query sees a key, minus infinity elsewhere: `[tokens, tokens]`.
pub fn whole_mask(len: &[usize], window: &[usize]) -> Result<Tensor> {
    let places = places(len);
    mask(&places, &places, window, len)
}

fn mask(queries: &[Vec<usize>], keys: &[Vec<usize>], window: &[usize], len: &[usize]) -> Result<Tensor> {
    let pairs = queries.iter().flat_map(|query| {
        keys.iter().map(|key| if sees(query, key, window, len) { 0f32 } else { f32::NEG_INFINITY })
    });
    Tensor::from_vec(pairs.collect(), (queries.len(), keys.len()), &Device::Cpu)
}

/// `[heads, queries, dim]` from keys of `[heads, keys, dim]`, masked.
pub fn attend(
    [query, key, value]: [&Tensor; 3],
    mask: &Tensor,
    scale: f64,
    has_graph: bool,
) -> Result<Tensor> {
    let scores = query.affine(scale, 0.0)?.matmul(&key.t()?)?.broadcast_add(mask)?;
    // The faster one has no backward.
    let weights = if has_graph { softmax(&scores, D::Minus1)? } else { softmax_last_dim(&scores)? };
    weights.matmul(value)
}

/// Masked attention over all keys.
pub struct Dense {
    mask: Tensor,
    heads: usize,
    dim: usize,
}

impl Dense {
    pub fn new(len: &[usize], window: &[usize], heads: usize, dim: usize) -> Result<Self> {
        Ok(Dense { mask: whole_mask(len, window)?, heads, dim })
    }

    pub fn tokens(&self) -> usize {
        self.mask.dims()[0]
    }

    /// `[tokens, 3 heads dim]` to `[tokens, heads dim]`.
    pub fn forward(&self, rows: &Tensor, has_graph: bool) -> Result<Tensor> {
        let tokens = self.tokens();
        let heads = |i: usize| {
            let rows = rows.narrow(1, i * self.heads * self.dim, self.heads * self.dim)?;
            rows.reshape((tokens, self.heads, self.dim))?.transpose(0, 1)?.contiguous()
        };
        let out = attend(
            [&heads(0)?, &heads(1)?, &heads(2)?],
            &self.mask,
            (self.dim as f64).powf(-0.5),
            has_graph,
        )?;
        out.transpose(0, 1)?.contiguous()?.reshape((tokens, self.heads * self.dim))
    }
}

/// Boxes of queries, each with the box of keys that they see together.
pub struct Blocks<'a> {
    operands: &'a [Tensor],
    len: [usize; 3],
    window: [usize; 3],
    /// First query and number of queries along each axis, then keys likewise.
    boxes: Vec<[[usize; 3]; 4]>,
}

impl<'a> Blocks<'a> {
    /// A window of `usize::MAX` is the whole axis.
    pub fn new(
        operands: &'a [Tensor],
        len: &[usize; 3],
        window: &[usize; 3],
        block: [usize; 3],
    ) -> Result<Self> {
        let window = std::array::from_fn(|a| window[a].min(len[a]));
        let counts: Vec<_> = (0..3).map(|a| len[a].div_ceil(block[a])).collect();
        let of = |place: Vec<usize>| {
            let first: [usize; 3] = std::array::from_fn(|a| place[a] * block[a]);
            let count: [usize; 3] = std::array::from_fn(|a| block[a].min(len[a] - first[a]));
            let first_key: [usize; 3] = std::array::from_fn(|a| start(first[a], window[a], len[a]));
            let keys = std::array::from_fn(|a| {
                start(first[a] + count[a] - 1, window[a], len[a]) + window[a] - first_key[a]
            });
            [first, count, first_key, keys]
        };
        Ok(Blocks { operands, len: *len, window, boxes: places(&counts).into_iter().map(of).collect() })
    }

    /// The same boxes with the mask of another window.
    pub fn masked_for(self, window: &[usize; 3]) -> Self {
        Blocks { window: *window, ..self }
    }

    pub fn len(&self) -> usize {
        self.boxes.len()
    }

    /// Every `step`th box, its mask made.
    pub fn sample(&self, step: usize) -> Result<Sample<'_>> {
        let chosen = self.boxes.iter().skip(step / 2).step_by(step);
        let with_mask = |&[first, count, first_key, keys]: &[[usize; 3]; 4]| {
            let shifted = |places: Vec<Vec<usize>>, by: [usize; 3]| -> Vec<Vec<usize>> {
                places.into_iter().map(|place| (0..3).map(|a| place[a] + by[a]).collect()).collect()
            };
            let (queries, all) = (shifted(places(&count), first), shifted(places(&keys), first_key));
            Ok(([first, count, first_key, keys], mask(&queries, &all, &self.window, &self.len)?))
        };
        Ok(Sample { blocks: self, chosen: chosen.map(with_mask).collect::<Result<_>>()? })
    }
}

/// Boxes to run.
pub struct Sample<'a> {
    blocks: &'a Blocks<'a>,
    chosen: Vec<([[usize; 3]; 4], Tensor)>,
}

impl Sample<'_> {
    pub fn len(&self) -> usize {
        self.chosen.len()
    }

    pub fn run(&self) -> Result<()> {
        self.chosen.iter().try_for_each(|(place, mask)| self.one(place, mask).map(drop))
    }

    /// `[heads, queries, dim]`
    fn one(&self, [first, count, first_key, keys]: &[[usize; 3]; 4], mask: &Tensor) -> Result<Tensor> {
        let [query, key, value] = self.blocks.operands else { unreachable!("three operands") };
        let scale = (query.dim(D::Minus1)? as f64).powf(-0.5);
        let operands =
            [part(query, first, count)?, part(key, first_key, keys)?, part(value, first_key, keys)?];
        attend(operands.each_ref(), mask, scale, false)
    }

    /// The largest difference from another output.
    pub fn error(&self, out: &Tensor) -> Result<f32> {
        self.chosen.iter().try_fold(0f32, |most, (place, mask)| {
            let apart = (self.one(place, mask)? - part(out, &place[0], &place[1])?)?.abs()?.max_all()?;
            Ok(most.max(apart.to_scalar::<f32>()?))
        })
    }
}

/// `[heads, tokens of a box, dim]` of `[1, X, Y, Z, heads, dim]`.
fn part(tensor: &Tensor, first: &[usize; 3], count: &[usize; 3]) -> Result<Tensor> {
    let narrowed = (0..3).try_fold(tensor.squeeze(0)?, |tensor, a| tensor.narrow(a, first[a], count[a]))?;
    let (heads, dim) = (tensor.dims()[4], tensor.dims()[5]);
    let rows = narrowed.permute((3, 0, 1, 2, 4))?.contiguous()?;
    rows.reshape((heads, count.iter().product::<usize>(), dim))
}
