// Ordinary CUDA cores: indexing, shared memory, shuffles, divergence, special functions.
extern "C" __global__ void saxpy(const float* x, float* y, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}

// c[m][n] = sum_k a[m][k] * b[k][n], 16x16 tiles, any extents.
extern "C" __global__ void matmul(const float* a, const float* b, float* c, int m, int n, int k) {
    __shared__ float ta[16][17];
    __shared__ float tb[16][17];
    int row = blockIdx.y * 16 + threadIdx.y, col = blockIdx.x * 16 + threadIdx.x;
    float sum = 0.0f;
    for (int k0 = 0; k0 < k; k0 += 16) {
        ta[threadIdx.y][threadIdx.x] = row < m && k0 + threadIdx.x < k ? a[row * k + k0 + threadIdx.x] : 0.0f;
        tb[threadIdx.y][threadIdx.x] = k0 + threadIdx.y < k && col < n ? b[(k0 + threadIdx.y) * n + col] : 0.0f;
        __syncthreads();
        for (int i = 0; i < 16; i++) sum += ta[threadIdx.y][i] * tb[i][threadIdx.x];
        __syncthreads();
    }
    if (row < m && col < n) c[row * n + col] = sum;
}

// Softmax of each row of 32-lane warps: one warp per row.
extern "C" __global__ void softmax(const float* in, float* out, int cols) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    float best = -1e30f, sum = 0.0f;
    for (int c = lane; c < cols; c += 32) best = fmaxf(best, in[row * cols + c]);
    for (int d = 16; d > 0; d /= 2) best = fmaxf(best, __shfl_xor_sync(~0u, best, d));
    for (int c = lane; c < cols; c += 32) sum += __expf(in[row * cols + c] - best);
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    for (int c = lane; c < cols; c += 32) out[row * cols + c] = __expf(in[row * cols + c] - best) / sum;
}

// Divergence: the length of each Collatz orbit, and integer division by a run-time value.
extern "C" __global__ void collatz(unsigned* steps, unsigned* digits, int base) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x, x = i + 1, n = 0;
    while (x != 1) { x = x & 1 ? 3 * x + 1 : x / 2; n++; }
    steps[i] = n;
    unsigned d = 0;
    for (int v = i; v > 0; v /= base) d += v % base;
    digits[i] = d;
}

// A histogram with shared and global atomics.
extern "C" __global__ void histogram(const unsigned char* in, unsigned* bins, int n) {
    __shared__ unsigned local[64];
    if (threadIdx.x < 64) local[threadIdx.x] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&local[in[i] % 64], 1u);
    __syncthreads();
    if (threadIdx.x < 64) atomicAdd(&bins[threadIdx.x], local[threadIdx.x]);
}

// A private array with run-time indices lives in local memory.
extern "C" __global__ void local_sort(const int* in, int* out) {
    int v[8];
    for (int i = 0; i < 8; i++) v[i] = in[threadIdx.x * 8 + i];
    for (int i = 1; i < 8; i++)
        for (int j = i; j > 0 && v[j - 1] > v[j]; j--) { int t = v[j]; v[j] = v[j - 1]; v[j - 1] = t; }
    for (int i = 0; i < 8; i++) out[threadIdx.x * 8 + i] = v[i];
}
