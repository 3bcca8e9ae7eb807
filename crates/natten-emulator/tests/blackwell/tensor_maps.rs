//! Matrices that the copy engine brings by tensor map, as a kernel does it: registers given from warp to warp, a thread
//! elected, boxes swizzled, one product over two boxes.

use natten_emulator::{Fault, Launch, Options, Swizzle, TensorMapDesc};

use crate::numbers::Element;
use crate::problem::Draw;
use crate::support::{Device, all_orders};
use crate::text::{PROLOGUE, module};

/// D, 128 x 64, = A B over 128 along k; A K-major in boxes of 64 k, B N-major in boxes of 64 k by 64 columns.
pub fn text() -> String {
    let maps = "k(.param .align 64 .b8 a_map[128], .param .align 64 .b8 b_map[128], .param .u64 p)\n.maxntid 256, 1, 1\n.minnctapersm 2";
    let body = "
    setp.ge.u32 %p2, %warp, 4;
    @%p2 bra PRODUCER;

    setmaxnreg.inc.sync.aligned.u32 200;
DONE:
    mbarrier.try_wait.parity.shared::cta.b64 %p7, [%bar+8], 0;
    @!%p7 bra DONE;
    tcgen05.fence::after_thread_sync;
    mul.wide.u32 %rd1, %thread, 256;
    add.s64 %rd1, %out, %rd1;
    mov.u32 %r3, 0;
READ:
    tcgen05.ld.sync.aligned.32x32b.x4.b32 {%r4, %r5, %r6, %r7}, [%mine];
    tcgen05.wait::ld.sync.aligned;
    st.global.v4.u32 [%rd1], {%r4, %r5, %r6, %r7};
    add.u32 %mine, %mine, 4;
    add.s64 %rd1, %rd1, 16;
    add.u32 %r3, %r3, 4;
    setp.lt.u32 %p3, %r3, 64;
    @%p3 bra READ;
    tcgen05.fence::before_thread_sync;
    bar.sync 1, 128;
    @%others bra OVER;
    tcgen05.fence::after_thread_sync;
    tcgen05.dealloc.cta_group::1.sync.aligned.b32 %base, 512;
    bra OVER;

PRODUCER:
    setmaxnreg.dec.sync.aligned.u32 24;
    setp.ne.u32 %p3, %warp, 4;
    @%p3 bra OVER;
    elect.sync %r1|%p4, 0xffffffff;
    @!%p4 bra OVER;
    mov.b64 %rd2, a_map;
    cvta.param.u64 %rd2, %rd2;
    mov.b64 %rd3, b_map;
    cvta.param.u64 %rd3, %rd3;
    mbarrier.arrive.expect_tx.shared::cta.b64 %rd4, [%bar], 49152;
    add.u32 %r2, %mem, 16384;
    add.u32 %r3, %mem, 32768;
    add.u32 %r4, %mem, 40960;
    cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%mem], [%rd2, {0, 0}], [%bar];
    cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r2], [%rd2, {64, 0}], [%bar];
    cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r3], [%rd3, {0, 0}], [%bar];
    cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r4], [%rd3, {0, 64}], [%bar];
FULL:
    mbarrier.try_wait.parity.shared::cta.b64 %p5, [%bar], 0;
    @!%p5 bra FULL;
    // 128-byte swizzle, rows of eight 1024 bytes apart; A's steps are 32 bytes along its rows, B's 2048 bytes along k.
    shr.u32 %r5, %mem, 4;
    cvt.u64.u32 %rd5, %r5;
    add.s64 %rd5, %rd5, 0x4000404000010000;
    add.s64 %rd6, %rd5, 2048;
    mov.u32 %r6, 0;
    setp.ne.u32 %p6, %r6, 0;
STEP:
    // B by its columns: bit 16; both bf16; 64 columns, 128 rows.
    tcgen05.mma.cta_group::1.kind::f16 [%base], %rd5, %rd6, 0x08110490, %p6;
    setp.eq.u32 %p6, %r6, %r6;
    add.s64 %rd5, %rd5, 2;
    add.s64 %rd6, %rd6, 128;
    add.u32 %r6, %r6, 1;
    setp.ne.u32 %p3, %r6, 4;
    @%p3 bra SAME;
    add.s64 %rd5, %rd5, 1016;
SAME:
    setp.lt.u32 %p3, %r6, 8;
    @%p3 bra STEP;
    // By its generic address.
    add.u32 %r7, %bar, 8;
    cvt.u64.u32 %rd7, %r7;
    cvta.shared.u64 %rd7, %rd7;
    tcgen05.commit.cta_group::1.mbarrier::arrive::one.b64 [%rd7];
OVER:";
    module(&format!("{PROLOGUE}{body}")).replace("k(.param .u64 p)", maps)
}

/// The same, where another warp has the first box of A copied over it once a commit has told of the products.
fn refilled() -> String {
    let again = "
    bra OVER;
AGAIN:
    setp.ne.u32 %p3, %warp, 5;
    @%p3 bra OVER;
    elect.sync %r1|%p4, 0xffffffff;
    @!%p4 bra OVER;
EMPTY:
    mbarrier.try_wait.parity.shared::cta.b64 %p5, [%bar+8], 0;
    @!%p5 bra EMPTY;
    mov.b64 %rd2, a_map;
    cvta.param.u64 %rd2, %rd2;
    mbarrier.arrive.expect_tx.shared::cta.b64 %rd4, [%bar], 16384;
    cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%mem], [%rd2, {0, 0}], [%bar];
AGAIN_FULL:
    mbarrier.try_wait.parity.shared::cta.b64 %p5, [%bar], 1;
    @!%p5 bra AGAIN_FULL;
OVER:";
    let other_warps = "@%p3 bra OVER;\n    elect.sync";
    let text = text();
    assert!(text.contains(other_warps) && text.contains("\nOVER:"));
    text.replacen(other_warps, "@%p3 bra AGAIN;\n    elect.sync", 1).replacen("\nOVER:", again, 1)
}

/// Rings hand their stages back so: whoever waits for the commit need not have seen the first copy arrive.
#[test]
fn a_commit_orders_the_copies_that_its_products_came_after() {
    let good = refilled();
    // It waits for the copies alone, while products still read them.
    let early = good.replacen("[%bar+8], 0;\n    @!%p5 bra EMPTY;", "[%bar], 0;\n    @!%p5 bra EMPTY;", 1);
    assert_ne!(good, early);
    for options in all_orders() {
        multiply(&good, options).unwrap_or_else(|fault| panic!("{options:?}: {fault}"));
        // A race, or elements that products read while they are written.
        assert!(multiply(&early, options).is_err(), "no fault under {options:?}");
    }
}

/// Runs a product of ones and hands back nothing but faults.
fn multiply(text: &str, options: Options) -> Result<(), Fault> {
    let device = Device::with(text, options);
    let ones = |count: usize| vec![Element::Bf16.encode(1.0); count];
    let (a, b) = (device.upload(&ones(128 * 128)), device.upload(&ones(128 * 64)));
    let out = device.memory.alloc(4 * 128 * 64);
    device.try_run("k", &launch(a, b, out)).map(|_| ())
}

/// A is 128 x 128, B 128 x 64.
fn launch(a: u64, b: u64, out: u64) -> Launch {
    let map = |base: u64, row: u64, rows: u64, height: u32| {
        TensorMapDesc::new(base, 2, &[row, rows], &[2 * row], &[64, height]).with_swizzle(Swizzle::B128)
    };
    Launch::new([1, 1, 1], [256, 1, 1])
        .shared(48 << 10)
        .arg(map(a, 128, 128, 128).to_bytes())
        .arg(map(b, 64, 128, 64).to_bytes())
        .arg(out.to_le_bytes())
}

#[test]
fn boxes_are_what_descriptors_describe() {
    let text = text();
    let mut draw = Draw::new(8);
    let mut numbers =
        |count: usize| -> Vec<f64> { (0..count).map(|_| (draw.below(127) as f64 - 63.0) / 64.0).collect() };
    let (a, b) = (numbers(128 * 128), numbers(128 * 64));
    let encoded = |list: &[f64]| list.iter().map(|&x| Element::Bf16.encode(x)).collect::<Vec<u16>>();
    for options in all_orders() {
        let device = Device::with(&text, options);
        let (da, db) = (device.upload(&encoded(&a)), device.upload(&encoded(&b)));
        let out = device.memory.alloc(4 * 128 * 64);
        let counters =
            device.try_run("k", &launch(da, db, out)).unwrap_or_else(|fault| panic!("{options:?}: {fault}"));
        assert_eq!(counters.mma_flops, 2 * 128 * 64 * 128);
        let d = device.download::<f32>(out, 128 * 64);
        for row in 0..128 {
            for column in 0..64 {
                let exact: f64 = (0..128).map(|k| a[row * 128 + k] * b[k * 64 + column]).sum();
                assert_eq!(f64::from(d[row * 64 + column]), exact, "({row}, {column}) under {options:?}");
            }
        }
    }
}
