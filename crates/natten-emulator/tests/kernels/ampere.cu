// A tile of a matrix product with cp.async in two stages, ldmatrix and mma.sync.
// The mutations for the checkers are compiled from the same text.
typedef unsigned short u16;
typedef unsigned u32;

static __device__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
static __device__ void copy16(u32 to, const void* from, bool in) {
    int bytes = in ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
static __device__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> static __device__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

enum Mutation { NONE, NO_BARRIER, NO_WAIT, NO_LOOP_BARRIER };

// d[64][64] = a[64][k] * b[k][64] in bf16, f32 out; 4 warps, warp w owns rows 16w..16w+15; k a multiple of 32.
template <Mutation MUTATION> static __device__ void product(const u16* a, const u16* b, float* d, int k) {
    __shared__ __align__(128) u16 sa[2][64][40];  // padded rows: no bank conflicts
    __shared__ __align__(128) u16 sb[2][32][72];
    int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
    float acc[8][4] = {};
    auto load = [&](int stage, int k0) {
        for (int i = tid; i < 64 * 4; i += 128)
            copy16(shared_address(&sa[stage][i / 4][i % 4 * 8]), a + (i / 4) * k + k0 + i % 4 * 8, true);
        for (int i = tid; i < 32 * 8; i += 128)
            copy16(shared_address(&sb[stage][i / 8][i % 8 * 8]), b + (k0 + i / 8) * 64 + i % 8 * 8, k0 + i / 8 < k);
        commit();
    };
    int steps = k / 32;
    load(0, 0);
    for (int s = 0; s < steps; s++) {
        if (s + 1 < steps) load((s + 1) % 2, (s + 1) * 32); else commit();
        if (MUTATION != NO_WAIT) wait<1>();
        if (MUTATION != NO_BARRIER) __syncthreads();
        for (int kk = 0; kk < 32; kk += 16) {
            u32 fa[4];
            u32 at = shared_address(&sa[s % 2][16 * warp + lane % 16][kk + lane / 16 * 8]);
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3]) : "r"(at));
            for (int n = 0; n < 8; n += 2) {
                u32 fb[4];
                at = shared_address(&sb[s % 2][kk + lane % 16][8 * n + lane / 16 * 8]);
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(fb[0]), "=r"(fb[1]), "=r"(fb[2]), "=r"(fb[3]) : "r"(at));
                for (int h = 0; h < 2; h++) {
                    float* c = acc[n + h];
                    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                        : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[2 * h]), "r"(fb[2 * h + 1]));
                }
            }
        }
        if (MUTATION != NO_LOOP_BARRIER) __syncthreads();
    }
    for (int n = 0; n < 8; n++)
        for (int i = 0; i < 4; i++)
            d[(16 * warp + lane / 4 + i / 2 * 8) * 64 + 8 * n + lane % 4 * 2 + i % 2] = acc[n][i];
}
extern "C" __global__ void __launch_bounds__(128) gemm(const u16* a, const u16* b, float* d, int k) { product<NONE>(a, b, d, k); }
extern "C" __global__ void __launch_bounds__(128) gemm_no_barrier(const u16* a, const u16* b, float* d, int k) { product<NO_BARRIER>(a, b, d, k); }
extern "C" __global__ void __launch_bounds__(128) gemm_no_wait(const u16* a, const u16* b, float* d, int k) { product<NO_WAIT>(a, b, d, k); }
extern "C" __global__ void __launch_bounds__(128) gemm_no_loop_barrier(const u16* a, const u16* b, float* d, int k) { product<NO_LOOP_BARRIER>(a, b, d, k); }
