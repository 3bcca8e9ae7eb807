//! Kernels of one CTA as text: what comes before and after what a test is about.

use natten_emulator::{Fault, Launch, Options};

use crate::support::Device;

/// Allocates all of tensor memory, initialises eight mbarriers for one arrival each, and meets. Then %base is the
/// address, %mine that of the warp's lanes, %thread and %warp are numbers, %bar, %slot and %mem lie in shared memory, %out
/// is the parameter; %other holds in all threads but the first, %others in all warps but the first.
pub const PROLOGUE: &str = "
    ld.param.u64 %out, [p];
    mov.u32 %thread, %tid.x;
    shr.u32 %warp, %thread, 5;
    mov.u32 %bar, bars;
    mov.u32 %slot, slot;
    mov.u32 %mem, memory;
    setp.ne.u32 %other, %thread, 0;
    setp.ne.u32 %others, %warp, 0;
    @%others bra P_ALLOCATED;
    tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%slot], 512;
    tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;
P_ALLOCATED:
    @%other bra P_INITIALISED;
    mbarrier.init.shared::cta.b64 [%bar], 1;
    mbarrier.init.shared::cta.b64 [%bar+8], 1;
    mbarrier.init.shared::cta.b64 [%bar+16], 1;
    mbarrier.init.shared::cta.b64 [%bar+24], 1;
    fence.mbarrier_init.release.cluster;
P_INITIALISED:
    tcgen05.fence::before_thread_sync;
    bar.sync 0;
    tcgen05.fence::after_thread_sync;
    ld.shared.b32 %base, [%slot];
    shl.b32 %mine, %warp, 21;
    add.u32 %mine, %base, %mine;
";

/// Meets and gives tensor memory back.
pub const EPILOGUE: &str = "
    tcgen05.fence::before_thread_sync;
    bar.sync 0;
    @%others bra P_DONE;
    tcgen05.fence::after_thread_sync;
    tcgen05.dealloc.cta_group::1.sync.aligned.b32 %base, 512;
P_DONE:
";

/// A module for data-center Blackwell with one kernel `k` of one pointer.
pub fn module(body: &str) -> String {
    format!(
        ".version 8.6
.target sm_100a
.address_size 64
.extern .shared .align 1024 .b8 memory[];
.visible .entry k(.param .u64 p)
{{
    .reg .pred %p<8>;
    .reg .pred %other;
    .reg .pred %others;
    .reg .b32 %r<300>;
    .reg .b32 %thread;
    .reg .b32 %warp;
    .reg .b32 %base;
    .reg .b32 %mine;
    .reg .b32 %bar;
    .reg .b32 %slot;
    .reg .b32 %mem;
    .reg .b64 %rd<40>;
    .reg .b64 %out;
    .shared .align 8 .b8 bars[64];
    .shared .align 4 .b8 slot[8];
{body}
    ret;
}}
"
    )
}

/// A whole kernel around `body`.
pub fn kernel(body: &str) -> String {
    module(&format!("{PROLOGUE}{body}{EPILOGUE}"))
}

/// Waits for the first phase of mbarrier `number`; labels are made of `name`.
pub fn wait(number: usize, name: &str) -> String {
    format!(
        "{name}: mbarrier.try_wait.parity.shared::cta.b64 %p7, [%bar+{}], 0;\n@!%p7 bra {name};\n",
        8 * number
    )
}

/// Registers `%r{first}` to `%r{first + count - 1}` in braces.
pub fn registers(first: usize, count: usize) -> String {
    let list: Vec<String> = (first..first + count).map(|i| format!("%r{i}")).collect();
    format!("{{{}}}", list.join(", "))
}

/// Runs `k` on so many threads with 64 KiB of shared memory and `words` words of zeros behind its pointer; the words.
pub fn run(ptx: &str, threads: u32, words: usize, options: Options) -> Result<Vec<u32>, Fault> {
    let device = Device::with(ptx, options);
    let out = device.upload(&vec![0u32; words.max(1)]);
    let launch = Launch::new([1, 1, 1], [threads, 1, 1]).shared(64 << 10).arg(out.to_le_bytes());
    device.try_run("k", &launch)?;
    Ok(device.download::<u32>(out, words))
}

/// Fills the first 8 KiB of shared memory with ones of f16, shown to the asynchronous proxy, and meets.
pub const FILL: &str = "
    shl.b32 %r1, %thread, 6;
    add.u32 %r1, %mem, %r1;
    mov.u32 %r2, 0x3c003c00;
    st.shared.v4.u32 [%r1], {%r2, %r2, %r2, %r2};
    st.shared.v4.u32 [%r1+16], {%r2, %r2, %r2, %r2};
    st.shared.v4.u32 [%r1+32], {%r2, %r2, %r2, %r2};
    st.shared.v4.u32 [%r1+48], {%r2, %r2, %r2, %r2};
    fence.proxy.async.shared::cta;
    bar.sync 0;
";

/// %rd10 describes an A of 128 x 16 and %rd11 a B of 16 x 16, both K-major without a swizzle, %r280 the operation; %p1
/// is false: D is replaced.
pub const DESCRIBE: &str = "
    shr.u32 %r281, %mem, 4;
    cvt.u64.u32 %rd10, %r281;
    add.s64 %rd10, %rd10, 0x0000401000080000;
    add.s64 %rd11, %rd10, 256;
    mov.u32 %r280, 0x08040010;
    setp.ne.u32 %p1, %thread, %thread;
";

pub const MMA: &str = "tcgen05.mma.cta_group::1.kind::f16 [%base], %rd10, %rd11, %r280, %p1;\n";
pub const COMMIT: &str = "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%bar];\n";
pub const AFTER: &str = "tcgen05.fence::after_thread_sync;\n";
pub const BEFORE: &str = "tcgen05.fence::before_thread_sync;\n";
pub const WAIT_LOAD: &str = "tcgen05.wait::ld.sync.aligned;\n";
pub const WAIT_STORE: &str = "tcgen05.wait::st.sync.aligned;\n";

/// `text` in the first thread alone; labels are made of `name`.
pub fn first(text: &str, name: &str) -> String {
    format!("@%other bra {name};\n{text}{name}: bar.warp.sync -1;\n")
}
