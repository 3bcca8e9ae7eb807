//! Which lanes the rows of D are, and that all others stay as they were.

use crate::oracle::data_paths;
use crate::support::all_orders;
use crate::text::{
    AFTER, BEFORE, COMMIT, DESCRIBE, FILL, MMA, WAIT_LOAD, WAIT_STORE, first, kernel, run, wait,
};

/// Every row of A is its number, B is ones: row r of D is 16 r.
fn body(m: u64, first_lane: u64, a_in_tensor_memory: bool) -> String {
    let rows = "
    cvt.rn.f32.u32 %f1, %thread;
    cvt.rn.f16x2.f32 %r1, %f1, %f1;
    shr.u32 %r2, %thread, 3;
    and.b32 %r3, %thread, 7;
    shl.b32 %r3, %r3, 4;
    mad.lo.u32 %r2, %r2, 256, %r3;
    add.u32 %r2, %mem, %r2;
    st.shared.v4.u32 [%r2], {%r1, %r1, %r1, %r1};
    st.shared.v4.u32 [%r2+128], {%r1, %r1, %r1, %r1};
    fence.proxy.async.shared::cta;
    bar.sync 0;
    mov.u32 %r5, 0x42280000;\n";
    // 42.0 in D; the lane's number as the row of A, wherever rows are.
    let put = "tcgen05.st.sync.aligned.32x32b.x1.b32 [%mine], {%r5};
        tcgen05.st.sync.aligned.32x32b.x8.b32 [%mine+64], {%r1, %r1, %r1, %r1, %r1, %r1, %r1, %r1};\n";
    let idesc = format!("mov.u32 %r280, {};\n", 0x0004_0010 + (m / 16) * (1 << 24));
    let d = format!("[%base+{}]", first_lane << 16);
    let a =
        if a_in_tensor_memory { format!("[%base+{}]", (first_lane << 16) + 64) } else { "%rd10".to_owned() };
    let mma = MMA.replace("[%base]", &d).replace("%rd10", &a);
    let take = "tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r6}, [%mine];\n";
    let write = "mul.wide.u32 %rd1, %thread, 4; add.s64 %rd1, %out, %rd1; st.global.u32 [%rd1], %r6;\n";
    format!("{FILL}{rows}{DESCRIBE}{idesc}{put}{WAIT_STORE}{BEFORE}bar.sync 0;\n{AFTER}")
        + &first(&format!("{mma}{COMMIT}"), "ISSUED")
        + &wait(0, "DONE")
        + &format!("{AFTER}{take}{WAIT_LOAD}{write}")
}

#[test]
fn rows_are_the_lanes_of_the_table() {
    for (m, first_lane, lanes) in data_paths() {
        for a_in_tensor_memory in [false, true] {
            let text = kernel(&body(m, first_lane, a_in_tensor_memory))
                .replace(".reg .pred %p<8>;", ".reg .pred %p<8>;\n.reg .f32 %f<4>;");
            // Only the first column was there before, and is looked at.
            for options in all_orders() {
                let out = run(&text, 128, 128, options)
                    .unwrap_or_else(|fault| panic!("{m}, {first_lane}: {fault}"));
                for lane in 0..128 {
                    let row = lanes.iter().position(|&other| other == lane);
                    let number = if a_in_tensor_memory { Some(lane) } else { row.map(|row| row as u64) };
                    let expected = row.and(number).map_or(42.0, |number| 16.0 * number as f32);
                    let got = f32::from_bits(out[lane as usize]);
                    assert_eq!(got, expected, "lane {lane} of M {m} from lane {first_lane} on");
                }
            }
        }
    }
}
