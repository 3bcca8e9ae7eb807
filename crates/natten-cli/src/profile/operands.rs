//! The tensors that are timed: random numbers on the host.

use natten::{Element, Inputs, Problem, Tensor};

use crate::error::CliError;
use crate::output;
use crate::problem_args::ProblemArgs;

/// The tensors of a problem; the output's gradient where a backward is timed.
pub struct Operands<E> {
    pub inputs: Inputs<Tensor<E>>,
    pub d_out: Option<Tensor<E>>,
}

impl<E: Element> Operands<E> {
    /// Numbers between -1 and 1 without pattern.
    pub fn random(args: &ProblemArgs, problem: &Problem, has_backward: bool) -> Result<Self, CliError> {
        let mut state = 1u64;
        let mut tensor = |shape: &[usize]| -> Result<Tensor<E>, CliError> {
            let drawn = Tensor::from_fn(shape, |_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                E::from_f32((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
            });
            drawn.map_err(|error| natten::Error::from(error).into())
        };
        let rows = |heads: usize, width: usize| {
            [&[problem.batch()], args.input_size.as_slice(), &[heads, width]].concat()
        };
        let (d, d_v) = (problem.head_dim(), problem.head_dim_v());
        let query = tensor(&rows(problem.heads(), d))?;
        let key = tensor(&rows(problem.heads_kv(), d))?;
        let mut inputs = Inputs::new(query, key, tensor(&rows(problem.heads_kv(), d_v))?);
        if problem.additional_keys() > 0 {
            let shape = |width| [problem.batch(), problem.additional_keys(), problem.heads_kv(), width];
            inputs = inputs.with_additional(tensor(&shape(d))?, tensor(&shape(d_v))?);
        }
        let d_out = if has_backward { Some(tensor(&problem.out_shape())?) } else { None };
        Ok(Operands { inputs, d_out })
    }

    /// Query, key and value with their tokens in a row.
    pub fn flat(&self) -> Result<[Tensor<E>; 3], CliError> {
        let flat = |tensor: &Tensor<E>| {
            let shape = tensor.shape();
            let (tokens, tail) = shape[1..].split_at(shape.len() - 3);
            let shape = [shape[0], tokens.iter().product(), tail[0], tail[1]];
            Tensor::from_vec(&shape, tensor.as_slice().to_vec()).map_err(natten::Error::from)
        };
        let Inputs { query, key, value, .. } = &self.inputs;
        Ok([flat(query)?, flat(key)?, flat(value)?])
    }
}

/// Bytes of all tensors of a problem.
pub fn tensor_bytes(problem: &Problem, has_backward: bool) -> f64 {
    let size = problem.element_type().size_bytes() as f64;
    let width = (problem.head_dim() + problem.head_dim_v()) as f64;
    let queries = (problem.batch() * problem.query_tokens() * problem.heads()) as f64;
    let keys =
        (problem.batch() * (problem.key_tokens() + problem.additional_keys()) * problem.heads_kv()) as f64;
    let factor = if has_backward { 2.0 } else { 1.0 };
    (queries + keys) * width * size * factor
}

/// Refuses what does not fit.
pub fn check_memory(needed: f64, available: f64) -> Result<(), CliError> {
    if needed <= available {
        return Ok(());
    }
    let (needed, available) = (output::with_prefix(needed, "B"), output::with_prefix(available, "B"));
    Err(CliError::Memory { needed, available })
}

/// What the system says is free, where it does.
pub fn host_memory_bytes() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
}
