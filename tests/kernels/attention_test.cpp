// Tests of attention through its C interface. test_sanitized.py builds it with sanitizers and runs it.
//
// Every case is compared with plain loops in double precision, and with the same sequence alone, bit for bit. All buffers
// have the exact size, so that the address sanitizer finds an access one past their ends.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "../../seqbatch/_kernels/attention.h"

extern "C" {
int32_t seqbatch_isa();
int seqbatch_attend_float(const seqbatch::Attention<float>*);
int seqbatch_attend_double(const seqbatch::Attention<double>*);
int seqbatch_attend_backward_float(const seqbatch::Attention<float>*);
int seqbatch_attend_backward_double(const seqbatch::Attention<double>*);
}

namespace {

using Ints = std::vector<int64_t>;

std::mt19937 generator(0);
const char* sentence = "";

void require(bool holds, const char* what) {
  if (holds) return;
  std::printf("%s is wrong: %s\n", what, sentence);
  std::exit(1);
}

int attend(const seqbatch::Attention<float>* call) { return seqbatch_attend_float(call); }
int attend(const seqbatch::Attention<double>* call) { return seqbatch_attend_double(call); }
int attend_backward(const seqbatch::Attention<float>* call) { return seqbatch_attend_backward_float(call); }
int attend_backward(const seqbatch::Attention<double>* call) { return seqbatch_attend_backward_double(call); }

int64_t random_below(int64_t end) { return std::uniform_int_distribution<int64_t>(0, end - 1)(generator); }

template <typename T>
std::vector<T> random_numbers(int64_t count) {
  std::vector<T> numbers(count);
  std::normal_distribution<T> normal;
  for (T& number : numbers) number = normal(generator);
  return numbers;
}

Ints starts_of(const Ints& lengths) {
  Ints starts{0};
  for (int64_t length : lengths) starts.push_back(starts.back() + length);
  return starts;
}

// Numbers of a tensor whose steps are `stride` apart; nothing stands behind the last.
int64_t room(int64_t steps, int64_t stride, int64_t used) { return steps ? (steps - 1) * stride + used : 0; }

// What forward leaves for the backward pass, and the gradients, which stand without gaps. They begin with numbers to overwrite.
template <typename T>
struct Gradients {
  std::vector<T> log_sums, of_out, query, key, value, weight;
  Gradients(seqbatch::Attention<T>& call, std::vector<T> of_out, int64_t keys)
      : log_sums(of_out.size() / call.value_size, T(7)),
        of_out(std::move(of_out)),
        query(log_sums.size() * call.size, T(7)),
        key(keys * call.heads * call.size, T(7)),
        value(keys * call.heads * call.value_size, T(7)),
        weight(call.heads * call.size, T(7)) {
    call.log_sums = log_sums.data(), call.grad_out = this->of_out.data();
    call.grad_query = query.data(), call.grad_key = key.data(), call.grad_value = value.data(), call.grad_weight = weight.data();
  }
};

template <typename T>
bool is_part(const std::vector<T>& part, const std::vector<T>& of, int64_t first) {
  return part.empty() || !std::memcmp(part.data(), &of[first], part.size() * sizeof(T));
}

template <typename T>
void require_close(const std::vector<T>& found, const std::vector<double>& wanted, double tolerance, const char* what) {
  for (size_t i = 0; i < wanted.size(); i++) require(std::abs(found[i] - wanted[i]) < tolerance * (1 + std::abs(wanted[i])), what);
}

template <typename T>
void test_case(const Ints& queries, const Ints& keys, int64_t heads, int64_t size, int64_t value_size, int64_t gap, bool is_additive, bool is_causal,
               int32_t isa, int32_t threads) {
  const Ints query_starts = starts_of(queries), key_starts = starts_of(keys);
  const int64_t used = heads * size, stride = used + gap, out_used = heads * value_size, out_stride = out_used + gap;
  const auto query = random_numbers<T>(room(query_starts.back(), stride, used)), key = random_numbers<T>(room(key_starts.back(), stride, used));
  const auto value = random_numbers<T>(room(key_starts.back(), out_stride, out_used)), weight = random_numbers<T>(used);
  std::vector<T> out(room(query_starts.back(), out_stride, out_used), T(7));
  seqbatch::Attention<T> call{query.data(), key.data(), value.data(), is_additive ? weight.data() : nullptr, out.data(), nullptr, nullptr, nullptr,
                              nullptr, nullptr, nullptr, query_starts.data(), key_starts.data(), static_cast<int64_t>(queries.size()), heads, size, value_size, stride, stride, out_stride, out_stride,
                              0.5, is_causal, threads, isa};
  Gradients<T> gradients(call, random_numbers<T>(query_starts.back() * out_used), key_starts.back());
  require(attend(&call) == 0, "the result");
  if (!is_causal) require(attend_backward(&call) == 0, "the backward pass");
  std::vector<double> of_query(gradients.query.size()), of_key(gradients.key.size()), of_value(gradients.value.size()), of_weight(used);
  for (size_t i = 0; i < queries.size(); i++)
    for (int64_t h = 0; h < heads; h++)
      for (int64_t step = 0; step < queries[i]; step++) {
        const int64_t row = query_starts[i] + step, number = is_causal ? step + 1 : keys[i];
        T* const found = &out[row * out_stride + h * value_size];
        std::vector<double> weights(number), wanted(value_size);
        double sum = 0;
        for (int64_t k = 0; k < number; k++) {
          double score = 0;
          for (int64_t f = 0; f < size; f++) {
            const double q = query[row * stride + h * size + f], other = key[(key_starts[i] + k) * stride + h * size + f];
            score += is_additive ? weight[h * size + f] * std::tanh(q + other) : q * other;
          }
          sum += weights[k] = std::exp(0.5 * score);
        }
        for (int64_t k = 0; k < number; k++)
          for (int64_t f = 0; f < value_size; f++) wanted[f] += weights[k] / sum * value[(key_starts[i] + k) * out_stride + h * value_size + f];
        const double tolerance = sizeof(T) == 4 ? 2e-5 : 1e-12;
        const T* const of_out = &gradients.of_out[(row * heads + h) * value_size];
        double mean = 0;
        for (int64_t f = 0; f < value_size; f++) mean += of_out[f] * wanted[f];
        for (int64_t k = 0; !is_causal && k < number; k++) {
          const int64_t other = key_starts[i] + k;
          double of_score = -mean;
          for (int64_t f = 0; f < value_size; f++) {
            of_score += of_out[f] * value[other * out_stride + h * value_size + f];
            of_value[(other * heads + h) * value_size + f] += weights[k] / sum * of_out[f];
          }
          of_score *= 0.5 * weights[k] / sum;
          for (int64_t f = 0; f < size; f++) {
            const int64_t at = h * size + f;
            const double q = query[row * stride + at], k = key[other * stride + at], hidden = std::tanh(q + k);
            const double of_sum = weight[at] * (1 - hidden * hidden);
            of_query[(row * heads + h) * size + f] += of_score * (is_additive ? of_sum : k);
            of_key[(other * heads + h) * size + f] += of_score * (is_additive ? of_sum : q);
            of_weight[at] += of_score * hidden;
          }
        }
        for (int64_t f = 0; f < value_size; f++) require(std::abs(found[f] - wanted[f]) < tolerance, "a context");
        if (h == heads - 1 && row + 1 < query_starts.back())
          for (int64_t f = 0; f < gap; f++) require(found[value_size + f] == T(7), "what stands between steps");
      }
  if (!is_causal) {
    const double tolerance = sizeof(T) == 4 ? 1e-4 : 1e-11;
    require_close(gradients.query, of_query, tolerance, "the gradient of a query");
    require_close(gradients.key, of_key, tolerance, "the gradient of a key");
    require_close(gradients.value, of_value, tolerance, "the gradient of a value");
    // Without weights, their gradient must stay as it was.
    if (!is_additive) std::fill(of_weight.begin(), of_weight.end(), 7);
    require_close(gradients.weight, of_weight, 10 * tolerance, "the gradient of the weights");
    const std::vector<T> of_weight_before = gradients.weight;
    call.threads = 1 + threads % 3;
    require(attend_backward(&call) == 0 && of_weight_before == gradients.weight, "the gradient of the weights by other threads");
  }
  for (size_t i = 0; i < queries.size(); i++) {
    if (!queries[i]) continue;
    const Ints query_alone{0, queries[i]}, keys_alone{0, keys[i]};
    const int64_t first = query_starts[i] * out_stride;
    std::vector<T> alone(room(queries[i], out_stride, out_used), T(7));
    call.query = query.data() + query_starts[i] * stride, call.out = alone.data();
    call.key = key.data() + key_starts[i] * stride, call.value = value.data() + key_starts[i] * out_stride;
    call.query_starts = query_alone.data(), call.key_starts = keys_alone.data(), call.sequences = 1, call.threads = 1;
    const auto at = gradients.of_out.begin() + query_starts[i] * out_used;
    const Gradients<T> others(call, std::vector<T>(at, at + queries[i] * out_used), keys[i]);
    require(attend(&call) == 0 && is_part(alone, out, first), "a sequence alone");
    if (is_causal) continue;
    require(attend_backward(&call) == 0, "the backward pass of a sequence alone");
    require(is_part(others.query, gradients.query, query_starts[i] * used), "the gradient of the queries of a sequence alone");
    require(is_part(others.key, gradients.key, key_starts[i] * used), "the gradient of the keys of a sequence alone");
    require(is_part(others.value, gradients.value, key_starts[i] * out_used), "the gradient of the values of a sequence alone");
  }
}

template <typename T>
void test_all(int32_t isa) {
  for (int round = 0; round < 60; round++) {
    const bool is_causal = round % 4 == 1, is_additive = round % 3 == 0;
    Ints queries, keys;
    for (int64_t i = random_below(6); i >= 0; i--) {
      const int64_t most = round % 10 ? 40 : is_additive ? 120 : 300;  // plain loops of tanh take long
      queries.push_back(random_below(most));
      keys.push_back(is_causal ? queries.back() : random_below(most));
    }
    const int64_t sizes[] = {1, 3, 4, 15, 16, 17, 33, 64, 70};
    const int64_t size = sizes[random_below(9)], value_size = round % 4 ? size : sizes[random_below(9)];
    test_case<T>(queries, keys, 1 + random_below(3), size, value_size, random_below(2) * 5, is_additive, is_causal, isa, 1 + round % 3);
  }
  test_case<T>({}, {}, 2, 8, 8, 0, false, false, isa, 2);
  // Weights that are 0, infinite scores and NaN.
  const T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const int64_t keys = 100;
  const Ints query_starts{0, 4}, key_starts{0, keys};
  const std::vector<T> query{1, infinity, nan, 1};
  std::vector<T> key(keys, -infinity), value(keys, T(2)), out(4);
  key[80] = 1;  // behind keys of one chunk whose scores are all -infinity
  seqbatch::Attention<T> call{query.data(), key.data(), value.data(), nullptr, out.data(), nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
                              query_starts.data(), key_starts.data(), 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, isa};
  require(attend(&call) == 0, "the result of what is not finite");
  require(out[0] == 2 && out[3] == 2 && std::isnan(out[1]) && std::isnan(out[2]), "what is not finite");
  // Additive scores that are all -infinity: as of PyTorch's softmax, all weights are NaN.
  const T weight = -infinity;
  const std::vector<T> ones(keys, T(1));
  call.query = call.key = ones.data(), call.weight = &weight;
  const Gradients<T> gradients(call, {1, 1, 1, 1}, keys);
  require(attend(&call) == 0 && attend_backward(&call) == 0, "the backward pass of what is not finite");
  for (const auto& found : {out, gradients.value})
    for (T number : found) require(std::isnan(number), "what comes of scores that are all -infinity");
  call.size = int64_t{1} << 50;
  require(attend(&call) == 1 && attend_backward(&call) == 1, "the lack of memory");
}

}  // namespace

int main() {
  for (int32_t isa = 0; isa <= seqbatch_isa(); isa++) {
    sentence = isa == 0 ? "baseline" : isa == 1 ? "avx2" : "avx512";
    test_all<float>(isa);
    test_all<double>(isa);
  }
}
