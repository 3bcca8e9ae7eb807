// SPDX-License-Identifier: MIT OR Apache-2.0
// Forward pass on tensor cores, sm_80 and later: boxes of ROWS queries walk over boxes of KEYS keys.
//
//   Q = rows of the box of queries                       (to shared memory once; in registers where they fit)
//   for the keys of the windows, then the additional keys:
//     for each full tile but the last, then for that one and each partial tile with its mask:
//       wait for K; start copying the next K
//       S = Q K^T, in a partial tile from -infinity where a key is not seen
//       if any score of the warp exceeds its row's reference by 2^8: move the references, rescale O and the sums
//       P = 2^(S * scale_log2 - reference); sum += rowsum(P)
//       wait for V; start copying the next V
//       O += P V
//   out = O / sum;  lse = ln 2 * (reference + log2 sum)
//
// Warps: 4, alike; each owns ROWS / 4 rows of S and O. Two barriers a tile: K's slot is free after the second, V's after
// the first of the next tile.
// Shared memory: Q (ROWS x D), three slots (KEYS x D) that K and V take in turns, Segment, Thresholds, Starts.
// Registers at D 128, ROWS 128: O 128, S 64, the rest for fragments and addresses.
// Keys of a tile that a query does not see get weight 0; a NaN or infinity in them or their values comes through.
#include <natten/fragment.cuh>
#include <natten/mask.cuh>
#include <natten/softmax.cuh>

namespace natten {

template <class T, int D, int ROWS, int KEYS>
struct Forward {
  enum {
    WARPS = 4,
    THREADS = 32 * WARPS,
    WARP_ROWS = ROWS / WARPS,
    M = WARP_ROWS / 16,  // row blocks of one mma
    N = KEYS / 8,        // column blocks of S
    HOLDS_QUERY = M * D <= 256 && M * D != 256 || M == 1
  };
  typedef Copier<ROWS, D, THREADS> QueryCopier;
  typedef Copier<KEYS, D, THREADS> KeyCopier;
  typedef typename QueryCopier::Layout QueryLayout;
  typedef typename KeyCopier::Layout KeyLayout;
  typedef Thresholds<KEYS> Table;
  // Memory for copies of the starting scores is there, but for the two sizes that just fit twice into a multiprocessor.
  enum { TIGHT = D == 128 && ROWS == 128, SPREAD = D < 256 && !TIGHT };
  typedef natten::Starts<SPREAD> Starts;

  // What the loops need of the keys at hand and ptxas cannot keep in registers.
  struct Segment {
    long long row_step[2][2];    // bytes of K, V from a thread's row to its row STRIDE and 2 STRIDE further
    long long near_step[2];      // bytes of K, V to the next tile along axis 2
    long long token_step[3][2];  // bytes of K, V to the next key along each axis
    KeyGrid grid;
    QueryTile tile;
    int first_word[2];           // where axes 0 and 1 have their parts of the table
    int is_additional;           // the keys at hand are the additional ones
    int rounds;                  // lists of keys begun so far
  };
  enum {
    SLOTS = QueryLayout::BYTES,
    SEGMENT = SLOTS + 3 * KeyLayout::BYTES,
    TABLE = SEGMENT + sizeof(Segment),
    STARTS = TABLE + Table::BYTES,
    BYTES = STARTS + Starts::BYTES
  };
  static_assert(SEGMENT % 16 == 0 && STARTS % 16 == 0, "ldmatrix reads whole rows");

  const TileForwardParams& p;
  char* shared;

  // Shared addresses, or offsets in a slot, of what this lane or thread touches.
  unsigned query_at;  // matrix row of Q, chunk lane / 16
  unsigned key_at;    // matrix row of K, chunk lane / 8 % 2
  unsigned value_at;  // matrix row of V, chunk lane / 16
  unsigned copy_at;   // first row that this thread copies, its chunk
  unsigned query[HOLDS_QUERY ? M : 1][HOLDS_QUERY ? D / 16 : 1][4];
  float out[M][D / 8][4];                             // (WARP_ROWS, D)
  float reference_log2[M][2];
  float sum[M][2];                                    // of this lane's columns

  unsigned slots[3];    // shared addresses: of this K, this V and the next K
  const char* next[2];  // this thread's chunk of K, V in the first of its rows of the tile to be copied next
  int at[3];            // that tile
  unsigned copied;      // bit (side * PANELS + panel) * PASSES + pass: whether this thread's chunk is more than zeros

  // Only what the loops use in every tile lives in registers; the rest starts from the thread's number.
  __device__ __forceinline__ unsigned thread() const { return arch::thread_index(); }
  __device__ __forceinline__ unsigned lane() const { return thread() % 32; }
  __device__ __forceinline__ int warp_row() const { return thread() / 32 * WARP_ROWS; }

  __device__ __forceinline__ Segment& segment() { return *(Segment*)(shared + SEGMENT); }
  __device__ __forceinline__ const QueryTile& query_tile() { return segment().tile; }
  __device__ __forceinline__ unsigned* table() { return (unsigned*)(shared + TABLE); }

  __device__ __forceinline__ void run() {
    QueryTile tile;
    if (!tile.place(p.geometry, p.plan, (int)blockIdx.x)) return;
    if (thread() == 0) {
      segment().tile = tile;
      segment().rounds = 0;
    }
    copy_query(tile);
    copy_at = KeyCopier::offset(thread());
    Starts::build((float*)(shared + STARTS), thread(), THREADS);
    clear();
    __syncthreads();
    do {
      set_segment(segment().rounds == 1);
      start_at_first();
      if (segment().grid.total() == 0) copied = 0;
      copy_tile<true>(0, slots[0]);
      copy_tile<true>(1, slots[1]);
      if (!segment().is_additional) receive_query();
#pragma unroll 1
      for (int left = unmasked(); left > 0; --left) step<false>();

      int left = segment().grid.total() - unmasked();
      Partial partial;
      if (left > 0) start_partial(partial);
#pragma unroll 1
      for (; left > 0; --left) step<true>(&partial);
      arch::wait_for_copies<0>();
      __syncthreads();
    } while (segment().rounds <= (p.geometry.additional_keys > 0));
    store();
  }

  // Tiles for the loop without masks. The last full tile is left to the other loop, so that here every tile but the
  // present one is followed by a full one.
  __device__ __forceinline__ int unmasked() { return maximum(segment().grid.full() - 1, 0); }

  __device__ __forceinline__ void start_at_first() {
    const KeyGrid& grid = segment().grid;
    const bool any_full = grid.full() > 0;
#pragma unroll
    for (int a = 0; a < 3; ++a) at[a] = any_full ? grid.full_begin[a] : 0;
    move(at[0] << grid.log2[0], at[1] << grid.log2[1], at[2] << grid.log2[2]);
  }

  // What the loop with masks keeps besides.
  struct Partial {
    RowMask mask;  // of this lane's row
    Start<M, KEYS, SPREAD> start;
    int stop;      // where axis 2 leaves this line or comes to the full tiles
  };

  // From the last full tile (or the very first tile, where none is full) on with masks.
  __device__ __forceinline__ void start_partial(Partial& partial) {
    const KeyGrid& grid = segment().grid;
    RowMask& mask = partial.mask;
    partial.start.set(lane());
    const int row = warp_row() + (M > 1 ? lane() : partial.start.row(lane()));
    const bool additional = segment().is_additional;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const int first = query_tile().sees(p.geometry, p.plan, 0, a).start;
      const Range seen = query_tile().sees(p.geometry, p.plan, row, a);
      mask.set(a, additional ? 0 : seen.start - first, additional ? 0 : first + grid.count[a] - seen.end);
    }
    if (grid.full() > 0) {
      move(-(at[0] << grid.log2[0]), -(at[1] << grid.log2[1]), -((1 + at[2]) << grid.log2[2]));
      at[0] = at[1] = 0;
      at[2] = -1;
    }
    partial.stop = grid.first_stop(at);
    mask.enter_line(table(), segment().first_word, grid, at);
    if (at[2] < 0) mask.tile = {{~0u, ~0u}};
    else mask.enter_tile(table(), grid, at);
  }

  // Starts copying the rows of the query box, zeros where there are none.
  __device__ __forceinline__ void copy_query(const QueryTile& tile) {
    const unsigned thread = this->thread();
    const unsigned to = arch::shared_address(shared) + QueryCopier::offset(thread);
    const int chunk = QueryCopier::chunk(thread);
#pragma unroll 1
    for (int pass = 0; pass < QueryCopier::PASSES; ++pass) {
      const int row = QueryCopier::row(thread) + pass * QueryCopier::STRIDE;
      const bool exists = tile.exists(p.geometry, p.plan, row);
      const long long at = exists ? tile.offset(p.geometry, p.plan, p.query_strides, row) : 0;
      const unsigned to_row = to + pass * QueryCopier::STRIDE * QueryLayout::PITCH;
      const char* from = (const char*)p.query + (at + chunk * 8) * 2;
#pragma unroll
      for (int panel = 0; panel < QueryLayout::PANELS; ++panel) {
        const bool valid = exists && panel * QueryLayout::CHUNKS + chunk < p.geometry.head_dim / 8;
        QueryCopier::copy(to_row, from, 0, panel, valid, 1);
      }
    }
    arch::commit_copies();
  }

  // Waits for Q. The kernel wants a positive scale, so that the greatest score before scaling is the greatest after: the
  // sign moves to Q.
  __device__ __forceinline__ void receive_query() {
    arch::wait_for_copies<2>();
    if (p.geometry.scale_log2 < 0.0f) {
      __syncthreads();
      for (int i = thread(); i < QueryLayout::BYTES / 4; i += THREADS) ((unsigned*)shared)[i] ^= 0x80008000u;
    }
    __syncthreads();
    const unsigned lane = this->lane();
    query_at = arch::shared_address(shared) + QueryLayout::offset(warp_row() + lane % 16, lane / 16);
    key_at = KeyLayout::offset(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    value_at = KeyLayout::offset(lane % 16, lane / 16);
    if (HOLDS_QUERY) {
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int k = 0; k < D / 16; ++k) load_query(query[m][k], m, k);
      }
    }
  }

  __device__ __forceinline__ void load_query(unsigned (&a)[4], int m, int k) {
    arch::load_matrices(a, QueryLayout::step(query_at, k) + m * 16 * QueryLayout::PITCH);
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        reference_log2[m][half] = NATTEN_LOWEST;
        sum[m][half] = 0.0f;
      }
#pragma unroll
      for (int d = 0; d < D / 8; ++d) {
#pragma unroll
        for (int e = 0; e < 4; ++e) out[m][d][e] = 0.0f;
      }
    }
#pragma unroll
    for (int s = 0; s < 3; ++s) slots[s] = arch::shared_address(shared) + SLOTS + s * KeyLayout::BYTES;
  }

  // Describes the keys of the windows, or the additional ones, to the loops.
  __device__ __forceinline__ void set_segment(bool additional) {
    KeyGrid grid;
    const QueryTile tile = query_tile();
    if (additional) grid.of_list(p.geometry.additional_keys, KEYS == 64 ? 6 : 5);
    else grid.of_window(p.geometry, p.plan, tile);
    const int head_kv = divide(tile.head, p.geometry.heads_per_kv);
    const unsigned thread = this->thread();
    const int row = KeyCopier::row(thread);
    Segment& s = segment();
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const Strides& strides = side == 0 ? p.key_strides : p.value_strides;
      const ListStrides& list = side == 0 ? p.additional_key_strides : p.additional_value_strides;
      const void* base = side == 0 ? additional ? p.additional_key : p.key : additional ? p.additional_value : p.value;
      long long start = additional ? tile.batch * list.batch + head_kv * list.head
                                   : tile.batch * strides.batch + head_kv * strides.head;
      long long near = 0;
      long long far = 0;
#pragma unroll
      for (int a = 0; a < 3; ++a) {
        const int dilation = (int)p.geometry.axes[a].dilation.value;
        const long long step = additional ? (a == 2 ? list.token : 0) : strides.axis[a] * dilation;
        const int residue = additional ? 0 : tile.residue[a];
        const int first = additional ? 0 : tile.sees(p.geometry, p.plan, 0, a).start;
        start += step * (first + coordinate(grid.log2, row, a)) + (additional ? 0 : residue * strides.axis[a]);
        near += step * coordinate(grid.log2, KeyCopier::STRIDE % KEYS, a);
        far += step * coordinate(grid.log2, 2 * KeyCopier::STRIDE % KEYS, a);
        if (thread == 0) {
          s.token_step[a][side] = step * 2;
          if (a == 2) s.near_step[side] = (step << grid.log2[2]) * 2;
        }
      }
      next[side] = (const char*)base + (start + KeyCopier::chunk(thread) * 8) * 2;
      if (thread == 0) {
        s.row_step[side][0] = near * 2;
        s.row_step[side][1] = far * 2;
      }
    }
    copied = 0;
#pragma unroll
    for (int i = 0; i < 2 * KeyLayout::PANELS * KeyCopier::PASSES; ++i) {
      const int pass = i % KeyCopier::PASSES, panel = i / KeyCopier::PASSES % KeyLayout::PANELS;
      const int length = i < KeyLayout::PANELS * KeyCopier::PASSES ? p.geometry.head_dim : p.geometry.head_dim_v;
      const bool in_row = panel * KeyLayout::CHUNKS + KeyCopier::chunk(thread) < length / 8;
      copied |= (unsigned)(in_row && grid.exists(row + pass * KeyCopier::STRIDE)) << i;
    }
    if (thread == 0) {
      s.grid = grid;
      s.is_additional = additional;
#pragma unroll
      for (int a = 0; a < 2; ++a) s.first_word[a] = Table::first_word(grid.log2, a);
    }
    Table::build(table(), grid.log2, thread / 32, WARPS, thread % 32);
    __syncthreads();
    if (thread == 0) ++s.rounds;  // read next after the barrier behind all tiles
  }

  // Moves `next` by so many keys along each axis.
  __device__ __forceinline__ void move(int x, int y, int z) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const long long(&step)[3][2] = segment().token_step;
      next[side] += x * step[0][side] + y * step[1][side] + z * step[2][side];
    }
  }

  // Moves it by a tile along axis 2.
  __device__ __forceinline__ void move_near() {
#pragma unroll
    for (int side = 0; side < 2; ++side) next[side] += segment().near_step[side];
  }

  // To the next full tile.
  __device__ __forceinline__ void advance_full() {
    const KeyGrid& grid = segment().grid;
    const int x = at[0], y = at[1], z = at[2];
    if (__builtin_expect(grid.next_full(at), 1)) move_near();
    else move((at[0] - x) << grid.log2[0], (at[1] - y) << grid.log2[1], (at[2] - z) << grid.log2[2]);
  }

  // To the next tile with a mask.
  __device__ __forceinline__ void advance_partial(Partial& partial) {
    const KeyGrid& grid = segment().grid;
    if (__builtin_expect(++at[2] < partial.stop, 1)) {
      move_near();
      const int back = (at[2] << grid.log2[2]) - grid.last[2];
      if (__builtin_expect(back > 0, 0)) move(0, 0, -back);
    } else {
      const int x = grid.origin(0, at[0]), y = grid.origin(1, at[1]), z = grid.origin(2, at[2] - 1);
      grid.pass(at, partial.stop);
      if (grid.is_done(at)) copied = 0;
      move(grid.origin(0, at[0]) - x, grid.origin(1, at[1]) - y, grid.origin(2, at[2]) - z);
      partial.mask.enter_line(table(), segment().first_word, grid, at);
    }
  }

  // Starts copying K (side 0) or V (side 1) of the next tile and closes the group. A tile without a mask has all rows.
  template <bool MASKED>
  __device__ __forceinline__ void copy_tile(int side, unsigned slot) {
    const unsigned to = slot + copy_at;
    // All addresses first: a load from shared memory between two copies makes ptxas guard each of them.
    const char* from[KeyCopier::PASSES];
    const long long* step = segment().row_step[side];
#pragma unroll
    for (int pass = 0; pass < KeyCopier::PASSES; ++pass) {
      from[pass] = pass == 0 ? next[side] : from[pass & 1 ? pass - 1 : 0] + step[pass & 1 ? 0 : 1];
    }
#pragma unroll
    for (int pass = 0; pass < KeyCopier::PASSES; ++pass) {
#pragma unroll
      for (int panel = 0; panel < KeyLayout::PANELS; ++panel) {
        const int bit = (side * KeyLayout::PANELS + panel) * KeyCopier::PASSES + (MASKED ? pass : 0);
        KeyCopier::copy(to, from[pass], pass, panel, copied, 1u << bit);
      }
    }
    arch::commit_copies();
  }

  // One tile of keys. Zeros follow the last one.
  template <bool MASKED>
  __device__ __forceinline__ void step(Partial* partial = nullptr) {
    arch::wait_for_copies<1>();
    __syncthreads();
    if (MASKED) advance_partial(*partial);
    else advance_full();
    copy_tile<MASKED>(0, slots[2]);

    float score[M][N][4];  // (WARP_ROWS, KEYS)
    if (MASKED && TIGHT) partial->start.set(lane());
    if (MASKED) partial->start.load(score, partial->mask.tile, arch::shared_address(shared) + STARTS);
    else start_at_zero(score);
    multiply_query_key(score);
    soften(score);

    arch::wait_for_copies<1>();
    __syncthreads();
    copy_tile<MASKED>(1, slots[0]);
    if (MASKED) partial->mask.enter_tile(table(), segment().grid, at);
    multiply_weight_value(score);
    const unsigned key = slots[0];
    slots[0] = slots[2];
    slots[2] = slots[1];
    slots[1] = key;
  }

  __device__ __forceinline__ void start_at_zero(float (&score)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) score[m][n][e] = 0.0f;
      }
    }
  }

  // S += Q K^T.
  __device__ __forceinline__ void multiply_query_key(float (&score)[M][N][4]) {
    const unsigned key = slots[0] + key_at;
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      unsigned a[M][4];
#pragma unroll
      for (int m = 0; m < M; ++m) {
        if (!HOLDS_QUERY) {
          load_query(a[m], m, k);
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) a[m][i] = query[HOLDS_QUERY ? m : 0][HOLDS_QUERY ? k : 0][i];
        }
      }
#pragma unroll
      for (int n = 0; n < N; n += 2) {
        unsigned b[4];
        arch::load_matrices(b, KeyLayout::step(key, k) + n * 8 * KeyLayout::PITCH);
#pragma unroll
        for (int m = 0; m < M; ++m) {
          Mma<T>::add(score[m][n], a[m], b[0], b[1]);
          Mma<T>::add(score[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // The size of the scale; not 0, so that -inf times it is -inf. Scores times the smallest number are as good as 0.
  __device__ __forceinline__ float scale() const { return fmaxf(fabsf(p.geometry.scale_log2), 1.17549435e-38f); }

  // Scores to weights, 0 for -inf; adds them to the sums.
  __device__ __forceinline__ void soften(float (&score)[M][N][4]) {
    const float scale_log2 = scale();
    float most[M][2];
    bool must = false;
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float most_here = score[m][0][half * 2];
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) most_here = fmaxf(most_here, score[m][n][half * 2 + e]);
        }
        most[m][half] = most_here;
        must |= most_here * scale_log2 > reference_log2[m][half] + NATTEN_LAZY_MAXIMUM;
      }
    }
    if (arch::any(must)) rescale(most);
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float reference = reference_log2[m][half];
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& s = score[m][n][half * 2 + e];
            s = arch::exp2_approx(fmaf(s, scale_log2, -reference));
            sum[m][half] += s;
          }
        }
      }
    }
  }

  // Moves the references of rows whose greatest score is far above them.
  __device__ __forceinline__ void rescale(const float (&most)[M][2]) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = most[m][half];
        top = fmaxf(top, arch::shuffle_xor(top, 1));
        top = fmaxf(top, arch::shuffle_xor(top, 2)) * scale();
        const float old = reference_log2[m][half];
        const bool moves = top > old + NATTEN_LAZY_MAXIMUM;
        const float factor = moves ? arch::exp2_approx(old - top) : 1.0f;
        reference_log2[m][half] = moves ? top : old;
        sum[m][half] *= factor;
#pragma unroll
        for (int d = 0; d < D / 8; ++d) {
#pragma unroll
          for (int e = 0; e < 2; ++e) out[m][d][half * 2 + e] *= factor;
        }
      }
    }
  }

  // O += P V; the C fragment of S is the A fragment of P.
  __device__ __forceinline__ void multiply_weight_value(const float (&weight)[M][N][4]) {
    const unsigned value = slots[1] + value_at;
#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k) {
      unsigned a[M][4];
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* pair = &weight[m][2 * k + i / 2][i % 2 * 2];
          a[m][i] = Mma<T>::pack(pair[0], pair[1]);
        }
      }
#pragma unroll
      for (int d = 0; d < D / 16; ++d) {
        unsigned b[4];
        arch::load_matrices_transposed(b, KeyLayout::step(value, d) + k * 16 * KeyLayout::PITCH);
#pragma unroll
        for (int m = 0; m < M; ++m) {
          Mma<T>::add(out[m][2 * d], a[m], b[0], b[1]);
          Mma<T>::add(out[m][2 * d + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // Writes out and lse. Rows go through the warp's own part of Q's memory, so that whole chunks leave.
  __device__ __forceinline__ void store() {
    const QueryTile tile = query_tile();
    const unsigned lane = this->lane();
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float total = sum[m][half];
        total += arch::shuffle_xor(total, 1);
        total += arch::shuffle_xor(total, 2);
        // No key at all: sum 0, out 0, lse -inf. A NaN sum stays one.
        const float inverse = total == 0.0f ? 0.0f : arch::reciprocal_approx(total);
        const int row = warp_row() + m * 16 + half * 8 + lane / 4;
        const unsigned to = QueryLayout::offset(row, 0);
#pragma unroll
        for (int d = 0; d < D / 8; ++d) {
          const unsigned word = Mma<T>::pack(out[m][d][half * 2] * inverse, out[m][d][half * 2 + 1] * inverse);
          *(unsigned*)(shared + (QueryLayout::step(to, d / 2) ^ (d % 2 << 4)) + lane % 4 * 4) = word;
        }
        if (p.lse != nullptr && lane % 4 == 0 && tile.exists(p.geometry, p.plan, row)) {
          const float lse_log2 = reference_log2[m][half] + arch::log2_approx(total);
          p.lse[tile.offset(p.geometry, p.plan, p.lse_strides, row)] =
              total == 0.0f ? -__int_as_float(0x7f800000) : lse_log2 * NATTEN_LN_2;
        }
      }
    }
    __syncwarp();
    const int chunk = lane % QueryLayout::CHUNKS;
#pragma unroll 1
    for (int in_warp = lane / QueryLayout::CHUNKS; in_warp < WARP_ROWS; in_warp += 32 / QueryLayout::CHUNKS) {
      const int row = warp_row() + in_warp;
      if (!tile.exists(p.geometry, p.plan, row)) continue;
      char* to = (char*)p.out + (tile.offset(p.geometry, p.plan, p.out_strides, row) + chunk * 8) * 2;
#pragma unroll
      for (int panel = 0; panel < QueryLayout::PANELS; ++panel) {
        if ((panel * QueryLayout::CHUNKS + chunk) * 8 >= p.geometry.head_dim_v) continue;
        const uint4 words = *(const uint4*)(shared + QueryLayout::offset(row, chunk) + panel * QueryLayout::PANEL_BYTES);
        const unsigned parts[4] = {words.x, words.y, words.z, words.w};
        arch::store_16_bytes(to + panel * QueryLayout::PITCH, parts);
      }
    }
  }
};

}  // namespace natten

// The macros come from the compile matrix (crates/xtask).
extern "C" __global__ void __launch_bounds__(128, 2) NATTEN_ENTRY(const __grid_constant__ natten::TileForwardParams p) {
  extern __shared__ __align__(1024) char shared[];
  typedef natten::Forward<natten::NATTEN_TYPE, NATTEN_DIM, NATTEN_ROWS, NATTEN_KEYS> Forward;
  static_assert(Forward::BYTES == NATTEN_SHARED_BYTES, "the compile matrix says how much");
  Forward forward = {p, shared};
  forward.run();
}
