//! Copies to shared memory that are not tensor copies: `cp.async` with zero fill, and bulk copies.

use super::inputs::{Random, bytes};
use super::kernel::Kernel;
use super::{Case, Rule};

/// `cp.async` of one size in bytes, with the source sizes tried.
const ASYNC: [(&str, u32, &[u32]); 3] =
    [("ca", 4, &[0, 1, 3, 4]), ("ca", 8, &[0, 4, 7, 8]), ("cg", 16, &[0, 4, 9, 15, 16])];

/// All of them.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (cache, size, sources) in ASYNC {
        for &source in sources {
            cases.push(async_copy(cache, size, source));
        }
    }
    cases.push(bulk_copy());
    cases
}

/// Each of 32 lanes copies its `size` bytes to the mirrored place, of which `source` come from memory.
fn async_copy(cache: &str, size: u32, source: u32) -> Case {
    let name = format!("cp_async_{cache}_{size}_of_{source}");
    let body = format!(
        "mul.wide.u32 %q0, %thread, {size};\nadd.u64 %q0, %fill, %q0;\nsub.u32 %r0, 31, %thread;\n\
         mad.lo.u32 %r0, %r0, {size}, %s;\ncp.async.{cache}.shared.global [%r0], [%q0], {size}, {source};\n\
         cp.async.commit_group;\ncp.async.wait_group 0;\n"
    );
    let mut kernel = Kernel::new("7.1", "sm_80", 0, 0, body).shared(32 * size as usize);
    kernel.dump = true;
    let mut random = Random::new(&name);
    let fill: Vec<u32> = (0..8 * size).map(|_| random.word() | 0x0101_0101).collect();
    let fill = bytes(&fill);
    let (size, source) = (size as usize, source as usize);
    let mut documented = vec![0; fill.len()];
    for lane in 0..32 {
        let (from, to) = (lane * size, (31 - lane) * size);
        documented[to..to + source].copy_from_slice(&fill[from..from + source]);
    }
    kernel.case(name, &[], fill, Rule::Exact).documented(documented)
}

/// `cp.async.bulk` of 96 bytes from an offset of 32 to an offset of 16.
fn bulk_copy() -> Case {
    let body = "mov.u32 %r0, barrier;\nsetp.ne.u32 %p0, %thread, 0;\n@%p0 bra WAIT;\n\
         mbarrier.init.shared::cta.b64 [%r0], 1;\nfence.mbarrier_init.release.cluster;\n\
         fence.proxy.async.shared::cta;\nmbarrier.arrive.expect_tx.shared::cta.b64 %q1, [%r0], 96;\n\
         add.u32 %r1, %s, 16;\nadd.u64 %q0, %fill, 32;\n\
         cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%q0], 96, [%r0];\n\
         WAIT:\nbar.sync 0;\n";
    let body = format!("{body}{}", wait_bounded());
    let mut kernel = Kernel::new("8.0", "sm_90", 0, 1, body).shared(256);
    kernel.dump = true;
    let mut random = Random::new("bulk_copy");
    let fill: Vec<u32> = (0..64).map(|_| random.word()).collect();
    let fill = bytes(&fill);
    let mut documented = fill.clone();
    documented[16..112].copy_from_slice(&fill[32..128]);
    documented.extend(bytes(&[1; 32]));
    kernel.case("bulk_copy", &[], fill, Rule::Exact).documented(documented)
}

/// Waits for phase 0 of the barrier in `%r0`, but not for ever: `%d0` is 1 if it completed.
pub fn wait_bounded() -> &'static str {
    "mov.u32 %r2, 0;\nTRY:\nmbarrier.try_wait.parity.shared::cta.b64 %p1, [%r0], 0;\n\
     selp.b32 %d0, 1, 0, %p1;\n@%p1 bra WAITED;\nadd.u32 %r2, %r2, 1;\n\
     setp.lt.u32 %p2, %r2, 2000;\n@%p2 bra TRY;\nWAITED:\n"
}
