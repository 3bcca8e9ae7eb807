//! Suites: each a generic function over one subject, mounted by `for_each_subject`.

pub mod list;
pub mod oracle;
