// LSTM, GRU and RNN over flat values, forward and backward, without padding and without packing.
//
// A thread runs some sequences side by side, the longest first, or all of them through some of the units (see Sharing).
// Weights are laid out so that one block of units reads them from front to back; gates stay in registers from the product to
// the new state. Every row is computed by the same operations in the same order whatever stands beside it, hence the same bits.
#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <new>
#include <numeric>
#include <optional>
#include <utility>

#include "products.h"
#include "recurrent.h"

namespace seqbatch::SEQBATCH_ISA {
namespace {

constexpr int GATES = SUMS;  // of one row
#ifdef SEQBATCH_TEST
constexpr int64_t LONG_STEP = 0;
#else
constexpr int64_t LONG_STEP = int64_t{1} << 17;  // in multiplications
#endif

// ---------------------------------------------------------------------------------------------------- laid out weights

// Numbers of a block that stand before its weights.
template <typename T>
constexpr int64_t BEFORE_WEIGHTS = 2 * GATES * width<T>;

// Features of the outputs, which are the hidden states too.
template <typename T>
int64_t output_size(const Call<T>& call) {
  return call.projection ? call.projection : call.hidden_size;
}

// How many vectors are in a block of some numbers that have one gate: up to four, and about as many in each block.
template <typename T>
int vectors_in_block(int64_t numbers) {
  const int64_t vectors = divide_up(numbers, width<T>);
  return static_cast<int>(divide_up(vectors, divide_up(vectors, GATES)));
}

// How the units of a layer are cut into blocks. An LSTM and a GRU have all gates of `width` units in a block; an RNN,
// which has one gate, has several vectors of units in their place.
template <typename T>
struct Blocks {
  int64_t hidden, input, output, per_block, count;
  int gates;  // of the weights; an RNN has as many as there are vectors in the block

  Blocks(const Call<T>& call)
      : hidden(call.hidden_size), input(call.input_size), output(output_size(call)) {
    constexpr int W = width<T>;
    gates = call.kind == LSTM ? 4 : call.kind == GRU ? 3 : vectors_in_block<T>(hidden);
    per_block = call.kind == LSTM || call.kind == GRU ? W : int64_t{W} * gates;
    count = divide_up(hidden, per_block);
  }
  // Numbers of one block: its biases, what hidden zeros add to them, then for each feature of the input and of the hidden
  // state the weights to its gates.
  int64_t block_size() const { return BEFORE_WEIGHTS<T> + (input + output) * gates * width<T>; }
};

template <typename T>
T value_or_0(const T* values, int64_t i) {
  return values == nullptr ? T(0) : values[i];
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
  for (const auto& [weights, size] : {std::pair{direction.weight_ih, blocks.input}, std::pair{direction.weight_hh, blocks.output}}) {
    for (int g = 0; g < blocks.gates; g++) {
      const int64_t lanes = H - unit(g);
      const Vector<T> sum = transpose_rows(weights + (lanes > 0 ? row(g) : 0) * size, size, size, lanes, to + g * W, stride);
      if (weights != direction.weight_hh) continue;
      // -0 in place of 0, because adding it changes no number, not even -0.
      store(of_zeros + (call.kind == GRU && g == 2 ? 3 : g) * W, sum == 0 ? all(-T(0)) : sum);
    }
    to += size * stride;
  }
}

// The projection of one direction, whose features are cut into blocks of several vectors.
template <typename T>
struct Projection {
  const T* weight = nullptr;
  int64_t hidden = 0, output = 0, per_block = 0, count = 0;  // all 0 without a projection
  int vectors = 0;
  T* units = nullptr;  // (sequences, stride): the outputs of all units in the current step, before the projection
  int64_t stride = 0;  // whole lines of the cache, because each sequence may have a thread of its own
  T* laid_out = nullptr;  // [block][hidden][vectors][width]

  Projection() = default;
  Projection(const Call<T>& call, int d) {
    if (!call.projection) return;
    weight = call.direction[d].weight_hr;
    hidden = call.hidden_size;
    output = call.projection;
    vectors = vectors_in_block<T>(output);
    per_block = int64_t{vectors} * width<T>;
    count = divide_up(output, per_block);
    stride = divide_up(hidden, 64 / sizeof(T)) * (64 / sizeof(T));
  }

  int64_t laid_out_size() const { return count * hidden * per_block; }
  T* block(int64_t i) const { return laid_out + i * hidden * per_block; }

  [[gnu::flatten]] void lay_out(int64_t i) const {
    for (int v = 0; v < vectors; v++) {
      const int64_t first = i * per_block + v * width<T>, lanes = output - first;
      transpose_rows(weight + (lanes > 0 ? first : 0) * hidden, hidden, hidden, lanes, block(i) + v * width<T>, per_block);
    }
  }
};

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
  T* out;           // of the units; the output itself unless it is projected
  T* projected;     // the output after the projection, or null
  T* saved;         // null if backward needs nothing
};

// One step of R sequences in one block of units.
template <typename T>
struct Step {
  const Row<T>* rows;
  const T* sums;  // of gates before this step: the biases, or for each row those with its input added ahead
  int64_t sums_stride;
  bool adds_input;
  int64_t input, output, size, unit, cell_unit, valid;
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
    multiply<T, R, G, LAST>(acc, rows, s.output, weights + s.input * G * W);
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

// One step of R sequences in one block of a projection.
template <typename T, int R, int V>
[[gnu::flatten]] void project_block(const Row<T>* rows, const Projection<T>& projection, int64_t block) {
  constexpr int W = width<T>;
  Vector<T> acc[R][GATES] = {};
  const T* units[R];
  for (int r = 0; r < R; r++) units[r] = rows[r].out;
  multiply<T, R, V, V - 1>(acc, units, projection.hidden, projection.block(block));
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) {
      const int64_t first = block * projection.per_block + v * W, valid = projection.output - first;
      if (valid > 0) store(rows[r].projected + first, acc[r][v], valid);
    }
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
  Walk(const Call<T>& call, int d, const Blocks<T>& blocks, int64_t begin, int64_t end, List<int64_t> sequences, LaidOut<T> weights,
       const Projection<T>& projection)
      : call_(call), direction_(call.direction[d]), blocks_(blocks), projection_(projection), d_(d), begin_(begin), end_(end),
        begin_projection_(projection.count * begin / blocks.count), end_projection_(projection.count * end / blocks.count), weights_(weights),
        sequences_(std::move(sequences)), rows_(sequences_.size()), alive_(sequences_.size()), ahead_x_(ahead_rows()),
        ahead_sums_(ahead_x_.size() * (end - begin) * SUMS) {
    if (!ahead_sums_.data) throw std::bad_alloc();
    const int64_t count = sequences_.size(), H = blocks.hidden, O = blocks.output;
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
      to.hidden = direction_.hidden ? direction_.hidden + place * O : nullptr;
      to.out = direction_.out + row * call.out_stride;
      if (call.projection) to.projected = std::exchange(to.out, projection.units + sequences_[a] * projection.stride);
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

  // Computes the outputs of the units. It must be followed by `project`, if there is a projection, and by `advance`.
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
                     blocks_.input, blocks_.output, blocks_.hidden, unit, unit - first_unit_, blocks_.hidden - unit};
        run_block<T, decltype(r)::value>(call_.kind, blocks_.gates, weights, step);
      });
    }
  }

  // Projects the outputs of the units, which must be there for all units.
  void project() {
    for (int64_t block = begin_projection_; block < end_projection_; block++) {
      if (weights_.is_owner && t_ == 0) projection_.lay_out(block);
      in_blocks(alive_, [&](int64_t first, auto r) {
        with_gates(projection_.vectors, [&](auto v) {
          project_block<T, decltype(r)::value, decltype(v)::value>(&rows_[first], projection_, block);
        });
      });
    }
  }

  void advance() {
    const int64_t to_next = d_ ? -1 : 1;
    ahead_place_ += alive_;
    for (int64_t a = 0; a < alive_; a++) {
      Row<T>& row = rows_[a];
      row.x += to_next * call_.input_size;
      T*& out = call_.projection ? row.projected : row.out;
      row.hidden = out;
      out += to_next * call_.out_stride;
      if (row.saved) row.saved += to_next * saved_numbers(call_.kind) * blocks_.hidden;
    }
    t_++;
  }

  void finish() {
    const int64_t H = blocks_.hidden, O = blocks_.output;
    // The features of the hidden state that this thread has computed.
    const int64_t first = call_.projection ? begin_projection_ * projection_.per_block : first_unit_;
    const int64_t end = call_.projection ? std::min(O, end_projection_ * projection_.per_block) : first_unit_ + units_;
    for (size_t a = 0; a < sequences_.size(); a++) {
      const int64_t place = call_.index[sequences_[a]];
      if (direction_.final_hidden) std::copy(rows_[a].hidden + first, rows_[a].hidden + end, direction_.final_hidden + place * O + first);
      if (direction_.final_cell && !cells_.empty())
        std::copy_n(rows_[a].cell, units_, direction_.final_cell + place * H + first_unit_);
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
  const Projection<T>& projection_;
  int d_;
  int64_t begin_, end_, begin_projection_, end_projection_;
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
  const int64_t numbers = blocks.count * blocks.block_size() + call.projection * call.hidden_size;  // of weights, in one direction
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
  Projection<T> projections[2];
  for (int d = 0; d < call.directions; d++) projections[d] = {call, d};
  // One buffer for all, because a thread keeps few: units, weights, and weights of projections.
  const int64_t units_size = call.sequences * projections[0].stride, weights_size = size * (needs_all ? all_blocks : sharing.threads);
  Buffer<T> memory((units_size + projections[0].laid_out_size()) * call.directions + weights_size);
  if (!memory.data) return 1;
  T* const weights = memory.data + units_size * call.directions;
  for (int d = 0; d < call.directions; d++) {
    projections[d].units = memory.data + d * units_size;
    projections[d].laid_out = weights + weights_size + d * projections[d].laid_out_size();
  }
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
        const LaidOut<T> all{weights + d * blocks.count * size, size, sharing.by_units};
        if (!sharing.by_units) {
          walks[d].emplace(call, d, blocks, 0, blocks.count, sequences_of(call, d, thread, threads), all, projections[d]);
          continue;
        }
        auto end = [&](int64_t i) { return std::clamp<int64_t>(all_blocks * i / threads - d * blocks.count, 0, blocks.count); };
        const LaidOut<T> one{weights + thread * size, 0, true};
        if (end(thread) < end(thread + 1))
          walks[d].emplace(call, d, blocks, end(thread), end(thread + 1), all_sequences(call), needs_all ? all : one, projections[d]);
      }
    } catch (const std::bad_alloc&) {
#pragma omp atomic write
      failed = true;
    }
    if (!sharing.by_units) {
#pragma omp for
      for (int64_t i = 0; i < all_blocks + call.directions * projections[0].count; i++)
        if (i < all_blocks)
          lay_out_block(call, call.direction[i / blocks.count], blocks, i % blocks.count, weights + i * size);
        else
          projections[(i - all_blocks) / projections[0].count].lay_out((i - all_blocks) % projections[0].count);
    } else if (!is_one_step || call.projection) {  // where threads wait for each other, all must know if one has failed
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
        if (call.projection) {
          barrier.wait(threads);
          for (auto& walk : walks)
            if (walk) walk->project();
        }
        for (auto& walk : walks)
          if (walk) walk->advance();
      }
    }
    for (auto& walk : walks) {
      if (!walk || stops) continue;
      while (!walk->is_done()) {
        walk->step();
        if (call.projection) walk->project();
        walk->advance();
      }
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
// the step after it, and becomes that for the step before it, without the part that goes through the hidden weights. Where
// the output is projected, `grad_out` is null, `carry.hidden` is the gradient before the projection, and `units` gets the
// outputs before the projection.
template <typename T>
[[gnu::noinline]] void gate_gradients(const Call<T>& call, const Direction<T>& direction, int64_t row, const T* before, const T* cell_before,
                    const T* grad_out, Carry<T> carry, T* units, int64_t begin, int64_t end) {
  constexpr int64_t W = width<T>;
  const int64_t H = call.hidden_size;
  const T* saved = direction.saved + row * saved_numbers(call.kind) * H;
  const T* out = direction.out + row * call.out_stride;
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
      if (units) write(units, o * cell);
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

// The gradients of R rows before a projection, from those after it, in one block of units.
template <typename T, int R>
[[gnu::flatten]] void unproject_block(const Columns<T>& weights, int64_t block, const T* const* from, T* const* to) {
  Vector<T> acc[R][GATES] = {};
  multiply<T, R, 4, 3>(acc, from, weights.rows, weights.block(block), weights.stride(block));
  store_block<T, R>(acc, to, block * Columns<T>::WIDE, weights.columns);
}

// What the threads share in the backward pass of a direction.
template <typename T>
struct Shared {
  Columns<T> weights, projection;  // weight_hh and weight_hr
  T *hidden, *cells;               // (sequences, output), (sequences, hidden): the gradients that go back from step to step
  const T** before;                // (steps): the hidden state before each step, or null
  // With a projection: the gradients of the current outputs of units, and for all steps those of the outputs, with all that
  // comes back through the hidden state, and the outputs of units.
  T *grad_units, *grad_out, *units;  // (sequences, hidden), (steps, output), (steps, hidden)
};

// Some sequences in one direction, through some blocks of units, step by step from the last: the work of one thread.
template <typename T>
class WalkBack {
 public:
  WalkBack(const Call<T>& call, int d, const Shared<T>& shared, int64_t begin, int64_t end, List<int64_t> sequences)
      : call_(call), direction_(call.direction[d]), d_(d), shared_(shared), begin_(begin), end_(end),
        first_unit_(begin * WIDE), end_unit_(std::min(call.hidden_size, end * WIDE)), sequences_(std::move(sequences)),
        gates_(sequences_.size()), carry_(sequences_.size()), hidden_(sequences_.size()),
        grad_units_(call.projection ? sequences_.size() : 0), grad_out_(grad_units_.size()) {
    const int64_t H = call.hidden_size, O = output_size(call), units = divide_up(H, WIDE), outputs = divide_up(O, WIDE);
    begin_output_ = outputs * begin / units;
    end_output_ = outputs * end / units;
    for (size_t a = 0; a < sequences_.size(); a++) {
      const int64_t place = call.index[sequences_[a]];
      carry_[a] = {shared.hidden + sequences_[a] * O, call.kind == LSTM ? shared.cells + sequences_[a] * H : nullptr};
      hidden_[a] = carry_[a].hidden;
      start(direction_.grad_final_hidden, place * O, hidden_[a], begin_output_ * WIDE, std::min(O, end_output_ * WIDE));
      if (call.kind == LSTM) start(direction_.grad_final_cell, place * H, carry_[a].cell, first_unit_, end_unit_);
      if (!call.projection) continue;
      grad_units_[a] = shared.grad_units + sequences_[a] * H;
      carry_[a].hidden = grad_units_[a];
    }
  }

  int64_t longest() const { return sequences_.empty() ? 0 : call_.lengths[sequences_[0]]; }

  // Adds up the gradients of the outputs of a step. With a projection it must be called before the two others.
  void add_outputs(int64_t t) {
    constexpr int W = width<T>;
    const int64_t O = call_.projection;
    find_alive(t);
    for (int64_t a = 0; a < alive_; a++) {
      const int64_t row = row_of(call_, d_, sequences_[a], t);
      const T* from = direction_.grad_out ? direction_.grad_out + row * call_.out_stride : nullptr;
      T* to = shared_.grad_out + row * O;
      grad_out_[a] = to;
      for (int64_t k = begin_output_ * WIDE; k < std::min(O, end_output_ * WIDE); k += W) {
        store(to + k, (from ? load(from + k, O - k) : Vector<T>{}) + load(hidden_[a] + k, O - k), O - k);
        store(hidden_[a] + k, Vector<T>{}, O - k);
      }
    }
  }

  // With a projection, `add_outputs` must have been called for all features of the outputs.
  void compute_gates(int64_t t) {
    const int64_t H = call_.hidden_size;
    find_alive(t);
    if (call_.projection) unproject();
    for (int64_t a = 0; a < alive_; a++) {
      const int64_t sequence = sequences_[a], row = row_of(call_, d_, sequence, t), place = call_.index[sequence];
      const T *before = nullptr, *cell_before = nullptr;
      if (t) {
        const int64_t earlier = row_of(call_, d_, sequence, t - 1);
        before = direction_.out + earlier * call_.out_stride;
        if (call_.kind == LSTM) cell_before = direction_.saved + (earlier * saved_numbers(LSTM) + 4) * H;
      } else {
        if (direction_.hidden) before = direction_.hidden + place * output_size(call_);
        if (direction_.cell) cell_before = direction_.cell + place * H;
      }
      if (!first_unit_) shared_.before[row] = before;  // by one thread of those that share units
      // A GRU's hidden weights take r, z and the hidden part of n, which stand after the part of the input.
      gates_[a] = direction_.grad_gates + row * gate_numbers(call_.kind) * H + (call_.kind == GRU ? H : 0);
      const T* grad_out = direction_.grad_out && !call_.projection ? direction_.grad_out + row * call_.out_stride : nullptr;
      T* units = call_.projection ? shared_.units + row * H : nullptr;
      gate_gradients(call_, direction_, row, before, cell_before, grad_out, carry_[a], units, first_unit_, end_unit_);
    }
  }

  // Adds the part of `carry` that goes through the hidden weights. The gradients of all gates must have been computed.
  void multiply_gates(int64_t t) {
    if (!t && !direction_.grad_hidden) return;
    constexpr int W = width<T>;
    const int64_t O = output_size(call_);
    const Columns<T>& weights = shared_.weights;
    for (int64_t block = begin_output_; block < end_output_; block++)
      in_blocks(alive_, [&](int64_t i, auto r) {
        constexpr int R = decltype(r)::value;
        const int64_t first = block * WIDE;
        Vector<T> acc[R][GATES];
        for (int n = 0; n < R; n++)
          for (int g = 0; g < GATES; g++) {
            int64_t unit = first + g * W;
            acc[n][g] = unit < O ? load(hidden_[i + n] + unit, O - unit) : Vector<T>{};
          }
        multiply<T, R, 4, 3>(acc, &gates_[i], weights.rows, weights.block(block), weights.stride(block));
        store_block<T, R>(acc, &hidden_[i], first, O);
      });
  }

  void finish() {
    const int64_t H = call_.hidden_size, O = output_size(call_), first = begin_output_ * WIDE, end = std::min(O, end_output_ * WIDE);
    for (size_t a = 0; a < sequences_.size(); a++) {
      const int64_t place = call_.index[sequences_[a]];
      if (direction_.grad_hidden) std::copy(hidden_[a] + first, hidden_[a] + end, direction_.grad_hidden + place * O + first);
      if (direction_.grad_cell)
        std::copy(carry_[a].cell + first_unit_, carry_[a].cell + end_unit_, direction_.grad_cell + place * H + first_unit_);
    }
  }

 private:
  static constexpr int64_t WIDE = Columns<T>::WIDE;

  static void start(const T* grad_final, int64_t from, T* to, int64_t first, int64_t end) {
    if (grad_final)
      std::copy(grad_final + from + first, grad_final + from + end, to + first);
    else
      std::fill(to + first, to + end, T(0));
  }

  void find_alive(int64_t t) {
    const int64_t count = sequences_.size();
    while (alive_ < count && call_.lengths[sequences_[alive_]] > t) alive_++;
  }

  // Computes the gradients of the outputs of units, before the projection.
  void unproject() {
    for (int64_t block = begin_; block < end_; block++)
      in_blocks(alive_, [&](int64_t i, auto r) {
        unproject_block<T, decltype(r)::value>(shared_.projection, block, &grad_out_[i], &grad_units_[i]);
      });
  }

  const Call<T>& call_;
  const Direction<T>& direction_;
  int d_;
  const Shared<T>& shared_;
  int64_t begin_, end_, first_unit_, end_unit_, begin_output_, end_output_;
  List<int64_t> sequences_;
  List<const T*> gates_;
  List<Carry<T>> carry_;
  List<T*> hidden_;  // as `carry_`, but of the features of the outputs
  List<T*> grad_units_;
  List<const T*> grad_out_;
  int64_t alive_ = 0;
};

// The gradient of some rows of the input in one block of columns, through all directions.
template <typename T>
[[gnu::noinline]] void input_gradients(const Call<T>& call, const Columns<T>* weights, int64_t block, int64_t begin, int64_t end) {
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

// Blocks of outputs, and how many weights a direction has, for `sharing_of`.
struct BackwardBlocks {
  int64_t count, numbers;
  int64_t block_size() const { return numbers / count; }
};

template <typename T>
int run_backward(const Call<T>& call) {
  if (!call.sequences) return 0;
  constexpr int64_t WIDE = GATES * width<T>;
  const int64_t H = call.hidden_size, I = call.input_size, O = output_size(call), P = call.projection, D = call.directions;
  const int64_t stride = gate_numbers(call.kind) * H, rows = weight_rows(call), numbers = rows * (O + I) + P * H;
  // Blocks of units, of outputs, of the projection's units and of inputs.
  const int64_t count = divide_up(H, WIDE), output_count = divide_up(O, WIDE), projection_count = P ? count : 0;
  const int64_t input_count = call.grad_x ? divide_up(I, WIDE) : 0;
  const int64_t hidden_size = output_count * rows * WIDE, projection_size = projection_count * P * WIDE, input_size = input_count * rows * WIDE;
  const Sharing sharing = sharing_of(call, BackwardBlocks{output_count, rows * (O + I)});
  const bool is_one_step = call.lengths[0] == 1;
  Buffer<T> laid_out((hidden_size + projection_size + input_size) * D);
  const int64_t states = call.sequences * H, outputs = call.sequences * O;
  const int64_t carried_size = outputs + (call.kind == LSTM ? states : 0) + (P ? states + call.steps * (P + H) : 0);
  Buffer<T> carried(carried_size * D);
  Buffer<const T*> rows_of_x(call.steps), before(call.steps * D * (P ? 2 : 1));
  if (!laid_out.data || !carried.data || !rows_of_x.data || !before.data) return 1;
  for (int64_t i = 0; i < call.steps; i++) rows_of_x.data[i] = call.x + i * I;
  Shared<T> shared[2] = {};
  Columns<T> input[2];
  WeightGradient<T> weights[2][2], of_projection[2][2] = {};
  int64_t blocks = 1;  // one at least, for the biases
  for (int d = 0; d < D; d++) {
    const Direction<T>& to = call.direction[d];
    T* at = laid_out.data + d * (hidden_size + projection_size + input_size);
    T *hidden = carried.data + d * carried_size, *cells = hidden + outputs;
    shared[d] = {{to.weight_hh, rows, O, 0, is_one_step, at}, {to.weight_hr, P, H, 0, is_one_step, at + hidden_size},
                 hidden, cells, before.data + d * call.steps, nullptr, nullptr, nullptr};
    // The gradients of a GRU's gates stand in the order n, r, z; its weights in the order r, z, n.
    input[d] = {to.weight_ih, rows, I, call.kind == GRU ? 2 * H : 0, is_one_step && call.kind != GRU, at + hidden_size + projection_size};
    weights[d][0] = {rows_of_x.data, I, to.grad_weight_ih, to.grad_bias_ih};
    weights[d][1] = {shared[d].before, O, to.grad_weight_hh, to.grad_bias_hh};
    blocks = std::max(blocks, (to.grad_weight_ih ? divide_up(I, WIDE) : 0) + (to.grad_weight_hh ? divide_up(O, WIDE) : 0));
    if (!P) continue;
    shared[d].grad_units = cells + states;
    shared[d].grad_out = shared[d].grad_units + states;
    shared[d].units = shared[d].grad_out + call.steps * P;
    const T** rows_of_units = before.data + (D + d) * call.steps;
    for (int64_t i = 0; i < call.steps; i++) rows_of_units[i] = shared[d].units + i * H;
    of_projection[d][0] = {rows_of_units, H, to.grad_weight_hr, nullptr};
  }
  const List<Gates> all_gates = gates_of_weights(call);
  // Rows of gradients of gates that stay in the cache while the weights of one block are read.
  const int64_t chunk = std::max<int64_t>(8 * ROWS, (int64_t{1} << 18) / (stride * sizeof(T)));
  // One thread walks through a sequence that is alone; but all share the gradients of inputs and weights.
  const bool is_small = D * numbers * call.steps < SMALL_WORK;
  Barrier barrier;
  bool failed = false;
  const RoundsAs::Mode rounding = RoundsAs::of_this_thread();
#pragma omp parallel num_threads(is_small ? 1 : call.threads)
  {
    const RoundsAs caller(rounding);
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    std::optional<WalkBack<T>> walks[2];
    try {
      for (int d = 0; d < D; d++) {
        auto end = [&](int64_t i) { return std::clamp<int64_t>(D * count * i / threads - d * count, 0, count); };
        const int64_t from = sharing.by_units ? end(thread) : 0, to = sharing.by_units ? end(thread + 1) : count;
        if (from == to) continue;
        walks[d].emplace(call, d, shared[d], from, to, sharing.by_units ? all_sequences(call) : sequences_of(call, d, thread, threads));
      }
    } catch (const std::bad_alloc&) {
#pragma omp atomic write
      failed = true;
    }
#pragma omp for collapse(2)
    for (int d = 0; d < D; d++)
      for (int64_t block = 0; block < projection_count + input_count + output_count; block++) {
        if (block < projection_count)
          shared[d].projection.lay_out(block);
        else if (block < projection_count + input_count)
          input[d].lay_out(block - projection_count);
        else if (!is_one_step || call.direction[d].grad_hidden)
          shared[d].weights.lay_out(block - projection_count - input_count);
      }
    // All threads read the same value of `failed`, because the loop above ends with a barrier, and nothing writes it later.
    if (!failed) {
      if (sharing.by_units) {
        for (int64_t t = call.lengths[0] - 1; t >= 0; t--) {
          if (P) {
            for (auto& walk : walks)
              if (walk) walk->add_outputs(t);
            barrier.wait(threads);
          }
          for (auto& walk : walks)
            if (walk) walk->compute_gates(t);
          barrier.wait(threads);
          for (auto& walk : walks)
            if (walk) walk->multiply_gates(t);
        }
      } else {
        for (auto& walk : walks)
          for (int64_t t = walk ? walk->longest() - 1 : -1; t >= 0; t--) {
            if (P) walk->add_outputs(t);
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
    for (int d = 0; d < D; d++)
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
    for (int d = 0; d < D; d++) {
      if (!P || !call.direction[d].grad_weight_hr) continue;
#pragma omp for collapse(2) schedule(dynamic) nowait
      for (int64_t first = 0; first < P; first += TALL)
        for (int64_t block = 0; block < count; block += BROAD)
          if (!failed)
            weight_gradients(of_projection[d], shared[d].grad_out + first, P, call.steps, {first, -1}, std::min(TALL, P - first), block, block + BROAD);
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
