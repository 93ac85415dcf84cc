// The C interface: picks the kernels for this processor when it is loaded, independent of the versions of torch and Python.
#include <pthread.h>

#include <atomic>

#include "recurrent.h"

namespace {

enum Isa : int32_t { BASELINE = 0, AVX2 = 1, AVX512 = 2 };

// The threads of OpenMP do not survive a fork, and a child that waits for them would wait forever.
std::atomic<bool> is_forked{false};

template <typename T>
int run(seqbatch::Call<T> call, bool is_forward) {
  if (is_forked) call.threads = 1;
#ifdef SEQBATCH_HAS_AVX512
  if (call.isa == AVX512) return is_forward ? seqbatch::avx512::forward(call) : seqbatch::avx512::backward(call);
#endif
#ifdef SEQBATCH_HAS_AVX2
  if (call.isa == AVX2) return is_forward ? seqbatch::avx2::forward(call) : seqbatch::avx2::backward(call);
#endif
  return is_forward ? seqbatch::baseline::forward(call) : seqbatch::baseline::backward(call);
}

__attribute__((constructor)) void watch_forks() {
  pthread_atfork(nullptr, nullptr, [] { is_forked = true; });
}

}  // namespace

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

// Compared with the structure in Python, which mirrors it, before the first call.
int64_t seqbatch_call_size() { return sizeof(seqbatch::Call<float>); }

int seqbatch_forward_float(const seqbatch::Call<float>* call) { return run(*call, true); }
int seqbatch_forward_double(const seqbatch::Call<double>* call) { return run(*call, true); }
int seqbatch_backward_float(const seqbatch::Call<float>* call) { return run(*call, false); }
int seqbatch_backward_double(const seqbatch::Call<double>* call) { return run(*call, false); }
}
