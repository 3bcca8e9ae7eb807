//! Arguments `--name value,value` of the measuring programs. What is not understood ends the program with a message:
//! a table of something else than what was asked for is worse than none.

use std::str::FromStr;

use natten_core::ElementType;

/// The arguments, each taken out by whoever reads it.
#[derive(Debug)]
pub struct Arguments(Vec<String>);

impl Arguments {
    /// Those of this program, less what cargo adds.
    pub fn of_program() -> Self {
        Arguments(std::env::args().skip(1).filter(|arg| arg != "--bench").collect())
    }

    /// Whether `name` is there.
    pub fn flag(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|arg| arg != name);
        self.0.len() < before
    }

    /// The list after `name`, if it is there.
    pub fn list<T: FromStr>(&mut self, name: &str) -> Option<Vec<T>> {
        let at = self.0.iter().position(|arg| arg == name)?;
        if at + 1 == self.0.len() {
            fail(&format!("{name} needs a value"));
        }
        let text = self.0.drain(at..=at + 1).next_back().unwrap_or_default();
        let parse =
            |part: &str| part.parse().unwrap_or_else(|_| fail(&format!("{name} does not take {part}")));
        Some(text.split(',').map(parse).collect())
    }

    /// Nothing may be left.
    pub fn finish(self) {
        if let Some(first) = self.0.first() {
            fail(&format!("no argument {first}"));
        }
    }
}

/// One thread and all of them.
pub fn one_and_all_threads() -> Vec<usize> {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    if all == 1 { vec![1] } else { vec![1, all] }
}

/// An element type by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named(pub ElementType);

impl FromStr for Named {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let all = [ElementType::F32, ElementType::F16, ElementType::Bf16];
        all.into_iter().find(|element| element.to_string() == name).map(Named).ok_or(())
    }
}

fn fail(message: &str) -> ! {
    eprintln!("{message}; the first lines of the program's source say what there is");
    std::process::exit(2)
}
