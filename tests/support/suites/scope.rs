//! Which of the suites' problems a subject gets: element types, lengths of rows, passes, and how many.

use std::path::{Path, PathBuf};

use natten::ElementType;

use crate::golden;
use crate::kernels::{Operation, Shipped};
use crate::place::{Arrangement, Place};
use crate::spec::Spec;

/// What a subject is tried on.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Element types, and how many problems of a list each usually gets: one of so many.
    types: Vec<(ElementType, usize)>,
    /// By how much that is less than with [`Breadth::Wide`].
    usual: usize,
    /// With [`Breadth::Sample`] one of so many checks of a suite is made.
    sample: usize,
    /// Where in a list the first of them stands.
    first: usize,
    /// The same of problems that span several tiles of a tensor-core kernel, where there is one.
    tiles: Option<usize>,
    /// Whether backward passes get these, too: in the emulator they take minutes.
    tiles_backward: bool,
    /// For one kernel: its rows instead of the problem's own.
    rows: Option<Rows>,
    /// For a kernel of a backward: which half of a list's problems, the other kernel having the other.
    half: Option<usize>,
    /// Whether kernels share with their siblings what need not be asked of each: long rows, one of a pair.
    shares: bool,
    /// The folder of golden files.
    pub golden: PathBuf,
    /// Whether forward passes are tried.
    pub forward: bool,
    /// Whether backward passes are.
    pub backward: bool,
    /// Whether merges are.
    pub merge: bool,
    /// Whether copies are.
    pub copies: bool,
}

/// Rows that make a kernel the one for them.
#[derive(Clone, Copy, Debug)]
struct Rows {
    longest: usize,
    /// Rows up to this are for a smaller kernel.
    shorter: usize,
    is_aligned: bool,
}

/// A problem of a list as a subject gets it.
#[derive(Clone, Debug)]
pub struct Given {
    /// Its number in the list.
    pub index: usize,
    /// Of all tensors.
    pub element_type: ElementType,
    /// The problem.
    pub spec: Spec,
    /// Where tensors lie, unless a check says otherwise.
    pub place: Place,
}

/// How much of the lists is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Breadth {
    /// What a developer waits for: of emulated devices every suite, and of its checks one in [`SAMPLE`].
    Sample,
    /// `NATTEN_FULL=1`: all of them, which every change must pass.
    Usual,
    /// `NATTEN_FULL=wide`: on three times as many problems.
    Wide,
    /// `NATTEN_FULL=all`: every problem in every type, for hours.
    All,
}

/// A single kernel makes one in so many of its checks where a sample is enough, the next kernel others. Kernels of a family stand
/// next to each other, as many as this or more, so that together they make all.
pub const SAMPLE: usize = 5;

impl Breadth {
    /// What the environment asks for.
    pub fn asked() -> Self {
        match std::env::var_os("NATTEN_FULL") {
            None => Breadth::Sample,
            Some(value) if value == "0" || value.is_empty() => Breadth::Sample,
            Some(value) if value == "all" => Breadth::All,
            Some(value) if value == "wide" => Breadth::Wide,
            Some(_) => Breadth::Usual,
        }
    }
}

impl Scope {
    /// A backend that takes everything: single precision on every problem, the other types on some.
    pub fn host() -> Self {
        let types =
            [(ElementType::F32, 1), (ElementType::F16, 3), (ElementType::Bf16, 3), (ElementType::F64, 7)];
        Scope {
            types: types.to_vec(),
            usual: 1,
            sample: 1,
            first: 0,
            tiles: None,
            tiles_backward: false,
            rows: None,
            half: None,
            shares: true,
            golden: golden::folder(),
            forward: true,
            backward: true,
            merge: true,
            copies: true,
        }
    }

    /// A path that has more than the vectors' for bf16 alone: every problem in that type, some in single precision.
    pub fn of_bf16() -> Self {
        Scope { types: vec![(ElementType::Bf16, 1), (ElementType::F32, 7)], ..Self::host() }
    }

    /// The reference: everything in f64, the other types on some.
    pub fn reference() -> Self {
        let types =
            [(ElementType::F64, 1), (ElementType::F32, 3), (ElementType::F16, 7), (ElementType::Bf16, 7)];
        Scope { types: types.to_vec(), ..Self::host() }
    }

    /// A CUDA device, at what it chooses. With tensor cores it is tried on tiles, and on little of what others are held to.
    pub fn cuda(has_tensor_cores: bool) -> Self {
        let every = if has_tensor_cores { [39, 21, 21] } else { [6, 15, 15] };
        let types = [ElementType::F32, ElementType::F16, ElementType::Bf16];
        let tiles = has_tensor_cores.then_some(27);
        Scope {
            types: types.into_iter().zip(every).collect(),
            usual: 3,
            sample: SAMPLE,
            tiles,
            ..Self::host()
        }
    }

    /// A CUDA device where nothing emulates it: every problem in every type.
    pub fn gpu() -> Self {
        let types = [ElementType::F32, ElementType::F16, ElementType::Bf16].map(|ty| (ty, 1));
        Scope { types: types.to_vec(), tiles: Some(1), tiles_backward: true, ..Self::host() }
    }

    /// What one kernel does, on rows that are its own: a few problems of each list, the next kernel's being others.
    pub fn kernel(kernel: &Shipped, number: usize) -> Self {
        let is_forward = kernel.operation == Operation::Forward;
        let is_merge = matches!(kernel.operation, Operation::Merge | Operation::MergeBackward);
        let copies = matches!(kernel.operation, Operation::CopyRows | Operation::AddRows);
        let rows =
            Rows { longest: kernel.head_dim, shorter: kernel.shorter, is_aligned: kernel.needs_alignment };
        // Kernels on rows of any length are few, and some work only for additional keys.
        let every = if kernel.head_dim == 0 { 39 } else { 93 };
        Scope {
            types: vec![(kernel.element_type, every)],
            usual: 3,
            // Those for rows of any length are three of a kind, and share the lists out already.
            sample: match kernel.head_dim {
                0 => 1,
                // Twice as long, as much slower.
                257.. => 2 * SAMPLE,
                _ => SAMPLE,
            },
            first: number,
            tiles: kernel.on_tensor_cores.then_some(39),
            rows: (kernel.head_dim > 0).then_some(rows),
            half: match kernel.operation {
                Operation::BackwardQuery => Some(0),
                Operation::BackwardKey => Some(1),
                _ => None,
            },
            forward: is_forward,
            backward: !is_forward && !is_merge && !copies,
            merge: is_merge,
            copies,
            ..Self::host()
        }
    }

    /// The same with so many times as many problems of each list, all their checks, and tiles in backward passes: some of what all
    /// of them are. Of several times as many, what kernels otherwise share among them, those that run together or stand side by side,
    /// it gets by itself.
    pub fn more(mut self, times: usize) -> Self {
        self.types.iter_mut().for_each(|(_, every)| *every = (*every / times).max(1));
        let (half, shares) = (self.half.filter(|_| times == 1), times == 1);
        Scope { sample: 1, tiles_backward: times > 1, half, shares, ..self }
    }

    /// The same, always tried on as much as [`Breadth::Wide`] is: where nothing emulates the device.
    pub fn wide(mut self) -> Self {
        self.types.iter_mut().for_each(|(_, every)| *every = every.div_ceil(self.usual));
        self.tiles = self.tiles.map(|every| every.div_ceil(self.usual));
        Scope { usual: 1, sample: 1, ..self }
    }

    /// The same with golden files from another folder than this crate's.
    pub fn golden_in(self, folder: &Path) -> Self {
        Scope { golden: folder.to_owned(), ..self }
    }

    /// Those of a suite's checks that are made: all of them, or a sample of at least one.
    pub fn sampled<T>(&self, checks: Vec<T>) -> Vec<T> {
        let every = match Breadth::asked() {
            // Of few checks kernels on long rows make as many as others.
            Breadth::Sample if checks.len() < self.sample => SAMPLE.min(checks.len()).max(1),
            Breadth::Sample => self.sample,
            _ => 1,
        };
        checks.into_iter().skip(self.first % every).step_by(every).collect()
    }

    /// Whether a single kernel is tried.
    pub fn is_kernel(&self) -> bool {
        self.types.len() == 1
    }

    /// Whether it is a kernel on rows of any length, which works beside those that compute scores.
    pub fn takes_any_rows(&self) -> bool {
        self.is_kernel() && self.rows.is_none()
    }

    /// The number of this subject among those that share checks.
    pub fn nth(&self) -> usize {
        self.first
    }

    /// Whether kernels share checks among them, each making some.
    pub fn shares(&self) -> bool {
        self.shares && Breadth::asked() <= Breadth::Usual
    }

    /// Whether problems that span several tiles are among them.
    pub fn has_tiles(&self) -> bool {
        self.tiles.is_some()
    }

    /// Whether their backward is tried, too.
    pub fn has_tiles_backward(&self) -> bool {
        self.backward && (self.tiles_backward || self.tiles == Some(1) || Breadth::asked() == Breadth::All)
    }

    /// All element types.
    pub fn types(&self) -> impl Iterator<Item = ElementType> {
        self.types.iter().map(|(element_type, _)| *element_type)
    }

    /// The problems of a list that are tried.
    pub fn problems(&self, list: &[Spec]) -> Vec<Given> {
        self.some_of(list, |every| every)
    }

    /// All of a list for a kernel with rows of its own; a third for one on any rows, which knows no masks, and for one on the longest
    /// rows, which is slow and has siblings of other types that get the other thirds; for other subjects those that are tried. The two kernels of a backward run together, so that each is usually asked for on half of them.
    pub fn every(&self, list: &[Spec]) -> Vec<Given> {
        let all = self.some_of(list, |every| match (self.is_kernel(), self.rows) {
            (true, Some(_)) => 1,
            (true, None) => 3,
            (false, _) => every,
        });
        let is_long = self.shares
            && self.rows.is_some_and(|rows| rows.longest > 256)
            && Breadth::asked() <= Breadth::Usual;
        let is_of_type = |given: &Given| !is_long || given.index % 3 == given.element_type as usize % 3;
        all.into_iter().filter(|given| self.has(given.index) && is_of_type(given)).collect()
    }

    /// Whether a problem of that number is this kernel's to be asked for, not that of the kernel that runs with it.
    pub fn has(&self, index: usize) -> bool {
        let is_wide = self.usual == 1 || Breadth::asked() > Breadth::Usual;
        is_wide || self.half.is_none_or(|half| half == index % 2)
    }

    /// Those of a list of problems that span several tiles.
    pub fn tiles(&self, list: &[Spec]) -> Vec<Given> {
        self.tiles.map(|tiles| self.some_of(list, |_| tiles)).unwrap_or_default()
    }

    /// A problem by itself, in every element type; `nth` says which rows of a kernel's it gets, never the shortest of all.
    pub fn alone(&self, spec: &Spec, nth: usize) -> Vec<Given> {
        let given = |element_type| Given {
            index: nth,
            element_type,
            spec: self.fit(spec, (nth + self.first) % 4),
            place: self.place(Arrangement::Contiguous, nth),
        };
        self.types().map(given).collect()
    }

    /// Both of a pair, or the one that this subject's number and that of the pair choose.
    pub fn of_pair<T>(&self, pair: [T; 2], nth: usize) -> Vec<T> {
        let chosen = (self.first + nth) % 2;
        pair.into_iter()
            .enumerate()
            .filter(|(n, _)| !self.shares || Breadth::asked() > Breadth::Usual || *n == chosen)
            .map(|(_, one)| one)
            .collect()
    }

    /// The longest row of a kernel; of others what a problem of the lists has unless it says otherwise.
    pub fn longest_row(&self) -> usize {
        self.rows.map_or(8, |rows| rows.longest)
    }

    /// Those of a list of problems with long rows. A kernel has rows of its own, but for values that it takes in parts.
    pub fn long_rows(&self, list: &[Spec]) -> Vec<Given> {
        let Some(Rows { longest, shorter, .. }) = self.rows else { return self.problems(list) };
        if !self.forward || self.tiles.is_none() {
            return Vec::new();
        }
        let in_parts = list.iter().filter(|spec| spec.head_dim_v > 256 && spec.head_dim_v.is_multiple_of(8));
        let own = |(nth, spec): (usize, &Spec)| {
            let head_dim = if nth % 2 == 0 { longest } else { shorter + 8 };
            spec.clone().dims(head_dim, spec.head_dim_v)
        };
        let specs: Vec<Spec> = in_parts.enumerate().map(own).collect();
        let place = self.place(Arrangement::Contiguous, 0);
        let given = Scope { rows: None, ..self.clone() }.problems(&specs);
        given.into_iter().map(|given| Given { place, ..given }).collect()
    }

    fn some_of(&self, list: &[Spec], every: impl Fn(usize) -> usize) -> Vec<Given> {
        let breadth = Breadth::asked();
        let of_type = |(nth, &(element_type, own)): (usize, &(ElementType, usize))| {
            // A list shorter than the step still gives one.
            let every = match breadth {
                Breadth::Sample | Breadth::Usual => every(own).min(list.len().max(1)),
                Breadth::Wide => every(own).div_ceil(self.usual).min(list.len().max(1)),
                Breadth::All => 1,
            };
            let first = (self.first + nth) % every;
            let numbers = (0..list.len()).skip(first).step_by(every);
            numbers.map(move |index| (index, element_type)).collect::<Vec<_>>()
        };
        let chosen = self.types.iter().enumerate().flat_map(of_type);
        let given = |(nth, (index, element_type)): (usize, (usize, ElementType))| Given {
            index,
            element_type,
            spec: self.fit(&list[index], nth),
            place: self.place(Arrangement::Contiguous, nth),
        };
        chosen.enumerate().map(given).collect()
    }

    /// A problem in the rows of the kernel, full ones and others in turn.
    pub fn fit(&self, spec: &Spec, nth: usize) -> Spec {
        let Some(Rows { longest, shorter, is_aligned }) = self.rows else { return spec.clone() };
        let step = self.row_step();
        let less = longest.saturating_sub(step * (1 + nth % 2)).max(shorter + step).min(longest);
        // Kernels on tiles have rows in parts of 64 elements, and zeros may begin in any.
        let few = less.min(if is_aligned { 24 + [0, 48, 112][nth / 5 % 3] } else { 13 });
        let least = (shorter + step).min(longest);
        let rows = if is_aligned {
            [(longest, longest), (less, less), (longest, few), (few, longest), (least, least)]
        } else {
            // Never both of a length that suits the kernel for aligned rows, which is preferred.
            [(longest, few), (less, less), (few, longest), (less, few), (least, least)]
        };
        let (head_dim, head_dim_v) = rows[nth % 5];
        spec.clone().dims(head_dim, head_dim_v)
    }

    /// By how much rows of a kernel that it can take differ in length, at least: where they must be aligned, by 16 bytes.
    fn row_step(&self) -> usize {
        let is_aligned = self.rows.is_some_and(|rows| rows.is_aligned);
        if is_aligned { 16 / self.types[0].0.size_bytes() } else { 1 }
    }

    /// A problem in rows that leave no lane of the kernel without elements, keys and values alike.
    pub fn full_rows(&self, spec: &Spec) -> Spec {
        let Some(Rows { longest, is_aligned, .. }) = self.rows else { return spec.clone() };
        // Rows that suit the kernel for aligned ones would be that kernel's.
        let length = if is_aligned { longest } else { longest - 1 };
        spec.clone().dims(length, length)
    }

    /// A problem with keys as short as rows get beside values that are not: where rows are short, a cta takes several heads.
    pub fn short_keys(&self, spec: &Spec) -> Spec {
        let Some(Rows { longest, is_aligned, .. }) = self.rows else { return spec.clone() };
        spec.clone().dims(if is_aligned { self.row_step() } else { 3 }, longest)
    }

    /// Lengths of keys and of values that end in every part of the rows that a kernel can take, and where it takes rows element by
    /// element, at every element of a chunk of 16 bytes. In one half of them it is the keys that end there, in the other the
    /// values. Of other subjects a few.
    pub fn lengths(&self) -> Vec<[usize; 2]> {
        let Some(Rows { longest, is_aligned, .. }) = self.rows else {
            return [1, 2, 3, 5, 7, 9, 15, 17, 31, 33].map(|length| [length, 34 - length]).to_vec();
        };
        let chunk = 16 / self.types[0].0.size_bytes();
        // Lanes hold up to 32 elements each: so many chunks.
        let (parts, ends) = if is_aligned { (32 / chunk, 1) } else { (32 / chunk, chunk) };
        let of_part = |part: usize| {
            let middle = longest * (2 * part + 1) / (2 * parts) / chunk * chunk;
            (0..ends).map(move |end| middle + end)
        };
        let mut lengths: Vec<usize> =
            (0..parts).flat_map(of_part).map(|length| length.max(self.row_step())).collect();
        lengths.dedup();
        let other = if is_aligned { longest } else { longest - 1 };
        lengths.into_iter().flat_map(|length| [[length, other], [other, length]]).collect()
    }

    /// An arrangement beginning where the kernel needs it; elsewhere aligned and not in turn.
    pub fn place(&self, arrangement: Arrangement, nth: usize) -> Place {
        let is_aligned = self.rows.map_or(nth.is_multiple_of(2), |rows| rows.is_aligned);
        Place { arrangement, is_aligned }
    }
}

/// Runs generic code in a type known at run time.
#[macro_export]
macro_rules! in_type {
    ($element_type:expr, $name:ident => $body:expr) => {
        match $element_type {
            natten::ElementType::F32 => {
                type $name = f32;
                $body
            }
            natten::ElementType::F16 => {
                type $name = natten::f16;
                $body
            }
            natten::ElementType::Bf16 => {
                type $name = natten::bf16;
                $body
            }
            _ => {
                type $name = f64;
                $body
            }
        }
    };
}
