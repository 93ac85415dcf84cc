// Tests of the kernels through their C interface. test_sanitized.py builds it with the sanitizers of the compiler and runs it.
//
// Every case is compared with plain loops over single numbers, and bit for bit with each sequence alone, but for gradients of
// weights, which are sums over all sequences, and are compared bit for bit at other numbers of threads. All buffers have
// the exact size, so that the address sanitizer finds an access one past their ends.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <numeric>
#include <random>
#include <vector>

#include "../../seqbatch/_kernels/recurrent.h"

using seqbatch::GRU, seqbatch::LSTM, seqbatch::RNN_RELU, seqbatch::RNN_TANH;
using seqbatch::gate_numbers, seqbatch::saved_numbers;

extern "C" {
int32_t seqbatch_isa();
int seqbatch_forward_float(const seqbatch::Call<float>*);
int seqbatch_forward_double(const seqbatch::Call<double>*);
int seqbatch_backward_float(const seqbatch::Call<float>*);
int seqbatch_backward_double(const seqbatch::Call<double>*);
size_t __sanitizer_get_current_allocated_bytes();  // of <sanitizer/allocator_interface.h>, which not all compilers bring
}

// How many allocations succeed before one fails; negative where none does.
std::atomic<int64_t> successes{-1};

void* operator new(size_t size) {
  if (successes >= 0 && !successes--) throw std::bad_alloc();
  return std::malloc(size);
}
void* operator new(size_t size, const std::nothrow_t&) noexcept { return std::malloc(size); }
void operator delete(void* data) noexcept { std::free(data); }
void operator delete(void* data, size_t) noexcept { std::free(data); }

namespace {

// Where it is set, a call is made again and again, so that each of its allocations fails in turn, before it succeeds.
bool lacks_memory = false;

template <typename T>
int run(int (&kernel)(const seqbatch::Call<T>*), const seqbatch::Call<T>& call) {
  for (int64_t before = 0; lacks_memory; before++) {
    successes = before;
    const int result = kernel(&call);
    const bool has_failed = successes.exchange(-1) < 0;
    if (result != has_failed) return 2;
    if (!has_failed) return 0;
  }
  return kernel(&call);
}

int forward(const seqbatch::Call<float>& call) { return run(seqbatch_forward_float, call); }
int forward(const seqbatch::Call<double>& call) { return run(seqbatch_forward_double, call); }
int backward(const seqbatch::Call<float>& call) { return run(seqbatch_backward_float, call); }
int backward(const seqbatch::Call<double>& call) { return run(seqbatch_backward_double, call); }

template <typename T>
using Numbers = std::vector<T>;
using Lengths = std::vector<int64_t>;

std::mt19937 generator(0);

template <typename T>
Numbers<T> random_numbers(int64_t count, double scale = 1) {
  std::normal_distribution<double> normal(0, scale);
  Numbers<T> numbers(count);
  for (T& number : numbers) number = static_cast<T>(normal(generator));
  return numbers;
}

// A number that no kernel computes, in a buffer that a kernel must fill.
template <typename T>
Numbers<T> unwritten(int64_t count) {
  return Numbers<T>(count, T(-12345.5));
}

struct Sizes {
  int32_t kind, directions, isa;
  int64_t input, hidden;
  bool has_bias, has_state;
  int64_t projection = 0;
  int64_t output() const { return projection ? projection : hidden; }
  int64_t gates() const { return kind == LSTM ? 4 : kind == GRU ? 3 : 1; }
};

void fail(const Sizes& s, const char* what, const char* how, int64_t at, double found, double wanted) {
  std::printf("%s %s: kind %d, %d directions, instruction set %d, input %lld, hidden %lld, projection %lld, bias %d, state %d: [%lld] is %.9g, not %.9g\n",
              what, how, s.kind, s.directions, s.isa, static_cast<long long>(s.input), static_cast<long long>(s.hidden),
              static_cast<long long>(s.projection), s.has_bias, s.has_state, static_cast<long long>(at), found, wanted);
  std::exit(1);
}

template <typename T>
void require_same_bits(const Sizes& s, const char* what, const char* how, const T* found, const T* wanted, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    if (std::memcmp(found + i, wanted + i, sizeof(T))) fail(s, what, how, i, found[i], wanted[i]);
}

template <typename T>
void require_close(const Sizes& s, const char* what, const Numbers<T>& found, const Numbers<double>& wanted) {
  const double tolerance = sizeof(T) == 4 ? 3e-5 : 1e-12;
  for (size_t i = 0; i < wanted.size(); i++)
    if (!(std::abs(found[i] - wanted[i]) <= tolerance * (1 + std::abs(wanted[i]))))
      fail(s, what, "differs from plain loops", i, found[i], wanted[i]);
}

// ------------------------------------------------------------------------------------------------------------- a batch

template <typename T>
struct Weights {
  Numbers<T> ih, hh, bias_ih, bias_hh, hr;
};

// What a caller of the kernels has: weights, inputs, initial states, and the gradients of all that comes out.
template <typename T>
struct Batch {
  Sizes sizes;
  Lengths lengths;
  Weights<T> weights[2];
  Numbers<T> x, grad_out;                                        // (steps, input), (steps, directions * output)
  Numbers<T> hidden[2], cell[2], grad_final_hidden[2], grad_final_cell[2];  // (sequences, output), (sequences, hidden)

  Batch(const Sizes& s, const Lengths& lengths) : sizes(s), lengths(lengths) {
    const int64_t n = lengths.size(), H = s.hidden, O = s.output();
    // So that an RNN with relu neither grows nor dies, and gates of many outputs are not at their limits.
    const double scale = 0.6 / std::sqrt(static_cast<double>(std::max(H, O)));
    for (int d = 0; d < s.directions; d++) {
      weights[d] = {random_numbers<T>(s.gates() * H * s.input, scale), random_numbers<T>(s.gates() * H * O, scale),
                    random_numbers<T>(s.has_bias ? s.gates() * H : 0), random_numbers<T>(s.has_bias ? s.gates() * H : 0),
                    random_numbers<T>(s.projection * H, scale)};
      hidden[d] = random_numbers<T>(s.has_state ? n * O : 0);
      cell[d] = random_numbers<T>(s.has_state && s.kind == LSTM ? n * H : 0);
      grad_final_hidden[d] = random_numbers<T>(s.has_state ? n * O : 0);
      grad_final_cell[d] = random_numbers<T>(s.has_state && s.kind == LSTM ? n * H : 0);
    }
    x = random_numbers<T>(steps() * s.input);
    grad_out = random_numbers<T>(steps() * s.directions * O);
  }

  int64_t steps() const { return std::accumulate(lengths.begin(), lengths.end(), int64_t{0}); }
  int64_t start(int64_t i) const { return std::accumulate(lengths.begin(), lengths.begin() + i, int64_t{0}); }

  // The batch of sequence i alone.
  Batch alone(int64_t i) const {
    Batch one = *this;
    auto cut = [](const Numbers<T>& from, int64_t first, int64_t count, int64_t row) {
      return from.empty() ? from : Numbers<T>(from.begin() + first * row, from.begin() + (first + count) * row);
    };
    one.lengths = {lengths[i]};
    one.x = cut(x, start(i), lengths[i], sizes.input);
    one.grad_out = cut(grad_out, start(i), lengths[i], sizes.directions * sizes.output());
    for (int d = 0; d < sizes.directions; d++) {
      for (auto states : {&Batch::hidden, &Batch::grad_final_hidden}) (one.*states)[d] = cut((this->*states)[d], i, 1, sizes.output());
      for (auto states : {&Batch::cell, &Batch::grad_final_cell}) (one.*states)[d] = cut((this->*states)[d], i, 1, sizes.hidden);
    }
    return one;
  }
};

// All that comes out of both passes; `out` and its gradient have `gap` numbers more in a row, which must stay as they are.
template <typename T>
struct Results {
  Numbers<T> out, grad_x;
  Numbers<T> saved[2], final_hidden[2], final_cell[2], grad_gates[2], grad_hidden[2], grad_cell[2];
  Weights<T> grad_weights[2];
};

template <typename T>
Numbers<T> with_gap(const Numbers<T>& rows, int64_t row, int64_t gap) {
  const int64_t count = row ? rows.size() / row : 0;
  Numbers<T> wide = unwritten<T>(count * (row + gap));
  for (int64_t i = 0; i < count; i++) std::copy_n(&rows[i * row], row, &wide[i * (row + gap)]);
  return wide;
}

template <typename T>
T* pointer(const Numbers<T>& numbers) {  // constant or not: a Direction keeps both
  return numbers.empty() ? nullptr : const_cast<T*>(numbers.data());
}

struct Options {
  int32_t threads;
  bool is_training;   // saves what backward needs, and runs it
  bool has_grad_x = true;  // and gradients of weights
  int64_t gap = 0;
};

template <typename T>
Results<T> run(const Batch<T>& batch, const Options& options) {
  const Sizes& s = batch.sizes;
  const int64_t n = batch.lengths.size(), H = s.hidden, O = s.output(), steps = batch.steps(), row = s.directions * O;
  std::vector<int64_t> index(n), starts, lengths;
  std::iota(index.begin(), index.end(), 0);
  std::stable_sort(index.begin(), index.end(), [&](int64_t a, int64_t b) { return batch.lengths[a] > batch.lengths[b]; });
  for (int64_t i : index) starts.push_back(batch.start(i)), lengths.push_back(batch.lengths[i]);

  Results<T> r;
  Numbers<T> out = unwritten<T>(steps * (row + options.gap)), grad_out = with_gap(batch.grad_out, row, options.gap);
  seqbatch::Call<T> call = {};
  call.kind = s.kind;
  call.directions = s.directions;
  call.threads = options.threads;
  call.isa = s.isa;
  call.sequences = n;
  call.steps = steps;
  call.input_size = s.input;
  call.hidden_size = H;
  call.projection = s.projection;
  call.out_stride = row + options.gap;
  call.starts = starts.data();
  call.lengths = lengths.data();
  call.index = index.data();
  call.x = batch.x.data();
  for (int d = 0; d < s.directions; d++) {
    r.saved[d] = unwritten<T>(options.is_training ? steps * saved_numbers(s.kind) * H : 0);
    r.final_hidden[d] = unwritten<T>(n * O);
    r.final_cell[d] = unwritten<T>(s.kind == LSTM ? n * H : 0);
    const Weights<T>& w = batch.weights[d];
    seqbatch::Direction<T>& direction = call.direction[d];
    direction.weight_ih = w.ih.data();
    direction.weight_hh = w.hh.data();
    direction.bias_ih = pointer(w.bias_ih);
    direction.bias_hh = pointer(w.bias_hh);
    direction.weight_hr = pointer(w.hr);
    direction.hidden = pointer(batch.hidden[d]);
    direction.cell = pointer(batch.cell[d]);
    direction.out = out.data() + d * O;
    direction.saved = pointer(r.saved[d]);
    direction.final_hidden = pointer(r.final_hidden[d]);
    direction.final_cell = pointer(r.final_cell[d]);
  }
  if (int result = forward(call)) fail(s, "forward", "returns the wrong number", 0, result, 0);
  if (options.is_training) {
    r.grad_x = unwritten<T>(options.has_grad_x ? steps * s.input : 0);
    call.grad_x = pointer(r.grad_x);
    for (int d = 0; d < s.directions; d++) {
      r.grad_gates[d] = unwritten<T>(steps * gate_numbers(s.kind) * H);
      r.grad_hidden[d] = unwritten<T>(s.has_state ? n * O : 0);
      r.grad_cell[d] = unwritten<T>(s.has_state && s.kind == LSTM ? n * H : 0);
      seqbatch::Direction<T>& direction = call.direction[d];
      direction.grad_out = grad_out.data() + d * O;
      direction.grad_final_hidden = pointer(batch.grad_final_hidden[d]);
      direction.grad_final_cell = pointer(batch.grad_final_cell[d]);
      direction.grad_gates = pointer(r.grad_gates[d]);
      direction.grad_hidden = pointer(r.grad_hidden[d]);
      direction.grad_cell = pointer(r.grad_cell[d]);
      if (!options.has_grad_x) continue;
      const Weights<T>& w = batch.weights[d];
      Weights<T>& grad = r.grad_weights[d];
      grad = {unwritten<T>(w.ih.size()), unwritten<T>(w.hh.size()), unwritten<T>(w.bias_ih.size()), unwritten<T>(w.bias_hh.size()),
              unwritten<T>(w.hr.size())};
      direction.grad_weight_ih = pointer(grad.ih);
      direction.grad_weight_hh = pointer(grad.hh);
      direction.grad_bias_ih = pointer(grad.bias_ih);
      direction.grad_bias_hh = pointer(grad.bias_hh);
      direction.grad_weight_hr = pointer(grad.hr);
    }
    if (int result = backward(call)) fail(s, "backward", "returns the wrong number", 0, result, 0);
  }
  for (int64_t i = 0; i < steps; i++) {
    const T* from = &out[i * (row + options.gap)];
    r.out.insert(r.out.end(), from, from + row);
    require_same_bits(s, "the gap between outputs", "was written", from + row, unwritten<T>(options.gap).data(), options.gap);
  }
  return r;
}

// --------------------------------------------------------------------------------------------------------- plain loops

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// One direction of one sequence. `rows` are its steps in the order in which this direction takes them.
template <typename T>
void run_plainly(const Batch<T>& batch, int d, int64_t i, const Lengths& rows, Results<double>& r) {
  const Sizes& s = batch.sizes;
  const int64_t H = s.hidden, I = s.input, O = s.output(), G = s.gates(), L = rows.size(), D = s.directions;
  const Weights<T>& w = batch.weights[d];
  auto state = [&](const Numbers<T>& states, int64_t size) {
    Numbers<double> one(size);
    if (!states.empty()) one.assign(states.begin() + i * size, states.begin() + (i + 1) * size);
    return one;
  };
  // hs[t] is the state before step t, units[t] the outputs of the units in it, before the projection.
  std::vector<Numbers<double>> hs = {state(batch.hidden[d], O)}, cs = {state(batch.cell[d], H)}, units, gates;
  for (int64_t t = 0; t < L; t++) {
    Numbers<double> of_x(G * H), of_h(G * H), h(H), c(H), saved(5 * H), projected(s.projection);
    for (int64_t g = 0; g < G * H; g++) {
      of_x[g] = s.has_bias ? w.bias_ih[g] : 0;
      of_h[g] = s.has_bias ? w.bias_hh[g] : 0;
      for (int64_t k = 0; k < I; k++) of_x[g] += double{w.ih[g * I + k]} * batch.x[rows[t] * I + k];
      for (int64_t k = 0; k < O; k++) of_h[g] += w.hh[g * O + k] * hs[t][k];
    }
    for (int64_t u = 0; u < H; u++) {
      auto sum = [&](int64_t g) { return of_x[g * H + u] + of_h[g * H + u]; };
      double* a[5];
      for (int64_t g = 0; g < 5; g++) a[g] = &saved[g * H + u];
      if (s.kind == LSTM) {
        *a[0] = sigmoid(sum(0)), *a[1] = sigmoid(sum(1)), *a[2] = std::tanh(sum(2)), *a[3] = sigmoid(sum(3));
        *a[4] = c[u] = *a[1] * cs[t][u] + *a[0] * *a[2];
        h[u] = *a[3] * std::tanh(c[u]);
      } else if (s.kind == GRU) {
        *a[3] = of_h[2 * H + u];
        *a[0] = sigmoid(sum(0)), *a[1] = sigmoid(sum(1)), *a[2] = std::tanh(of_x[2 * H + u] + *a[0] * *a[3]);
        h[u] = (1 - *a[1]) * *a[2] + *a[1] * hs[t][u];
      } else {
        h[u] = s.kind == RNN_TANH ? std::tanh(sum(0)) : std::max(sum(0), 0.0);
      }
      for (int64_t g = 0; g < saved_numbers(s.kind); g++) r.saved[d][(rows[t] * saved_numbers(s.kind) + g) * H + u] = *a[g];
    }
    for (int64_t p = 0; p < s.projection; p++)
      for (int64_t u = 0; u < H; u++) projected[p] += w.hr[p * H + u] * h[u];
    units.push_back(h), hs.push_back(s.projection ? projected : h), cs.push_back(c), gates.push_back(saved);
    std::copy_n(&hs.back()[0], O, &r.out[(rows[t] * D + d) * O]);
  }
  std::copy_n(&hs[L][0], O, &r.final_hidden[d][i * O]);
  if (s.kind == LSTM) std::copy_n(&cs[L][0], H, &r.final_cell[d][i * H]);

  Numbers<double> grad_h = state(batch.grad_final_hidden[d], O), grad_c = state(batch.grad_final_cell[d], H);
  for (int64_t t = L - 1; t >= 0; t--) {
    // Gradients before the activations, in the order of PyTorch's weights; `hidden` are those of the part of the state.
    Numbers<double> of_x(G * H), of_h(G * H), earlier_h(O), of_units(H);
    for (int64_t k = 0; k < O; k++) grad_h[k] += batch.grad_out[(rows[t] * D + d) * O + k];
    for (int64_t p = 0; p < s.projection; p++)
      for (int64_t u = 0; u < H; u++) {
        of_units[u] += w.hr[p * H + u] * grad_h[p];
        r.grad_weights[d].hr[p * H + u] += grad_h[p] * units[t][u];
      }
    for (int64_t u = 0; u < H; u++) {
      const double grad = s.projection ? of_units[u] : grad_h[u];
      const double *a = &gates[t][u], h = units[t][u];
      if (s.kind == LSTM) {
        const double i = a[0], f = a[H], g = a[2 * H], o = a[3 * H], c = std::tanh(a[4 * H]);
        const double of_cell = grad_c[u] + grad * o * (1 - c * c);
        const double all[] = {of_cell * g * i * (1 - i), of_cell * cs[t][u] * f * (1 - f), of_cell * i * (1 - g * g), grad * c * o * (1 - o)};
        for (int64_t k = 0; k < 4; k++) of_x[k * H + u] = of_h[k * H + u] = all[k];
        grad_c[u] = of_cell * f;
      } else if (s.kind == GRU) {
        const double reset = a[0], z = a[H], n = a[2 * H], of_n = grad * (1 - z) * (1 - n * n);
        of_x[u] = of_h[u] = of_n * a[3 * H] * reset * (1 - reset);
        of_x[H + u] = of_h[H + u] = grad * (hs[t][u] - n) * z * (1 - z);
        of_x[2 * H + u] = of_n;
        of_h[2 * H + u] = of_n * reset;
        earlier_h[u] = grad * z;
      } else {
        of_x[u] = of_h[u] = s.kind == RNN_TANH ? grad * (1 - h * h) : h > 0 ? grad : 0;
      }
    }
    Weights<double>& grad = r.grad_weights[d];
    for (int64_t g = 0; g < G * H; g++) {
      for (int64_t k = 0; k < I; k++) grad.ih[g * I + k] += of_x[g] * batch.x[rows[t] * I + k];
      for (int64_t k = 0; k < O; k++) grad.hh[g * O + k] += of_h[g] * hs[t][k];
      if (s.has_bias) grad.bias_ih[g] += of_x[g], grad.bias_hh[g] += of_h[g];
      for (int64_t k = 0; k < O; k++) earlier_h[k] += of_h[g] * w.hh[g * O + k];
      for (int64_t k = 0; k < I; k++) r.grad_x[rows[t] * I + k] += of_x[g] * w.ih[g * I + k];
    }
    double* to = &r.grad_gates[d][rows[t] * gate_numbers(s.kind) * H];
    if (s.kind == GRU) {  // n, r, z and the hidden part of n
      std::copy_n(&of_x[2 * H], H, to);
      std::copy_n(&of_h[0], 3 * H, to + H);
    } else {
      std::copy(of_x.begin(), of_x.end(), to);
    }
    grad_h = earlier_h;
  }
  if (!s.has_state) return;
  std::copy_n(&grad_h[0], O, &r.grad_hidden[d][i * O]);
  if (s.kind == LSTM) std::copy_n(&grad_c[0], H, &r.grad_cell[d][i * H]);
}

template <typename T>
Results<double> run_plainly(const Batch<T>& batch) {
  const Sizes& s = batch.sizes;
  const int64_t n = batch.lengths.size(), H = s.hidden, O = s.output(), steps = batch.steps();
  Results<double> r;
  r.out.resize(steps * s.directions * O);
  r.grad_x.resize(steps * s.input);
  for (int d = 0; d < s.directions; d++) {
    r.saved[d].resize(steps * saved_numbers(s.kind) * H);
    r.final_hidden[d].resize(n * O);
    r.final_cell[d].resize(s.kind == LSTM ? n * H : 0);
    r.grad_gates[d].resize(steps * gate_numbers(s.kind) * H);
    r.grad_hidden[d].resize(s.has_state ? n * O : 0);
    r.grad_cell[d].resize(s.has_state && s.kind == LSTM ? n * H : 0);
    const Weights<T>& w = batch.weights[d];
    r.grad_weights[d] = {Numbers<double>(w.ih.size()), Numbers<double>(w.hh.size()), Numbers<double>(w.bias_ih.size()),
                         Numbers<double>(w.bias_hh.size()), Numbers<double>(w.hr.size())};
    for (int64_t i = 0; i < n; i++) {
      Lengths rows(batch.lengths[i]);
      std::iota(rows.begin(), rows.end(), batch.start(i));
      if (d) std::reverse(rows.begin(), rows.end());
      run_plainly(batch, d, i, rows, r);
    }
  }
  return r;
}

// --------------------------------------------------------------------------------------------------------------- tests

template <typename T>
void require_close(const Sizes& s, const Results<T>& found, const Results<double>& wanted) {
  require_close(s, "out", found.out, wanted.out);
  require_close(s, "grad_x", found.grad_x, wanted.grad_x);
  for (int d = 0; d < s.directions; d++) {
    require_close(s, "saved", found.saved[d], wanted.saved[d]);
    require_close(s, "final_hidden", found.final_hidden[d], wanted.final_hidden[d]);
    require_close(s, "final_cell", found.final_cell[d], wanted.final_cell[d]);
    require_close(s, "grad_gates", found.grad_gates[d], wanted.grad_gates[d]);
    require_close(s, "grad_hidden", found.grad_hidden[d], wanted.grad_hidden[d]);
    require_close(s, "grad_cell", found.grad_cell[d], wanted.grad_cell[d]);
    require_close(s, "grad_weight_ih", found.grad_weights[d].ih, wanted.grad_weights[d].ih);
    require_close(s, "grad_weight_hh", found.grad_weights[d].hh, wanted.grad_weights[d].hh);
    require_close(s, "grad_bias_ih", found.grad_weights[d].bias_ih, wanted.grad_weights[d].bias_ih);
    require_close(s, "grad_bias_hh", found.grad_weights[d].bias_hh, wanted.grad_weights[d].bias_hh);
    require_close(s, "grad_weight_hr", found.grad_weights[d].hr, wanted.grad_weights[d].hr);
  }
}

// Requires that `part` has the bits of `whole` from sequence i on, which begins at step `start`. Empty in `part`: not asked.
template <typename T>
void require_same_bits(const Sizes& s, const char* how, const Results<T>& part, const Results<T>& whole, int64_t i, int64_t start) {
  auto check = [&](const char* what, const Numbers<T>& few, const Numbers<T>& many, int64_t first) {
    if (!few.empty()) require_same_bits(s, what, how, few.data(), many.data() + first, few.size());
  };
  const int64_t H = s.hidden, O = s.output();
  check("out", part.out, whole.out, start * s.directions * O);
  check("grad_x", part.grad_x, whole.grad_x, start * s.input);
  for (int d = 0; d < s.directions; d++) {
    check("saved", part.saved[d], whole.saved[d], start * saved_numbers(s.kind) * H);
    check("final_hidden", part.final_hidden[d], whole.final_hidden[d], i * O);
    check("final_cell", part.final_cell[d], whole.final_cell[d], i * H);
    check("grad_gates", part.grad_gates[d], whole.grad_gates[d], start * gate_numbers(s.kind) * H);
    check("grad_hidden", part.grad_hidden[d], whole.grad_hidden[d], i * O);
    check("grad_cell", part.grad_cell[d], whole.grad_cell[d], i * H);
  }
}

template <typename T>
void require_same_weights(const Sizes& s, const char* how, const Results<T>& found, const Results<T>& wanted) {
  for (int d = 0; d < s.directions; d++) {
    auto check = [&](const char* what, const Numbers<T>& one, const Numbers<T>& other) {
      require_same_bits(s, what, how, one.data(), other.data(), one.size());
    };
    check("grad_weight_ih", found.grad_weights[d].ih, wanted.grad_weights[d].ih);
    check("grad_weight_hh", found.grad_weights[d].hh, wanted.grad_weights[d].hh);
    check("grad_bias_ih", found.grad_weights[d].bias_ih, wanted.grad_weights[d].bias_ih);
    check("grad_bias_hh", found.grad_weights[d].bias_hh, wanted.grad_weights[d].bias_hh);
    check("grad_weight_hr", found.grad_weights[d].hr, wanted.grad_weights[d].hr);
  }
}

template <typename T>
void test_batch(const Sizes& s, const Lengths& lengths) {
  const Batch<T> batch(s, lengths);
  const Results<T> all = run(batch, {4, true});
  require_close(s, all, run_plainly(batch));
  const Results<T> by_one = run(batch, {1, true, true, 3});
  require_same_bits(s, "differs with 1 thread and a gap between rows", by_one, all, 0, 0);
  require_same_weights(s, "differs with 1 thread and a gap between rows", by_one, all);
  require_same_bits(s, "differs in inference", run(batch, {4, false}), all, 0, 0);
  require_same_bits(s, "differs without the gradient of inputs", run(batch, {4, true, false}), all, 0, 0);
  for (size_t i = 0; i < lengths.size(); i++)
    require_same_bits(s, "differs alone", run(batch.alone(i), {1, true}), all, i, batch.start(i));
}

// Threads share units where sequences are few or have one step, and the inputs of few sequences are multiplied ahead, some
// steps at once, which a longer sequence repeats. All that must not change a bit. The numbers of threads take turns, because on
// fewer cores threads that wait for each other at each step take the longest.
template <typename T>
void test_sharing(const Sizes& s, const Lengths& lengths, int turn) {
  const Batch<T> batch(s, lengths);
  const Results<T> all = run(batch, {1, true});
  require_close(s, all, run_plainly(batch));
  const int32_t numbers[] = {2, 3, 5};
  const int first = turn + turn / 6 + s.isa + static_cast<int>(sizeof(T) / 4);  // so that each number meets all lengths
  const int32_t threads = numbers[first % 3], others = numbers[(first + 1) % 3];
  require_same_bits(s, "differs by the number of threads", run(batch, {threads, true}), all, 0, 0);
  require_same_bits(s, "differs by the number of threads, in inference", run(batch, {others, false, true, 3}), all, 0, 0);
  const int64_t last = lengths.size() - 1;
  require_same_bits(s, "differs alone", run(batch.alone(last), {3, true}), all, last, batch.start(last));
  // Each step of the first sequence in a call of its own, in which all threads share units.
  if (s.directions == 2) return;
  Batch<T> step = batch.alone(0);
  step.lengths = {1};
  step.sizes.has_state = true;
  step.hidden[0].resize(s.output());
  step.cell[0].resize(s.kind == LSTM ? s.hidden : 0);
  for (int64_t t = 0; t < lengths[0]; t++) {
    step.x.assign(batch.x.begin() + t * s.input, batch.x.begin() + (t + 1) * s.input);
    const Results<T> one = run(step, {3, false});
    require_same_bits(s, "out", "differs step by step", one.out.data(), &all.out[t * s.output()], s.output());
    step.hidden[0] = one.final_hidden[0];
    step.cell[0] = one.final_cell[0];
  }
}

// Sequences beside one that has NaN and infinity keep their bits, and in that one NaN reaches all outputs after it.
template <typename T>
void test_not_a_number(const Sizes& s) {
  Batch<T> batch(s, {5, 3, 6});
  const Results<T> before = run(batch, {2, true});
  for (T bad : {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity()}) {
    batch.x[(batch.start(1) + 1) * s.input] = bad;
    const Results<T> after = run(batch, {2, true});
    for (int64_t i : {0, 2}) {
      const int64_t row = s.directions * s.output();
      require_same_bits(s, "out", "differs beside NaN", &after.out[batch.start(i) * row], &before.out[batch.start(i) * row], batch.lengths[i] * row);
      require_same_bits(s, "grad_x", "differs beside NaN", &after.grad_x[batch.start(i) * s.input],
                        &before.grad_x[batch.start(i) * s.input], batch.lengths[i] * s.input);
    }
    for (int64_t k = 0; std::isnan(bad) && k < 2 * s.output(); k++) {
      const T found = after.out[((batch.start(1) + 1 + k / s.output()) * s.directions) * s.output() + k % s.output()];
      if (!std::isnan(found)) fail(s, "out", "must be NaN", k, found, bad);
    }
  }
}

// With weights of 0 an LSTM saves sigmoid and tanh of its biases, and an RNN has tanh and relu of them as outputs.
template <typename T>
void test_functions(int32_t isa) {
  using Limits = std::numeric_limits<T>;
  const T infinity = Limits::infinity();
  Numbers<T> values = {0, -T(0), Limits::denorm_min(), -Limits::denorm_min(), Limits::min(), -Limits::min(), Limits::max(), Limits::lowest(), infinity, -infinity};
  for (double x : {1e-30, 1e-8, 1e-4, 0.1, 0.5, 0.624999, 0.625, 0.625001, 1.0, 4.0, 8.6, 9.1, 17.0, 20.0, 44.0, 87.2, 87.4, 88.2, 88.4, 89.0, 103.9, 354.0, 708.2, 708.4, 709.3, 709.5, 710.0, 746.0, 1e4, 1e20})
    values.push_back(static_cast<T>(x)), values.push_back(static_cast<T>(-x));
  for (int i = -150; i <= 150; i++) values.push_back(static_cast<T>(i * 0.1173));
  values.push_back(Limits::quiet_NaN());
  const int64_t H = values.size();
  for (int32_t kind : {LSTM, RNN_TANH, RNN_RELU}) {
    const Sizes s = {kind, 1, isa, 1, H, true, false};
    Batch<T> batch(s, {1});
    batch.weights[0].ih.assign(batch.weights[0].ih.size(), 0);
    batch.weights[0].bias_hh.assign(batch.weights[0].bias_hh.size(), 0);
    for (int64_t i = 0; i < s.gates() * H; i++) batch.weights[0].bias_ih[i] = values[i % H];
    const Results<T> r = run(batch, {1, true, false});
    for (int64_t i = 0; i < H; i++) {
      const double x = values[i], epsilon = Limits::epsilon();
      auto check = [&](const char* what, double found, double wanted) {
        // Relative to 1, as numbers are added to others of about 1; tanh is also exact in proportion, near 0.
        const double tolerance = 4 * epsilon * (kind == RNN_TANH ? std::abs(wanted) + Limits::min() : 1);
        if (std::isnan(x) ? !std::isnan(found) : !(std::abs(found - wanted) <= tolerance)) fail(s, what, "is wrong", i, found, wanted);
      };
      if (kind == LSTM) {
        check("sigmoid", r.saved[0][i], sigmoid(x));
        check("tanh", r.saved[0][2 * H + i], std::tanh(x));
      } else if (kind == RNN_TANH) {
        check("tanh", r.out[i], std::tanh(x));
      } else if (std::isnan(x) ? !std::isnan(r.out[i]) : r.out[i] != std::max(x, 0.0)) {
        fail(s, "relu", "is wrong", i, r.out[i], x);
      }
    }
  }
}

// A call returns 1 whichever of its allocations fails, and the next one has the right bits.
template <typename T>
void test_without_memory(const Sizes& s, const Lengths& lengths = {3, 2, 4, 4}) {
  const Batch<T> batch(s, lengths);
  const Results<T> before = run(batch, {1, true});
  for (int32_t threads : {1, 3}) {
    lacks_memory = true;
    const Results<T> after = run(batch, {threads, true});
    lacks_memory = false;
    require_same_bits(s, "differs after calls without memory", after, before, 0, 0);
    require_same_weights(s, "differs after calls without memory", after, before);
  }
}

// Weights, or steps, that take more memory than there is.
template <typename T>
void test_beyond_memory(int32_t isa) {
  const Sizes many_units = {LSTM, 1, isa, 1, int64_t{1} << 22, false, false}, many_steps = {LSTM, 1, isa, 1, 1, false, false};
  for (const Sizes& s : {many_units, many_steps}) {
    const bool is_forward = s.hidden > 1;
    const int64_t start = 0, length = is_forward ? 2 : int64_t{1} << 45;
    seqbatch::Call<T> call = {};
    call.kind = s.kind;
    call.directions = s.directions;
    call.threads = 1;
    call.isa = isa;
    call.sequences = 1;
    call.steps = length;
    call.input_size = s.input;
    call.hidden_size = s.hidden;
    call.starts = call.index = &start;
    call.lengths = &length;
    const int result = is_forward ? forward(call) : backward(call);
    if (result != 1) fail(s, is_forward ? "forward" : "backward", "must return 1 without memory", 0, result, 1);
  }
}

// A thread keeps some memory for its next call, but at most MOST_KEPT, which is 1 MiB in this program.
template <typename T>
void test_memory_that_is_kept(int32_t isa) {
  const size_t before = __sanitizer_get_current_allocated_bytes();
  for (int64_t hidden : {300, 20, 200, 160})
    for (int32_t kind : {LSTM, GRU, RNN_TANH}) {
      const Sizes s = {kind, 1, isa, 7, hidden, true, false};
      run(Batch<T>(s, {2, 1}), {1, true});
      const double kept = static_cast<double>(__sanitizer_get_current_allocated_bytes()) - before;
      if (kept > 1 << 20) fail(s, "memory", "is kept", 0, kept, 1 << 20);
    }
}

template <typename T>
void test_all(int32_t isa) {
  const int64_t sizes[] = {1, 15, 16, 17, 33, 130};
  // Of one sequence, the inputs of 16 or 48 steps are multiplied ahead, by the registers of the instruction set.
  const Lengths shared[] = {{1}, {1, 1, 1}, Lengths(13, 1), {21}, {2, 19}, {5, 1, 3, 45, 4, 1, 2}};
  int turn = 0;  // so that the rest takes turns, in place of all combinations
  auto with = [&](int32_t kind, int64_t input, int64_t hidden, int64_t projection = 0) {
    const int turns = turn + turn / 6;  // because each row of a loop below takes 3 or 6
    return Sizes{kind, 1 + (turn + turn / 12) % 2, isa, input, hidden, turns % 3 != 0, turns % 5 < 3, projection};
  };
  auto any_size = [&] { return sizes[(turn + turn / 6) % 6]; };
  // Half of the types of layer take a pair, and the others take it in the other dtype, because all use the same products.
  auto skips = [&](int32_t kind, int i, int j) { return (kind + i + j + isa + sizeof(T) / 4) % 2; };
  for (int32_t kind : {LSTM, GRU, RNN_TANH, RNN_RELU})
    for (int i = 0; i < 6; i++) {
      const int64_t hidden = sizes[i];
      for (int j = 0; j < 6; j++) {
        if (skips(kind, i, j)) continue;
        Lengths lengths(1 + turn % 9);
        for (int64_t& length : lengths) length = 1 + generator() % 7;
        test_batch<T>(with(kind, sizes[j], hidden), lengths);
        turn++;
      }
      if (hidden == 17) {
        Lengths lengths(50, 1);
        lengths[20] = 150;  // 199 steps in all: gradients of weights are added up 96 at a time
        test_batch<T>({kind, 2, isa, 5, hidden, true, true}, lengths);
      }
      test_not_a_number<T>({kind, 2, isa, 3, hidden, true, false});
      for (int j = 0; j < 6; j++) {
        if (skips(kind, i, j)) continue;
        test_sharing<T>(with(kind, any_size(), hidden), shared[j], turn);
        turn++;
      }
    }
  for (int i = 0; i < 6; i++)
    for (int j = 0; j < 6; j++) {  // a kernel does not ask which is larger
      if (skips(LSTM, i, j)) continue;
      Lengths lengths(1 + turn % 9);
      for (int64_t& length : lengths) length = 1 + generator() % 7;
      test_batch<T>(with(LSTM, any_size(), sizes[i], sizes[j]), lengths);
      for (const Lengths& some : shared) {
        turn++;
        if (turn % 2) continue;  // because these take the longest
        test_sharing<T>(with(LSTM, any_size(), sizes[i], sizes[j]), some, turn);
      }
      turn++;
    }
  // Each number of sequences in the registers, with each number of vectors of gates that an RNN has in them.
  for (int32_t kind : {LSTM, GRU, RNN_TANH, RNN_RELU})
    for (int64_t hidden : {5, 17, 33})
      for (int64_t number = 1; number <= 6; number++)
        for (int64_t length : {1, 2})
          for (bool has_state : {false, true}) test_batch<T>({kind, 1, isa, 3, hidden, true, has_state}, Lengths(number, length));
  test_batch<T>({LSTM, 2, isa, 33, 130, true, true}, Lengths(9, 2));  // too many for threads to share units
  test_not_a_number<T>({LSTM, 2, isa, 3, 33, true, false, 17});
  test_functions<T>(isa);
  for (int32_t kind : {LSTM, GRU, RNN_TANH})
    for (int64_t hidden : {5, 40}) test_without_memory<T>({kind, 2, isa, 3, hidden, true, true});
  test_without_memory<T>({LSTM, 2, isa, 3, 40, true, true, 20});
  test_without_memory<T>({LSTM, 2, isa, 3, 300, true, true, 200}, {1});
  test_beyond_memory<T>(isa);
}

}  // namespace

int main() {
  for (int32_t isa = 0; isa <= seqbatch_isa(); isa++) {
    test_memory_that_is_kept<float>(isa);  // first, because it compares with what has been kept before
    test_memory_that_is_kept<double>(isa);
    test_all<float>(isa);
    test_all<double>(isa);
    std::printf("instruction set %d is right\n", isa);
  }
}
