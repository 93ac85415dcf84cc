// LSTM, GRU and RNN over flat values, forward and backward, without padding and without packing.
//
// A thread takes whole sequences and walks through their steps side by side, the longest first. Weights are laid out so
// that one block of units reads them from front to back; gates stay in registers from the product to the new state.
// Every row is computed by the same operations in the same order whatever stands beside it, hence the same bits.
#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <new>
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

// Memory for laid out weights; null where there is not enough.
template <typename T>
struct Buffer {
  explicit Buffer(int64_t size) : data(static_cast<T*>(std::aligned_alloc(64, divide_up(size * sizeof(T), 64) * 64 + 64))) {}
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data;
};

// ---------------------------------------------------------------------------------------------------- laid out weights

// How the units of a layer are cut into blocks. An LSTM and a GRU have all gates of `width` units in a block; an RNN,
// which has one gate, has up to four vectors of units in their place.
template <typename T>
struct Blocks {
  int64_t hidden, input, per_block, count;
  int gates;  // of the weights; an RNN has as many as there are vectors in the block

  Blocks(const Call<T>& call)
      : hidden(call.hidden_size), input(call.input_size) {
    constexpr int W = width<T>;
    gates = call.kind == LSTM ? 4 : call.kind == GRU ? 3 : static_cast<int>(std::min<int64_t>(4, divide_up(hidden, W)));
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

template <typename T>
void lay_out_block(const Call<T>& call, const Direction<T>& direction, const Blocks<T>& blocks, int64_t block, T* to) {
  constexpr int W = width<T>;
  const int64_t H = blocks.hidden;
  const bool is_rnn = call.kind == RNN_TANH || call.kind == RNN_RELU;
  for (int g = 0; g < GATES; g++)
    for (int lane = 0; lane < W; lane++) {
      int64_t unit = block * blocks.per_block + (is_rnn ? g * W + lane : lane);
      bool is_there = unit < H && (!is_rnn || g < blocks.gates);
      T bias = 0;
      if (is_there && call.kind == GRU && g >= 2)  // the two parts of n are apart: only one is multiplied by r
        bias = value_or_0(g == 2 ? direction.bias_ih : direction.bias_hh, 2 * H + unit);
      else if (is_there) {
        int64_t row = is_rnn ? unit : g * H + unit;
        bias = value_or_0(direction.bias_ih, row) + value_or_0(direction.bias_hh, row);
      }
      to[g * W + lane] = bias;
    }
  to += GATES * W;
  for (const auto& [weights, size] : {std::pair{direction.weight_ih, blocks.input}, std::pair{direction.weight_hh, H}}) {
    for (int g = 0; g < blocks.gates; g++)
      for (int lane = 0; lane < W; lane++) {
        int64_t unit = block * blocks.per_block + (is_rnn ? g * W + lane : lane);
        T* column = to + g * W + lane;
        const int64_t step = blocks.gates * W;
        if (unit < H) {
          const T* row = weights + (is_rnn ? unit : g * H + unit) * size;
          for (int64_t k = 0; k < size; k++) column[k * step] = row[k];
        } else {
          for (int64_t k = 0; k < size; k++) column[k * step] = 0;
        }
      }
    to += size * blocks.gates * W;
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
  for (int64_t i = 0; i < call.sequences; i++) {
    int64_t item = i * call.directions + direction, round = item / threads, place = item % threads;
    if ((round % 2 ? threads - 1 - place : place) == thread) share.sequences.push_back(i);
  }
  return share;
}

template <typename T>
int64_t row_of(const Call<T>& call, int direction, int64_t sequence, int64_t step) {
  return call.starts[sequence] + (direction ? call.lengths[sequence] - 1 - step : step);
}

// ------------------------------------------------------------------------------------------------------------ forward

// What one block of units of R sequences reads and writes in one step.
template <typename T>
struct Step {
  const T* const* x;
  const T* const* hidden;  // null in the first step from no state
  T* const* cell;
  T* const* out;
  T* const* saved;  // null if backward needs nothing
  int64_t input, size, unit, valid;
};

template <typename T, int R>
inline void lstm_block(const T* weights, const Step<T>& s) {
  constexpr int W = width<T>;
  Vector<T> acc[R][GATES];
  for (int r = 0; r < R; r++)
    for (int g = 0; g < GATES; g++) acc[r][g] = load(weights + g * W);
  weights += GATES * W;
  multiply<T, R, 4, 3>(acc, s.x, s.input, weights);
  if (s.hidden) multiply<T, R, 4, 3>(acc, s.hidden, s.size, weights + s.input * 4 * W);
  for (int r = 0; r < R; r++) {
    Vector<T> i = sigmoid(acc[r][0]), f = sigmoid(acc[r][1]), g = hyperbolic_tangent(acc[r][2]), o = sigmoid(acc[r][3]);
    Vector<T> cell = f * load(s.cell[r] + s.unit) + i * g;
    store(s.cell[r] + s.unit, cell);
    store(s.out[r] + s.unit, o * hyperbolic_tangent(cell), s.valid);
    if (s.saved) {
      const Vector<T> saved[] = {i, f, g, o, cell};
      for (int n = 0; n < 5; n++) store(s.saved[r] + n * s.size + s.unit, saved[n], s.valid);
    }
  }
}

template <typename T, int R>
inline void gru_block(const T* weights, const Step<T>& s) {
  constexpr int W = width<T>;
  Vector<T> acc[R][GATES];
  for (int r = 0; r < R; r++)
    for (int g = 0; g < GATES; g++) acc[r][g] = load(weights + g * W);
  weights += GATES * W;
  multiply<T, R, 3, 2>(acc, s.x, s.input, weights);
  if (s.hidden) multiply<T, R, 3, 3>(acc, s.hidden, s.size, weights + s.input * 3 * W);
  for (int r = 0; r < R; r++) {
    Vector<T> reset = sigmoid(acc[r][0]), z = sigmoid(acc[r][1]);
    Vector<T> n = hyperbolic_tangent(acc[r][2] + reset * acc[r][3]);
    Vector<T> before = s.hidden ? load(s.hidden[r] + s.unit, s.valid) : Vector<T>{};
    store(s.out[r] + s.unit, n + z * (before - n), s.valid);
    if (s.saved) {
      const Vector<T> saved[] = {reset, z, n, acc[r][3]};
      for (int m = 0; m < 4; m++) store(s.saved[r] + m * s.size + s.unit, saved[m], s.valid);
    }
  }
}

template <typename T, int R, int G>
inline void rnn_block(const T* weights, const Step<T>& s, bool is_relu) {
  constexpr int W = width<T>;
  Vector<T> acc[R][GATES];
  for (int r = 0; r < R; r++)
    for (int g = 0; g < G; g++) acc[r][g] = load(weights + g * W);
  weights += GATES * W;
  multiply<T, R, G, G - 1>(acc, s.x, s.input, weights);
  if (s.hidden) multiply<T, R, G, G - 1>(acc, s.hidden, s.size, weights + s.input * G * W);
  for (int r = 0; r < R; r++)
    for (int g = 0; g < G; g++) {
      int64_t valid = s.valid - g * W;
      if (valid <= 0) break;
      Vector<T> a = acc[r][g];
      // As torch.relu, which keeps NaN.
      store(s.out[r] + s.unit + g * W, is_relu ? (a < 0 ? Vector<T>{} : a) : hyperbolic_tangent(a), valid);
    }
}

template <typename T, int R>
inline void run_block(int32_t kind, int gates, const T* weights, const Step<T>& step) {
  if (kind == LSTM) return lstm_block<T, R>(weights, step);
  if (kind == GRU) return gru_block<T, R>(weights, step);
  bool is_relu = kind == RNN_RELU;
  switch (gates) {
    case 1: return rnn_block<T, R, 1>(weights, step, is_relu);
    case 2: return rnn_block<T, R, 2>(weights, step, is_relu);
    case 3: return rnn_block<T, R, 3>(weights, step, is_relu);
    default: return rnn_block<T, R, 4>(weights, step, is_relu);
  }
}

template <typename T>
void run_forward(const Call<T>& call, int d, const Blocks<T>& blocks, const T* weights, const Share& share) {
  const Direction<T>& direction = call.direction[d];
  const int64_t H = call.hidden_size, padded = divide_up(H, width<T>) * width<T>, count = share.sequences.size();
  if (!count) return;
  std::vector<T> cells(call.kind == LSTM ? count * padded : 0);
  if (direction.cell)
    for (int64_t a = 0; a < count; a++)
      std::copy_n(direction.cell + call.index[share.sequences[a]] * H, H, &cells[a * padded]);
  std::vector<const T*> x(count), hidden(count);
  std::vector<T*> cell(count), out(count), saved(count);
  int64_t alive = count;
  for (int64_t t = 0; t < call.lengths[share.sequences[0]]; t++) {
    while (call.lengths[share.sequences[alive - 1]] <= t) alive--;
    for (int64_t a = 0; a < alive; a++) {
      int64_t sequence = share.sequences[a], row = row_of(call, d, sequence, t);
      x[a] = call.x + row * call.input_size;
      if (t)
        hidden[a] = direction.out + row_of(call, d, sequence, t - 1) * call.out_stride;
      else if (direction.hidden)
        hidden[a] = direction.hidden + call.index[sequence] * H;
      if (call.kind == LSTM) cell[a] = &cells[a * padded];
      out[a] = direction.out + row * call.out_stride;
      if (direction.saved) saved[a] = direction.saved + row * saved_numbers(call.kind) * H;
    }
    const bool has_hidden = t || direction.hidden;
    for (int64_t block = 0; block < blocks.count; block++) {
      const int64_t unit = block * blocks.per_block;
      in_blocks(alive, [&](int64_t first, auto r) {
        Step<T> step{&x[first],   has_hidden ? &hidden[first] : nullptr, &cell[first], &out[first],
                     direction.saved ? &saved[first] : nullptr,
                     call.input_size, H, unit, H - unit};
        run_block<T, decltype(r)::value>(call.kind, blocks.gates, weights + block * blocks.block_size(), step);
      });
    }
  }
  for (int64_t a = 0; a < count; a++) {
    int64_t sequence = share.sequences[a], place = call.index[sequence];
    int64_t last = row_of(call, d, sequence, call.lengths[sequence] - 1);
    if (direction.final_hidden) std::copy_n(direction.out + last * call.out_stride, H, direction.final_hidden + place * H);
    if (direction.final_cell) std::copy_n(&cells[a * padded], H, direction.final_cell + place * H);
  }
}

template <typename T>
int run_forward(const Call<T>& call) {
  const Blocks<T> blocks(call);
  const int64_t size = blocks.count * blocks.block_size();
  Buffer<T> weights(size * call.directions);
  if (!weights.data) return 1;
  bool failed = false;
#pragma omp parallel num_threads(call.threads)
  {
#pragma omp for collapse(2)
    for (int d = 0; d < call.directions; d++)
      for (int64_t block = 0; block < blocks.count; block++)
        lay_out_block(call, call.direction[d], blocks, block, weights.data + d * size + block * blocks.block_size());
    try {
      for (int d = 0; d < call.directions; d++)
        run_forward(call, d, blocks, weights.data + d * size, share_of(call, d, omp_get_thread_num(), omp_get_num_threads()));
    } catch (const std::bad_alloc&) {
#pragma omp atomic write
      failed = true;
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

// From the gradient of one row of outputs to that of its gates, for units from `begin` to `end`; `carry` comes from the
// step after, and is that for the step before, but for what goes through the hidden weights.
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

template <typename T>
void run_backward(const Call<T>& call, int d, const T* weights, const Share& share, const T** befores) {
  constexpr int64_t WIDE = GATES * width<T>;
  const Direction<T>& direction = call.direction[d];
  const int64_t H = call.hidden_size, count = share.sequences.size();
  // A GRU's hidden weights take r, z and the hidden part of n, which stand after the part of the input.
  const int64_t skipped = call.kind == GRU ? H : 0, rows = weight_rows(call);
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
      befores[row] = before;
      carried[a] = &hidden[a * H];
      gates[a] = direction.grad_gates + row * gate_numbers(call.kind) * H + skipped;
      gate_gradients(call, direction, row, before, cell_before, {carried[a], call.kind == LSTM ? &cells[a * H] : nullptr}, 0, H);
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
  const int64_t rows = weight_rows(call);
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

// Gradients of weights and biases are sums over all steps in the order of the flat values, whatever the number of threads,
// because these share rows and columns of the results.

// Steps that are added up in registers before they are added to the sums in memory: so many that a block of columns of
// each stays in the first cache. Short chains of sums also round less.
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

// Gates that stand side by side, and the row of both weights that the first of them belongs to; -1 for none.
struct Gates {
  int64_t first, count, row[2];
};

// The gradients of a GRU's gates stand in the order n, r, z and the hidden part of n; its weights in the order r, z, n.
template <typename T>
std::vector<Gates> gates_of_weights(const Call<T>& call) {
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

// Some rows of the gradients of both weights of a direction, in some blocks of columns, counted through both weights; and
// of the biases, with the first of these blocks. `gates` are those of the first step and row, `row` as in Gates.
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

template <typename T>
int run_backward(const Call<T>& call) {
  constexpr int64_t WIDE = GATES * width<T>;
  const int64_t H = call.hidden_size, I = call.input_size, stride = gate_numbers(call.kind) * H;
  const int64_t rows = weight_rows(call);
  const int64_t hidden_blocks = divide_up(H, WIDE), input_blocks = call.grad_x ? divide_up(I, WIDE) : 0;
  const int64_t hidden_size = hidden_blocks * rows * WIDE, input_size = input_blocks * rows * WIDE;
  Buffer<T> hidden(hidden_size * call.directions), input(input_size * call.directions);
  Buffer<const T*> rows_of_x(call.steps), before(call.steps * call.directions);
  if (!hidden.data || !input.data || !rows_of_x.data || !before.data) return 1;
  for (int64_t i = 0; i < call.steps; i++) rows_of_x.data[i] = call.x + i * I;
  WeightGradient<T> weights[2][2];
  int64_t blocks = 1;  // one at least, for the biases
  for (int d = 0; d < call.directions; d++) {
    const Direction<T>& to = call.direction[d];
    weights[d][0] = {rows_of_x.data, I, to.grad_weight_ih, to.grad_bias_ih};
    weights[d][1] = {before.data + d * call.steps, H, to.grad_weight_hh, to.grad_bias_hh};
    blocks = std::max(blocks, (to.grad_weight_ih ? divide_up(I, WIDE) : 0) + (to.grad_weight_hh ? divide_up(H, WIDE) : 0));
  }
  const std::vector<Gates> all_gates = gates_of_weights(call);
  // So many rows of gradients of gates as stay in the cache while the weights of one block go by.
  const int64_t chunk = std::max<int64_t>(8 * ROWS, (int64_t{1} << 18) / (stride * sizeof(T)));
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
        run_backward(call, d, hidden.data + d * hidden_size, share_of(call, d, omp_get_thread_num(), omp_get_num_threads()),
                     before.data + d * call.steps);
    } catch (const std::bad_alloc&) {
#pragma omp atomic write
      failed = true;
    }
#pragma omp barrier
    if (call.grad_x) {
#pragma omp for schedule(dynamic) nowait
      for (int64_t begin = 0; begin < call.steps; begin += chunk)
        input_gradients(call, input.data, input_size, begin, std::min(call.steps, begin + chunk));
    }
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
