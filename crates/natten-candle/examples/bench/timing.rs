//! Medians of calls that alternate, so that whatever else the machine does meets all of them alike.

use std::fmt;
use std::time::Instant;

use candle_core::Result;

/// Seconds.
#[derive(Clone, Copy, Debug)]
pub struct Median {
    pub median: f64,
    quartiles: [f64; 2],
}

impl Median {
    fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        let at = |share: f64| seconds[((seconds.len() - 1) as f64 * share) as usize];
        Median { median: at(0.5), quartiles: [at(0.25), at(0.75)] }
    }

    /// Of so many times the work.
    pub fn times(self, factor: f64) -> Self {
        Median { median: self.median * factor, quartiles: self.quartiles.map(|quartile| quartile * factor) }
    }
}

impl fmt::Display for Median {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (factor, unit) = if self.median < 1e-3 { (1e6, "us") } else { (1e3, "ms") };
        let [low, high] = self.quartiles.map(|quartile| quartile * factor);
        write!(f, "{:.2} ({low:.2} to {high:.2}) {unit}", self.median * factor)
    }
}

/// Calls each in turn, `runs` times after one that is not timed.
pub fn alternate<const N: usize>(
    runs: usize,
    mut calls: [&mut dyn FnMut() -> Result<()>; N],
) -> Result<[Median; N]> {
    let mut seconds = [(); N].map(|()| Vec::with_capacity(runs));
    for run in 0..=runs {
        for (call, seconds) in calls.iter_mut().zip(&mut seconds) {
            let began = Instant::now();
            call()?;
            if run > 0 {
                seconds.push(began.elapsed().as_secs_f64());
            }
        }
    }
    Ok(seconds.map(Median::of))
}

/// What else the machine does.
pub fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").map_or_else(|_| "unknown".into(), |load| load.trim().into())
}
