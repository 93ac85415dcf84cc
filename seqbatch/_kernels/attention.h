// What Python passes to the kernel of attention: plain pointers and sizes, checked before the call. See __init__.py, which mirrors it.
#pragma once
#include <cstdint>

#include "instruction_sets.h"

namespace seqbatch {

// Every query step attends to the keys of its sequence, by the softmax of its scores with them. A score is a dot product, or with
// `weight` the sum of weight * tanh(query + key), times `scale`. Steps of a sequence stand one after another, and those of
// each tensor are a stride apart, in numbers. Within a step, heads stand side by side without gaps. Gradients have the shapes
// of what they belong to, without gaps. Only the backward pass reads their pointers. It cannot be causal, and takes memory for the
// gradients of all keys and values up to four times.
template <typename T>
struct Attention {
  const T* query;  // (query steps, heads, size)
  const T* key;    // (keys, heads, size)
  const T* value;  // (keys, heads, value_size)
  const T* weight;  // (heads, size), or null for dot products
  T* out;          // (query steps, heads, value_size): zeros where there is no key
  T* log_sums;     // (query steps, heads): contiguous: the logarithms of the sums of the weights, for the backward pass, or null
  const T* grad_out;
  T* grad_query;
  T* grad_key;
  T* grad_value;
  T* grad_weight;
  const int64_t* query_starts;  // (sequences + 1): where the query steps of each begin, and where the last end
  const int64_t* key_starts;    // (sequences + 1)
  int64_t sequences;
  int64_t heads;
  int64_t size;  // of a head
  int64_t value_size;
  int64_t query_stride;
  int64_t key_stride;
  int64_t value_stride;
  int64_t out_stride;
  double scale;
  int32_t is_causal;  // a query step does not attend to later keys; there are as many keys as query steps
  int32_t threads;
  int32_t isa;
};

// Each returns 0, or 1 if there is not enough memory.
#define SEQBATCH_DECLARE(isa)                     \
  namespace isa {                                 \
  int attend(const Attention<float>&);            \
  int attend(const Attention<double>&);           \
  int attend_backward(const Attention<float>&);   \
  int attend_backward(const Attention<double>&);  \
  }
SEQBATCH_FOR_EACH_ISA(SEQBATCH_DECLARE)
#undef SEQBATCH_DECLARE

}  // namespace seqbatch
