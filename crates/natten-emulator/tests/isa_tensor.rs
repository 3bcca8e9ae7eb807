//! Fragments, matrix loads, swizzles and tensor maps against the manual's tables, written out as data.

mod support;

use natten_emulator::{FaultKind, Launch, MemorySpace, Swizzle, TensorMapDesc};
use support::{Device, bf16, floats};

/// (row, column) of element `i` of a lane's A fragment of m16n8k16, from the manual's figure.
fn a16(lane: usize, i: usize) -> (usize, usize) {
    let (group, t) = (lane >> 2, lane % 4);
    let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
    let column = if i < 4 { t * 2 + (i & 1) } else { t * 2 + (i & 1) + 8 };
    (row, column)
}

fn b16(lane: usize, i: usize) -> (usize, usize) {
    let (group, t) = (lane >> 2, lane % 4);
    (if i < 2 { t * 2 + (i & 1) } else { t * 2 + (i & 1) + 8 }, group)
}

fn c(lane: usize, i: usize) -> (usize, usize) {
    let (group, t) = (lane >> 2, lane % 4);
    (if i < 2 { group } else { group + 8 }, t * 2 + (i & 1))
}

/// Runs one mma whose lanes load `a` and `b` registers and zero accumulators; returns D as 16 x 8.
fn run_mma(op: &str, a: &[Vec<u32>], b: &[Vec<u32>]) -> Vec<f32> {
    let (na, nb) = (a[0].len(), b[0].len());
    let list = |name: &str, n: usize| (0..n).map(|i| format!("%{name}{i}")).collect::<Vec<_>>().join(", ");
    let loads = |name: &str, n: usize, at: usize| {
        (0..n).map(|i| format!("ld.global.u32 %{name}{i}, [%rd1+{}];\n", 4 * (at + i))).collect::<String>()
    };
    let ptx = format!(
        ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 p) {{
        .reg .b32 %a<4>, %b<4>, %t; .reg .f32 %d<4>; .reg .b64 %rd1;
        ld.param.u64 %rd1, [p]; mov.u32 %t, %laneid; mad.wide.u32 %rd1, %t, 64, %rd1;
        {}{} mov.f32 %d0, 0f00000000; mov.f32 %d1, %d0; mov.f32 %d2, %d0; mov.f32 %d3, %d0;
        {op} {{%d0, %d1, %d2, %d3}}, {{{}}}, {{{}}}, {{%d0, %d1, %d2, %d3}};
        st.global.v4.f32 [%rd1+48], {{%d0, %d1, %d2, %d3}}; ret; }}",
        loads("a", na, 0),
        loads("b", nb, na),
        list("a", na),
        list("b", nb)
    );
    let device = Device::new(&ptx);
    let mut data = Vec::new();
    for lane in 0..32 {
        let mut words = a[lane].clone();
        words.extend(&b[lane]);
        words.resize(16, 0);
        data.extend(words);
    }
    let address = device.upload(&data);
    device.run("k", &Launch::new([1, 1, 1], [32, 1, 1]).arg(address.to_le_bytes()));
    let out = device.download::<f32>(address, 512);
    let mut d = vec![0.0; 128];
    for lane in 0..32 {
        for i in 0..4 {
            let (row, column) = c(lane, i);
            d[row * 8 + column] = out[lane * 16 + 12 + i];
        }
    }
    d
}

fn assert_product(d: &[f32], a: &[f32], b: &[f32], k: usize) {
    for row in 0..16 {
        for column in 0..8 {
            let exact: f64 = (0..k).map(|i| f64::from(a[row * k + i]) * f64::from(b[i * 8 + column])).sum();
            assert!((f64::from(d[row * 8 + column]) - exact).abs() < 1e-5, "({row}, {column})");
        }
    }
}

#[test]
fn mma_of_16_bit_elements() {
    for k in [16usize, 8] {
        let a: Vec<f32> =
            floats(16 * k, 1).iter().map(|x| f32::from_bits(u32::from(bf16(*x)) << 16)).collect();
        let b: Vec<f32> =
            floats(k * 8, 2).iter().map(|x| f32::from_bits(u32::from(bf16(*x)) << 16)).collect();
        // k8 fragments are the first half of those of k16.
        let pack = |lane: usize,
                    n: usize,
                    at: &dyn Fn(usize, usize) -> f32,
                    table: &dyn Fn(usize, usize) -> (usize, usize)| {
            (0..n)
                .map(|r| {
                    let half = |i| {
                        let (row, column) = table(lane, i);
                        u32::from(bf16(at(row, column)))
                    };
                    half(2 * r) | half(2 * r + 1) << 16
                })
                .collect::<Vec<u32>>()
        };
        let at_a = |r: usize, c: usize| a[r * k + c];
        let at_b = |r: usize, c: usize| b[r * 8 + c];
        let fa: Vec<Vec<u32>> = (0..32).map(|lane| pack(lane, k / 4, &at_a, &a16)).collect();
        let fb: Vec<Vec<u32>> = (0..32).map(|lane| pack(lane, k / 8, &at_b, &b16)).collect();
        let d = run_mma(&format!("mma.sync.aligned.m16n8k{k}.row.col.f32.bf16.bf16.f32"), &fa, &fb);
        assert_product(&d, &a, &b, k);
    }
}

#[test]
fn mma_of_tf32() {
    for k in [8usize, 4] {
        // Numbers that tf32 holds exactly.
        let short = |x: &f32| f32::from_bits(x.to_bits() & 0xffff_e000);
        let a: Vec<f32> = floats(16 * k, 3).iter().map(short).collect();
        let b: Vec<f32> = floats(k * 8, 4).iter().map(short).collect();
        let fa = |lane: usize| {
            let (group, t) = (lane >> 2, lane % 4);
            let table = [(group, t), (group + 8, t), (group, t + 4), (group + 8, t + 4)];
            table[..k / 2].iter().map(|&(r, c)| a[r * k + c].to_bits()).collect::<Vec<_>>()
        };
        let fb = |lane: usize| {
            let (group, t) = (lane >> 2, lane % 4);
            [(t, group), (t + 4, group)][..k / 4]
                .iter()
                .map(|&(r, c)| b[r * 8 + c].to_bits())
                .collect::<Vec<_>>()
        };
        let (fa, fb): (Vec<_>, Vec<_>) = ((0..32).map(fa).collect(), (0..32).map(fb).collect());
        let d = run_mma(&format!("mma.sync.aligned.m16n8k{k}.row.col.f32.tf32.tf32.f32"), &fa, &fb);
        assert_product(&d, &a, &b, k);
    }
}

#[test]
fn ldmatrix_and_its_transpose() {
    // Four 8x8 matrices of numbered halves; matrix m, row r, column c holds 100 m + 8 r + c.
    for trans in [false, true] {
        let suffix = if trans { ".trans" } else { "" };
        let ptx = format!(
            ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p) {{
            .reg .b32 %r<12>; .reg .b64 %rd<4>; .shared .align 16 .b8 s[512];
            ld.param.u64 %rd1, [p]; mov.u32 %r1, %laneid; mov.u32 %r2, s; mad.lo.u32 %r3, %r1, 16, %r2;
            mad.wide.u32 %rd2, %r1, 16, %rd1; ld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%rd2];
            st.shared.v4.u32 [%r3], {{%r4, %r5, %r6, %r7}}; bar.sync 0;
            ldmatrix.sync.aligned.m8n8.x4{suffix}.shared.b16 {{%r8, %r9, %r10, %r11}}, [%r3];
            st.global.v4.u32 [%rd2], {{%r8, %r9, %r10, %r11}}; ret; }}"
        );
        let device = Device::new(&ptx);
        let data: Vec<u16> = (0..256).map(|i| (i / 64 * 100 + i % 64) as u16).collect();
        let address = device.upload(&data);
        device.run("k", &Launch::new([1, 1, 1], [32, 1, 1]).arg(address.to_le_bytes()));
        let out = device.download::<u16>(address, 256);
        for lane in 0..32 {
            for matrix in 0..4 {
                for e in 0..2 {
                    let (row, column) = (lane / 4, 2 * (lane % 4) + e);
                    let (row, column) = if trans { (column, row) } else { (row, column) };
                    assert_eq!(out[lane * 8 + matrix * 2 + e] as usize, 100 * matrix + 8 * row + column);
                }
            }
        }
    }
}

#[test]
fn swizzles_permute_16_byte_chunks() {
    // The manual's figures: position of chunk c of row r within a pattern, rows as wide as the swizzle.
    let table_128 = |row: u32, chunk: u32| chunk ^ (row % 8);
    let table_64 = |row: u32, chunk: u32| chunk ^ (row / 2 % 4);
    let table_32 = |row: u32, chunk: u32| chunk ^ (row / 4 % 2);
    for row in 0..16 {
        for chunk in 0..8 {
            assert_eq!(Swizzle::B128.apply(row * 128 + chunk * 16), row * 128 + table_128(row, chunk) * 16);
        }
        for chunk in 0..4 {
            assert_eq!(Swizzle::B64.apply(row * 64 + chunk * 16), row * 64 + table_64(row, chunk) * 16);
        }
        for chunk in 0..2 {
            assert_eq!(Swizzle::B32.apply(row * 32 + chunk * 16), row * 32 + table_32(row, chunk) * 16);
        }
    }
}

/// Loads a box 8 x 2 x 2 of u32 at (-4, 3, 2) and writes it out.
const LOAD_BOX: &str = ".version 8.0\n.target sm_90\n.address_size 64
    .visible .entry k(.param .align 64 .b8 map[128], .param .u64 p) {
    .reg .b32 %r<8>; .reg .b64 %rd<5>; .reg .pred %p<3>;
    .shared .align 128 .b8 s[128]; .shared .align 8 .b8 bar[8];
    mov.b64 %rd1, map; cvta.param.u64 %rd1, %rd1; ld.param.u64 %rd2, [p];
    mov.u32 %r1, %tid.x; mov.u32 %r2, s; mov.u32 %r3, bar;
    setp.ne.u32 %p1, %r1, 0; @%p1 bra JOIN;
    mbarrier.init.shared::cta.b64 [%r3], 1; fence.proxy.async;
    mbarrier.arrive.expect_tx.shared::cta.b64 %rd3, [%r3], 128;
    cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r2], [%rd1, {-4, 3, 2}], [%r3];
    JOIN: bar.sync 0;
    WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], 0; @!%p2 bra WAIT;
    mad.lo.u32 %r4, %r1, 4, %r2; ld.shared.u32 %r5, [%r4]; mad.wide.u32 %rd4, %r1, 4, %rd2;
    st.global.u32 [%rd4], %r5; ret; }";

#[test]
fn tensor_maps_fill_with_zeros_outside() {
    // A 3-d tensor 5 x 4 x 3 of u32, rows padded to 32 bytes.
    let device = Device::new(LOAD_BOX);
    let tensor: Vec<u32> = (0..3 * 4 * 8).map(|i| 1000 + i).collect();
    let base = device.upload(&tensor);
    let out = device.memory.alloc(128);
    let map = TensorMapDesc::new(base, 4, &[5, 4, 3], &[32, 128], &[8, 2, 2]);
    device.run("k", &Launch::new([1, 1, 1], [32, 1, 1]).arg(map.to_bytes()).arg(out.to_le_bytes()));
    let got = device.download::<u32>(out, 32);
    for z in 0..2i64 {
        for y in 0..2i64 {
            for x in 0..8i64 {
                let (tx, ty, tz) = (x - 4, y + 3, z + 2);
                let inside = (0..5).contains(&tx) && (0..4).contains(&ty) && (0..3).contains(&tz);
                let expected = if inside { 1000 + (tz * 32 + ty * 8 + tx) as u32 } else { 0 };
                assert_eq!(got[(z * 16 + y * 8 + x) as usize], expected, "({x}, {y}, {z})");
            }
        }
    }
}

#[test]
fn tensor_maps_survive_encoding_and_are_checked() {
    let map =
        TensorMapDesc::new(0x1000, 2, &[64, 7, 9], &[128, 1024], &[64, 4, 2]).with_swizzle(Swizzle::B128);
    assert_eq!(TensorMapDesc::from_bytes(&map.to_bytes()), Ok(map));
    assert_eq!(map.box_bytes(), 64 * 4 * 2 * 2);
    assert!(TensorMapDesc { base: 0x1001, ..map }.check().is_err());
    assert!(TensorMapDesc { box_dims: [128, 1, 1, 1, 1], ..map }.check().is_err());
    assert!(TensorMapDesc { strides_bytes: [24, 0, 0, 0], ..map }.check().is_err());
}

/// A box inside the extents, of a tensor that begins before or ends behind its memory.
#[test]
fn tensor_maps_of_memory_that_is_not_there_are_faults() {
    let device = Device::new(LOAD_BOX);
    let below = device.upload(&[0u32; 96]);
    let base = device.upload(&[0u32; 96]);
    let out = device.memory.alloc(128);
    let map = TensorMapDesc::new(base, 4, &[5, 4, 3], &[32, 128], &[8, 2, 2]);
    let load = |map: TensorMapDesc| {
        let launch = Launch::new([1, 1, 1], [32, 1, 1]).arg(map.to_bytes()).arg(out.to_le_bytes());
        device.try_run("k", &launch)
    };
    load(map).unwrap();
    // What the box reads of it is there all the same.
    let early = TensorMapDesc { base: base - 128, ..map };
    let fault = load(early).unwrap_err();
    assert_eq!(fault.kind, FaultKind::TensorMapBase { base: base - 128 });
    assert!(fault.to_string().contains("where nothing is allocated"), "{fault}");
    // The box reads row 3 of plane 2.
    let out_of_bounds = |map, address| {
        let kind = FaultKind::OutOfBounds { space: MemorySpace::Global, address, bytes: 16 };
        assert_eq!(load(map).unwrap_err().kind, kind);
    };
    out_of_bounds(TensorMapDesc { base: base + 128, ..map }, base + 128 + 2 * 128 + 3 * 32);
    // From one allocation into another.
    let across = TensorMapDesc { base: below, strides_bytes: [32, (base - below) / 2, 0, 0], ..map };
    out_of_bounds(across, base + 3 * 32);
}
