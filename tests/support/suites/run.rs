//! Running a suite in a test: every check, in turn on one of several subjects, counted.

use std::time::{Duration, Instant};

use super::{Outcome, Suite};
use crate::subject::Subject;

/// What came of the checks of a suite.
#[derive(Debug)]
pub struct Tally {
    /// The suite and the first of its subjects.
    pub name: String,
    /// Checks that passed.
    pub passed: usize,
    /// Those that the subject does not take, with its reasons.
    pub unsupported: Vec<(String, String)>,
    /// Those that failed, with what they say.
    pub failed: Vec<String>,
    /// Time it took.
    pub time: Duration,
}

/// Runs a suite, each check on the next of the subjects, which stand for one backend in several states.
pub fn hold<S: Subject>(suite: &Suite<S>, subjects: &[S]) -> Tally {
    let start = Instant::now();
    let name = format!("{} on {}", suite.name, subjects.first().map_or("nothing".to_owned(), S::name));
    let (mut passed, mut unsupported, mut failed) = (0, Vec::new(), Vec::new());
    for (check, subject) in suite.checks.iter().zip(subjects.iter().cycle()) {
        match check.run(subject) {
            Outcome::Passed => passed += 1,
            Outcome::Unsupported(reasons) => unsupported.push((check.name.clone(), reasons)),
            Outcome::Failed(message) => failed.push(format!("{}: {message}\n  {}", check.name, check.what)),
        }
    }
    let tally = Tally { name, passed, unsupported, failed, time: start.elapsed() };
    if !suite.checks.is_empty() {
        println!("{}", tally.line());
    }
    tally
}

impl Tally {
    /// One line.
    pub fn line(&self) -> String {
        let Tally { name, passed, unsupported, failed, time } = self;
        let counts = [unsupported.len(), failed.len()];
        let seconds = time.as_secs_f64();
        format!("{name}: {passed} passed, {} unsupported, {} failed, {seconds:.1} s", counts[0], counts[1])
    }

    /// Fails unless every check passed; a suite that has none for these problems is no failure.
    pub fn expect_all(&self) {
        self.expect_no_failure();
        let first = self.unsupported.first();
        assert!(first.is_none(), "{}: {first:?}", self.line());
    }

    /// Fails if a check did.
    pub fn expect_no_failure(&self) {
        let shown: Vec<&str> = self.failed.iter().take(8).map(String::as_str).collect();
        assert!(shown.is_empty(), "{}\n{}", self.line(), shown.join("\n"));
    }
}
