// LSTM, GRU and RNN over flat values, forward and backward, without padding and without packing.
//
// A thread runs some sequences side by side, the longest first, or all of them through some of the units (see Sharing).
// Weights are laid out so that one block of units reads them from front to back; gates stay in registers from the product to
// the new state. Every row is computed by the same operations in the same order whatever stands beside it, hence the same bits.
#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "recurrent.h"
#include "vectors.h"

namespace seqbatch::SEQBATCH_ISA {
namespace {

constexpr int ROWS = SEQBATCH_ROWS;
constexpr int GATES = 4;  // accumulators of one row

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// acc[r][to(g)] += rows[r][k] * weights[k][g], for all k in order.
template <typename T, int R, int G, int LAST>
inline void multiply(Vector<T> (&acc)[R][GATES], const T* const* rows, int64_t size, const T* weights) {
  constexpr int W = width<T>;
  // A copy, because `rows` may point to `acc` for all that the compiler knows, which would store it after each product.
  Vector<T> sums[R][GATES];
  for (int r = 0; r < R; r++)
    for (int g = 0; g < GATES; g++) sums[r][g] = acc[r][g];
  for (int64_t k = 0; k < size; k++) {
    Vector<T> w[G];
    for (int g = 0; g < G; g++) w[g] = load(weights + (k * G + g) * W);
    for (int r = 0; r < R; r++) {
      Vector<T> x = all(rows[r][k]);
      for (int g = 0; g < G - 1; g++) sums[r][g] = fused(x, w[g], sums[r][g]);
      sums[r][LAST] = fused(x, w[G - 1], sums[r][LAST]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int g = 0; g < GATES; g++) acc[r][g] = sums[r][g];
}

// Calls f(first, std::integral_constant<int, R>) for blocks of at most ROWS rows.
template <int R = ROWS, typename F>
inline void in_blocks(int64_t rows, F f) {
  int64_t first = 0;
  for (; first + R <= rows; first += R) f(first, std::integral_constant<int, R>{});
  if constexpr (R > 1) {
    if (first < rows) in_blocks<R - 1>(rows - first, [&](int64_t i, auto r) { f(first + i, r); });
  }
}

// Memory that a thread keeps until it ends, because new pages at each call may cost more than to fill and read them.
class Kept {
 public:
  ~Kept() {
    for (auto& block : blocks_) std::free(block.data);
  }
  struct Block {
    void* data;
    size_t size;
  };
  // Null data if there is not enough memory.
  Block take(size_t size) {
    Block *best = nullptr, *largest = &blocks_[0];
    for (auto& block : blocks_) {
      if (block.size >= size && block.data && (!best || block.size < best->size)) best = &block;
      if (block.size > largest->size) largest = &block;
    }
    if (best) return std::exchange(*best, {});
    std::free(std::exchange(*largest, {}).data);
    size = (size / 64 + 1) * 64;
    return {std::aligned_alloc(64, size), size};
  }
  void put_back(Block given) {
    Block* least = &blocks_[0];
    for (auto& block : blocks_)
      if (block.size < least->size) least = &block;
    if (least->size < given.size) std::swap(*least, given);
    std::free(given.data);
  }

 private:
  Block blocks_[4] = {};
};

// Memory for laid out weights; null where there is not enough.
template <typename T>
struct Buffer {
  explicit Buffer(int64_t size) : block(kept().take(size * sizeof(T))), data(static_cast<T*>(block.data)) {}
  ~Buffer() { kept().put_back(block); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  static Kept& kept() {
    static thread_local Kept kept;
    return kept;
  }
  Kept::Block block;
  T* data;
};

// ---------------------------------------------------------------------------------------------------- laid out weights

// How the units of a layer are cut into blocks. An LSTM and a GRU have all gates of `width` units in a block; an RNN,
// which has one gate, has up to four vectors of units in their place, about as many in each block.
template <typename T>
struct Blocks {
  int64_t hidden, input, per_block, count;
  int gates;  // of the weights; an RNN has as many as there are vectors in the block

  Blocks(const Call<T>& call)
      : hidden(call.hidden_size), input(call.input_size) {
    constexpr int W = width<T>;
    const int64_t vectors = divide_up(hidden, W);
    gates = call.kind == LSTM ? 4 : call.kind == GRU ? 3 : static_cast<int>(divide_up(vectors, divide_up(vectors, GATES)));
    per_block = call.kind == LSTM || call.kind == GRU ? W : int64_t{W} * gates;
    count = divide_up(hidden, per_block);
  }
  // Numbers of one block: its biases, then for each input and each hidden unit the weights to its gates.
  int64_t block_size() const { return GATES * width<T> + (input + hidden) * gates * width<T>; }
};

template <typename T>
T value_or_0(const T* values, int64_t i) {
  return values == nullptr ? T(0) : values[i];
}

// to[k * stride + lane] = from[lane * size + k], for the `lanes` rows that are there and at most a vector of them. The lanes
// of the others get the numbers of the first row, because what they hold is never read.
template <typename T, bool IS_FULL>
void transpose_rows(const T* from, int64_t size, int64_t lanes, T* to, int64_t stride) {
  constexpr int64_t AT_ONCE = 16 / sizeof(T);
  auto row = [&](int64_t lane) { return from + (IS_FULL || lane < lanes ? lane : 0) * size; };
  int64_t k = 0;
  for (; k + AT_ONCE <= size; k += AT_ONCE)
    transpose([&](int64_t lane) { return row(lane) + k; }, to + k * stride, stride);
  for (; k < size; k++)
    for (int lane = 0; lane < width<T>; lane++) to[k * stride + lane] = row(lane)[k];
}

template <typename T>
void lay_out_block(const Call<T>& call, const Direction<T>& direction, const Blocks<T>& blocks, int64_t block, T* to) {
  constexpr int W = width<T>;
  const int64_t H = blocks.hidden, stride = blocks.gates * W;
  const bool is_rnn = call.kind == RNN_TANH || call.kind == RNN_RELU;
  // Where the units of a vector of weights begin, and where its rows.
  auto unit = [&](int g) { return block * blocks.per_block + (is_rnn ? g * W : 0); };
  auto row = [&](int g) { return is_rnn ? unit(g) : g * H + unit(g); };
  for (int g = 0; g < GATES; g++) {
    const T *one = direction.bias_ih, *other = direction.bias_hh;
    int64_t from = row(g);
    if (call.kind == GRU && g >= 2) {  // the two parts of n are apart: only one is multiplied by r
      (g == 2 ? other : one) = nullptr;
      from = row(2);
    }
    for (int lane = 0; lane < W; lane++)
      to[g * W + lane] = unit(g) + lane < H ? value_or_0(one, from + lane) + value_or_0(other, from + lane) : T(0);
  }
  to += GATES * W;
  for (const auto& [weights, size] : {std::pair{direction.weight_ih, blocks.input}, std::pair{direction.weight_hh, H}}) {
    for (int g = 0; g < blocks.gates; g++) {
      const int64_t lanes = H - unit(g);
      if (lanes >= W)
        transpose_rows<T, true>(weights + row(g) * size, size, lanes, to + g * W, stride);
      else  // an RNN may have no unit in its last vectors
        transpose_rows<T, false>(weights + (lanes > 0 ? row(g) : 0) * size, size, lanes, to + g * W, stride);
    }
    to += size * stride;
  }
}

// ---------------------------------------------------------------------------------------------------------- sequences

// The sequences of one direction that a thread runs, the longest first.
struct Share {
  std::vector<int64_t> sequences;
};

// Deals the sequences of all directions to threads in turn, forward and back, so that each has about as many steps.
template <typename T>
Share share_of(const Call<T>& call, int direction, int thread, int threads) {
  Share share;
  const int64_t items = call.sequences * call.directions;
  for (int64_t round = 0; round * threads < items; round++) {
    int64_t item = round * threads + (round % 2 ? threads - 1 - thread : thread);
    if (item < items && item % call.directions == direction) share.sequences.push_back(item / call.directions);
  }
  return share;
}

template <typename T>
Share all_of(const Call<T>& call) {
  Share share{std::vector<int64_t>(call.sequences)};
  std::iota(share.sequences.begin(), share.sequences.end(), 0);
  return share;
}

template <typename T>
int64_t row_of(const Call<T>& call, int direction, int64_t sequence, int64_t step) {
  return call.starts[sequence] + (direction ? call.lengths[sequence] - 1 - step : step);
}

// ------------------------------------------------------------------------------------------------------------ forward

// What the next step of one sequence reads and writes.
template <typename T>
struct Row {
  const T* x;
  const T* hidden;  // null in the first step from no state
  T* cell;          // of the units of this thread
  T* out;
  T* saved;  // null if backward needs nothing
};

// One step of R sequences in one block of units.
template <typename T>
struct Step {
  const Row<T>* rows;
  const T* sums;  // of gates before this step: the biases, or for each row those with its input added ahead
  int64_t sums_stride;
  bool adds_input;
  int64_t input, size, unit, cell_unit, valid;
};

// All products of one step, for G vectors of gates; those of the hidden state are added to the last in LAST.
template <typename T, int R, int G, int LAST = G - 1>
inline void multiply(Vector<T> (&acc)[R][GATES], const T* weights, const Step<T>& s) {
  constexpr int W = width<T>;
  for (int r = 0; r < R; r++)
    for (int g = 0; g < GATES; g++) acc[r][g] = load(s.sums + r * s.sums_stride + g * W);
  weights += GATES * W;
  const T* rows[R];
  if (s.adds_input) {
    for (int r = 0; r < R; r++) rows[r] = s.rows[r].x;
    multiply<T, R, G, G - 1>(acc, rows, s.input, weights);
  }
  if (s.rows[0].hidden) {
    for (int r = 0; r < R; r++) rows[r] = s.rows[r].hidden;
    multiply<T, R, G, LAST>(acc, rows, s.size, weights + s.input * G * W);
  }
}

template <typename T, int R>
inline void lstm_block(const T* weights, const Step<T>& s) {
  Vector<T> acc[R][GATES];
  multiply<T, R, 4>(acc, weights, s);
  for (int r = 0; r < R; r++) {
    const Row<T>& row = s.rows[r];
    Vector<T> i = sigmoid(acc[r][0]), f = sigmoid(acc[r][1]), g = hyperbolic_tangent(acc[r][2]), o = sigmoid(acc[r][3]);
    Vector<T> cell = f * load(row.cell + s.cell_unit, s.valid) + i * g;
    store(row.cell + s.cell_unit, cell, s.valid);
    store(row.out + s.unit, o * hyperbolic_tangent(cell), s.valid);
    if (row.saved) {
      const Vector<T> saved[] = {i, f, g, o, cell};
      for (int n = 0; n < 5; n++) store(row.saved + n * s.size + s.unit, saved[n], s.valid);
    }
  }
}

template <typename T, int R>
inline void gru_block(const T* weights, const Step<T>& s) {
  Vector<T> acc[R][GATES];
  multiply<T, R, 3, 3>(acc, weights, s);
  for (int r = 0; r < R; r++) {
    const Row<T>& row = s.rows[r];
    Vector<T> reset = sigmoid(acc[r][0]), z = sigmoid(acc[r][1]);
    Vector<T> n = hyperbolic_tangent(acc[r][2] + reset * acc[r][3]);
    Vector<T> before = row.hidden ? load(row.hidden + s.unit, s.valid) : Vector<T>{};
    store(row.out + s.unit, n + z * (before - n), s.valid);
    if (row.saved) {
      const Vector<T> saved[] = {reset, z, n, acc[r][3]};
      for (int m = 0; m < 4; m++) store(row.saved + m * s.size + s.unit, saved[m], s.valid);
    }
  }
}

template <typename T, int R, int G>
inline void rnn_block(const T* weights, const Step<T>& s, bool is_relu) {
  constexpr int W = width<T>;
  Vector<T> acc[R][GATES];
  multiply<T, R, G>(acc, weights, s);
  for (int r = 0; r < R; r++)
    for (int g = 0; g < G; g++) {
      int64_t valid = s.valid - g * W;
      if (valid <= 0) break;
      Vector<T> a = acc[r][g];
      // As torch.relu, which keeps NaN.
      store(s.rows[r].out + s.unit + g * W, is_relu ? (a < 0 ? Vector<T>{} : a) : hyperbolic_tangent(a), valid);
    }
}

// Calls f(std::integral_constant<int, gates>).
template <typename F>
inline void with_gates(int gates, F f) {
  switch (gates) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    default: return f(std::integral_constant<int, 4>{});
  }
}

template <typename T, int R>
inline void run_block(int32_t kind, int gates, const T* weights, const Step<T>& step) {
  if (kind == LSTM) return lstm_block<T, R>(weights, step);
  if (kind == GRU) return gru_block<T, R>(weights, step);
  with_gates(gates, [&](auto g) { rnn_block<T, R, decltype(g)::value>(weights, step, kind == RNN_RELU); });
}

// The biases and the products of inputs with the weights of one block: where a step without `adds_input` goes on.
template <typename T, int R, int G>
inline void sum_inputs(const T* weights, const T* const* x, int64_t input, T* to) {
  constexpr int W = width<T>;
  Vector<T> acc[R][GATES];
  for (int r = 0; r < R; r++)
    for (int g = 0; g < GATES; g++) acc[r][g] = load(weights + g * W);
  multiply<T, R, G, G - 1>(acc, x, input, weights + GATES * W);
  for (int r = 0; r < R; r++)
    for (int g = 0; g < GATES; g++) store(to + (r * GATES + g) * W, acc[r][g]);
}

// Where weights are laid out. With `is_owner` the walk lays out its blocks, each when it first comes to it.
template <typename T>
struct LaidOut {
  T* first;
  int64_t stride;  // of blocks; 0 if each block is needed only once
  bool is_owner;
};

// Some sequences in one direction, through some blocks of units, step by step: the work of one thread.
template <typename T>
class Walk {
 public:
  Walk(const Call<T>& call, int d, const Blocks<T>& blocks, int64_t begin, int64_t end, Share given, LaidOut<T> weights)
      : call_(call), direction_(call.direction[d]), blocks_(blocks), d_(d), begin_(begin), end_(end), weights_(weights),
        sequences_(std::move(given.sequences)), rows_(sequences_.size()), alive_(sequences_.size()), ahead_x_(ahead_rows()),
        ahead_sums_(ahead_x_.size() * (end - begin) * SUMS) {
    if (!ahead_sums_.data) throw std::bad_alloc();
    const int64_t count = sequences_.size(), H = blocks.hidden;
    first_unit_ = begin * blocks.per_block;
    units_ = std::min(H, end * blocks.per_block) - first_unit_;
    // A cell is written at each step, so that threads must not share a line of the cache; but not if there is one step.
    const int64_t padded = divide_up(units_, width<T>) * width<T>;
    const bool in_place = steps() == 1 && direction_.final_cell;
    cells_ = std::vector<T>(call.kind == LSTM && !in_place ? count * padded : 0);
    for (int64_t a = 0; a < count; a++) {
      const int64_t row = row_of(call, d, sequences_[a], 0), place = call.index[sequences_[a]];
      Row<T>& to = rows_[a];
      to.x = call.x + row * call.input_size;
      to.hidden = direction_.hidden ? direction_.hidden + place * H : nullptr;
      to.out = direction_.out + row * call.out_stride;
      to.saved = direction_.saved ? direction_.saved + row * saved_numbers(call.kind) * H : nullptr;
      if (call.kind != LSTM) continue;
      to.cell = in_place ? direction_.final_cell + place * H + first_unit_ : &cells_[a * padded];
      if (direction_.cell)
        std::copy_n(direction_.cell + place * H + first_unit_, units_, to.cell);
      else if (in_place)
        std::fill_n(to.cell, units_, T(0));
    }
  }

  bool is_done() const { return t_ == steps(); }

  void step() {
    while (call_.lengths[sequences_[alive_ - 1]] <= t_) alive_--;
    const bool begins = t_ >= ahead_until_ && alive_ < ROWS && t_ + 1 < steps();
    if (begins) look_ahead();
    const bool is_ahead = t_ < ahead_until_;
    for (int64_t block = begin_; block < end_; block++) {
      T* weights = weights_.first + block * weights_.stride;
      if (weights_.is_owner && t_ == 0) lay_out_block(call_, direction_, blocks_, block, weights);
      T* sums = is_ahead ? ahead_sums_.data + (block - begin_) * AHEAD * SUMS : nullptr;
      if (begins)
        in_blocks(ahead_rows_, [&](int64_t first, auto r) {
          with_gates(blocks_.gates, [&](auto g) {
            sum_inputs<T, decltype(r)::value, decltype(g)::value>(weights, &ahead_x_[first], blocks_.input, sums + first * SUMS);
          });
        });
      const int64_t unit = block * blocks_.per_block;
      in_blocks(alive_, [&](int64_t first, auto r) {
        Step<T> step{&rows_[first], is_ahead ? sums + (ahead_place_ + first) * SUMS : weights, is_ahead ? SUMS : 0, !is_ahead,
                     blocks_.input, blocks_.hidden, unit, unit - first_unit_, blocks_.hidden - unit};
        run_block<T, decltype(r)::value>(call_.kind, blocks_.gates, weights, step);
      });
    }
    const int64_t to_next = d_ ? -1 : 1;
    ahead_place_ += alive_;
    for (int64_t a = 0; a < alive_; a++) {
      Row<T>& row = rows_[a];
      row.x += to_next * call_.input_size;
      row.hidden = row.out;
      row.out += to_next * call_.out_stride;
      if (row.saved) row.saved += to_next * saved_numbers(call_.kind) * blocks_.hidden;
    }
    t_++;
  }

  void finish() {
    const int64_t H = blocks_.hidden;
    for (size_t a = 0; a < sequences_.size(); a++) {
      const int64_t to = call_.index[sequences_[a]] * H + first_unit_;
      if (direction_.final_hidden) std::copy_n(rows_[a].hidden + first_unit_, units_, direction_.final_hidden + to);
      if (direction_.final_cell && !cells_.empty()) std::copy_n(rows_[a].cell, units_, direction_.final_cell + to);
    }
  }

 private:
  int64_t steps() const { return sequences_.empty() ? 0 : call_.lengths[sequences_[0]]; }

  static constexpr int64_t AHEAD = 8 * ROWS, SUMS = GATES * width<T>;

  // Few sequences do not fill the registers. Then the inputs of several steps are multiplied at once, ahead: of so many rows.
  int64_t ahead_rows() const {
    const int64_t begin = alive_ < ROWS ? 0 : call_.lengths[sequences_[ROWS - 1]];
    return begin + 1 < steps() ? AHEAD : 0;
  }

  // Collects the inputs of as many steps as there is place for.
  void look_ahead() {
    ahead_rows_ = ahead_place_ = 0;
    ahead_until_ = t_;
    for (int64_t alive = alive_; ahead_until_ < steps(); ahead_until_++) {
      while (call_.lengths[sequences_[alive - 1]] <= ahead_until_) alive--;
      if (ahead_rows_ + alive > AHEAD) break;
      const int64_t moved = (ahead_until_ - t_) * (d_ ? -1 : 1) * call_.input_size;
      for (int64_t a = 0; a < alive; a++) ahead_x_[ahead_rows_++] = rows_[a].x + moved;
    }
  }

  const Call<T>& call_;
  const Direction<T>& direction_;
  const Blocks<T>& blocks_;
  int d_;
  int64_t begin_, end_;
  LaidOut<T> weights_;
  std::vector<int64_t> sequences_;  // the longest first
  std::vector<Row<T>> rows_;
  int64_t alive_, first_unit_, units_, t_ = 0;
  std::vector<const T*> ahead_x_;
  Buffer<T> ahead_sums_;  // of each block, each row, each gate
  std::vector<T> cells_;
  int64_t ahead_until_ = 0, ahead_rows_ = 0, ahead_place_ = 0;
};

#ifdef SEQBATCH_TEST
constexpr int64_t SMALL_WORK = 0, LONG_STEP = 0;  // so that small tests run in all ways
#else
constexpr int64_t SMALL_WORK = int64_t{1} << 19, LONG_STEP = int64_t{1} << 17;  // in multiplications
#endif

// How threads share a call. By sequences: each runs some sequences through all units, and never waits for another. By
// units: each runs all sequences through some units, reads only their weights, and waits for the others at each step.
struct Sharing {
  bool by_units;
  int threads;  // 1 or all, because OpenMP ends the threads that a smaller team leaves out, and must start them anew
};

template <typename T>
Sharing sharing_of(const Call<T>& call, const Blocks<T>& blocks) {
  const int64_t longest = call.lengths[0], threads = call.threads, all_blocks = call.directions * blocks.count;
  const int64_t numbers = blocks.count * blocks.block_size();                 // of weights, in one direction
  const int64_t rows = divide_up(call.directions * call.steps, longest);      // of an average step, in all directions
  // To lay out a number takes as long as some 4 multiplications. Waking threads takes longer than work of this size.
  const int64_t work = call.directions * numbers * (call.steps + 4);
  if (work < SMALL_WORK) return {longest == 1, 1};
  // The busiest thread runs at most 1.25 times as much as if sequences were shared.
  const bool is_balanced = 4 * divide_up(all_blocks, threads) * rows <= 5 * divide_up(rows, threads) * all_blocks;
  // Without a step to wait for, no thread needs the weights of another.
  if (longest == 1) return {is_balanced, call.threads};
  // Threads with few rows do not fill their registers; weights beyond the cache take as long to read as many rows to run.
  const int64_t few = static_cast<int64_t>(numbers * sizeof(T)) > int64_t{1} << 20 ? 2 * ROWS : ROWS / 2;
  const bool is_long_step = rows * numbers >= LONG_STEP;  // far longer than the wait at its end
  if (threads > 1 && is_balanced && is_long_step && rows < few * threads) return {true, call.threads};
  return {false, call.sequences * call.directions == 1 ? 1 : call.threads};
}

// Waits for all threads of a team. It spins first, because a step is short, and then yields, because the thread that is
// waited for may need this core. Unlike OpenMP's barrier it never sleeps: on a busy machine to be woken takes far longer.
class Barrier {
 public:
  void wait(int threads) {
    const int64_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; spins++)
      if (spins < SPINS)
        pause();
      else
        sched_yield();
  }

 private:
  static constexpr int SPINS = 1000;
  std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int64_t> round_{0};
};

template <typename T>
int run_forward(const Call<T>& call) {
  if (!call.sequences) return 0;
  const Blocks<T> blocks(call);
  const Sharing sharing = sharing_of(call, blocks);
  const int64_t size = blocks.block_size(), all_blocks = call.directions * blocks.count;
  const bool is_one_step = call.lengths[0] == 1, needs_all = !sharing.by_units || !is_one_step;
  Buffer<T> weights(size * (needs_all ? all_blocks : sharing.threads));
  if (!weights.data) return 1;
  Barrier barrier;
  bool failed = false;
#pragma omp parallel num_threads(sharing.threads)
  {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    std::optional<Walk<T>> walks[2];
    try {
      for (int d = 0; d < call.directions; d++) {
        const LaidOut<T> all{weights.data + d * blocks.count * size, size, sharing.by_units};
        if (!sharing.by_units) {
          walks[d].emplace(call, d, blocks, 0, blocks.count, share_of(call, d, thread, threads), all);
          continue;
        }
        auto end = [&](int64_t i) { return std::clamp<int64_t>(all_blocks * i / threads - d * blocks.count, 0, blocks.count); };
        const LaidOut<T> one{weights.data + thread * size, 0, true};
        if (end(thread) < end(thread + 1))
          walks[d].emplace(call, d, blocks, end(thread), end(thread + 1), all_of(call), needs_all ? all : one);
      }
    } catch (const std::bad_alloc&) {
#pragma omp atomic write
      failed = true;
    }
    if (!sharing.by_units) {
#pragma omp for
      for (int64_t i = 0; i < all_blocks; i++)
        lay_out_block(call, call.direction[i / blocks.count], blocks, i % blocks.count, weights.data + i * size);
    } else if (!is_one_step) {
#pragma omp barrier
    }
    bool stops;
#pragma omp atomic read
    stops = failed;
    if (!stops && sharing.by_units) {
      for (int64_t t = 0; t < call.lengths[0]; t++) {
        if (t) barrier.wait(threads);
        for (auto& walk : walks)
          if (walk) walk->step();
      }
    }
    for (auto& walk : walks) {
      if (!walk || stops) continue;
      while (!walk->is_done()) walk->step();
      walk->finish();
    }
  }
  return failed;
}

// ----------------------------------------------------------------------------------------------------------- backward

// Weights for products with gradients of gates: [columns / (4 * width)][rows][4][width]. Row k is `order(k)` of the weights.
template <typename T, typename F>
void lay_out_columns(const T* weights, int64_t rows, int64_t columns, int64_t block, F order, T* to) {
  constexpr int64_t WIDE = GATES * width<T>;
  const int64_t first = block * WIDE, valid = std::min(WIDE, columns - first);
  for (int64_t k = 0; k < rows; k++) {
    std::copy_n(weights + order(k) * columns + first, valid, to + k * WIDE);
    std::fill_n(to + k * WIDE + valid, WIDE - valid, T(0));
  }
}

// to[r][first...] = add[r][first...] + rows[r] @ weights, of one block of columns.
template <typename T, int R>
inline void multiply_back(Vector<T> (&acc)[R][GATES], T* const* to, int64_t first, int64_t columns) {
  constexpr int W = width<T>;
  for (int r = 0; r < R; r++)
    for (int g = 0; g < GATES; g++) {
      int64_t valid = columns - first - g * W;
      if (valid > 0) store(to[r] + first + g * W, acc[r][g], valid);
    }
}

// The gradients of one sequence that go back from step to step.
template <typename T>
struct Carry {
  T* hidden;
  T* cell;
};

// From the gradient of one row of outputs to that of its gates; `carry` comes from the step after, and is that for the
// step before, but for what goes through the hidden weights.
template <typename T>
void gate_gradients(const Call<T>& call, const Direction<T>& direction, int64_t row, const T* before, const T* cell_before,
                    Carry<T> carry) {
  constexpr int W = width<T>;
  const int64_t H = call.hidden_size;
  const T* saved = direction.saved + row * saved_numbers(call.kind) * H;
  const T* out = direction.out + row * call.out_stride;
  T* gates = direction.grad_gates + row * gate_numbers(call.kind) * H;
  for (int64_t unit = 0; unit < H; unit += W) {
    const int64_t valid = H - unit;
    auto read = [&](const T* from) { return from ? load(from + unit, valid) : Vector<T>{}; };
    auto write = [&](T* to, Vector<T> v) { store(to + unit, v, valid); };
    Vector<T> from_out = direction.grad_out ? read(direction.grad_out + row * call.out_stride) : Vector<T>{};
    Vector<T> grad = from_out + read(carry.hidden);
    if (call.kind == LSTM) {
      Vector<T> i = read(saved), f = read(saved + H), g = read(saved + 2 * H), o = read(saved + 3 * H);
      Vector<T> cell = hyperbolic_tangent(read(saved + 4 * H));
      Vector<T> grad_cell = read(carry.cell) + grad * o * (1 - cell * cell);
      write(gates, grad_cell * g * i * (1 - i));
      write(gates + H, grad_cell * read(cell_before) * f * (1 - f));
      write(gates + 2 * H, grad_cell * i * (1 - g * g));
      write(gates + 3 * H, grad * cell * o * (1 - o));
      write(carry.cell, grad_cell * f);
      write(carry.hidden, Vector<T>{});
    } else if (call.kind == GRU) {
      Vector<T> r = read(saved), z = read(saved + H), n = read(saved + 2 * H), of_hidden = read(saved + 3 * H);
      Vector<T> grad_n = grad * (1 - z) * (1 - n * n);
      write(gates, grad_n);
      write(gates + H, grad_n * of_hidden * r * (1 - r));
      write(gates + 2 * H, grad * (read(before) - n) * z * (1 - z));
      write(gates + 3 * H, grad_n * r);
      write(carry.hidden, grad * z);
    } else {
      Vector<T> h = read(out);
      write(gates, call.kind == RNN_TANH ? grad * (1 - h * h) : (h <= 0 ? Vector<T>{} : grad));
      write(carry.hidden, Vector<T>{});
    }
  }
}

template <typename T>
void run_backward(const Call<T>& call, int d, const T* weights, const Share& share) {
  constexpr int64_t WIDE = GATES * width<T>;
  const Direction<T>& direction = call.direction[d];
  const int64_t H = call.hidden_size, count = share.sequences.size();
  // A GRU's hidden weights take r, z and the hidden part of n, which stand after the part of the input.
  const int64_t skipped = call.kind == GRU ? H : 0, rows = (call.kind == LSTM ? 4 : call.kind == GRU ? 3 : 1) * H;
  if (!count) return;
  std::vector<T> hidden(count * H), cells(call.kind == LSTM ? count * H : 0);
  for (int64_t a = 0; a < count; a++) {
    int64_t place = call.index[share.sequences[a]];
    if (direction.grad_final_hidden) std::copy_n(direction.grad_final_hidden + place * H, H, &hidden[a * H]);
    if (direction.grad_final_cell) std::copy_n(direction.grad_final_cell + place * H, H, &cells[a * H]);
  }
  std::vector<const T*> gates(count);
  std::vector<T*> carried(count);
  int64_t alive = 0;
  for (int64_t t = call.lengths[share.sequences[0]] - 1; t >= 0; t--) {
    while (alive < count && call.lengths[share.sequences[alive]] > t) alive++;
    for (int64_t a = 0; a < alive; a++) {
      int64_t sequence = share.sequences[a], row = row_of(call, d, sequence, t), place = call.index[sequence];
      const T *before = nullptr, *cell_before = nullptr;
      if (t) {
        int64_t earlier = row_of(call, d, sequence, t - 1);
        before = direction.out + earlier * call.out_stride;
        if (call.kind == LSTM) cell_before = direction.saved + (earlier * saved_numbers(LSTM) + 4) * H;
      } else {
        if (direction.hidden) before = direction.hidden + place * H;
        if (direction.cell) cell_before = direction.cell + place * H;
      }
      carried[a] = &hidden[a * H];
      gates[a] = direction.grad_gates + row * gate_numbers(call.kind) * H + skipped;
      gate_gradients(call, direction, row, before, cell_before, {carried[a], call.kind == LSTM ? &cells[a * H] : nullptr});
    }
    if (!t && !direction.grad_hidden) break;
    for (int64_t first = 0; first < H; first += WIDE)
      in_blocks(alive, [&](int64_t i, auto r) {
        constexpr int R = decltype(r)::value;
        Vector<T> acc[R][GATES];
        for (int n = 0; n < R; n++)
          for (int g = 0; g < GATES; g++) {
            int64_t unit = first + g * width<T>;
            acc[n][g] = unit < H ? load(carried[i + n] + unit, H - unit) : Vector<T>{};
          }
        multiply<T, R, 4, 3>(acc, &gates[i], rows, weights + first / WIDE * rows * WIDE);
        multiply_back<T, R>(acc, &carried[i], first, H);
      });
  }
  for (int64_t a = 0; a < count; a++) {
    int64_t place = call.index[share.sequences[a]];
    if (direction.grad_hidden) std::copy_n(&hidden[a * H], H, direction.grad_hidden + place * H);
    if (direction.grad_cell) std::copy_n(&cells[a * H], H, direction.grad_cell + place * H);
  }
}

// The gradient of some rows of the input, through all directions.
template <typename T>
void input_gradients(const Call<T>& call, const T* weights, int64_t size, int64_t begin, int64_t end) {
  constexpr int64_t WIDE = GATES * width<T>;
  const int64_t H = call.hidden_size, I = call.input_size, stride = gate_numbers(call.kind) * H;
  const int64_t rows = (call.kind == LSTM ? 4 : call.kind == GRU ? 3 : 1) * H;
  for (int64_t first = 0; first < I; first += WIDE)
    in_blocks(end - begin, [&](int64_t i, auto r) {
      constexpr int R = decltype(r)::value;
      Vector<T> acc[R][GATES] = {};
      T* to[R];
      for (int d = 0; d < call.directions; d++) {
        const T* gates[R];
        for (int n = 0; n < R; n++) gates[n] = call.direction[d].grad_gates + (begin + i + n) * stride;
        multiply<T, R, 4, 3>(acc, gates, rows, weights + d * size + first / WIDE * rows * WIDE);
      }
      for (int n = 0; n < R; n++) to[n] = call.grad_x + (begin + i + n) * I;
      multiply_back<T, R>(acc, to, first, I);
    });
}

template <typename T>
int run_backward(const Call<T>& call) {
  constexpr int64_t WIDE = GATES * width<T>;
  const int64_t H = call.hidden_size, I = call.input_size;
  const int64_t rows = (call.kind == LSTM ? 4 : call.kind == GRU ? 3 : 1) * H;
  const int64_t hidden_blocks = divide_up(H, WIDE), input_blocks = call.grad_x ? divide_up(I, WIDE) : 0;
  const int64_t hidden_size = hidden_blocks * rows * WIDE, input_size = input_blocks * rows * WIDE;
  Buffer<T> hidden(hidden_size * call.directions), input(input_size * call.directions);
  if (!hidden.data || !input.data) return 1;
  // So many rows of gradients of gates as stay in the cache while the weights of one block go by.
  const int64_t chunk = std::max<int64_t>(8 * ROWS, (int64_t{1} << 18) / (gate_numbers(call.kind) * H * sizeof(T)));
  bool failed = false;
#pragma omp parallel num_threads(call.threads)
  {
#pragma omp for collapse(2)
    for (int d = 0; d < call.directions; d++)
      for (int64_t block = 0; block < hidden_blocks + input_blocks; block++) {
        if (block < hidden_blocks) {
          lay_out_columns(call.direction[d].weight_hh, rows, H, block, [](int64_t k) { return k; },
                          hidden.data + d * hidden_size + block * rows * WIDE);
        } else {
          // The gradients of a GRU's gates stand in the order n, r, z.
          auto order = [&](int64_t k) { return call.kind != GRU ? k : k < H ? k + 2 * H : k - H; };
          lay_out_columns(call.direction[d].weight_ih, rows, I, block - hidden_blocks, order,
                          input.data + d * input_size + (block - hidden_blocks) * rows * WIDE);
        }
      }
    try {
      for (int d = 0; d < call.directions; d++)
        run_backward(call, d, hidden.data + d * hidden_size, share_of(call, d, omp_get_thread_num(), omp_get_num_threads()));
    } catch (const std::bad_alloc&) {
#pragma omp atomic write
      failed = true;
    }
    if (call.grad_x) {
#pragma omp barrier
#pragma omp for schedule(dynamic)
      for (int64_t begin = 0; begin < call.steps; begin += chunk)
        input_gradients(call, input.data, input_size, begin, std::min(call.steps, begin + chunk));
    }
  }
  return failed;
}

}  // namespace

int forward(const Call<float>& call) { return run_forward(call); }
int forward(const Call<double>& call) { return run_forward(call); }
int backward(const Call<float>& call) { return run_backward(call); }
int backward(const Call<double>& call) { return run_backward(call); }

}  // namespace seqbatch::SEQBATCH_ISA
