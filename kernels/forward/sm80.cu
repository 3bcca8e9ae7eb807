// SPDX-License-Identifier: MIT OR Apache-2.0
// Forward pass on tensor cores, sm_80 and later: boxes of ROWS queries walk over boxes of KEYS keys.
//
//   Q = rows of the box of queries                       (to shared memory once; in registers where they fit)
//   for the keys of the windows, then the additional keys:
//     for each full tile, then for each partial tile with its mask:
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
  typedef Copier<KEYS, D, THREADS> KeyCopier;
  typedef Panels<ROWS, D> QueryLayout;
  typedef typename KeyCopier::Layout KeyLayout;
  typedef Thresholds<KEYS> Table;
  // Memory for copies of the starting scores is there, but for the two sizes that just fit twice into a multiprocessor.
  enum { TIGHT = D == 128 && ROWS == 128, SPREAD = D < 256 && !TIGHT };
  typedef natten::Starts<SPREAD> Starts;

  // What the loops need of the keys at hand and ptxas cannot keep in registers.
  struct Segment {
    long long row_step[2][2];    // bytes of K, V from a thread's row to its row STRIDE and 2 STRIDE further
    long long near_step[2];      // bytes of K, V to the next tile along axis 2
    long long line_step[2];      // bytes of K, V from the last full tile of a line to the first of the next line
    long long token_step[3][2];  // bytes of K, V to the next key along each axis
    KeyGrid grid;
    QueryTile tile;
    int first[3];                // position of the first key; -1: the keys at hand are the additional ones
    int is_last;                 // no other keys follow those at hand

    __device__ __forceinline__ bool is_additional() const { return first[2] < 0; }
  };
  // Where the first key is, in bytes of K, V: what each axis adds, and in [3] batch item, head and the tensor's address.
  typedef long long Origins[4][2];
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
  __device__ __forceinline__ int warp() const { return thread() / 32; }
  __device__ __forceinline__ int warp_row() const { return warp() * WARP_ROWS; }

  __device__ __forceinline__ Segment& segment() { return *(Segment*)(shared + SEGMENT); }
  __device__ __forceinline__ const QueryTile& query_tile() { return segment().tile; }
  __device__ __forceinline__ unsigned* table() { return (unsigned*)(shared + TABLE); }
  // In the slot that is not copied to before the loops.
  __device__ __forceinline__ Origins& origins() { return *(Origins*)(shared + SLOTS + 2 * KeyLayout::BYTES); }

  __device__ __forceinline__ void run() {
    QueryTile tile;
    if (!tile.place(p.geometry, p.plan, (int)blockIdx.x)) return;
    if (thread() == 0) segment().tile = tile;
    copy_query(tile);
    describe(tile, false);
    clear();
    while (true) {
      __syncthreads();
      start_at_first();
      copy_tile<true>(0, slots[0]);
      copy_tile<true>(1, slots[1]);
      prepare_loops();
      if (segment().is_additional()) __syncthreads();
      else receive_query();
#pragma unroll 1
      for (int left = segment().grid.full(); left > 0; --left) step<false>();

      int left = segment().grid.total() - segment().grid.full();
      Partial partial;
      if (left > 0) start_partial(partial);
#pragma unroll 1
      for (; left > 0; --left) step<true>(&partial);
      arch::wait_for_copies<0>();
      __syncthreads();
      if (segment().is_last) break;
      describe(query_tile(), true);
    }
    store();
  }

  // Describes the keys of the windows, or the additional ones: each warp one axis, the last one what no axis knows. A
  // cta has few tiles of keys where windows are small, so what comes before them counts.
  __device__ __forceinline__ void describe(const QueryTile& tile, bool additional) {
    if (lane() != 0) return;
    Segment& s = segment();
    const int a = warp();
    if (a == 3) {
      const int head_kv = divide(tile.head, p.geometry.heads_per_kv);
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const Strides& strides = side == 0 ? p.key_strides : p.value_strides;
        const ListStrides& list = side == 0 ? p.additional_key_strides : p.additional_value_strides;
        const void* base = side == 0 ? additional ? p.additional_key : p.key : additional ? p.additional_value : p.value;
        const long long at = additional ? tile.batch * list.batch + head_kv * list.head
                                        : tile.batch * strides.batch + head_kv * strides.head;
        origins()[3][side] = (long long)base + at * 2;
      }
      return;
    }
    const int list_log2 = KEYS == 64 ? 6 : 5;
    // The axis' bits of a row number: so many, above so many of later axes.
    const int side_log2 = additional ? a == 2 ? list_log2 : 0 : p.plan.key_log2[a];
    const int below_log2 =
        a == 2 ? 0 : additional ? list_log2 : p.plan.key_log2[2] + (a == 0 ? p.plan.key_log2[1] : 0);
    Range by_first = {0, a == 2 ? p.geometry.additional_keys : 1};
    Range by_last = by_first;
    if (!additional) tile.ends_see(p.geometry, p.plan, a, by_first, by_last);
    s.grid.cut(a, side_log2, by_first, by_last);
    s.first[a] = additional ? -1 : by_first.start;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const long long stride = (side == 0 ? p.key_strides : p.value_strides).axis[a] * 2;
      const ListStrides& list = side == 0 ? p.additional_key_strides : p.additional_value_strides;
      const long long step =
          additional ? a == 2 ? list.token * 2 : 0 : stride * (int)p.geometry.axes[a].dilation.value;
      origins()[a][side] = additional ? 0 : step * by_first.start + stride * pick(tile.residue, a);
      s.token_step[a][side] = step;
      if (a == 2) s.near_step[side] = step << side_log2;
      // A row number's bit for STRIDE rows is one axis' own.
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int along = (KeyCopier::STRIDE << i) % KEYS >> below_log2 & ((1 << side_log2) - 1);
        if (along != 0) s.row_step[side][i] = along * step;
      }
    }
  }

  // To the first full tile, or where none is, to the first one.
  __device__ __forceinline__ void start_at_first() {
    const KeyGrid& grid = segment().grid;
    const bool any_full = grid.full() > 0;
    const int row = KeyCopier::row(thread()), chunk = KeyCopier::chunk(thread());
    copy_at = KeyCopier::offset(thread());
#pragma unroll
    for (int s = 0; s < 3; ++s) slots[s] = arch::shared_address(shared) + SLOTS + s * KeyLayout::BYTES;
#pragma unroll
    for (int side = 0; side < 2; ++side) next[side] = (const char*)origins()[3][side] + chunk * 16;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      at[a] = any_full ? grid.full_begin[a] : 0;
      const int key = (at[a] << grid.log2[a]) + coordinate(grid.log2, row, a);
#pragma unroll
      for (int side = 0; side < 2; ++side) next[side] += origins()[a][side] + key * segment().token_step[a][side];
    }
    unsigned rows = 0;
#pragma unroll
    for (int pass = 0; pass < KeyCopier::PASSES; ++pass) {
      rows |= (unsigned)grid.exists(row + pass * KeyCopier::STRIDE) << pass;
    }
    copied = 0;
#pragma unroll
    for (int i = 0; i < 2 * KeyLayout::PANELS; ++i) {
      const int length = i < KeyLayout::PANELS ? p.geometry.head_dim : p.geometry.head_dim_v;
      const bool in_row = i % KeyLayout::PANELS * KeyLayout::CHUNKS + chunk < length / 8;
      copied |= in_row ? rows << i * KeyCopier::PASSES : 0;
    }
    if (grid.total() == 0) copied = 0;
  }

  // While the first copies are under way: what the loops need besides. A barrier follows.
  __device__ __forceinline__ void prepare_loops() {
    Segment& s = segment();
    const KeyGrid& grid = s.grid;
    if (thread() == 0) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int near = grid.full_end[2] - grid.full_begin[2] - 1;
        s.line_step[side] = (s.token_step[1][side] << grid.log2[1]) - near * s.near_step[side];
      }
      s.is_last = s.is_additional() || p.geometry.additional_keys == 0;
    }
    if (grid.total() == grid.full()) return;
    Table::build(table(), grid.log2, thread());
    Starts::build(arch::shared_address(shared) + STARTS, thread());
  }

  // What the loop with masks keeps besides.
  struct Partial {
    RowMask<KEYS> mask;  // of this lane's row
    Start<M, KEYS, SPREAD> start;
    int stop;            // where axis 2 leaves this line or comes to the full tiles
  };

  // From the first partial tile on, whose copies are under way.
  __device__ __forceinline__ void start_partial(Partial& partial) {
    const KeyGrid& grid = segment().grid;
    RowMask<KEYS>& mask = partial.mask;
    partial.start.set(lane());
    const int row = warp_row() + (M > 1 ? lane() : partial.start.row(lane()));
    const bool additional = segment().is_additional();
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const int first = segment().first[a];
      const Range seen = query_tile().sees(p.geometry, p.plan, row, a);
      mask.set(a, additional ? 0 : seen.start - first, additional ? 0 : first + grid.count[a] - seen.end);
    }
    partial.stop = grid.next_stop(at);
    mask.enter_line(table(), grid, at);
    mask.enter_tile(table(), grid, at);
  }

  // What lane l knows of row l of its warp, and tells the others.
  struct Rows {
    long long at;    // offset in a tensor, in elements
    unsigned exist;  // a bit a row

    __device__ __forceinline__ long long offset(int row) const {
      const unsigned low = arch::shuffle_from((unsigned)at, row);
      return (long long)arch::shuffle_from((unsigned)(at >> 32), row) << 32 | low;
    }
  };

  __device__ __forceinline__ Rows rows(const QueryTile& tile, const Strides& strides) const {
    const int row = warp_row() + lane() % WARP_ROWS;
    const bool exists = tile.exists(p.geometry, p.plan, row);
    return {exists ? tile.offset(p.geometry, p.plan, strides, row) : 0, arch::ballot(exists)};
  }

  // How a warp copies its own rows of Q and O: a lane has one chunk column and every STRIDE-th row.
  enum { ROW_STRIDE = 32 / QueryLayout::CHUNKS, ROW_PASSES = WARP_ROWS / ROW_STRIDE };

  // Starts copying the rows of the query box, zeros where there are none.
  __device__ __forceinline__ void copy_query(const QueryTile& tile) {
    const Rows rows = this->rows(tile, p.query_strides);
    const int first = lane() / QueryLayout::CHUNKS, chunk = lane() % QueryLayout::CHUNKS;
#pragma unroll
    for (int pass = 0; pass < ROW_PASSES; ++pass) {
      const int row = first + pass * ROW_STRIDE;
      const char* from = (const char*)p.query + (rows.offset(row) + chunk * 8) * 2;
      const unsigned to = arch::shared_address(shared) + QueryLayout::offset(warp_row() + row, chunk);
#pragma unroll
      for (int panel = 0; panel < QueryLayout::PANELS; ++panel) {
        const bool in_row = panel * QueryLayout::CHUNKS + chunk < p.geometry.head_dim / 8;
        arch::copy_16_bytes_or_zero(to + panel * QueryLayout::PANEL_BYTES, from + panel * QueryLayout::PITCH,
                                    in_row ? rows.exist : 0, 1u << row);
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

  // To the next full tile; from the last one to the first partial one.
  __device__ __forceinline__ void advance_full() {
    const KeyGrid& grid = segment().grid;
    if (__builtin_expect(++at[2] < grid.full_end[2], 1)) return move_near();
    at[2] = grid.full_begin[2];
    if (++at[1] < grid.full_end[1]) {
#pragma unroll
      for (int side = 0; side < 2; ++side) next[side] += segment().line_step[side];
      return;
    }
    const int x = at[0] << grid.log2[0], y = (at[1] - 1) << grid.log2[1], z = (grid.full_end[2] - 1) << grid.log2[2];
    at[1] = grid.full_begin[1];
    if (++at[0] == grid.full_end[0]) grid.to_first_partial(at);
    if (grid.is_done(at)) copied = 0;
    move(grid.origin(0, at[0]) - x, grid.origin(1, at[1]) - y, grid.origin(2, at[2]) - z);
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
      partial.mask.enter_line(table(), grid, at);
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
        const float lse_log2 = reference_log2[m][half] + arch::log2_approx(total);
        sum[m][half] = total == 0.0f ? -__int_as_float(0x7f800000) : lse_log2 * NATTEN_LN_2;
      }
    }
    if (p.lse != nullptr) store_lse(tile);
    const Rows rows = this->rows(tile, p.out_strides);
    __syncwarp();
    const int first = lane / QueryLayout::CHUNKS, chunk = lane % QueryLayout::CHUNKS;
    // All reads before the first write: under its condition each would wait alone.
    int words[ROW_PASSES][QueryLayout::PANELS][4];
#pragma unroll
    for (int pass = 0; pass < ROW_PASSES; ++pass) {
      const unsigned from = arch::shared_address(shared) + QueryLayout::offset(warp_row() + first + pass * ROW_STRIDE, chunk);
#pragma unroll
      for (int panel = 0; panel < QueryLayout::PANELS; ++panel) {
        arch::load_shared(words[pass][panel], from + panel * QueryLayout::PANEL_BYTES);
      }
    }
#pragma unroll
    for (int pass = 0; pass < ROW_PASSES; ++pass) {
      const int row = first + pass * ROW_STRIDE;
      char* to = (char*)p.out + (rows.offset(row) + chunk * 8) * 2;
#pragma unroll
      for (int panel = 0; panel < QueryLayout::PANELS; ++panel) {
        const bool in_row = (panel * QueryLayout::CHUNKS + chunk) * 8 < p.geometry.head_dim_v;
        const int(&w)[4] = words[pass][panel];
        const unsigned parts[4] = {(unsigned)w[0], (unsigned)w[1], (unsigned)w[2], (unsigned)w[3]};
        if (in_row & (rows.exist >> row & 1)) arch::store_16_bytes(to + panel * QueryLayout::PITCH, parts);
      }
    }
  }

  // Writes lse, which stands in `sum`: lane l that of row l.
  __device__ __forceinline__ void store_lse(const QueryTile& tile) {
    const Rows rows = this->rows(tile, p.lse_strides);
    const unsigned lane = this->lane();
    float lse = 0.0f;
#pragma unroll
    for (int i = 0; i < 2 * M; ++i) {
      const float of_eight = arch::shuffle_from(sum[i / 2][i % 2], lane % 8 * 4);
      lse = lane / 8 == i ? of_eight : lse;
    }
    if (lane < WARP_ROWS && rows.exist >> lane & 1) p.lse[rows.at] = lse;
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
