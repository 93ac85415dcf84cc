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
#include <limits>
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
#ifdef SEQBATCH_TEST  // so that small tests reach every branch
constexpr int64_t SMALL_WORK = 0, LONG_STEP = 0;
constexpr size_t MOST_KEPT = size_t{1} << 20;
#else
constexpr int64_t SMALL_WORK = int64_t{1} << 19, LONG_STEP = int64_t{1} << 17;  // in multiplications
constexpr size_t MOST_KEPT = size_t{1} << 28;                                   // in bytes
#endif

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// acc[r][g] += rows[r][k] * weights[k][g], for all k in order; but the last gate of the weights is added to acc[r][LAST].
template <typename T, int R, int G, int LAST>
inline void multiply(Vector<T> (&acc)[R][GATES], const T* const* rows, int64_t size, const T* weights, int64_t stride = G * width<T>) {
  constexpr int W = width<T>;
  // A copy, because the compiler cannot know that `rows` does not point to `acc`, and would store `acc` after each product.
  Vector<T> sums[R][GATES];
  for (int r = 0; r < R; r++)
    for (int g = 0; g < GATES; g++) sums[r][g] = acc[r][g];
  for (int64_t k = 0; k < size; k++) {
    Vector<T> w[G];
    for (int g = 0; g < G; g++) w[g] = load(weights + k * stride + g * W);
    for (int r = 0; r < R; r++) {
      Vector<T> x = all(rows[r][k]);
      for (int g = 0; g < G - 1; g++) sums[r][g] = fused(x, w[g], sums[r][g]);
      sums[r][LAST] = fused(x, w[G - 1], sums[r][LAST]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int g = 0; g < GATES; g++) acc[r][g] = sums[r][g];
}

// Allocates as std::allocator does. Because its type is local to this file, the functions of a List are local too. Those of
// a std::vector are not: the linker would keep one copy for all instruction sets, which older processors may be unable to run.
template <typename T>
struct Allocator {
  using value_type = T;
  Allocator() = default;
  template <typename U>
  Allocator(const Allocator<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T))); }
  void deallocate(T* data, size_t) { ::operator delete(data); }
  friend bool operator==(const Allocator&, const Allocator&) { return true; }
  friend bool operator!=(const Allocator&, const Allocator&) { return false; }
};
template <typename T>
using List = std::vector<T, Allocator<T>>;

// Calls f(first, std::integral_constant<int, R>) for blocks of at most ROWS rows.
template <int R = ROWS, typename F>
inline void in_blocks(int64_t rows, F f) {
  int64_t first = 0;
  for (; first + R <= rows; first += R) f(first, std::integral_constant<int, R>{});
  if constexpr (R > 1) {
    if (first < rows) in_blocks<R - 1>(rows - first, [&](int64_t i, auto r) { f(first + i, r); });
  }
}

// Memory that a thread keeps for its next calls, until it ends: up to four blocks, and MOST_KEPT in all. The first use of a
// new page takes longer than laying out weights in it: if nothing were kept, 2 steps of an LSTM with 2048 units, whose weights
// take 128 MiB, would take 1.7 times as long.
class Kept {
 public:
  struct Block {
    void* data;
    size_t size;
  };

  ~Kept() {
    for (auto& block : blocks_) std::free(block.data);
  }

  // An empty block if there is not enough memory.
  Block take(size_t size) {
    Block *best = nullptr, *largest = &blocks_[0];
    for (auto& block : blocks_) {
      if (block.size >= size && block.data && (!best || block.size < best->size)) best = &block;
      if (block.size > largest->size) largest = &block;
    }
    if (best) return std::exchange(*best, {});
    std::free(std::exchange(*largest, {}).data);
    size = (size / 64 + 1) * 64;
    void* data = std::aligned_alloc(64, size);
    return {data, data ? size : 0};
  }

  // Keeps the block in place of the smallest one, or frees it.
  void put_back(Block block) {
    Block* smallest = &blocks_[0];
    size_t size = block.size;
    for (auto& other : blocks_) {
      if (other.size < smallest->size) smallest = &other;
      size += other.size;
    }
    if (smallest->size < block.size && size - smallest->size <= MOST_KEPT) std::swap(*smallest, block);
    std::free(block.data);
  }

 private:
  Block blocks_[4] = {};
};

Kept& kept_by_this_thread() {
  static thread_local Kept kept;
  return kept;
}

// Memory for some numbers, which may hold anything; null where there is not enough.
template <typename T>
struct Buffer {
  explicit Buffer(int64_t size) : block(kept_by_this_thread().take(size * sizeof(T))), data(static_cast<T*>(block.data)) {}
  ~Buffer() { kept_by_this_thread().put_back(block); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Kept::Block block;
  T* data;
};

// ---------------------------------------------------------------------------------------------------- laid out weights

// Numbers of a block that stand before its weights.
template <typename T>
constexpr int64_t BEFORE_WEIGHTS = 2 * GATES * width<T>;

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
  // Numbers of one block: its biases, what hidden zeros add to them, then for each input and each hidden unit the weights to
  // its gates.
  int64_t block_size() const { return BEFORE_WEIGHTS<T> + (input + hidden) * gates * width<T>; }
};

template <typename T>
T value_or_0(const T* values, int64_t i) {
  return values == nullptr ? T(0) : values[i];
}

// to[k * stride + lane] = from[lane * size + k], for the `lanes` rows that exist and at most a vector of them. All other
// lanes get the numbers of the first row, because they are never read. Returns the sum of 0 * from[lane * size + k] over all
// k: 0, or NaN in lanes that have NaN or infinity.
template <typename T, bool IS_FULL>
Vector<T> transpose_rows(const T* from, int64_t size, int64_t lanes, T* to, int64_t stride) {
  constexpr int64_t AT_ONCE = 16 / sizeof(T);
  Vector<T> sums[AT_ONCE] = {};
  auto row = [&](int64_t lane) { return from + (IS_FULL || lane < lanes ? lane : 0) * size; };
  int64_t k = 0;
  for (; k + AT_ONCE <= size; k += AT_ONCE)
    transpose([&](int64_t lane) { return row(lane) + k; }, [&](int64_t i, Vector<T> v) {
      store(to + (k + i) * stride, v);
      sums[i] = fused(v, Vector<T>{}, sums[i]);
    }, from);
  for (; k < size; k++) {
    T numbers[width<T>];
    for (int lane = 0; lane < width<T>; lane++) numbers[lane] = row(lane)[k];
    store(to + k * stride, load(numbers));
    sums[0] = fused(load(numbers), Vector<T>{}, sums[0]);
  }
  for (int64_t i = 1; i < AT_ONCE; i++) sums[0] += sums[i];
  return sums[0];
}

// Writes one block, in the order that block_size describes. Hidden zeros add NaN where a hidden weight is NaN or infinite, as
// in PyTorch, which multiplies the zeros of a missing state.
template <typename T>
void lay_out_block(const Call<T>& call, const Direction<T>& direction, const Blocks<T>& blocks, int64_t block, T* to) {
  constexpr int W = width<T>;
  const int64_t H = blocks.hidden, stride = blocks.gates * W;
  const bool is_rnn = call.kind == RNN_TANH || call.kind == RNN_RELU;
  // The first unit of a vector of weights, and its row.
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
  T* const of_zeros = to + GATES * W;
  std::fill_n(of_zeros, GATES * W, -T(0));
  to += BEFORE_WEIGHTS<T>;
  for (const auto& [weights, size] : {std::pair{direction.weight_ih, blocks.input}, std::pair{direction.weight_hh, H}}) {
    for (int g = 0; g < blocks.gates; g++) {
      const int64_t lanes = H - unit(g);
      const T* rows = weights + (lanes > 0 ? row(g) : 0) * size;  // an RNN may have no unit in its last vectors
      const Vector<T> sum = lanes >= W ? transpose_rows<T, true>(rows, size, lanes, to + g * W, stride)
                                       : transpose_rows<T, false>(rows, size, lanes, to + g * W, stride);
      if (weights != direction.weight_hh) continue;
      // -0 in place of 0, because adding it changes no number, not even -0.
      store(of_zeros + (call.kind == GRU && g == 2 ? 3 : g) * W, sum == 0 ? all(-T(0)) : sum);
    }
    to += size * stride;
  }
}

// ---------------------------------------------------------------------------------------------------------- sequences

// The sequences that a thread runs in one direction, the longest first. Sequences of all directions are dealt to the threads
// from the first to the last and back again, so that all threads have about the same number of steps.
template <typename T>
List<int64_t> sequences_of(const Call<T>& call, int direction, int thread, int threads) {
  List<int64_t> sequences;
  const int64_t items = call.sequences * call.directions;
  for (int64_t round = 0; round * threads < items; round++) {
    int64_t item = round * threads + (round % 2 ? threads - 1 - thread : thread);
    if (item < items && item % call.directions == direction) sequences.push_back(item / call.directions);
  }
  return sequences;
}

template <typename T>
List<int64_t> all_sequences(const Call<T>& call) {
  List<int64_t> sequences(call.sequences);
  std::iota(sequences.begin(), sequences.end(), 0);
  return sequences;
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
  const T* hidden;  // null in the first step without an initial state
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

// All products of one step, for G vectors of gates. That of the hidden state with the last gate is added to acc[r][LAST].
template <typename T, int R, int G, int LAST = G - 1>
inline void multiply(Vector<T> (&acc)[R][GATES], const T* weights, const Step<T>& s) {
  constexpr int W = width<T>;
  for (int r = 0; r < R; r++)
    for (int g = 0; g < GATES; g++) acc[r][g] = load(s.sums + r * s.sums_stride + g * W);
  const T* zeros = weights + GATES * W;
  weights += BEFORE_WEIGHTS<T>;
  const T* rows[R];
  if (s.adds_input) {
    for (int r = 0; r < R; r++) rows[r] = s.rows[r].x;
    multiply<T, R, G, G - 1>(acc, rows, s.input, weights);
  }
  if (s.rows[0].hidden) {
    for (int r = 0; r < R; r++) rows[r] = s.rows[r].hidden;
    multiply<T, R, G, LAST>(acc, rows, s.size, weights + s.input * G * W);
  } else {
    for (int r = 0; r < R; r++)
      for (int g = 0; g < GATES; g++) acc[r][g] += load(zeros + g * W);
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

// The biases and the products of inputs with the weights of one block, to which a step without `adds_input` adds the rest.
template <typename T, int R, int G>
inline void sum_inputs(const T* weights, const T* const* x, int64_t input, T* to) {
  constexpr int W = width<T>;
  Vector<T> acc[R][GATES];
  for (int r = 0; r < R; r++)
    for (int g = 0; g < GATES; g++) acc[r][g] = load(weights + g * W);
  multiply<T, R, G, G - 1>(acc, x, input, weights + BEFORE_WEIGHTS<T>);
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
  Walk(const Call<T>& call, int d, const Blocks<T>& blocks, int64_t begin, int64_t end, List<int64_t> sequences, LaidOut<T> weights)
      : call_(call), direction_(call.direction[d]), blocks_(blocks), d_(d), begin_(begin), end_(end), weights_(weights),
        sequences_(std::move(sequences)), rows_(sequences_.size()), alive_(sequences_.size()), ahead_x_(ahead_rows()),
        ahead_sums_(ahead_x_.size() * (end - begin) * SUMS) {
    if (!ahead_sums_.data) throw std::bad_alloc();
    const int64_t count = sequences_.size(), H = blocks.hidden;
    first_unit_ = begin * blocks.per_block;
    units_ = std::min(H, end * blocks.per_block) - first_unit_;
    // Cells are written at each step, so each thread has its own: two threads must not write to one line of the cache. One
    // step writes them in place.
    const int64_t padded = divide_up(units_, width<T>) * width<T>;
    const bool in_place = steps() == 1 && direction_.final_cell;
    cells_ = List<T>(call.kind == LSTM && !in_place ? count * padded : 0);
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

  // Rows of inputs that are multiplied at once, ahead of their steps; 0 if there are always enough sequences to fill the
  // registers.
  int64_t ahead_rows() const {
    const int64_t begin = alive_ < ROWS ? 0 : call_.lengths[sequences_[ROWS - 1]];
    return begin + 1 < steps() ? AHEAD : 0;
  }

  // Collects the inputs of the next steps, as many as there is space for.
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
  List<int64_t> sequences_;  // the longest first
  List<Row<T>> rows_;
  int64_t alive_, first_unit_, units_, t_ = 0;
  List<const T*> ahead_x_;
  Buffer<T> ahead_sums_;  // of each block, each row, each gate
  List<T> cells_;
  int64_t ahead_until_ = 0, ahead_rows_ = 0, ahead_place_ = 0;
};

// How threads share a call. By sequences: each runs some sequences through all units, and never waits for another. By
// units: each runs all sequences through some units, reads only their weights, and waits for the others at each step.
struct Sharing {
  bool by_units;
  int threads;  // 1 or all, because OpenMP ends the threads that a smaller team leaves out, and must start them anew
};

template <typename T, typename B>
Sharing sharing_of(const Call<T>& call, const B& blocks) {
  const int64_t longest = call.lengths[0], threads = call.threads, all_blocks = call.directions * blocks.count;
  const int64_t numbers = blocks.count * blocks.block_size();                 // of weights, in one direction
  const int64_t rows = divide_up(call.directions * call.steps, longest);      // of an average step, in all directions
  // Laying out a number takes as long as some 4 multiplications. Waking threads takes longer than work of this size.
  const int64_t work = call.directions * numbers * (call.steps + 4);
  if (work < SMALL_WORK) return {longest == 1, 1};
  // The busiest thread runs at most 1.25 times as much as if sequences were shared.
  const bool is_balanced = 4 * divide_up(all_blocks, threads) * rows <= 5 * divide_up(rows, threads) * all_blocks;
  // Without a step to wait for, no thread needs the weights of another.
  if (longest == 1) return {is_balanced, call.threads};
  // Few rows do not fill the registers of a thread. Reading weights that do not fit in the cache takes as long as many rows.
  const int64_t few = static_cast<int64_t>(numbers * sizeof(T)) > int64_t{1} << 20 ? 2 * ROWS : ROWS / 2;
  const bool is_long_step = rows * numbers >= LONG_STEP;  // far longer than the wait at its end
  if (threads > 1 && is_balanced && is_long_step && rows < few * threads) return {true, call.threads};
  return {false, call.sequences * call.directions == 1 ? 1 : call.threads};
}

// Waits for all threads of a team. It spins first, because a step is short, and then yields, because the thread that is
// waited for may need this core. Unlike OpenMP's barrier it never sleeps, because on a busy machine waking takes far longer.
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
  const RoundsAs::Mode rounding = RoundsAs::of_this_thread();
#pragma omp parallel num_threads(sharing.threads)
  {
    const RoundsAs caller(rounding);
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    std::optional<Walk<T>> walks[2];
    try {
      for (int d = 0; d < call.directions; d++) {
        const LaidOut<T> all{weights.data + d * blocks.count * size, size, sharing.by_units};
        if (!sharing.by_units) {
          walks[d].emplace(call, d, blocks, 0, blocks.count, sequences_of(call, d, thread, threads), all);
          continue;
        }
        auto end = [&](int64_t i) { return std::clamp<int64_t>(all_blocks * i / threads - d * blocks.count, 0, blocks.count); };
        const LaidOut<T> one{weights.data + thread * size, 0, true};
        if (end(thread) < end(thread + 1))
          walks[d].emplace(call, d, blocks, end(thread), end(thread + 1), all_sequences(call), needs_all ? all : one);
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

// Rows of both weights of a direction.
template <typename T>
int64_t weight_rows(const Call<T>& call) {
  return (call.kind == LSTM ? 4 : call.kind == GRU ? 3 : 1) * call.hidden_size;
}

// A weight for products with gradients of gates, in blocks of 4 vectors of columns, laid out as [block][rows][4][width].
template <typename T>
struct Columns {
  static constexpr int64_t WIDE = GATES * width<T>;
  const T* weight;
  int64_t rows, columns;
  int64_t shift;  // row k of a block is row (k + shift) % rows of the weight
  bool in_place;  // whole blocks are read where they stand, because they are used too seldom to be laid out
  T* laid_out;

  bool is_in_place(int64_t block) const { return in_place && (block + 1) * WIDE <= columns; }
  const T* block(int64_t i) const { return is_in_place(i) ? weight + i * WIDE : laid_out + i * rows * WIDE; }
  int64_t stride(int64_t i) const { return is_in_place(i) ? columns : WIDE; }

  void lay_out(int64_t block) const {
    if (is_in_place(block)) return;
    const int64_t first = block * WIDE, valid = std::min(WIDE, columns - first);
    T* to = laid_out + block * rows * WIDE;
    for (int64_t k = 0; k < rows; k++) {
      std::copy_n(weight + (k + shift) % rows * columns + first, valid, to + k * WIDE);
      std::fill_n(to + k * WIDE + valid, WIDE - valid, T(0));
    }
  }
};

// to[r][first...] = acc[r], of one block of columns.
template <typename T, int R>
inline void store_block(const Vector<T> (&acc)[R][GATES], T* const* to, int64_t first, int64_t columns) {
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

// Computes the gradients of the gates of one row from that of its output, for units from `begin` to `end`. `carry` comes from
// the step after it, and becomes that for the step before it, without the part that goes through the hidden weights.
template <typename T>
void gate_gradients(const Call<T>& call, const Direction<T>& direction, int64_t row, const T* before, const T* cell_before,
                    Carry<T> carry, int64_t begin, int64_t end) {
  constexpr int64_t W = width<T>;
  const int64_t H = call.hidden_size;
  const T* saved = direction.saved + row * saved_numbers(call.kind) * H;
  const T* out = direction.out + row * call.out_stride;
  const T* grad_out = direction.grad_out ? direction.grad_out + row * call.out_stride : nullptr;
  T* gates = direction.grad_gates + row * gate_numbers(call.kind) * H;
  auto one_vector = [&](int64_t unit, auto valid) {
    auto read = [&](const T* from) { return from ? load(from + unit, valid) : Vector<T>{}; };
    auto write = [&](T* to, Vector<T> v) { store(to + unit, v, valid); };
    Vector<T> grad = read(grad_out) + read(carry.hidden);
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
  };
  int64_t unit = begin;
  for (; unit + W <= end; unit += W) one_vector(unit, std::integral_constant<int64_t, W>{});  // without masks
  if (unit < end) one_vector(unit, end - unit);
}

// Some sequences in one direction, through some blocks of units, step by step from the last: the work of one thread.
template <typename T>
class WalkBack {
 public:
  // `hidden` and `cells` are (sequences, hidden) and hold the gradients that go back from step to step. For each step, the
  // address of the hidden state before it is written to `before`, or null.
  WalkBack(const Call<T>& call, int d, const Columns<T>& weights, int64_t begin, int64_t end, List<int64_t> sequences, T* hidden, T* cells,
           const T** before)
      : call_(call), direction_(call.direction[d]), d_(d), weights_(weights), begin_(begin), end_(end),
        first_unit_(begin * weights.WIDE), end_unit_(std::min(call.hidden_size, end * weights.WIDE)),
        sequences_(std::move(sequences)), gates_(sequences_.size()), carry_(sequences_.size()), hidden_(sequences_.size()),
        before_(before) {
    const int64_t H = call.hidden_size;
    for (size_t a = 0; a < sequences_.size(); a++) {
      const int64_t place = call.index[sequences_[a]];
      carry_[a] = {hidden + sequences_[a] * H, call.kind == LSTM ? cells + sequences_[a] * H : nullptr};
      hidden_[a] = carry_[a].hidden;
      start(direction_.grad_final_hidden, place, carry_[a].hidden);
      if (call.kind == LSTM) start(direction_.grad_final_cell, place, carry_[a].cell);
    }
  }

  int64_t longest() const { return sequences_.empty() ? 0 : call_.lengths[sequences_[0]]; }

  void compute_gates(int64_t t) {
    const int64_t H = call_.hidden_size, count = sequences_.size();
    while (alive_ < count && call_.lengths[sequences_[alive_]] > t) alive_++;
    for (int64_t a = 0; a < alive_; a++) {
      const int64_t sequence = sequences_[a], row = row_of(call_, d_, sequence, t), place = call_.index[sequence];
      const T *before = nullptr, *cell_before = nullptr;
      if (t) {
        const int64_t earlier = row_of(call_, d_, sequence, t - 1);
        before = direction_.out + earlier * call_.out_stride;
        if (call_.kind == LSTM) cell_before = direction_.saved + (earlier * saved_numbers(LSTM) + 4) * H;
      } else {
        if (direction_.hidden) before = direction_.hidden + place * H;
        if (direction_.cell) cell_before = direction_.cell + place * H;
      }
      if (!first_unit_) before_[row] = before;  // by one thread of those that share units
      // A GRU's hidden weights take r, z and the hidden part of n, which stand after the part of the input.
      gates_[a] = direction_.grad_gates + row * gate_numbers(call_.kind) * H + (call_.kind == GRU ? H : 0);
      gate_gradients(call_, direction_, row, before, cell_before, carry_[a], first_unit_, end_unit_);
    }
  }

  // Adds the part of `carry` that goes through the hidden weights. The gradients of all gates must have been computed.
  void multiply_gates(int64_t t) {
    if (!t && !direction_.grad_hidden) return;
    constexpr int W = width<T>;
    const int64_t H = call_.hidden_size;
    for (int64_t block = begin_; block < end_; block++)
      in_blocks(alive_, [&](int64_t i, auto r) {
        constexpr int R = decltype(r)::value;
        const int64_t first = block * weights_.WIDE;
        Vector<T> acc[R][GATES];
        for (int n = 0; n < R; n++)
          for (int g = 0; g < GATES; g++) {
            int64_t unit = first + g * W;
            acc[n][g] = unit < H ? load(hidden_[i + n] + unit, H - unit) : Vector<T>{};
          }
        multiply<T, R, 4, 3>(acc, &gates_[i], weights_.rows, weights_.block(block), weights_.stride(block));
        store_block<T, R>(acc, &hidden_[i], first, H);
      });
  }

  void finish() {
    for (size_t a = 0; a < sequences_.size(); a++) {
      const int64_t from = call_.index[sequences_[a]] * call_.hidden_size + first_unit_, units = end_unit_ - first_unit_;
      if (direction_.grad_hidden) std::copy_n(carry_[a].hidden + first_unit_, units, direction_.grad_hidden + from);
      if (direction_.grad_cell) std::copy_n(carry_[a].cell + first_unit_, units, direction_.grad_cell + from);
    }
  }

 private:
  void start(const T* grad_final, int64_t place, T* to) {
    if (grad_final)
      std::copy_n(grad_final + place * call_.hidden_size + first_unit_, end_unit_ - first_unit_, to + first_unit_);
    else
      std::fill(to + first_unit_, to + end_unit_, T(0));
  }

  const Call<T>& call_;
  const Direction<T>& direction_;
  int d_;
  const Columns<T>& weights_;
  int64_t begin_, end_, first_unit_, end_unit_;
  List<int64_t> sequences_;
  List<const T*> gates_;
  List<Carry<T>> carry_;
  List<T*> hidden_;
  const T** before_;
  int64_t alive_ = 0;
};

// The gradient of some rows of the input in one block of columns, through all directions.
template <typename T>
void input_gradients(const Call<T>& call, const Columns<T>* weights, int64_t block, int64_t begin, int64_t end) {
  const int64_t stride = gate_numbers(call.kind) * call.hidden_size;
  in_blocks(end - begin, [&](int64_t i, auto r) {
    constexpr int R = decltype(r)::value;
    Vector<T> acc[R][GATES] = {};
    T* to[R];
    for (int d = 0; d < call.directions; d++) {
      const T* gates[R];
      for (int n = 0; n < R; n++) gates[n] = call.direction[d].grad_gates + (begin + i + n) * stride;
      multiply<T, R, 4, 3>(acc, gates, weights[d].rows, weights[d].block(block), weights[d].stride(block));
    }
    for (int n = 0; n < R; n++) to[n] = call.grad_x + (begin + i + n) * call.input_size;
    store_block<T, R>(acc, to, block * weights[0].WIDE, call.input_size);
  });
}

// Gradients of weights and biases are sums over all steps in the order of the flat values, whatever the number of threads,
// because these share rows and columns of the results.

// Steps that are added up in registers before they are added to the sums in memory. A block of columns of this many steps
// fits in the first cache. Short chains of sums also round less.
constexpr int64_t DEPTH = 96;
// Rows, and blocks of columns, that a thread takes at once: they stay in the second cache.
constexpr int64_t TALL = 48, BROAD = 8;

// A weight with its bias: the gradients of its gates, transposed, are multiplied by the input or by the hidden state before.
template <typename T>
struct WeightGradient {
  const T* const* rows;  // (steps) of what is multiplied; null for a row of 0
  int64_t columns;
  T* weight;  // null where it is not wanted
  T* bias;
};

// Gates that stand side by side, and the row of each weight that the first of them belongs to; -1 for none.
struct Gates {
  int64_t first, count, row[2];
};

// The gradients of a GRU's gates stand in the order n, r, z and the hidden part of n; its weights in the order r, z, n.
template <typename T>
List<Gates> gates_of_weights(const Call<T>& call) {
  const int64_t H = call.hidden_size;
  if (call.kind != GRU) return {{0, weight_rows(call), {0, 0}}};
  return {{0, H, {2 * H, -1}}, {H, 2 * H, {0, 0}}, {3 * H, H, {-1, 2 * H}}};
}

// to[n * columns + v] = or += the sum of gates[k][n] * block[k][v] over some steps k, for `rows` rows and V vectors.
template <typename T, int V>
void add_products(const T* gates, const T* block, int64_t steps, T* to, int64_t rows, int64_t columns, int64_t valid, bool is_first) {
  constexpr int W = width<T>;
  for (int64_t row = 0; row < rows; row += ROWS) {
    Vector<T> acc[ROWS][V] = {};
    const T *gate = gates + row * DEPTH, *x = block;
    for (int64_t k = 0; k < steps; k++, gate += ROWS, x += GATES * W) {
      Vector<T> vectors[V];
      for (int v = 0; v < V; v++) vectors[v] = load(x + v * W);
      for (int n = 0; n < ROWS; n++)
        for (int v = 0; v < V; v++) acc[n][v] = fused(all(gate[n]), vectors[v], acc[n][v]);
    }
    for (int n = 0; n < ROWS; n++)
      for (int v = 0; v < V && row + n < rows; v++) {
        T* at = to + (row + n) * columns + v * W;
        store(at, is_first ? acc[n][v] : load(at, valid - v * W) + acc[n][v], valid - v * W);
      }
  }
}

// Computes some rows of the gradients of both weights of a direction, in some blocks of columns, which are numbered through
// both weights; and of the biases, with the first of these blocks. `gates` are those of the first step and row, `row` as in Gates.
template <typename T>
void weight_gradients(const WeightGradient<T> (&weights)[2], const T* gates, int64_t stride, int64_t steps, const int64_t (&row)[2],
                      int64_t count, int64_t first_block, int64_t end_block) {
  constexpr int W = width<T>, WIDE = GATES * W;
  alignas(64) T of_gates[DEPTH * divide_up(TALL, ROWS) * ROWS] = {}, block[DEPTH * WIDE];  // of_gates: [row / ROWS][DEPTH][ROWS]
  const int64_t whole = count / ROWS * ROWS;
  for (int64_t begin = 0; begin < steps; begin += DEPTH, gates += DEPTH * stride) {
    const int64_t depth = std::min(DEPTH, steps - begin);
    Vector<T> sums[TALL / W] = {};
    for (int64_t k = 0; k < depth; k++) {
      const T* from = gates + k * stride;
      T* to = of_gates + k * ROWS;
      for (int64_t i = 0; i < whole; i += ROWS) std::copy_n(from + i, ROWS, to + i * DEPTH);
      std::copy_n(from + whole, count - whole, to + whole * DEPTH);
      if (!first_block)
        for (int64_t i = 0; i < count; i += W) sums[i / W] += load(from + i, count - i);
    }
    int64_t skipped = 0;
    for (int w = 0; w < 2; w++) {
      const WeightGradient<T>& of = weights[w];
      if (row[w] < 0) continue;
      if (of.bias && !first_block)
        for (int64_t i = 0; i < count; i++) {
          T& to = of.bias[row[w] + i];
          to = begin ? to + sums[i / W][i % W] : sums[i / W][i % W];
        }
      const int64_t blocks = of.weight ? divide_up(of.columns, WIDE) : 0;
      for (int64_t n = std::max<int64_t>(0, first_block - skipped); n < std::min(blocks, end_block - skipped); n++) {
        const int64_t valid = of.columns - n * WIDE, vectors = std::min<int64_t>(GATES, divide_up(valid, W));
        for (int64_t k = 0; k < depth; k++) {
          const T* from = of.rows[begin + k];
          for (int v = 0; v < vectors; v++)
            store(block + k * WIDE + v * W, from ? load(from + n * WIDE + v * W, valid - v * W) : Vector<T>{});
        }
        T* to = of.weight + row[w] * of.columns + n * WIDE;
        switch (vectors) {
          case 1: add_products<T, 1>(of_gates, block, depth, to, count, of.columns, valid, !begin); break;
          case 2: add_products<T, 2>(of_gates, block, depth, to, count, of.columns, valid, !begin); break;
          case 3: add_products<T, 3>(of_gates, block, depth, to, count, of.columns, valid, !begin); break;
          default: add_products<T, 4>(of_gates, block, depth, to, count, of.columns, valid, !begin);
        }
      }
      skipped += blocks;
    }
  }
}

// Blocks of hidden units, and how many weights a direction has, for `sharing_of`.
struct BackwardBlocks {
  int64_t count, numbers;
  int64_t block_size() const { return numbers / count; }
};

template <typename T>
int run_backward(const Call<T>& call) {
  if (!call.sequences) return 0;
  constexpr int64_t WIDE = GATES * width<T>;
  const int64_t H = call.hidden_size, I = call.input_size, stride = gate_numbers(call.kind) * H, rows = weight_rows(call);
  const int64_t count = divide_up(H, WIDE), input_count = call.grad_x ? divide_up(I, WIDE) : 0, states = call.sequences * H;
  const int64_t hidden_size = count * rows * WIDE, input_size = input_count * rows * WIDE;
  const Sharing sharing = sharing_of(call, BackwardBlocks{count, rows * (H + I)});
  const bool is_one_step = call.lengths[0] == 1;
  Buffer<T> laid_out((hidden_size + input_size) * call.directions);
  Buffer<T> carried(states * call.directions * (call.kind == LSTM ? 2 : 1));
  Buffer<const T*> rows_of_x(call.steps), before(call.steps * call.directions);
  if (!laid_out.data || !carried.data || !rows_of_x.data || !before.data) return 1;
  for (int64_t i = 0; i < call.steps; i++) rows_of_x.data[i] = call.x + i * I;
  Columns<T> hidden[2], input[2];
  WeightGradient<T> weights[2][2];
  int64_t blocks = 1;  // one at least, for the biases
  for (int d = 0; d < call.directions; d++) {
    const Direction<T>& to = call.direction[d];
    T* at = laid_out.data + d * (hidden_size + input_size);
    hidden[d] = {to.weight_hh, rows, H, 0, is_one_step, at};
    // The gradients of a GRU's gates stand in the order n, r, z; its weights in the order r, z, n.
    input[d] = {to.weight_ih, rows, I, call.kind == GRU ? 2 * H : 0, is_one_step && call.kind != GRU, at + hidden_size};
    weights[d][0] = {rows_of_x.data, I, to.grad_weight_ih, to.grad_bias_ih};
    weights[d][1] = {before.data + d * call.steps, H, to.grad_weight_hh, to.grad_bias_hh};
    blocks = std::max(blocks, (to.grad_weight_ih ? divide_up(I, WIDE) : 0) + (to.grad_weight_hh ? divide_up(H, WIDE) : 0));
  }
  const List<Gates> all_gates = gates_of_weights(call);
  // Rows of gradients of gates that stay in the cache while the weights of one block are read.
  const int64_t chunk = std::max<int64_t>(8 * ROWS, (int64_t{1} << 18) / (stride * sizeof(T)));
  // One thread walks through a sequence that is alone; but all share the gradients of inputs and weights.
  const bool is_small = call.directions * rows * (H + I) * call.steps < SMALL_WORK;
  Barrier barrier;
  bool failed = false;
  const RoundsAs::Mode rounding = RoundsAs::of_this_thread();
#pragma omp parallel num_threads(is_small ? 1 : call.threads)
  {
    const RoundsAs caller(rounding);
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    std::optional<WalkBack<T>> walks[2];
    try {
      for (int d = 0; d < call.directions; d++) {
        auto end = [&](int64_t i) { return std::clamp<int64_t>(call.directions * count * i / threads - d * count, 0, count); };
        const int64_t from = sharing.by_units ? end(thread) : 0, to = sharing.by_units ? end(thread + 1) : count;
        if (from == to) continue;
        T *of_hidden = carried.data + d * states, *of_cells = call.kind == LSTM ? of_hidden + call.directions * states : nullptr;
        walks[d].emplace(call, d, hidden[d], from, to, sharing.by_units ? all_sequences(call) : sequences_of(call, d, thread, threads),
                         of_hidden, of_cells, before.data + d * call.steps);
      }
    } catch (const std::bad_alloc&) {
#pragma omp atomic write
      failed = true;
    }
#pragma omp for collapse(2)
    for (int d = 0; d < call.directions; d++)
      for (int64_t block = 0; block < count + input_count; block++) {
        if (block >= count)
          input[d].lay_out(block - count);
        else if (!is_one_step || call.direction[d].grad_hidden)
          hidden[d].lay_out(block);
      }
    // All threads read the same value of `failed`, because the loop above ends with a barrier, and nothing writes it later.
    if (!failed) {
      if (sharing.by_units) {
        for (int64_t t = call.lengths[0] - 1; t >= 0; t--) {
          for (auto& walk : walks)
            if (walk) walk->compute_gates(t);
          barrier.wait(threads);
          for (auto& walk : walks)
            if (walk) walk->multiply_gates(t);
        }
      } else {
        for (auto& walk : walks)
          for (int64_t t = walk ? walk->longest() - 1 : -1; t >= 0; t--) {
            walk->compute_gates(t);
            walk->multiply_gates(t);
          }
      }
      for (auto& walk : walks)
        if (walk) walk->finish();
    }
#pragma omp barrier
#pragma omp for collapse(2) schedule(dynamic) nowait
    for (int64_t begin = 0; begin < call.steps; begin += chunk)
      for (int64_t block = 0; block < input_count; block++)
        if (!failed) input_gradients(call, input, block, begin, std::min(call.steps, begin + chunk));
    for (int d = 0; d < call.directions; d++)
      for (const Gates& gates : all_gates) {
#pragma omp for collapse(2) schedule(dynamic) nowait
        for (int64_t first = 0; first < gates.count; first += TALL)
          for (int64_t block = 0; block < blocks; block += BROAD) {
            if (failed) continue;
            const int64_t row[] = {gates.row[0] < 0 ? -1 : gates.row[0] + first, gates.row[1] < 0 ? -1 : gates.row[1] + first};
            weight_gradients(weights[d], call.direction[d].grad_gates + gates.first + first, stride, call.steps, row,
                             std::min(TALL, gates.count - first), block, block + BROAD);
          }
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
