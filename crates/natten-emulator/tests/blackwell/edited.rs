//! The kernels of `product.ptx` with one mistake about order each: all are noticed but those that are none.

use natten_emulator::mutate::Edit;
use natten_emulator::{Module, Options};

use crate::numbers::Element;
use crate::oracle::ARRANGEMENTS;
use crate::problem::{Draw, PTX, Problem};
use crate::support::{Device, all_orders};

/// Edits that change nothing, by a part of the instruction and the number of the place where it stands in its kernel.
const NO_MISTAKE: [(&str, usize, &str); 4] = [
    ("before_thread_sync", 0, "nothing asynchronous came before: memory is allocated at once"),
    ("after_thread_sync", 0, "nothing asynchronous came before"),
    // The last meeting.
    ("before_thread_sync", usize::MAX, "giving memory back asks for no fence"),
    ("after_thread_sync", usize::MAX, "giving memory back asks for no fence"),
];

fn is_no_mistake(module: &str, edit: &Edit) -> bool {
    let lines: Vec<u32> =
        (1..).zip(module.lines()).filter(|(_, text)| text.contains(&edit.from)).map(|(n, _)| n).collect();
    let place = lines.iter().position(|&line| line == edit.line).expect("an edit of some line");
    NO_MISTAKE.iter().any(|&(part, number, _)| {
        edit.from.contains(part) && (place == number || number == usize::MAX && place == lines.len() - 1)
    })
}

/// The text of one kernel of the file.
fn text(entry: &str) -> String {
    let at = |name: &str| PTX.find(&format!(".visible .entry {name}(")).expect("a kernel of the file");
    let (first, second) = (at("product"), at("product_ts"));
    match entry {
        "product" => PTX[..second].to_owned(),
        _ => PTX[..first].to_owned() + &PTX[second..],
    }
}

fn problem(m: u64, a_in_tensor_memory: bool) -> Problem {
    Problem {
        m,
        n: 16,
        steps: 2,
        types: [Element::Bf16; 2],
        negate: [false; 2],
        half: false,
        lane: 0,
        arrangements: [ARRANGEMENTS[3]; 2],
        a_in_tensor_memory,
    }
}

/// Whether some run ends in a fault or a wrong product.
fn is_noticed(module: &Module, m: u64, a_in_tensor_memory: bool) -> bool {
    let problem = problem(m, a_in_tensor_memory);
    all_orders().into_iter().any(|options| {
        let options = Options { most_instructions: 100_000, ..options };
        let mut device = Device::with(PTX, options);
        device.module = module.clone();
        let mut draw = Draw::new(4);
        let matrices = problem.matrices(&mut draw, |draw| draw.below(5) as f64 - 2.0);
        match problem.run_on(&device, &mut draw, &matrices) {
            Err(_) => true,
            Ok((d, _)) => (0..m * 16).any(|at| {
                let exact = problem.exact(&matrices, at / 16, at % 16);
                f64::from(f32::from_bits(d[at as usize])) != exact
            }),
        }
    })
}

#[test]
fn every_mistake_about_order_is_noticed() {
    for a_in_tensor_memory in [false, true] {
        let entry = problem(128, a_in_tensor_memory).entry();
        let text = text(entry);
        let module = Module::parse(&text).unwrap_or_else(|error| panic!("{error}"));
        let edits = module.edits(entry);
        let is_of_order = |edit: &&Edit| matches!(edit.operator, "barrier dropped" | "barrier moved");
        let edits: Vec<&Edit> =
            edits.iter().filter(is_of_order).filter(|e| e.from.starts_with("tcgen05")).collect();
        assert!(edits.len() > 10, "{} edits", edits.len());
        let mut silent = Vec::new();
        for edit in edits {
            let edited = module.edited(entry, edit);
            let noticed = [64, 128].into_iter().any(|m| is_noticed(&edited, m, a_in_tensor_memory));
            if noticed == is_no_mistake(&text, edit) {
                silent.push(format!("{entry}, line {}: {} {} ({noticed})", edit.line, edit.from, edit.to));
            }
        }
        assert!(silent.is_empty(), "{silent:#?}");
    }
}
