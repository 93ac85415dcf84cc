// The C interface of the kernels, which picks those for this processor; module.cpp and ctypes call it.
#include <pthread.h>

#include <atomic>
#include <new>

#include "attention.h"
#include "recurrent.h"
#include "rows.h"

namespace {

enum Isa : int32_t { BASELINE = 0, AVX2 = 1, AVX512 = 2 };

// The threads of OpenMP do not survive a fork, and a child that waits for them would wait forever.
std::atomic<bool> is_forked{false};

// Run the function of a kernel that is named alike for each instruction set.
#ifdef SEQBATCH_HAS_AVX512
#define SEQBATCH_IF_AVX512(function, call) \
  if (call.isa == AVX512) return seqbatch::avx512::function(call);
#else
#define SEQBATCH_IF_AVX512(function, call)
#endif
#ifdef SEQBATCH_HAS_AVX2
#define SEQBATCH_IF_AVX2(function, call) \
  if (call.isa == AVX2) return seqbatch::avx2::function(call);
#else
#define SEQBATCH_IF_AVX2(function, call)
#endif
#define SEQBATCH_BY_ISA(function)                 \
  template <typename C>                           \
  int function(C call) {                          \
    if (is_forked) call.threads = 1;              \
    try {                                         \
      SEQBATCH_IF_AVX512(function, call)          \
      SEQBATCH_IF_AVX2(function, call)            \
      return seqbatch::baseline::function(call);  \
    } catch (const std::bad_alloc&) {             \
      return 1; /* it must not reach Python */    \
    }                                             \
  }
SEQBATCH_BY_ISA(forward)
SEQBATCH_BY_ISA(backward)
SEQBATCH_BY_ISA(attend)
SEQBATCH_BY_ISA(attend_backward)

__attribute__((constructor)) void watch_forks() {
  pthread_atfork(nullptr, nullptr, [] { is_forked = true; });
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// The best instruction set of this processor that there are kernels for.
int32_t seqbatch_isa() {
#ifdef SEQBATCH_HAS_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return AVX512;
#endif
#ifdef SEQBATCH_HAS_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
  return BASELINE;
}

// Compared with the structures in Python, which mirror these, before the first call.
int64_t seqbatch_rows_size() { return sizeof(seqbatch::Rows); }
int64_t seqbatch_attention_size() { return sizeof(seqbatch::Attention<float>); }

int seqbatch_forward_float(const seqbatch::Call<float>* call) { return forward(*call); }
int seqbatch_forward_double(const seqbatch::Call<double>* call) { return forward(*call); }
int seqbatch_backward_float(const seqbatch::Call<float>* call) { return backward(*call); }
int seqbatch_backward_double(const seqbatch::Call<double>* call) { return backward(*call); }
int seqbatch_attend_float(const seqbatch::Attention<float>* call) { return attend(*call); }
int seqbatch_attend_double(const seqbatch::Attention<double>* call) { return attend(*call); }
int seqbatch_attend_backward_float(const seqbatch::Attention<float>* call) { return attend_backward(*call); }
int seqbatch_attend_backward_double(const seqbatch::Attention<double>* call) { return attend_backward(*call); }

int seqbatch_copy(const seqbatch::Rows* rows) {
  seqbatch::Rows here = *rows;
  if (is_forked) here.threads = 1;
  return seqbatch::copy(here);
}
int seqbatch_measure(const int64_t* lengths, int64_t sequences, int64_t* found) {
  return seqbatch::measure(lengths, sequences, found);
}
void seqbatch_sort(const int64_t* lengths, int64_t sequences, int64_t longest, int64_t* order, int64_t* rank, int64_t* sizes) {
  seqbatch::sort(lengths, sequences, longest, order, rank, sizes);
}
int seqbatch_unpack(const int64_t* sizes, int64_t longest, const int64_t* order, const int64_t* rank, int64_t sequences,
                    int64_t steps, int64_t* lengths) {
  return seqbatch::unpack(sizes, longest, order, rank, sequences, steps, lengths);
}
}
#pragma GCC visibility pop
