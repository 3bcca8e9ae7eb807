//! Repeated runs and what they say.

use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

/// How often to run.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Most runs before the timed ones.
    pub warmup: usize,
    /// Most timed runs; at least one is made.
    pub runs: usize,
    /// Seconds for each of the two.
    pub seconds: f64,
}

/// Seconds that all candidates together may take.
const TRIALS_SECONDS: f64 = 5.0;

impl Budget {
    /// A part of the budget for each of so many candidates: they take seconds together, not an hour.
    pub fn shared(self, candidates: usize) -> Self {
        let part = TRIALS_SECONDS / 2.0 / candidates.max(1) as f64;
        Budget { seconds: self.seconds.min(part), ..self }
    }

    /// The same for a stopwatch on a device.
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    pub fn repeats(self) -> natten::cuda::measure::Repeats {
        let Budget { warmup, runs, seconds } = self;
        natten::cuda::measure::Repeats { warmup, runs, seconds }
    }
}

/// Durations of timed runs, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub runs: usize,
    pub min: f64,
    pub quartiles: [f64; 2],
    pub median: f64,
    pub max: f64,
}

impl Timing {
    /// Runs `work` within a budget.
    pub fn of<E>(budget: &Budget, mut work: impl FnMut() -> Result<(), E>) -> Result<Self, E> {
        let start = Instant::now();
        for _ in 0..budget.warmup {
            work()?;
            if start.elapsed().as_secs_f64() > budget.seconds {
                break;
            }
        }
        let start = Instant::now();
        let mut seconds = Vec::new();
        while seconds.len() < budget.runs.max(1) {
            let begin = Instant::now();
            work()?;
            seconds.push(begin.elapsed().as_secs_f64());
            if start.elapsed().as_secs_f64() > budget.seconds {
                break;
            }
        }
        Ok(Self::from_seconds(seconds))
    }

    /// From durations in any order, at least one.
    pub fn from_seconds(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        // The value below which a share of the runs lies, between two runs where it must be.
        let quantile = |share: f64| {
            let at = share * (seconds.len() - 1) as f64;
            let (low, high) = (seconds[at.floor() as usize], seconds[at.ceil() as usize]);
            low + (high - low) * at.fract()
        };
        Timing {
            runs: seconds.len(),
            min: quantile(0.0),
            quartiles: [quantile(0.25), quantile(0.75)],
            median: quantile(0.5),
            max: quantile(1.0),
        }
    }
}

/// A bar on standard error over so many candidates; hidden when that is no terminal.
pub fn progress(candidates: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}");
    let bar = ProgressBar::new(candidates as u64);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        let timing = Timing::from_seconds(vec![4.0, 1.0, 2.0, 3.0]);
        assert_eq!((timing.min, timing.median, timing.max), (1.0, 2.5, 4.0));
        assert_eq!(timing.quartiles, [1.75, 3.25]);
        assert_eq!(Timing::from_seconds(vec![5.0]).quartiles, [5.0, 5.0]);
    }
}
