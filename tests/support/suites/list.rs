//! The problems that every backend must solve: one list by hand for what is known to break kernels, one drawn.

use crate::rng::Rng;
use crate::spec::Spec;

/// Extents around tile sizes: one less, exact, one more.
const AROUND_TILES: [usize; 11] = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17];

/// Window sizes, strides, dilations and borders, by axis count.
pub fn windows() -> Vec<Spec> {
    let mut list = Vec::new();
    for (i, &extent) in AROUND_TILES.iter().chain(&[63, 64, 65, 130]).enumerate() {
        let size = [1, 3, 4, extent][i % 4].min(extent);
        list.push(Spec::na(&[extent], &[size]));
        list.push(Spec::na(&[extent], &[extent]).stride(&[extent]).dims(5, 9));
        list.push(Spec::na(&[extent], &[extent.div_ceil(2)]).causal(&[true]).heads(2, 1));
    }
    for (a, b) in [(1, 1), (1, 9), (3, 4), (4, 5), (8, 7), (9, 16), (17, 8)] {
        list.push(Spec::na(&[a, b], &[a.min(3), b.min(4)]));
        list.push(Spec::na(&[b, a], &[b.min(5), a]).causal(&[true, false]).heads(2, 2));
    }
    for shape in [[1, 1, 1], [1, 5, 4], [4, 1, 9], [3, 8, 5], [5, 4, 9]] {
        list.push(Spec::na(&shape, &shape.map(|extent| extent.min(3))));
        list.push(Spec::na(&shape, &shape.map(|e| e.min(2))).causal(&[true, false, true]));
    }
    list.extend([
        // Stride = window: blocked attention, with and without a ragged last block.
        Spec::na(&[16], &[4]).stride(&[4]),
        Spec::na(&[19], &[4]).stride(&[4]),
        Spec::na(&[8, 9], &[4, 3]).stride(&[4, 3]),
        // Strides that do not divide.
        Spec::na(&[23], &[7]).stride(&[3]),
        Spec::na(&[23], &[8]).stride(&[5]).causal(&[true]),
        Spec::na(&[11, 13], &[5, 6]).stride(&[2, 5]),
        // Dilation that does not divide, down to windows of all that a residue has.
        Spec::na(&[23], &[5]).dilation(&[4]),
        Spec::na(&[65], &[4]).dilation(&[13]).causal(&[true]),
        Spec::na(&[17], &[1]).dilation(&[17]),
        Spec::na(&[11, 14], &[3, 4]).dilation(&[3, 3]),
        Spec::na(&[7, 5, 9], &[2, 2, 3]).dilation(&[3, 2, 2]),
        // Whole axes beside local ones.
        Spec::na(&[6, 12], &[6, 3]),
        Spec::na(&[4, 6, 7], &[4, 3, 3]).causal(&[true, false, false]),
        // All flags at once.
        Spec::na(&[29], &[5])
            .stride(&[3])
            .dilation(&[4])
            .causal(&[true])
            .heads(4, 2)
            .additional(5)
            .scale(0.7),
        Spec::na(&[13, 11], &[4, 3])
            .stride(&[3, 2])
            .dilation(&[3, 3])
            .causal(&[true, false])
            .heads(4, 1)
            .dims(12, 20)
            .additional(1)
            .batch(2),
        Spec::na(&[5, 7, 8], &[2, 3, 3])
            .stride(&[2, 2, 3])
            .dilation(&[2, 2, 2])
            .causal(&[false, true, false])
            .heads(2, 1)
            .dims(16, 24)
            .additional(3)
            .scale(-0.5),
    ]);
    list
}

/// Heads, components, additional keys and scales.
pub fn shapes() -> Vec<Spec> {
    let mut list = Vec::new();
    for (i, dim) in [1, 5, 8, 40, 64, 72, 80, 96, 128, 200].into_iter().enumerate() {
        let dim_v = [dim, 3, 48, dim + 1][i % 4];
        let spec = Spec::na(&[4, 7], &[3, 4]).dims(dim, dim_v).heads(2, 1 + i % 2);
        list.push(if i % 2 == 0 { spec } else { spec.causal(&[false, true]).additional(2) });
        list.push(Spec::na(&[18], &[9]).dims(dim, dim));
    }
    for (heads, heads_kv) in [(2, 2), (2, 1), (8, 1), (8, 4), (8, 8), (6, 2)] {
        list.push(Spec::na(&[10], &[5]).heads(heads, heads_kv).batch(2));
        list.push(Spec::attention(5, 9, false).heads(heads, heads_kv).dims(16, 8));
    }
    for additional in [1, 5, 130] {
        list.push(Spec::na(&[12], &[3]).additional(additional).heads(2, 1));
        list.push(Spec::na(&[5, 6], &[3, 2]).additional(additional).dims(24, 16).batch(2));
    }
    for scale in [0.0, 1.0, -0.3, 20.0] {
        list.push(Spec::na(&[4, 9], &[3, 5]).scale(scale).dims(16, 16));
    }
    list
}

/// Rows that are longer than any tile's: values alone, which kernels on tiles take in parts, or all; aligned and not, one more
/// than a part, whole parts.
pub fn long_rows() -> Vec<Spec> {
    vec![
        Spec::na(&[70], &[33]).dims(64, 320).heads(2, 1),
        Spec::na(&[9], &[4]).dims(300, 300),
        Spec::na(&[6, 6], &[3, 3]).dilation(&[2, 2]).dims(32, 384).heads(2, 2),
        Spec::na(&[4, 5], &[3, 2]).dims(1024, 512).heads(2, 1).additional(3),
        Spec::packed(&[5, 0, 6], &[7, 3, 4], false).dims(40, 512).batch(1),
        Spec::na(&[10], &[5]).causal(&[true]).dims(512, 8),
        Spec::na(&[13], &[3]).dilation(&[3]).dims(128, 264).heads(2, 1).additional(2).batch(2),
        Spec::attention(5, 9, true).dims(300, 1024),
        Spec::na(&[7], &[3]).dims(1023, 511).additional(2),
        Spec::na(&[5, 6], &[2, 3]).stride(&[2, 1]).dims(257, 5).scale(-0.1),
        Spec::na(&[8], &[3]).dims(1024, 1024).heads(2, 2),
    ]
}

/// Plain attention, packed or not, with and without keys.
pub fn attention() -> Vec<Spec> {
    let mut list = Vec::new();
    let lengths = [(1, 1), (1, 9), (9, 1), (7, 8), (17, 16), (16, 65), (65, 63), (4, 0), (0, 5), (0, 0)];
    for (queries, keys) in lengths {
        list.push(Spec::attention(queries, keys, false));
        list.push(Spec::attention(queries, keys, true).heads(2, 1).batch(2).dims(8, 12));
    }
    list.extend([
        Spec::attention(4, 0, false).additional(3),
        Spec::attention(6, 8, true).additional(2).scale(-0.4),
        Spec::packed(&[3, 0, 5, 9], &[4, 2, 0, 17], false).heads(2, 1),
        Spec::packed(&[3, 0, 5, 9], &[4, 2, 0, 17], true),
        Spec::packed(&[8, 8], &[8, 8], true).heads(4, 2).dims(40, 24),
        Spec::packed(&[0, 0], &[0, 3], false),
        Spec::packed(&[], &[], false),
        Spec::packed(&[5, 1], &[0, 0], false),
        Spec::packed(&[5, 2], &[3, 6], true).additional(4),
        Spec::packed(&[3, 0, 5, 9], &[4, 2, 0, 17], true).from_end().heads(2, 1),
        // The same totals as each other's, and masks of their own.
        Spec::packed(&[3, 5], &[5, 3], true),
        Spec::packed(&[3, 5], &[5, 3], true).from_end(),
    ]);
    list
}

/// Plain attention causal from the end: queries that decode, whole tiles of queries before the first key, sequences of all
/// kinds, single keys.
pub fn from_end() -> Vec<Spec> {
    let attention = |queries, keys| Spec::attention(queries, keys, true).from_end();
    let packed = |queries: &[usize], keys: &[usize]| Spec::packed(queries, keys, true).from_end();
    vec![
        attention(3, 68).heads(4, 2).batch(2).dims(16, 16),
        attention(200, 5).heads(2, 1).dims(16, 24),
        attention(65, 97).additional(2).dims(40, 40),
        packed(&[9, 70, 4, 20], &[30, 6, 4, 1]).heads(2, 1).dims(24, 16),
        attention(70, 33).additional(5).dims(64, 64).scale(-0.3),
        attention(1, 1),
        attention(12, 1).heads(3, 1).batch(2),
        packed(&[66, 140, 1], &[64, 1, 33]).heads(2, 2).dims(32, 32),
    ]
}

/// Around the tiles of the tensor-core kernels: one token less, as many, one more, several boxes, full and partial ones,
/// residues of several lengths, additional keys below, at and above a tile.
pub fn tiles() -> Vec<Spec> {
    let dims = [64, 128, 32, 64, 256, 40];
    let mut list = Vec::new();
    let lines = [
        (1, 1),
        (2, 2),
        (63, 32),
        (64, 64),
        (65, 33),
        (127, 64),
        (128, 17),
        (129, 128),
        (191, 7),
        (192, 192),
        (193, 65),
        (200, 100),
        (300, 150),
        (512, 256),
    ];
    for (extent, window) in lines {
        list.push(Spec::na(&[extent], &[window]).heads(2, 1));
    }
    list.extend([
        Spec::na(&[400], &[150]).stride(&[30]),
        Spec::na(&[333], &[200]).causal(&[true]),
        Spec::na(&[333], &[60]).stride(&[60]).causal(&[true]).heads(3, 1),
        Spec::na(&[501], &[90]).dilation(&[3]),
        Spec::na(&[500], &[90]).dilation(&[3]).stride(&[7]).heads(2, 1).additional(9),
        Spec::na(&[904], &[100]).dilation(&[8]),
        Spec::na(&[40], &[1]).dilation(&[33]),
        Spec::na(&[65], &[2]).dilation(&[32]),
        Spec::na(&[700], &[400]),
        Spec::na(&[512], &[256]).stride(&[256]),
        Spec::na(&[17, 31], &[7, 9]).heads(3, 3),
        Spec::na(&[17, 31], &[7, 9]).causal(&[false, true]),
        Spec::na(&[24, 24], &[16, 16]).stride(&[16, 16]),
        Spec::na(&[33, 20], &[12, 13]).stride(&[4, 8]).heads(3, 3),
        Spec::na(&[9, 40], &[9, 11]).stride(&[1, 5]).causal(&[false, true]),
        Spec::na(&[48, 112], &[2, 5]).dilation(&[16, 16]),
        Spec::na(&[33, 38], &[1, 2]).dilation(&[33, 19]).causal(&[true, true]),
        Spec::na(&[25, 30], &[9, 11]).stride(&[2, 1]).dilation(&[1, 2]),
        Spec::na(&[40, 33], &[9, 5]).dilation(&[3, 4]).stride(&[4, 2]).heads(2, 1),
        Spec::na(&[30, 30], &[9, 9]).dilation(&[3, 3]).heads(2, 2),
        Spec::na(&[40, 40], &[24, 40]),
        Spec::na(&[48, 24], &[33, 23]).causal(&[true, false]),
        Spec::na(&[12, 14], &[5, 6]).heads(4, 2).batch(2),
        Spec::na(&[5, 12, 17], &[3, 7, 9]).heads(2, 2),
        Spec::na(&[6, 11, 13], &[3, 5, 5]).dilation(&[2, 2, 2]).heads(2, 1),
        Spec::na(&[7, 11, 13], &[3, 3, 3]).dilation(&[2, 3, 4]).stride(&[2, 3, 1]),
        Spec::na(&[7, 11, 22], &[2, 3, 5])
            .dilation(&[2, 3, 4])
            .causal(&[false, true, false])
            .heads(2, 1)
            .batch(2),
        Spec::na(&[8, 10, 10], &[8, 5, 7]).stride(&[4, 5, 2]).causal(&[true, false, false]),
        Spec::na(&[10, 10, 20], &[9, 7, 15]),
        Spec::na(&[70], &[30]).heads(4, 2).additional(70),
        Spec::na(&[18, 29], &[7, 10]).stride(&[2, 3]).causal(&[false, true]).additional(5),
        Spec::na(&[8, 9, 15], &[3, 2, 7])
            .stride(&[2, 2, 1])
            .dilation(&[2, 3, 1])
            .causal(&[true, false, true])
            .heads(6, 2)
            .additional(130)
            .batch(2)
            .scale(0.3),
        Spec::na(&[7, 8, 15], &[3, 2, 7])
            .causal(&[true, false, true])
            .heads(8, 1)
            .additional(256)
            .scale(-0.3),
        Spec::na(&[20, 40], &[15, 31]).scale(4.0),
        Spec::na(&[20, 40], &[15, 31]).scale(-4.0),
        Spec::na(&[20, 40], &[15, 31]).scale(0.0),
        Spec::attention(130, 200, false).heads(2, 1),
        Spec::attention(200, 130, true).heads(2, 2),
        Spec::packed(&[70, 1, 64], &[65, 130, 64], true).heads(2, 1),
        Spec::packed(&[3, 0, 150, 67], &[5, 4, 214, 0], true).heads(4, 2),
    ]);
    let with_dims = |(i, spec): (usize, Spec)| {
        let (dim, dim_v) = (dims[i % 6], dims[(i / 6 + i) % 6]);
        spec.dims(dim, if i % 2 == 0 { dim } else { dim_v.min(128) })
    };
    list.into_iter().enumerate().map(with_dims).collect()
}

/// What is rare and differs from kernel to kernel, so that each meets all of it by name: tiles of at most 192 rows and 128
/// columns are taken for granted, and more than enough of them are work for a few blocks.
pub fn paths(has_tiles: bool) -> Vec<Spec> {
    let few_keys = |spec: Spec| if has_tiles { spec } else { Spec::na(&[193], &[9]) };
    let mut list = vec![
        // Items for blocks to take in turn: several tiles, batch items, and heads, three to one of the keys'.
        Spec::na(&[3, 30], &[3, 9]).heads(6, 2).batch(2),
        // Rows that see nothing of the first tile of keys that their own tile has.
        Spec::na(&[260], &[5]).stride(&[5]),
        // Additional keys beyond a tile, and four heads to one of the keys'.
        Spec::na(&[40], &[7]).heads(4, 1).additional(150),
        // One row beyond the last tile, in one residue; none in the other, which has a tile without rows.
        Spec::na(&[257], &[3]).dilation(&[2]),
        // Tiles that all rows see whole, between others, and one row beyond.
        few_keys(Spec::na(&[193], &[150])),
        // Everything at once, on three axes.
        Spec::na(&[3, 6, 22], &[2, 3, 5])
            .stride(&[1, 2, 3])
            .dilation(&[1, 2, 2])
            .causal(&[true, false, true])
            .heads(2, 1)
            .additional(1),
        // Sequences without queries, without enough keys for each, and with more.
        Spec::packed(&[70, 0, 3], &[40, 5, 130], true).heads(6, 2),
        Spec::packed(&[66, 3], &[40, 9], true).heads(2, 1),
        Spec::attention(30, 150, false),
        // The queries in several parts for the gradients of additional keys.
        Spec::na(&[9, 64], &[1, 3]).heads(2, 1).additional(3),
    ];
    if has_tiles {
        list.extend(grids());
    }
    list
}

/// Grids of tiles of keys: where along each axis those begin and end that all rows see whole, and how the last one lies.
fn grids() -> Vec<Spec> {
    vec![
        // A last tile that is moved back by one.
        Spec::na(&[320], &[64]),
        // Whole lines of tiles that all rows see, from the first on, and behind them none.
        Spec::na(&[16, 32], &[16, 32]).causal(&[true, false]).scale(0.0),
        // Whole tiles between others along two axes, and along three.
        Spec::na(&[36, 36], &[25, 25]).stride(&[1, 2]),
        Spec::na(&[11, 12, 13], &[9, 9, 10]),
        // Whole tiles behind the first ones and before the last.
        Spec::na(&[290], &[200]).causal(&[true]).stride(&[3]).scale(-0.3),
        // Whole tiles between others along the first axis alone.
        Spec::na(&[20, 4, 8], &[13, 4, 8]),
        // Lines of which some are seen whole, others in part, along all axes.
        Spec::na(&[6, 8, 16], &[6, 8, 16]).causal(&[true, true, false]),
    ]
}

/// Few rows that meet so many columns that backward passes on tiles share them out, and add up in the end what each part has
/// found: by turns few queries and few keys, along the axis and by the heads that share keys, on all axes.
pub fn parts() -> Vec<Spec> {
    vec![
        Spec::attention(9, 1100, false).additional(70),
        Spec::attention(1100, 9, false),
        Spec::attention(70, 300, true).heads(4, 1).batch(2),
        Spec::na(&[2, 3, 11], &[2, 2, 7]).heads(32, 1),
        Spec::na(&[2, 3, 180], &[2, 3, 180]),
        Spec::attention(300, 130, true).from_end().heads(4, 1).batch(2),
    ]
}

/// A causal axis in stride blocks, the last of which is cut off in either of two residues, one of a query more than the other: each
/// axis in turn. Where it ends decides about where windows start.
pub fn leaders() -> Vec<Spec> {
    [[9, 2, 3], [2, 9, 3], [2, 3, 9]]
        .map(|shape: [usize; 3]| {
            let long = shape.map(|extent| extent == 9);
            let on_long = |value: usize| long.map(|is_long| if is_long { value } else { 1 });
            Spec::na(&shape, &shape.map(|extent| if extent == 9 { 4 } else { extent }))
                .stride(&on_long(3))
                .dilation(&on_long(2))
                .causal(&long)
        })
        .to_vec()
}

/// Lines along each axis, so long that each lane group of a warp, and each warp, has a place of its own along it: what they see
/// grows from one to the next, stays, and shrinks, so that none of them can do with what another one knows. One head, so that
/// neighbours are no heads of one place.
pub fn lines(longest_row: usize) -> Vec<Spec> {
    // Queries that a warp takes.
    let warp = match longest_row {
        0..=8 => 128,
        9..=32 => 64,
        33..=64 => 32,
        65..=128 => 16,
        _ => 8,
    };
    let long = 3 * warp + 9;
    let shapes = [[long, 1, 1], [1, long, 1], [1, 1, long]];
    let of_shape = |shape: [usize; 3]| {
        let window = shape.map(|extent| extent.div_ceil(3) * 2 - usize::from(extent == 1));
        let causal = shape.map(|extent| extent > 1);
        let specs = [Spec::na(&shape, &shape).causal(&causal), Spec::na(&shape, &window)];
        specs.map(|spec| spec.additional(1))
    };
    shapes.into_iter().flat_map(of_shape).collect()
}

/// For scores that are all far below 0, so that a key that is not there weighs most: ends of axes inside a tile, and of
/// additional keys.
pub fn negative() -> Vec<Spec> {
    vec![
        Spec::na(&[5, 13], &[3, 7]).heads(2, 1).additional(3),
        Spec::na(&[70], &[20]).causal(&[true]),
        Spec::packed(&[5, 7], &[9, 70], false),
    ]
}

/// All that a problem can have, on every axis and at once, every number another, residues that differ in length: what every
/// single kernel is tried on.
pub fn everything() -> Vec<Spec> {
    vec![
        Spec::na(&[5, 7, 8], &[2, 2, 3])
            .stride(&[2, 1, 2])
            .dilation(&[2, 3, 2])
            .causal(&[true, false, true])
            .heads(2, 1)
            .dims(40, 48)
            .batch(2)
            .additional(3)
            .scale(-0.7),
        // Windows that both ends of an axis push back.
        Spec::na(&[7, 7, 7], &[3, 3, 3])
            .stride(&[1, 2, 1])
            .dilation(&[2, 2, 2])
            .heads(4, 2)
            .dims(48, 40)
            .additional(5),
        Spec::na(&[6, 5, 9], &[3, 4, 5])
            .stride(&[3, 2, 1])
            .causal(&[true, true, true])
            .heads(1, 1)
            .dims(40, 40),
    ]
}

/// Nothing to do: an empty batch.
pub fn empty() -> Vec<Spec> {
    vec![Spec::na(&[5, 4], &[3, 2]).batch(0).heads(2, 1).additional(2), Spec::attention(3, 4, true).batch(0)]
}

/// Neighborhoods with everything drawn; small, so that many are affordable.
pub fn random(seed: u64, count: usize) -> Vec<Spec> {
    let mut rng = Rng::new(seed);
    (0..count).map(|_| draw(&mut rng)).collect()
}

fn draw(rng: &mut Rng) -> Spec {
    let rank = rng.range(1, 3);
    let most = [40, 11, 6][rank - 1];
    let shape: Vec<usize> = (0..rank).map(|_| rng.range(1, most)).collect();
    let kernel: Vec<usize> = shape.iter().map(|&extent| rng.range(1, extent)).collect();
    let mut each = |most: &dyn Fn(usize) -> usize| -> Vec<usize> {
        (0..rank).map(|axis| if rng.chance(0.5) { rng.range(1, most(axis)) } else { 1 }).collect()
    };
    let stride = each(&|axis| kernel[axis]);
    let dilation = each(&|axis| shape[axis] / kernel[axis]);
    let causal: Vec<bool> = (0..rank).map(|_| rng.chance(0.35)).collect();
    let heads_kv = rng.range(1, 3);
    let spec = Spec::na(&shape, &kernel).stride(&stride).dilation(&dilation).causal(&causal);
    let spec = spec
        .heads(heads_kv * rng.pick(&[1, 1, 2, 3]), heads_kv)
        .dims(rng.range(1, 33), rng.range(1, 33))
        .additional(rng.pick(&[0, 0, 0, 1, 7]))
        .batch(rng.range(1, 2));
    match rng.pick(&[None, None, Some(1.0), Some(0.0), Some(-0.3)]) {
        Some(scale) => spec.scale(scale),
        None => spec,
    }
}
