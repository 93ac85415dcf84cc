// Attention over flat values, by dot products or additive, without padding and without a mask. Additive scores have a backward
// pass.
//
// A thread takes some query steps of one head of one sequence. It lays out the keys so that a vector has one feature of
// several keys, computes the scores of a few query steps at a time, and adds up the values by their softmax. Every query
// step is computed by the same operations in the same order whatever stands beside it, hence the same bits.
//
// The backward pass takes the keys in small blocks, each with one query step after another. It computes each tanh a second
// time. There a vector has several features of one key, because there are often fewer keys than features. So a score is
// rounded in another way than in the forward pass: weights are off by the rounding error of their scores, as in all attention
// that recomputes them from the logarithm of their sum.
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

constexpr int64_t BLOCK = PIECE;  // keys of the backward pass at once: they, what is computed for them, and their gradients stay in the cache
constexpr int64_t PARTS = 4;      // tasks of a head of one sequence in the backward pass, at most: each but the first needs gradients of all its keys

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
    for (size_t i = 0; i < tasks.size(); i++)
      if (memory.data) run(tasks[i], memory.data);
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

// What a thread keeps for the backward pass of one block of keys: rows of whole vectors, whose last numbers are 0 where they are
// read. Its size does not depend on the lengths.
template <typename T>
struct BackwardScratch {
  T *keys, *grad_keys, *hidden;  // (BLOCK, size); hidden: tanh(query + key)
  T *values, *grad_values;       // (BLOCK, value_size)
  T *query, *weight;             // (size)
  T* grad_out;                   // (value_size)
  T *weights, *grad_scores;      // (BLOCK)
};
template <typename T>
int64_t backward_scratch_size(const Attention<T>& call) {
  return (3 * BLOCK + 2) * whole_vectors<T>(call.size) + (2 * BLOCK + 1) * whole_vectors<T>(call.value_size) + 2 * BLOCK;
}
template <typename T>
BackwardScratch<T> backward_scratch_in(T* memory, const Attention<T>& call) {
  const int64_t size = whole_vectors<T>(call.size), features = whole_vectors<T>(call.value_size);
  const auto take = [&](int64_t numbers) { return std::exchange(memory, memory + numbers); };
  BackwardScratch<T> s;
  s.keys = take(BLOCK * size), s.grad_keys = take(BLOCK * size), s.hidden = take(BLOCK * size);
  s.values = take(BLOCK * features), s.grad_values = take(BLOCK * features);
  s.query = take(size), s.weight = take(size), s.grad_out = take(features);
  s.weights = take(BLOCK), s.grad_scores = take(BLOCK);
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

// The sum of a[f] * b[f].
template <typename T>
T dot_product(const T* a, const T* b, int64_t end) {
  Vector<T> sums = {};
  for (int64_t f = 0; f < end; f += width<T>) sums = fused(load(a + f), load(b + f), sums);
  return sum_of_lanes<T>(sums);
}

// One query step, with `keys` keys of a block.
template <typename T>
void attend_backward_row(const Attention<T>& call, const BackwardTask<T>& task, const BackwardScratch<T>& scratch, int64_t step,
                         int64_t keys) {
  constexpr int W = width<T>;
  const int64_t size = whole_vectors<T>(call.size), features = whole_vectors<T>(call.value_size);
  const int64_t row = call.query_starts[task.sequence] + step, of_head = row * call.heads + task.head;
  const T *query = call.query + row * call.query_stride + task.head * call.size, *grad_out = call.grad_out + of_head * call.value_size;
  const T* const out = call.out + row * call.out_stride + task.head * call.value_size;
  copy_row(query, call.size, scratch.query);
  copy_row(grad_out, call.value_size, scratch.grad_out);
  for (int64_t k = 0; k < keys; k++) {
    Vector<T> sums = {};
    for (int64_t f = 0; f < size; f += W) {
      const Vector<T> hidden = hyperbolic_tangent(load(scratch.query + f) + load(scratch.keys + k * size + f));
      store(scratch.hidden + k * size + f, hidden);
      sums = fused(load(scratch.weight + f), hidden, sums);
    }
    scratch.weights[k] = sum_of_lanes<T>(sums);
    scratch.grad_scores[k] = dot_product(scratch.grad_out, scratch.values + k * features, features);
  }
  Vector<T> mean = {};  // of the gradients of the weights, by the weights: the product with the result, which has all keys
  for (int64_t f = 0; f < call.value_size; f += W) mean = fused(load(grad_out + f, call.value_size - f), load(out + f, call.value_size - f), mean);
  const Vector<T> taken = all(sum_of_lanes<T>(mean)), scale = all(static_cast<T>(call.scale)), log_sum = all(call.log_sums[of_head]);
  for (int64_t k = 0; k < keys; k += W) {
    const Vector<T> weights = exponential(load(scratch.weights + k) * scale - log_sum);
    store(scratch.weights + k, weights);
    store(scratch.grad_scores + k, weights * (load(scratch.grad_scores + k) - taken) * scale);
  }
  in_sums(size / W, [&](int64_t i, auto vectors) {
    constexpr int G = vectors;
    Vector<T> of_query[G] = {}, of_weight[G] = {};
    for (int64_t k = 0; k < keys; k++) {
      const Vector<T> grad_score = all(scratch.grad_scores[k]);
      for (int g = 0; g < G; g++) {
        T* const grad_key = scratch.grad_keys + k * size + (i + g) * W;
        const Vector<T> hidden = load(scratch.hidden + k * size + (i + g) * W), grad = grad_score * (1 - hidden * hidden);
        of_query[g] += grad;
        store(grad_key, load(grad_key) + grad);
        of_weight[g] = fused(grad_score, hidden, of_weight[g]);
      }
    }
    for (int g = 0; g < G; g++) {
      const int64_t f = (i + g) * W, valid = call.size - f;
      T *const grad_query = call.grad_query + of_head * call.size + f, *const grad_weight = task.grad_weight + f;
      store(grad_query, fused(load(scratch.weight + f), of_query[g], load(grad_query, valid)), valid);
      store(grad_weight, load(grad_weight, valid) + of_weight[g], valid);
    }
  });
  for (int64_t k = 0; k < keys; k++)
    for (int64_t f = 0; f < features; f += W) {
      T* const grad_value = scratch.grad_values + k * features + f;
      store(grad_value, fused(all(scratch.weights[k]), load(scratch.grad_out + f), load(grad_value)));
    }
}

template <typename T>
void run_backward_task(const Attention<T>& call, const BackwardTask<T>& task, const BackwardScratch<T>& scratch) {
  constexpr int W = width<T>;
  const int64_t size = whole_vectors<T>(call.size), features = whole_vectors<T>(call.value_size);
  const int64_t start = call.key_starts[task.sequence], all_keys = call.key_starts[task.sequence + 1] - start;
  copy_row(call.weight + task.head * call.size, call.size, scratch.weight);
  for (int64_t step = task.first; step < task.last; step++)
    std::fill_n(call.grad_query + ((call.query_starts[task.sequence] + step) * call.heads + task.head) * call.size, call.size, T(0));
  for (int64_t begin = 0; begin < all_keys; begin += BLOCK) {
    const int64_t keys = std::min(BLOCK, all_keys - begin);
    for (int64_t k = 0; k < keys; k++) {
      const int64_t row = start + begin + k;
      copy_row(call.key + row * call.key_stride + task.head * call.size, call.size, scratch.keys + k * size);
      copy_row(call.value + row * call.value_stride + task.head * call.value_size, call.value_size, scratch.values + k * features);
    }
    std::fill_n(scratch.grad_keys, keys * size, T(0));
    std::fill_n(scratch.grad_values, keys * features, T(0));
    for (int64_t step = task.first; step < task.last; step++)
      attend_backward_row(call, task, scratch, step, call.is_causal ? std::clamp<int64_t>(step + 1 - begin, 0, keys) : keys);
    for (int64_t k = 0; k < keys; k++) {
      const int64_t row = (start + begin + k) * call.heads + task.head;
      T* const grad_key = task.part ? task.part + (begin + k) * (call.size + call.value_size) : call.grad_key + row * call.size;
      T* const grad_value = task.part ? grad_key + call.size : call.grad_value + row * call.value_size;
      for (int64_t f = 0; f < call.size; f += W)
        store(grad_key + f, load(scratch.weight + f) * load(scratch.grad_keys + k * size + f), call.size - f);
      for (int64_t f = 0; f < call.value_size; f += W) store(grad_value + f, load(scratch.grad_values + k * features + f), call.value_size - f);
    }
  }
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
  const int64_t of_weight = static_cast<int64_t>(tasks.size()) * call.size;
  Buffer<T> sums(of_weight + numbers);
  if (!sums.data) return 1;
  std::fill_n(sums.data, of_weight, T(0));
  T *grad_weight = sums.data, *part = sums.data + of_weight;
  for (auto& task : tasks) {
    task.grad_weight = std::exchange(grad_weight, grad_weight + call.size);
    if (task.first) task.part = std::exchange(part, part + keys_of(task.sequence) * row);
  }
  if (run_tasks<T>(tasks, work < SMALL_WORK ? 1 : call.threads, backward_scratch_size(call), [&](const BackwardTask<T>& task, T* memory) {
        run_backward_task(call, task, backward_scratch_in(memory, call));
      }))
    return 1;
  std::fill_n(call.grad_weight, call.heads * call.size, T(0));
  for (const auto& task : tasks) {
    add_row(task.grad_weight, call.size, call.grad_weight + task.head * call.size);
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
