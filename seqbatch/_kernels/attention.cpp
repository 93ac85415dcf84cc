// Attention over flat values, by dot products or additive, forward and backward, without padding and without a mask.
//
// A thread takes some query steps of one head of one sequence. It lays out the keys so that a vector has one feature of
// several keys, computes the scores of a few query steps at a time, and adds up the values by their softmax. Every query
// step is computed by the same operations in the same order whatever stands beside it, hence the same bits.
//
// The backward pass takes the keys in small blocks, each with all query steps, and computes the scores a second time. Where these
// are additive, a vector has several features of one key there, because there are often fewer keys than features. So such a
// score is rounded differently than in the forward pass: weights are off by the rounding error of their scores, as in all
// attention that recomputes them from the logarithm of their sum.
#include <omp.h>

#include <algorithm>
#include <cmath>
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
constexpr int64_t QUERIES = 2 * ROWS + 1, KEYS = SEQBATCH_BYTES, PIECE = SEQBATCH_BYTES / 4, STEPS = SEQBATCH_BYTES / 4;
#else
constexpr int64_t QUERIES = 192, KEYS = 512;  // query steps of a task, and keys laid out for it at once: they stay in the cache
constexpr int64_t PIECE = 64;                 // keys whose values are added up by themselves, so that rounding errors stay small
constexpr int64_t STEPS = 96;                 // query steps of the backward pass at once
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

// Lays out rows, such as keys: [block][size][vectors][width], in blocks of up to SUMS vectors, each of one feature of several rows.
template <typename T>
void lay_out(const T* from, int64_t stride, int64_t size, int64_t rows, T* to) {
  constexpr int W = width<T>;
  in_sums(divide_up(rows, W), [&](int64_t i, auto vectors) {
    constexpr int G = vectors;
    for (int g = 0; g < G; g++) {
      const int64_t k = (i + g) * W;
      transpose_rows(from + k * stride, stride, size, rows - k, to + i * W * size + g * W, G * W);
    }
  });
}

// Keys of the backward pass at once: they, what is computed for them, and their gradients stay in the cache.
constexpr int64_t BLOCK = 3 * PIECE;
static_assert(BLOCK % width<float> == 0 && STEPS % width<float> == 0, "whole vectors");
// Tasks of a head of one sequence in the backward pass, at most: each but the first needs gradients of all its keys.
constexpr int64_t PARTS = 4;

// to[r][g] = the product of row r and the weights, times the factor; or with ADDS that is added to it, without the factor.
//
// It is `noinline`, because in a larger function GCC keeps half of the sums in memory, which takes a quarter more time.
template <typename T, int R, int G, bool ADDS>
[[gnu::noinline]] void multiply_to(const T* const* rows, int64_t size, const T* weights, int64_t stride, T factor, T* to, int64_t to_stride) {
  constexpr int W = width<T>;
  Vector<T> sums[R][SUMS] = {};
  for (int r = 0; ADDS && r < R; r++)
    for (int g = 0; g < G; g++) sums[r][g] = load(to + r * to_stride + g * W);
  multiply<T, R, G, G - 1>(sums, rows, size, weights, stride);
  for (int r = 0; r < R; r++)
    for (int g = 0; g < G; g++) store(to + r * to_stride + g * W, ADDS ? sums[r][g] : sums[r][g] * all(factor));
}

// Query steps from `first` to `last` of one head of one sequence.
struct Task {
  int64_t sequence, head, first, last;
};

// What a thread keeps for one task. Its size does not depend on the lengths.
template <typename T>
struct Scratch {
  T* keys;     // (KEYS, size), laid out
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
  const T *rows[R], *weights[R], scale = call.scale;
  for (int r = 0; r < R; r++) {
    rows[r] = call.query + (row + r) * call.query_stride + task.head * call.size;
    weights[r] = scratch.scores + r * KEYS;
  }
  in_sums(end / W, [&](int64_t i, auto vectors) {
    constexpr int G = vectors;
    // Where the last keys are not needed, a block may have more vectors than these.
    const int64_t stride = std::min<int64_t>(SUMS, vectors_of_keys - i) * W;
    const T* const laid_out = scratch.keys + i * W * call.size;
    T* const scores = scratch.scores + i * W;
    if (!call.weight) return multiply_to<T, R, G, false>(rows, call.size, laid_out, stride, scale, scores, KEYS);
    Vector<T> sums[R][SUMS] = {};
    add_activations<T, R, G>(sums, rows, call.size, laid_out, stride, call.weight + task.head * call.size);
    for (int r = 0; r < R; r++)
      for (int g = 0; g < G; g++) store(scores + r * KEYS + g * W, sums[r][g] * all(scale));
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
    lay_out(key, call.key_stride, call.size, keys, scratch.keys);
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
    // The result is 0 without a key. Where all scores are -infinity, it is 0 for dot products, as in PyTorch's attention, and NaN
    // for additive scores, as in PyTorch's softmax.
    const bool is_nothing = scratch.weights[i] == 0 && !(call.weight && all_keys > 0);
    const T sum = is_nothing ? T(1) : scratch.weights[i];
    for (int64_t f = 0; f < call.value_size; f += W)
      store(out + f, load(scratch.sums + i * features + f) / all(sum), call.value_size - f);
    if (call.log_sums)
      call.log_sums[(call.query_starts[task.sequence] + task.first + i) * call.heads + task.head] =
          sum == 0 ? std::numeric_limits<T>::quiet_NaN() : scratch.most[i] + std::log(sum);
  }
}

// Calls run(task, memory) for each task, with memory of its thread for some numbers. Returns 1 if there is not enough of it.
template <typename T, typename Tasks, typename Run>
int run_tasks(const Tasks& tasks, int threads, int64_t numbers, Run run) {
  bool failed = false;
  const RoundsAs::Mode rounding = RoundsAs::of_this_thread();
#pragma omp parallel num_threads(threads)
  {
    const RoundsAs caller(rounding);
    Buffer<T> memory(numbers);
    if (!memory.data) {
#pragma omp atomic write
      failed = true;
    }
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < tasks.size(); i++) {
      if (!memory.data) continue;
#ifdef SEQBATCH_TEST
      std::fill_n(memory.data, numbers, std::numeric_limits<T>::quiet_NaN());  // so that a test fails where one of them is read
#endif
      run(tasks[i], memory.data);
    }
  }
  return failed;
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
  return run_tasks<T>(tasks, work < SMALL_WORK ? 1 : call.threads, scratch_size(call),
                      [&](const Task& task, T* memory) { run_task(call, task, scratch_in(memory, call)); });
}

// Query steps from `first` to `last` of one head of one sequence in the backward pass. What they add to the gradients of its keys
// and values is written to `part`, whose steps stand without gaps, or to the gradients themselves where that is null.
template <typename T>
struct BackwardTask {
  int64_t sequence, head, first, last;
  T *part, *grad_weight;
};

// What a thread keeps for the backward pass of one block of keys and a few query steps. Rows of features are whole vectors: the last
// numbers of `keys`, `queries`, `grad_outs` and `weight` are 0. The size does not depend on the lengths.
template <typename T>
struct BackwardScratch {
  T *keys, *grad_keys, *grad_values;  // (BLOCK, size) or (BLOCK, value_size)
  T* hidden;                          // (BLOCK, size): tanh(query + key), or for dot products the keys, laid out
  T* values;                          // (BLOCK, value_size), laid out
  T *queries, *grad_queries;          // (STEPS, size)
  T* grad_outs;                       // (STEPS, value_size)
  T *weight, *grad_weight;            // (size), of additive scores
  T *weights, *grad_scores;           // (STEPS, BLOCK)
  T* transposed;                      // (BLOCK, STEPS)
  T *means, *log_sums;                // (STEPS): means of the gradients of the weights by the weights
};
template <typename T>
int64_t backward_scratch_size(const Attention<T>& call) {
  const int64_t size = whole_vectors<T>(call.size), features = whole_vectors<T>(call.value_size);
  return (3 * BLOCK + 2 * STEPS + 2) * size + (2 * BLOCK + STEPS) * features + 3 * STEPS * BLOCK + 2 * STEPS;
}
template <typename T>
BackwardScratch<T> backward_scratch_in(T* memory, const Attention<T>& call) {
  const int64_t size = whole_vectors<T>(call.size), features = whole_vectors<T>(call.value_size);
  const auto take = [&](int64_t numbers) { return std::exchange(memory, memory + numbers); };
  BackwardScratch<T> s;
  s.keys = take(BLOCK * size), s.grad_keys = take(BLOCK * size), s.grad_values = take(BLOCK * features);
  s.hidden = take(BLOCK * size), s.values = take(BLOCK * features);
  s.queries = take(STEPS * size), s.grad_queries = take(STEPS * size), s.grad_outs = take(STEPS * features);
  s.weight = take(size), s.grad_weight = take(size);
  s.weights = take(STEPS * BLOCK), s.grad_scores = take(STEPS * BLOCK), s.transposed = take(BLOCK * STEPS);
  s.means = take(STEPS), s.log_sums = take(STEPS);
  return s;
}

// to = from, up to a whole vector with zeros.
template <typename T>
void copy_row(const T* from, int64_t size, T* to) {
  for (int64_t f = 0; f < size; f += width<T>) store(to + f, load(from + f, size - f));
}

template <typename T>
T sum_of_lanes(Vector<T> v) {
  T lanes[width<T>];
  store(lanes, v);
  for (int half = width<T> / 2; half; half /= 2)
    for (int lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

// to[r * BLOCK + k] = the dot product of row r and what is laid out for key k, times the factor.
template <typename T, int R>
void multiply_with_laid_out(const T* rows, int64_t row_stride, const T* laid_out, int64_t size, int64_t keys, T factor, T* to) {
  constexpr int W = width<T>;
  const T* each[R];
  for (int r = 0; r < R; r++) each[r] = rows + r * row_stride;
  in_sums(divide_up(keys, W), [&](int64_t i, auto vectors) {
    constexpr int G = vectors;
    multiply_to<T, R, G, false>(each, size, laid_out + i * W * size, G * W, factor, to + i * W, BLOCK);
  });
}

// to[r] += the sum of weights[r][k] * rows[k], for R rows of whole vectors of `size` numbers.
template <typename T, int R>
void add_products(const T* weights, int64_t stride, const T* rows, int64_t number, int64_t size, T* to) {
  constexpr int W = width<T>;
  const T* each[R];
  for (int r = 0; r < R; r++) each[r] = weights + r * stride;
  in_sums(size / W, [&](int64_t i, auto vectors) {
    constexpr int G = vectors;
    multiply_to<T, R, G, true>(each, number, rows + i * W, size, T(1), to + i * W, size);
  });
}

// Adds what some query steps add to the gradients of keys or values: to[k] += the sum of weights[i][k] * rows[i].
template <typename T>
void add_key_gradients(const T* weights, const T* rows, int64_t steps, int64_t size, int64_t keys, T* transposed, T* to) {
  for (int64_t i = 0; i < steps; i += width<T>) transpose_rows(weights + i * BLOCK, BLOCK, keys, steps - i, transposed + i, STEPS);
  in_blocks(keys, [&](int64_t k, auto some) {
    add_products<T, decltype(some)::value>(transposed + k * STEPS, STEPS, rows, steps, size, to + k * size);
  });
}

// The scores of query step `at`, and what its gradients need.
template <typename T>
void score_additively(const BackwardScratch<T>& scratch, int64_t size, int64_t at, int64_t keys, T scale) {
  for (int64_t k = 0; k < keys; k++) {
    Vector<T> sums = {};
    for (int64_t f = 0; f < size; f += width<T>) {
      const Vector<T> hidden = hyperbolic_tangent(load(scratch.queries + at * size + f) + load(scratch.keys + k * size + f));
      store(scratch.hidden + k * size + f, hidden);
      sums = fused(load(scratch.weight + f), hidden, sums);
    }
    scratch.weights[at * BLOCK + k] = sum_of_lanes<T>(sums) * scale;
  }
}

// The gradients of one query step, the keys and the weights of additive scores.
template <typename T>
void add_additive_gradients(const BackwardScratch<T>& scratch, const T* grad_scores, int64_t size, int64_t keys, T* grad_query) {
  constexpr int W = width<T>;
  in_sums(size / W, [&](int64_t i, auto vectors) {
    constexpr int G = vectors;
    Vector<T> of_query[G] = {}, of_weight[G] = {};
    for (int64_t k = 0; k < keys; k++) {
      const Vector<T> grad_score = all(grad_scores[k]);
      for (int g = 0; g < G; g++) {
        T* const grad_key = scratch.grad_keys + k * size + (i + g) * W;
        const Vector<T> hidden = load(scratch.hidden + k * size + (i + g) * W);
        const Vector<T> grad = grad_score * load(scratch.weight + (i + g) * W) * (1 - hidden * hidden);
        of_query[g] += grad;
        store(grad_key, load(grad_key) + grad);
        of_weight[g] = fused(grad_score, hidden, of_weight[g]);
      }
    }
    for (int g = 0; g < G; g++) {
      T *const to = grad_query + (i + g) * W, *const grad_weight = scratch.grad_weight + (i + g) * W;
      store(to, of_query[g]);
      store(grad_weight, load(grad_weight) + of_weight[g]);
    }
  });
}

// Up to STEPS query steps of a task from `first`, with `keys` keys of a block.
template <typename T>
void attend_backward_steps(const Attention<T>& call, const BackwardTask<T>& task, const BackwardScratch<T>& scratch, int64_t first,
                           int64_t steps, int64_t keys) {
  constexpr int W = width<T>;
  const int64_t size = whole_vectors<T>(call.size), features = whole_vectors<T>(call.value_size);
  const int64_t row = call.query_starts[task.sequence] + first, of_head = row * call.heads + task.head;
  const T* const query = call.query + row * call.query_stride + task.head * call.size;
  const T* const grad_out = call.grad_out + of_head * call.value_size;
  const T* const out = call.out + row * call.out_stride + task.head * call.value_size;
  for (int64_t i = 0; i < steps; i++) {
    const T *of_out = grad_out + i * call.heads * call.value_size, *result = out + i * call.out_stride;
    copy_row(query + i * call.query_stride, call.size, scratch.queries + i * size);
    copy_row(of_out, call.value_size, scratch.grad_outs + i * features);
    Vector<T> mean = {};  // the product with the result, which has all keys
    for (int64_t f = 0; f < call.value_size; f += W)
      mean = fused(load(of_out + f, call.value_size - f), load(result + f, call.value_size - f), mean);
    scratch.means[i] = sum_of_lanes<T>(mean), scratch.log_sums[i] = call.log_sums[of_head + i * call.heads];
  }
  const T scale = call.scale;
  const bool has_one_key = call.key_starts[task.sequence + 1] - call.key_starts[task.sequence] == 1;
  const auto run_rows = [&](int64_t i, auto some) {
    constexpr int R = decltype(some)::value;
    T *const weights = scratch.weights + i * BLOCK, *const grad_scores = scratch.grad_scores + i * BLOCK;
    if (call.weight)
      score_additively(scratch, size, i, keys, scale);
    else
      multiply_with_laid_out<T, R>(scratch.queries + i * size, size, scratch.hidden, call.size, keys, scale, weights);
    multiply_with_laid_out<T, R>(scratch.grad_outs + i * features, features, scratch.values, call.value_size, keys, T(1), grad_scores);
    for (int r = 0; r < R; r++)
      for (int64_t k = r * BLOCK; k < r * BLOCK + keys; k += W) {
        const Vector<T> weight = exponential(load(weights + k) - all(scratch.log_sums[i + r])), grad = load(grad_scores + k);
        store(weights + k, weight);
        // One key has weight 1 whatever its score, whose gradient is thus 0, and not a rounding error: optimizers enlarge that.
        store(grad_scores + k, weight * (grad - (has_one_key ? grad : all(scratch.means[i + r]))) * all(scale));
      }
    T* const grad_queries = scratch.grad_queries + i * size;
    if (call.weight)
      add_additive_gradients(scratch, grad_scores, size, keys, grad_queries);
    else
      add_products<T, R>(grad_scores, BLOCK, scratch.keys, keys, size, grad_queries);
  };
  std::fill_n(scratch.grad_queries, steps * size, T(0));
  if (call.weight) {
    in_blocks<1>(steps, run_rows);  // because `hidden` is that of one query step
  } else {
    in_blocks(steps, run_rows);
    add_key_gradients(scratch.grad_scores, scratch.queries, steps, size, keys, scratch.transposed, scratch.grad_keys);
  }
  add_key_gradients(scratch.weights, scratch.grad_outs, steps, features, keys, scratch.transposed, scratch.grad_values);
  for (int64_t i = 0; i < steps; i++) {
    T* const grad_query = call.grad_query + (of_head + i * call.heads) * call.size;
    for (int64_t f = 0; f < call.size; f += W)
      store(grad_query + f, load(grad_query + f, call.size - f) + load(scratch.grad_queries + i * size + f), call.size - f);
  }
}

template <typename T>
void run_backward_task(const Attention<T>& call, const BackwardTask<T>& task, const BackwardScratch<T>& scratch) {
  constexpr int W = width<T>;
  const int64_t size = whole_vectors<T>(call.size), features = whole_vectors<T>(call.value_size);
  const int64_t start = call.key_starts[task.sequence], all_keys = call.key_starts[task.sequence + 1] - start;
  if (call.weight) {
    copy_row(call.weight + task.head * call.size, call.size, scratch.weight);
    std::fill_n(scratch.grad_weight, size, T(0));
  }
  for (int64_t step = task.first; step < task.last; step++)
    std::fill_n(call.grad_query + ((call.query_starts[task.sequence] + step) * call.heads + task.head) * call.size, call.size, T(0));
  for (int64_t begin = 0; begin < all_keys; begin += BLOCK) {
    const int64_t keys = std::min(BLOCK, all_keys - begin);
    const T* const key = call.key + (start + begin) * call.key_stride + task.head * call.size;
    for (int64_t k = 0; k < keys; k++) copy_row(key + k * call.key_stride, call.size, scratch.keys + k * size);
    if (!call.weight) lay_out(key, call.key_stride, call.size, keys, scratch.hidden);
    lay_out(call.value + (start + begin) * call.value_stride + task.head * call.value_size, call.value_stride, call.value_size, keys,
            scratch.values);
    std::fill_n(scratch.grad_keys, keys * size, T(0));
    std::fill_n(scratch.grad_values, keys * features, T(0));
    for (int64_t step = task.first; step < task.last; step += STEPS)
      attend_backward_steps(call, task, scratch, step, std::min(STEPS, task.last - step), keys);
    for (int64_t k = 0; k < keys; k++) {
      const int64_t row = (start + begin + k) * call.heads + task.head;
      T* const grad_key = task.part ? task.part + (begin + k) * (call.size + call.value_size) : call.grad_key + row * call.size;
      T* const grad_value = task.part ? grad_key + call.size : call.grad_value + row * call.value_size;
      for (int64_t f = 0; f < call.size; f += W) store(grad_key + f, load(scratch.grad_keys + k * size + f), call.size - f);
      for (int64_t f = 0; f < call.value_size; f += W) store(grad_value + f, load(scratch.grad_values + k * features + f), call.value_size - f);
    }
  }
  if (call.weight) std::copy_n(scratch.grad_weight, call.size, task.grad_weight);
}

template <typename T>
void add_row(const T* from, int64_t size, T* to) {
  for (int64_t f = 0; f < size; f++) to[f] += from[f];
}

template <typename T>
int run_attention_backward(const Attention<T>& call) {
  // The tasks, and thus the order of all sums, depend on the lengths only. So a sequence has the same bits at any number of threads.
  List<BackwardTask<T>> tasks;
  int64_t work = 0, numbers = 0;
  const int64_t row = call.size + call.value_size;
  const auto keys_of = [&](int64_t i) { return call.key_starts[i + 1] - call.key_starts[i]; };
  for (int64_t i = 0; i < call.sequences; i++) {
    const int64_t steps = call.query_starts[i + 1] - call.query_starts[i], together = std::max(QUERIES, divide_up(steps, PARTS));
    work += steps * keys_of(i) * call.heads * row;
    int64_t first = 0;
    do {  // one task without a step too, which sets the gradients of the keys to 0
      for (int64_t head = 0; head < call.heads; head++) {
        tasks.push_back({i, head, first, std::min(steps, first + together), nullptr, nullptr});
        numbers += first ? keys_of(i) * row : 0;
      }
    } while ((first += together) < steps);
  }
  const int64_t of_weight = call.weight ? static_cast<int64_t>(tasks.size()) * call.size : 0;
  Buffer<T> sums(of_weight + numbers);
  if (!sums.data) return 1;
#ifdef SEQBATCH_TEST
  std::fill_n(sums.data, of_weight + numbers, std::numeric_limits<T>::quiet_NaN());
#endif
  T *grad_weight = sums.data, *part = sums.data + of_weight;
  for (auto& task : tasks) {
    if (call.weight) task.grad_weight = std::exchange(grad_weight, grad_weight + call.size);
    if (task.first) task.part = std::exchange(part, part + keys_of(task.sequence) * row);
  }
  if (run_tasks<T>(tasks, work < SMALL_WORK ? 1 : call.threads, backward_scratch_size(call), [&](const BackwardTask<T>& task, T* memory) {
        run_backward_task(call, task, backward_scratch_in(memory, call));
      }))
    return 1;
  if (call.weight) std::fill_n(call.grad_weight, call.heads * call.size, T(0));
  for (const auto& task : tasks) {
    if (call.weight) add_row(task.grad_weight, call.size, call.grad_weight + task.head * call.size);
    if (!task.part) continue;
    for (int64_t k = 0; k < keys_of(task.sequence); k++) {
      const int64_t at = (call.key_starts[task.sequence] + k) * call.heads + task.head;
      add_row(task.part + k * row, call.size, call.grad_key + at * call.size);
      add_row(task.part + k * row + call.size, call.value_size, call.grad_value + at * call.value_size);
    }
  }
  return 0;
}

}  // namespace

int attend_backward(const Attention<float>& call) { return run_attention_backward(call); }
int attend_backward(const Attention<double>& call) { return run_attention_backward(call); }
int attend(const Attention<float>& call) { return run_attention(call); }
int attend(const Attention<double>& call) { return run_attention(call); }

}  // namespace seqbatch::SEQBATCH_ISA
