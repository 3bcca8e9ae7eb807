//! Suites: what any backend must do, written once over [`Subject`] as lists of checks, and mounted with a line each.
//!
//! A check is a value, so that a runner can list, filter, time and count them, in a test or on a machine with a GPU. What
//! problems a subject gets is its [`Scope`].

pub mod boxes;
pub mod copies;
pub mod extremes;
pub mod far;
pub mod golden;
pub mod gradients;
pub mod gradients_of_nan;
pub mod hidden;
pub mod lengths;
pub mod list;
pub mod merging;
pub mod not_a_number;
pub mod oracle;
pub mod properties;
pub mod regions;
pub mod rising;
pub mod run;
pub mod scope;
pub mod semantics;
pub mod silent;
pub mod vast;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use run::{Tally, hold};
pub use scope::{Given, Scope};

use crate::spec::Spec;
use crate::subject::{Subject, Unsupported};

/// What a check does on a subject: it panics where the subject is wrong.
pub type Body<S> = Box<dyn Fn(&S) -> Result<(), Unsupported> + Send + Sync>;

/// One check.
pub struct Check<S> {
    /// Which it is, the same in every run.
    pub name: String,
    /// The problem, for the report of a failure.
    pub what: String,
    body: Body<S>,
}

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The subject did as it must.
    Passed,
    /// It does not take the problem, and says why.
    Unsupported(String),
    /// It did something else.
    Failed(String),
}

impl<S: Subject> Check<S> {
    /// A check of this name on this problem.
    pub fn new(
        name: String,
        what: impl std::fmt::Debug,
        body: impl Fn(&S) -> Result<(), Unsupported> + Send + Sync + 'static,
    ) -> Self {
        Check { name, what: format!("{what:?}"), body: Box::new(body) }
    }

    /// Runs it.
    pub fn run(&self, subject: &S) -> Outcome {
        match catch_unwind(AssertUnwindSafe(|| (self.body)(subject))) {
            Ok(Ok(())) => Outcome::Passed,
            Ok(Err(Unsupported(reasons))) => Outcome::Unsupported(reasons),
            Err(payload) => {
                let text = payload.downcast_ref::<String>().cloned();
                let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                Outcome::Failed(text.unwrap_or_else(|| "panicked without words".to_owned()))
            }
        }
    }
}

/// All checks of one kind.
pub struct Suite<S> {
    /// Its name, with which those of its checks begin.
    pub name: &'static str,
    /// In order.
    pub checks: Vec<Check<S>>,
}

/// A check as a function of the problem.
pub type Of<S> = fn(&S, &Given) -> Result<(), Unsupported>;

impl<S: Subject> Suite<S> {
    /// Adds one check for each problem of a list that is tried.
    fn each(&mut self, scope: &Scope, name: &str, specs: &[Spec], of: Of<S>) {
        for given in scope.problems(specs) {
            let name = format!("{} {name} {} {}", self.name, given.index, given.element_type);
            self.checks.push(Check::new(name, given.spec.clone(), move |subject| of(subject, &given)));
        }
    }
}

/// Every suite, for these problems.
pub fn all<S: Subject>(scope: &Scope) -> Vec<Suite<S>> {
    vec![
        oracle::suite(scope),
        semantics::suite(scope),
        properties::suite(scope),
        gradients::suite(scope),
        merging::suite(scope),
        golden::suite(scope),
        vast::suite(scope),
        regions::suite(scope),
        copies::suite(scope),
    ]
}

/// Mounts every suite on subjects, a line each: a name, the subjects that take the checks in turn (none: the machine has no such),
/// and the scope of the problems. Makes a module of that name with one test a suite.
#[macro_export]
macro_rules! mount {
    ($($name:ident: $subjects:expr, $scope:expr;)*) => {$(
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            $crate::mount!(@suites $subjects, $scope, oracle semantics properties gradients merging golden copies regions);
        }
    )*};
    (@suites $subjects:expr, $scope:expr, $($suite:ident)*) => {$(
        #[test]
        fn $suite() {
            let subjects = $subjects;
            if !subjects.is_empty() {
                $crate::suites::hold(&$crate::suites::$suite::suite(&$scope), &subjects).expect_all();
            }
        }
    )*};
}
