// Attention over flat values, by dot products or additive, forward only, without padding and without a mask.
//
// A thread takes some query steps of one head of one sequence. It lays out the keys so that a vector has one feature of
// several keys, computes the scores of a few query steps at a time, and adds up the values by their softmax. Every query
// step is computed by the same operations in the same order whatever stands beside it, hence the same bits.
#include <omp.h>

#include <algorithm>
#include <limits>

#include "attention.h"
#if SEQBATCH_ROWS == 2  // more than recurrent layers have, because no gates stay in registers
#undef SEQBATCH_ROWS
#define SEQBATCH_ROWS 3
#endif
#include "products.h"

namespace seqbatch::SEQBATCH_ISA {
namespace {

#ifdef SEQBATCH_TEST
constexpr int64_t QUERIES = 2 * ROWS + 1, KEYS = SEQBATCH_BYTES, PIECE = SEQBATCH_BYTES / 4;
#else
constexpr int64_t QUERIES = 192, KEYS = 512;  // query steps of a task, and keys laid out for it at once: they stay in the cache
constexpr int64_t PIECE = 64;                 // keys whose values are added up by themselves, so that rounding errors stay small
#endif

template <typename T>
int64_t whole_vectors(int64_t numbers) {
  return divide_up(numbers, width<T>) * width<T>;
}

// Calls f(i, std::integral_constant<int, G>) for blocks of at most SUMS vectors of `vectors`, beginning with vector i.
template <typename F>
inline void in_sums(int64_t vectors, F f) {
  int64_t i = 0;
  for (; i + SUMS <= vectors; i += SUMS) f(i, std::integral_constant<int, SUMS>{});
  if (vectors - i == 3) f(i, std::integral_constant<int, 3>{});
  if (vectors - i == 2) f(i, std::integral_constant<int, 2>{});
  if (vectors - i == 1) f(i, std::integral_constant<int, 1>{});
}

// Query steps from `first` to `last` of one head of one sequence.
struct Task {
  int64_t sequence, head, first, last;
};

// What a thread keeps for one task. Its size does not depend on the lengths.
template <typename T>
struct Scratch {
  T* keys;     // [block][size][vectors][width], in blocks of up to SUMS vectors of keys
  T* values;   // (KEYS, features): whole vectors
  T* scores;   // (ROWS, KEYS)
  T* sums;     // (QUERIES, features): of the values by their weights
  T* weights;  // (QUERIES): the sums of the weights
  T* most;     // (QUERIES): the greatest scores
};
template <typename T>
int64_t scratch_size(const Attention<T>& call) {
  const int64_t features = whole_vectors<T>(call.value_size);
  return KEYS * (call.size + features + ROWS) + QUERIES * (features + 2);
}
template <typename T>
Scratch<T> scratch_in(T* memory, const Attention<T>& call) {
  const int64_t features = whole_vectors<T>(call.value_size);
  Scratch<T> s;
  s.keys = memory;
  s.values = s.keys + KEYS * call.size;
  s.scores = s.values + KEYS * features;
  s.sums = s.scores + ROWS * KEYS;
  s.weights = s.sums + QUERIES * features;
  s.most = s.weights + QUERIES;
  return s;
}

// The greatest of `most` and the scores, up to a whole vector `end`.
template <typename T>
T greatest_score(const T* scores, int64_t end, T most) {
  Vector<T> greatest = all(most);
  for (int64_t k = 0; k < end; k += width<T>) {
    const Vector<T> v = load(scores + k);
    greatest = v > greatest ? v : greatest;
  }
  for (int lane = 0; lane < width<T>; lane++) most = greatest[lane] > most ? greatest[lane] : most;
  return most;
}

// Replaces scores by their exponentials, once `most` is taken from each, and returns the sum of these.
template <typename T>
T exponentials(T* scores, int64_t end, T most) {
  Vector<T> sums = {};
  for (int64_t k = 0; k < end; k += width<T>) {
    const Vector<T> v = exponential(load(scores + k) - all(most));
    store(scores + k, v);
    sums += v;
  }
  T sum = sums[0];
  for (int lane = 1; lane < width<T>; lane++) sum += sums[lane];
  return sum;
}

// acc[r][g] += weights[k] * tanh(rows[r][k] + keys[k][g]), for all k in order.
template <typename T, int R, int G>
void add_activations(Vector<T> (&acc)[R][SUMS], const T* const* rows, int64_t size, const T* keys, int64_t stride, const T* weights) {
  for (int64_t k = 0; k < size; k++)
    for (int r = 0; r < R; r++)
      for (int g = 0; g < G; g++)
        acc[r][g] = fused(all(weights[k]), hyperbolic_tangent(all(rows[r][k]) + load(keys + k * stride + g * width<T>)), acc[r][g]);
}

// R query steps of a task from `first`, over `keys` keys from `begin` on, which are laid out, and their values.
template <typename T, int R>
void attend_rows(const Attention<T>& call, const Task& task, const Scratch<T>& scratch, const T* values, int64_t value_stride,
                 int64_t first, int64_t begin, int64_t keys) {
  constexpr int W = width<T>;
  const int64_t vectors_of_keys = divide_up(keys, W), features = whole_vectors<T>(call.value_size);
  if (call.is_causal) keys = std::min(keys, first + R - begin);
  if (keys <= 0) return;
  const int64_t row = call.query_starts[task.sequence] + first, end = whole_vectors<T>(keys), at = first - task.first;
  const T *rows[R], *weights[R];
  for (int r = 0; r < R; r++) {
    rows[r] = call.query + (row + r) * call.query_stride + task.head * call.size;
    weights[r] = scratch.scores + r * KEYS;
  }
  in_sums(end / W, [&](int64_t i, auto vectors) {
    constexpr int G = vectors;
    Vector<T> sums[R][SUMS] = {};
    // Where the last keys are not needed, a block may have more vectors than these.
    const int64_t stride = std::min<int64_t>(SUMS, vectors_of_keys - i) * W;
    const T* const laid_out = scratch.keys + i * W * call.size;
    if (call.weight)
      add_activations<T, R, G>(sums, rows, call.size, laid_out, stride, call.weight + task.head * call.size);
    else
      multiply<T, R, G, G - 1>(sums, rows, call.size, laid_out, stride);
    for (int r = 0; r < R; r++)
      for (int g = 0; g < G; g++) store(scratch.scores + r * KEYS + (i + g) * W, sums[r][g] * all(static_cast<T>(call.scale)));
  });
  const auto keys_of = [&](int r) { return call.is_causal ? std::clamp<int64_t>(first + r + 1 - begin, 0, keys) : keys; };
  T factors[R];
  for (int r = 0; r < R; r++) {
    T *scores = scratch.scores + r * KEYS, &most = scratch.most[at + r], &sum = scratch.weights[at + r];
    std::fill(scores + keys_of(r), scores + end, -std::numeric_limits<T>::infinity());
    const T greatest = greatest_score(scores, end, most);
    // Where all scores up to here are -infinity, the weights are 0, and not NaN: later scores may be greater.
    const T taken = greatest == -std::numeric_limits<T>::infinity() ? T(0) : greatest;
    factors[r] = exponential(all(most - taken))[0];
    sum = sum * factors[r] + exponentials(scores, end, taken);
    most = greatest;
  }
  in_sums(features / W, [&](int64_t i, auto vectors) {
    constexpr int G = vectors;
    Vector<T> sums[R][SUMS] = {};
    const int64_t of_all = keys_of(0);
    for (int64_t k = 0; k < of_all; k += PIECE) {
      Vector<T> part[R][SUMS] = {};
      const T* of_piece[R];
      for (int r = 0; r < R; r++) of_piece[r] = weights[r] + k;
      multiply<T, R, G, G - 1>(part, of_piece, std::min(PIECE, of_all - k), values + k * value_stride + i * W, value_stride);
      for (int r = 0; r < R; r++)
        for (int g = 0; g < G; g++) sums[r][g] += part[r][g];
    }
    // Of later keys, each query step adds its own: a weight of 0 would turn NaN and infinity of a later value into NaN.
    for (int r = 1; r < R; r++)
      for (int64_t k = of_all; k < keys_of(r); k++)
        for (int g = 0; g < G; g++) sums[r][g] = fused(all(weights[r][k]), load(values + k * value_stride + (i + g) * W), sums[r][g]);
    for (int r = 0; r < R; r++)
      for (int g = 0; g < G; g++) {
        T* const sum = scratch.sums + (at + r) * features + (i + g) * W;
        store(sum, fused(load(sum), all(factors[r]), sums[r][g]));
      }
  });
}

template <typename T>
void run_task(const Attention<T>& call, const Task& task, Scratch<T> scratch) {
  constexpr int W = width<T>;
  const int64_t start = call.key_starts[task.sequence], features = whole_vectors<T>(call.value_size);
  const int64_t queries = task.last - task.first;
  const int64_t all_keys = call.is_causal ? task.last : call.key_starts[task.sequence + 1] - start;
  std::fill_n(scratch.sums, queries * features, T(0));
  std::fill_n(scratch.weights, queries, T(0));
  std::fill_n(scratch.most, queries, -std::numeric_limits<T>::infinity());
  for (int64_t begin = 0; begin < all_keys; begin += KEYS) {
    const int64_t keys = std::min(KEYS, all_keys - begin);
    const T* key = call.key + (start + begin) * call.key_stride + task.head * call.size;
    in_sums(divide_up(keys, W), [&](int64_t i, auto vectors) {
      constexpr int G = vectors;
      for (int g = 0; g < G; g++) {
        const int64_t k = (i + g) * W;
        transpose_rows(key + k * call.key_stride, call.key_stride, call.size, keys - k, scratch.keys + i * W * call.size + g * W, G * W);
      }
    });
    const T* values = call.value + (start + begin) * call.value_stride + task.head * call.value_size;
    int64_t value_stride = call.value_stride;
    // A vector must not end beyond a step. Those of other heads between the values take more from the cache than they are worth.
    if (features != call.value_size || (value_stride != features && queries > ROWS)) {
      for (int64_t k = 0; k < keys; k++)
        for (int64_t f = 0; f < features; f += W)
          store(scratch.values + k * features + f, load(values + k * value_stride + f, call.value_size - f));
      values = scratch.values, value_stride = features;
    }
    in_blocks(queries, [&](int64_t i, auto rows) {
      attend_rows<T, decltype(rows)::value>(call, task, scratch, values, value_stride, task.first + i, begin, keys);
    });
  }
  for (int64_t i = 0; i < queries; i++) {
    T* const out = call.out + (call.query_starts[task.sequence] + task.first + i) * call.out_stride + task.head * call.value_size;
    // Without a key, or where all scores are -infinity, the result is 0, as in PyTorch's scaled_dot_product_attention.
    const T sum = scratch.weights[i] == 0 ? T(1) : scratch.weights[i];
    for (int64_t f = 0; f < call.value_size; f += W)
      store(out + f, load(scratch.sums + i * features + f) / all(sum), call.value_size - f);
  }
}

template <typename T>
int run_attention(const Attention<T>& call) {
  List<Task> tasks;
  int64_t work = 0;
  for (int64_t i = 0; i < call.sequences; i++) {
    const int64_t steps = call.query_starts[i + 1] - call.query_starts[i], keys = call.key_starts[i + 1] - call.key_starts[i];
    work += steps * keys * call.heads * (call.size + call.value_size);
    for (int64_t first = 0; first < steps; first += QUERIES)
      for (int64_t head = 0; head < call.heads; head++) tasks.push_back({i, head, first, std::min(steps, first + QUERIES)});
  }
  bool failed = false;
  const RoundsAs::Mode rounding = RoundsAs::of_this_thread();
#pragma omp parallel num_threads(work < SMALL_WORK ? 1 : call.threads)
  {
    const RoundsAs caller(rounding);
    Buffer<T> memory(scratch_size(call));
    if (!memory.data) {
#pragma omp atomic write
      failed = true;
    }
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < tasks.size(); i++)
      if (memory.data) run_task(call, tasks[i], scratch_in(memory.data, call));
  }
  return failed;
}

}  // namespace

int attend(const Attention<float>& call) { return run_attention(call); }
int attend(const Attention<double>& call) { return run_attention(call); }

}  // namespace seqbatch::SEQBATCH_ISA
