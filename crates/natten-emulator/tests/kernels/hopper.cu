// A tile of a matrix product the Hopper way: one producer warp loads boxes by tensor map into a ring
// of two stages, a consumer warpgroup multiplies with wgmma and stores the result by tensor map.
typedef unsigned u32;
typedef unsigned long long u64;
struct __align__(64) TensorMap { u64 opaque[16]; };

static __device__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
static __device__ void init(u32 bar, u32 count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory"); }
static __device__ void expect(u32 bar, u32 bytes) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory"); }
static __device__ void arrive(u32 bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory"); }
static __device__ void wait(u32 bar, u32 parity) {
    asm volatile("{\n.reg .pred done;\nagain: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra over;\nbra again;\nover:\n}" ::"r"(bar), "r"(parity) : "memory");
}
static __device__ void load_box(u32 to, const TensorMap* map, u32 bar, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2,%3}], [%4];" ::"r"(to), "l"(map), "r"(x), "r"(y), "r"(bar) : "memory");
}
static __device__ u64 descriptor(u32 address, u32 leading, u32 stride) {
    return (u64)(address >> 4 & 0x3fff) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32 | 1ull << 62;
}

enum Mutation { NONE, NO_FULL_WAIT, NO_EMPTY_WAIT, NO_PROXY_FENCE, NO_INIT_FENCE, NO_WGMMA_WAIT, NO_EXPECT };

#define ACC8(i) "+f"(acc[i]), "+f"(acc[i + 1]), "+f"(acc[i + 2]), "+f"(acc[i + 3]), "+f"(acc[i + 4]), "+f"(acc[i + 5]), "+f"(acc[i + 6]), "+f"(acc[i + 7])

// d[64][64] = a[64][k] * b[k][64], bf16 in, f32 out. A box: 64 rows of 64 k (128-byte swizzle), K-major.
// B box: 64 k of 64 columns, MN-major. k a multiple of 64.
template <Mutation MUTATION>
static __device__ void product(const TensorMap* a, const TensorMap* b, const TensorMap* d, int k) {
    extern __shared__ __align__(1024) unsigned char memory[];
    u32 sa = shared_address(memory), sb = sa + 2 * 8192, sd = sb + 2 * 8192;
    u32 full = sd + 64 * 64 * 4, empty = full + 16;
    int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, steps = k / 64;
    if (tid == 0) {
        for (int s = 0; s < 2; s++) { init(full + 8 * s, 1); init(empty + 8 * s, 128); }
        if (MUTATION != NO_INIT_FENCE) asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (warp == 4) {
        if (lane == 0)
            for (int s = 0; s < steps; s++) {
                if (s >= 2 && MUTATION != NO_EMPTY_WAIT) wait(empty + 8 * (s % 2), (s / 2 - 1) & 1);
                if (MUTATION != NO_EXPECT) expect(full + 8 * (s % 2), 2 * 8192);
                load_box(sa + 8192 * (s % 2), a, full + 8 * (s % 2), 64 * s, 0);
                load_box(sb + 8192 * (s % 2), b, full + 8 * (s % 2), 0, 64 * s);
            }
        return;
    }
    float acc[32];
    for (int i = 0; i < 32; i++) acc[i] = 0.0f;
    for (int s = 0; s < steps; s++) {
        if (MUTATION != NO_FULL_WAIT) wait(full + 8 * (s % 2), s / 2 & 1);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        for (int kk = 0; kk < 4; kk++) {
            u64 da = descriptor(sa + 8192 * (s % 2) + 32 * kk, 16, 1024);
            u64 db = descriptor(sb + 8192 * (s % 2) + 2048 * kk, 8192, 1024);
            asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, 1, 1, 1, 0, 1;"
                : ACC8(0), ACC8(8), ACC8(16), ACC8(24) : "l"(da), "l"(db));
        }
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        if (MUTATION != NO_WGMMA_WAIT) asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        arrive(empty + 8 * (s % 2));
    }
    // Two boxes of 32 columns, each 128 bytes a row, unswizzled.
    for (int i = 0; i < 32; i++) {
        int row = 16 * warp + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        *(float*)(memory + (sd - sa) + column / 32 * 8192 + row * 128 + column % 32 * 4) = acc[i];
    }
    if (MUTATION != NO_PROXY_FENCE) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("bar.sync 1, 128;" ::: "memory");
    if (tid == 0) {
        for (int h = 0; h < 2; h++)
            asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1,%2}], [%3];" ::"l"(d), "r"(32 * h), "r"(0), "r"(sd + 8192 * h) : "memory");
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
}
#define KERNEL(name, mutation) \
    extern "C" __global__ void __launch_bounds__(160) name(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap d, int k) { product<mutation>(&a, &b, &d, k); }
KERNEL(gemm, NONE)
KERNEL(gemm_no_full_wait, NO_FULL_WAIT)
KERNEL(gemm_no_empty_wait, NO_EMPTY_WAIT)
KERNEL(gemm_no_proxy_fence, NO_PROXY_FENCE)
KERNEL(gemm_no_init_fence, NO_INIT_FENCE)
KERNEL(gemm_no_wgmma_wait, NO_WGMMA_WAIT)
KERNEL(gemm_no_expect, NO_EXPECT)
