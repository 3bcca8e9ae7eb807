//! Tensor copies: boxes of rank 1 to 5 at any start, swizzled, with element strides and zero fill; and boxes stored.
//!
//! Two kinds of start are no starts at all, and the hardware answers them with an illegal instruction: along the contiguous
//! axis one that is not at a multiple of 16 bytes, and for stores a negative one on any axis.

use super::copies::wait_bounded;
use super::inputs::{Random, bytes};
use super::kernel::Kernel;
use super::{Arg, Case, MapElement, Rule, Swizzle, TensorMap};

/// A box of a tensor.
#[derive(Clone, Debug)]
struct Box {
    name: String,
    map: TensorMap,
    start: Vec<i32>,
}

impl Box {
    /// Elements copied along each axis.
    fn counts(&self) -> Vec<usize> {
        let extents = self.map.box_extents.iter().zip(&self.map.element_strides);
        extents.map(|(&extent, &step)| extent.div_ceil(step) as usize).collect()
    }

    /// Bytes of shared memory that the box takes, and that its barrier is told.
    fn bytes(&self) -> usize {
        self.counts().iter().product::<usize>() * self.map.element.size()
    }

    /// For each element of the box in order: its byte in shared memory, and in the tensor unless it lies outside.
    fn elements(&self) -> Vec<(usize, Option<usize>)> {
        let (map, size) = (&self.map, self.map.element.size());
        let counts = self.counts();
        let mut elements = Vec::new();
        for number in 0..counts.iter().product::<usize>() {
            let (mut rest, mut byte, mut inside) = (number, 0, true);
            for (axis, &count) in counts.iter().enumerate() {
                let step = if axis == 0 { 1 } else { map.element_strides[axis] };
                let at = i64::from(self.start[axis]) + (rest % count) as i64 * i64::from(step);
                rest /= count;
                inside &= (0..map.extents[axis] as i64).contains(&at);
                byte += at * if axis == 0 { size as i64 } else { map.strides_bytes[axis - 1] as i64 };
            }
            elements.push((map.swizzle.apply(number * size), inside.then_some(byte as usize)));
        }
        elements
    }

    /// Whether the hardware refuses to start there: rows are moved in pieces of 16 bytes.
    fn starts_inside_a_piece(&self) -> bool {
        self.start[0] * self.map.element.size() as i32 % 16 != 0
    }

    fn starts_below(&self) -> bool {
        self.start.iter().any(|&at| at < 0)
    }

    /// Bytes of the whole tensor.
    fn tensor_bytes(&self) -> usize {
        let map = &self.map;
        let last = map.extents.len() - 1;
        let row = map.extents[0] as usize * map.element.size();
        if last == 0 { row } else { map.strides_bytes[last - 1] as usize * map.extents[last] as usize }
    }
}

/// All of them.
pub fn cases() -> Vec<Case> {
    let boxes = boxes();
    let mut cases: Vec<Case> = boxes.iter().map(load).collect();
    let dense = boxes.iter().filter(|b| b.map.element_strides.iter().all(|&s| s == 1));
    // Every fault costs a process: of the stores that must fault, one swizzle each is enough.
    let few = dense.filter(|b| !b.starts_below() || matches!(b.map.swizzle, Swizzle::None | Swizzle::B128));
    cases.extend(few.map(store));
    cases
}

fn boxes() -> Vec<Box> {
    use MapElement::{Bf16, F32, U16};
    let mut boxes = Vec::new();
    let mut add =
        |name: String, element, extents: &[u64], extent: &[u32], steps: &[u32], swizzle, start: &[i32]| {
            // Strides padded to 16 bytes, and by 16 more on the first axis so that rows are not contiguous.
            let mut strides_bytes = Vec::new();
            let mut stride = extents[0] as usize * MapElement::size(element);
            for (axis, &size) in extents.iter().enumerate().skip(1) {
                stride = stride.next_multiple_of(16) + if axis == 1 { 16 } else { 0 };
                strides_bytes.push(stride as u64);
                stride *= size as usize;
            }
            let map = TensorMap {
                element,
                extents: extents.to_vec(),
                strides_bytes,
                box_extents: extent.to_vec(),
                element_strides: steps.to_vec(),
                swizzle,
            };
            boxes.push(Box { name, map, start: start.to_vec() });
        };
    let plain = Swizzle::None;
    for (at, start) in [
        ("inside", 8),
        ("below", -8),
        ("past", 88),
        ("outside", 504),
        ("far_below", -64),
        ("odd", 5),
        ("odd_below", -5),
    ] {
        add(format!("1d_{at}"), U16, &[100], &[32], &[1], plain, &[start]);
    }
    for swizzle in Swizzle::ALL {
        let inner = if swizzle == plain { 24 } else { swizzle.span() as u32 / 2 };
        for (at, start) in [("inside", [0, 3]), ("below", [-8, -2]), ("past", [40, 14])] {
            let name = format!("2d_{}_{at}", swizzle.name());
            add(name, Bf16, &[72, 20], &[inner, 16], &[1, 1], swizzle, &start);
        }
    }
    add("2d_sw128_odd".into(), Bf16, &[72, 20], &[64, 16], &[1, 1], Swizzle::B128, &[4, 3]);
    add("2d_sw128_outside".into(), Bf16, &[72, 20], &[64, 16], &[1, 1], Swizzle::B128, &[0, 20]);
    for swizzle in [Swizzle::B128, Swizzle::B64] {
        let inner = swizzle.span() as u32 / 2;
        for (at, start) in [("inside", [0, 2, 1]), ("below", [0, -3, -1]), ("past", [0, 6, 4])] {
            let name = format!("3d_{}_{at}", swizzle.name());
            add(name, U16, &[64, 10, 6], &[inner, 4, 4], &[1, 1, 1], swizzle, &start);
        }
    }
    add("3d_f32".into(), F32, &[20, 5, 4], &[8, 3, 2], &[1, 1, 1], plain, &[-4, 3, 3]);
    add("3d_f32_past".into(), F32, &[20, 5, 4], &[8, 3, 2], &[1, 1, 1], plain, &[16, 3, 3]);
    for (at, start) in [("inside", [0, 1, 2, 1]), ("below", [0, -1, -2, 0]), ("past", [32, 4, 7, 2])] {
        let name = format!("4d_sw128_{at}");
        add(name, Bf16, &[64, 6, 9, 3], &[64, 2, 4, 2], &[1, 1, 1, 1], Swizzle::B128, &start);
    }
    for (at, start) in [("inside", [0, 1, 2, 1, 1]), ("below", [0, 0, -2, -1, -1]), ("past", [0, 1, 5, 3, 1])]
    {
        let name = format!("5d_sw128_{at}");
        add(name, Bf16, &[64, 3, 6, 4, 2], &[64, 1, 4, 2, 2], &[1; 5], Swizzle::B128, &start);
    }
    // A box over one head of several: the neighbour's row is near.
    add(
        "5d_narrow".into(),
        Bf16,
        &[40, 3, 6, 4, 2],
        &[64, 1, 4, 2, 1],
        &[1; 5],
        Swizzle::B128,
        &[0, 1, 1, 1, 0],
    );
    for (at, start) in [("inside", [0, 1]), ("below", [0, -4]), ("past", [0, 17])] {
        add(format!("2d_steps_{at}"), Bf16, &[64, 20], &[64, 10], &[1, 3], Swizzle::B128, &start);
    }
    add("3d_steps".into(), Bf16, &[64, 13, 12], &[64, 8, 7], &[1, 2, 3], Swizzle::B128, &[0, -2, 4]);
    add("4d_steps".into(), Bf16, &[32, 9, 8, 7], &[32, 4, 6, 3], &[1, 2, 2, 1], Swizzle::B64, &[0, 4, -1, 5]);
    boxes
}

/// Issues by one thread: barrier in `%r0`, coordinates as literals.
fn prologue() -> &'static str {
    "mov.u32 %r0, barrier;\nsetp.ne.u32 %p0, %thread, 0;\n@%p0 bra ISSUED;\n\
     mbarrier.init.shared::cta.b64 [%r0], 1;\nfence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;\n"
}

fn coordinates(start: &[i32]) -> String {
    let numbers: Vec<String> = start.iter().map(i32::to_string).collect();
    format!("{{{}}}", numbers.join(", "))
}

fn content(name: &str, size: usize) -> Vec<u8> {
    let mut random = Random::new(name);
    // No zeros, so that a fill shows.
    let words: Vec<u32> = (0..size.div_ceil(4)).map(|_| random.word() | 0x0001_0001).collect();
    bytes(&words)
}

/// Loads the box over shared memory that holds 0xcd; the last word is 1 if the barrier completed.
fn load(shape: &Box) -> Case {
    let (rank, copied) = (shape.start.len(), shape.bytes());
    let body = format!(
        "{}mbarrier.arrive.expect_tx.shared::cta.b64 %q1, [%r0], {copied};\n\
         cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%s], [%q7, {}], [%r0];\n\
         ISSUED:\nbar.sync 0;\n{}",
        prologue(),
        coordinates(&shape.start),
        wait_bounded()
    );
    let shared_bytes = copied.next_multiple_of(128) + 128;
    let mut kernel = Kernel::new("8.0", "sm_90", 0, 1, body).shared(shared_bytes);
    (kernel.dump, kernel.map, kernel.storing) = (true, true, 1);
    let tensor = content(&shape.name, shape.tensor_bytes());
    let size = shape.map.element.size();
    let mut documented = vec![0xcd; shared_bytes];
    for (to, from) in shape.elements() {
        match from {
            Some(from) => documented[to..to + size].copy_from_slice(&tensor[from..from + size]),
            None => documented[to..to + size].fill(0),
        }
    }
    documented.extend(bytes(&[1]));
    let mut case =
        kernel.case(format!("tma_load_{}", shape.name), &[], vec![0xcd; shared_bytes], Rule::Exact);
    // The first parameter is free, since no thread reads inputs: it is the tensor.
    case.args[0] = Arg::Input(tensor);
    case.args.push(Arg::Map { map: shape.map.clone(), buffer: 0 });
    if shape.starts_inside_a_piece() { case.refused() } else { case.documented(documented) }
}

/// Stores the box: what lies outside the tensor is dropped, what lies outside the box stays.
fn store(shape: &Box) -> Case {
    let rank = shape.start.len();
    let body = format!(
        "setp.ne.u32 %p0, %thread, 0;\n@%p0 bra ISSUED;\n\
         cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group [%q7, {}], [%s];\n\
         cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\nISSUED:\nbar.sync 0;\n",
        coordinates(&shape.start)
    );
    let mut kernel = Kernel::new("8.0", "sm_90", 0, 0, body).shared(shape.bytes().next_multiple_of(128));
    kernel.map = true;
    let fill = content(&shape.name, kernel.shared_bytes);
    let size = shape.map.element.size();
    let mut documented = vec![0xa5; shape.tensor_bytes()];
    for (from, to) in shape.elements() {
        if let Some(to) = to {
            documented[to..to + size].copy_from_slice(&fill[from..from + size]);
        }
    }
    let mut case = kernel.case(format!("tma_store_{}", shape.name), &[], fill, Rule::Exact);
    case.args[1] = Arg::Output(vec![0xa5; shape.tensor_bytes()]);
    case.args.push(Arg::Map { map: shape.map.clone(), buffer: 1 });
    let refused = shape.starts_inside_a_piece() || shape.starts_below();
    if refused { case.refused() } else { case.documented(documented) }
}
