//! The flags that make a problem a part of a whole.

use std::ops::Range;

use clap::Args;
use natten::region::keys_needed;
use natten::{AxisParams, DynParams, ElementType, KernelSizePolicy, Problem, Region};

use crate::error::CliError;
use crate::problem_args::ProblemArgs;

/// The part. Lists have one entry for each token axis, or one for all.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Part of a whole")]
pub struct RegionArgs {
    /// Tokens of the whole that are queries, as 16..20, or .. for all of an axis [default: all].
    #[arg(long, num_args = 1.., value_parser = tokens, value_name = "A..B")]
    pub queries: Vec<Tokens>,
    /// Tokens of the whole that are keys [default: those that the queries need].
    #[arg(long, num_args = 1.., value_parser = tokens, value_name = "A..B")]
    pub keys: Vec<Tokens>,
}

/// A range whose ends may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tokens {
    start: usize,
    end: Option<usize>,
}

impl Tokens {
    fn of(self, extent: usize) -> Range<usize> {
        self.start..self.end.unwrap_or(extent)
    }
}

fn tokens(text: &str) -> Result<Tokens, String> {
    let range = text.split_once("..").and_then(|(start, end)| {
        let number = |text: &str| text.trim().parse::<usize>().ok();
        let start = if start.trim().is_empty() { Some(0) } else { number(start) };
        let end = if end.trim().is_empty() { Some(None) } else { number(end).map(Some) };
        Some(Tokens { start: start?, end: end? })
    });
    range.ok_or_else(|| "a range of tokens is needed, as 16..20".to_owned())
}

impl RegionArgs {
    /// The validated problem: the whole, unless a part is asked for.
    pub fn problem(
        &self,
        args: &ProblemArgs,
        axes: &[AxisParams],
        element_type: ElementType,
    ) -> Result<Problem, CliError> {
        let problem = args.problem_of(axes, &self.regions(args, axes)?, element_type)?;
        if problem.query_tokens() == 0 {
            return Err(CliError::NoQueries);
        }
        Ok(problem)
    }

    /// The region of each axis; none where nothing is asked for.
    fn regions(&self, args: &ProblemArgs, axes: &[AxisParams]) -> Result<Vec<Region>, CliError> {
        if self.queries.is_empty() && self.keys.is_empty() {
            return Ok(Vec::new());
        }
        let extents = &args.input_size;
        let queries =
            args.per_axis("queries", &self.queries, &vec![Tokens { start: 0, end: None }; args.rank()])?;
        let keys = args.per_axis("keys", &self.keys, &[])?;
        let params = DynParams::new(axes, None, KernelSizePolicy::Exact);
        let mut regions = Vec::new();
        for (axis, &extent) in extents.iter().enumerate() {
            let queries = queries[axis].of(extent);
            // Of queries that are no part of the whole it is said elsewhere that they are none.
            let is_part = queries.start <= queries.end && queries.end <= extent;
            let keys = match keys.get(axis) {
                Some(keys) => keys.of(extent),
                None if is_part => keys_needed(&params.axis(axis, extent)?, queries.clone()),
                None => 0..extent,
            };
            regions.push(Region::of(extent).queries(queries).keys(keys));
        }
        Ok(regions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(tokens("3..7").map(|range| range.of(9)), Ok(3..7));
        assert_eq!(tokens("..7").map(|range| range.of(9)), Ok(0..7));
        assert_eq!(tokens("3..").map(|range| range.of(9)), Ok(3..9));
        assert_eq!(tokens("..").map(|range| range.of(9)), Ok(0..9));
        for wrong in ["", "3", "3-7", "3..=7", "a..b", "-1..3", "3.5..7", "3..7..9"] {
            assert!(tokens(wrong).is_err(), "{wrong}");
        }
    }
}
