//! The tensors that are timed: random numbers, drawn on the host.

use natten::{Element, Inputs, Problem, Tensor};

use crate::error::CliError;
use crate::output;
use crate::problem_args::ProblemArgs;

/// Numbers of a tensor that a device repeats, since drawing billions takes a minute: a prime, so that no two of the first
/// million rows begin alike.
pub const PERIOD: usize = 1_048_573;

/// The tensors of a problem; the output's gradient where a backward is timed.
pub struct Operands<T> {
    pub inputs: Inputs<T>,
    pub d_out: Option<T>,
}

/// A tensor of these numbers, again and again where it is longer than they are.
pub struct Drawn<E> {
    pub shape: Vec<usize>,
    pub numbers: Vec<E>,
}

/// A contiguous tensor whose numbers can be looked at one by one.
pub trait Numbers {
    /// Extent of each axis.
    fn shape(&self) -> &[usize];
    /// The number at a running index, widened.
    fn at(&self, index: usize) -> f64;
}

impl<E: Element> Numbers for Tensor<E> {
    fn shape(&self) -> &[usize] {
        Tensor::shape(self)
    }

    fn at(&self, index: usize) -> f64 {
        self.as_slice()[index].to_f64()
    }
}

impl<E: Element> Numbers for Drawn<E> {
    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn at(&self, index: usize) -> f64 {
        self.numbers[index % self.numbers.len()].to_f64()
    }
}

impl<E: Element> Operands<Drawn<E>> {
    /// Numbers between -1 and 1 without pattern, at most so many of a tensor.
    pub fn random(args: &ProblemArgs, problem: &Problem, has_backward: bool, most: usize) -> Self {
        let mut state = 1u64;
        let mut tensor = |shape: &[usize]| {
            let len = shape.iter().product::<usize>().min(most);
            let numbers = (0..len).map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                E::from_f32((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
            });
            Drawn { shape: shape.to_vec(), numbers: numbers.collect() }
        };
        let rows = |heads: usize, width: usize| {
            [&[problem.batch()], args.input_size.as_slice(), &[heads, width]].concat()
        };
        let (d, d_v) = (problem.head_dim(), problem.head_dim_v());
        let query = tensor(&rows(problem.heads(), d));
        let key = tensor(&rows(problem.heads_kv(), d));
        let mut inputs = Inputs::new(query, key, tensor(&rows(problem.heads_kv(), d_v)));
        if problem.additional_keys() > 0 {
            let shape = |width| [problem.batch(), problem.additional_keys(), problem.heads_kv(), width];
            inputs = inputs.with_additional(tensor(&shape(d)), tensor(&shape(d_v)));
        }
        let d_out = has_backward.then(|| tensor(&problem.out_shape()));
        Operands { inputs, d_out }
    }

    /// The same on the host, where every number was drawn.
    pub fn on_host(self) -> Result<Operands<Tensor<E>>, CliError> {
        // Copied, since a tensor that allocates its memory itself starts at a cache line.
        let tensor = |Drawn { shape, numbers }: Drawn<E>| {
            let tensor = Tensor::from_fn(&shape, |index| numbers[index]);
            tensor.map_err(|error| CliError::from(natten::Error::from(error)))
        };
        let Inputs { query, key, value, additional } = self.inputs;
        let mut inputs = Inputs::new(tensor(query)?, tensor(key)?, tensor(value)?);
        if let Some([keys, values]) = additional {
            inputs = inputs.with_additional(tensor(keys)?, tensor(values)?);
        }
        Ok(Operands { inputs, d_out: self.d_out.map(tensor).transpose()? })
    }
}

impl<E: Element> Operands<Tensor<E>> {
    /// Query, key and value with their tokens in a row.
    pub fn flat(&self) -> Result<[Tensor<E>; 3], CliError> {
        let flat = |tensor: &Tensor<E>| {
            let shape = flat_shape(tensor.shape());
            Tensor::from_vec(&shape, tensor.as_slice().to_vec()).map_err(natten::Error::from)
        };
        let Inputs { query, key, value, .. } = &self.inputs;
        Ok([flat(query)?, flat(key)?, flat(value)?])
    }
}

/// `[batch, tokens.., heads, width]` with its tokens in a row.
pub fn flat_shape(shape: &[usize]) -> [usize; 4] {
    let (tokens, tail) = shape[1..].split_at(shape.len() - 3);
    [shape[0], tokens.iter().product(), tail[0], tail[1]]
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

/// Bytes of what a call gives: output and log-sum-exp, and gradients where there are any.
pub fn result_bytes(problem: &Problem, has_backward: bool) -> f64 {
    let rows = (problem.batch() * problem.query_tokens() * problem.heads()) as f64;
    let size = problem.element_type().size_bytes() as f64;
    let gradients = if has_backward { tensor_bytes(problem, false) } else { 0.0 };
    rows * (problem.head_dim_v() as f64 * size + 4.0) + gradients
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
