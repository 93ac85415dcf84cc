// Vectors of one width, and the functions of activations on them. Compiled once for each instruction set: SEQBATCH_ISA
// names the namespace, SEQBATCH_BYTES the width of a vector, SEQBATCH_ROWS how many rows the registers hold.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)  // GCC 12 takes its own undefined vectors for a fault (its bug 105593)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace seqbatch::SEQBATCH_ISA {

template <typename T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Vector __attribute__((vector_size(SEQBATCH_BYTES)));
  typedef uint32_t Integers __attribute__((vector_size(SEQBATCH_BYTES)));
};
template <>
struct Lanes<double> {
  typedef double Vector __attribute__((vector_size(SEQBATCH_BYTES)));
  typedef uint64_t Integers __attribute__((vector_size(SEQBATCH_BYTES)));
};
template <typename T>
using Vector = typename Lanes<T>::Vector;
template <typename T>
constexpr int width = SEQBATCH_BYTES / sizeof(T);

template <typename T>
static inline Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <typename T>
static inline void store(T* to, Vector<T> v) {
  std::memcpy(to, &v, sizeof v);
}
// The first `valid` lanes only; the others are 0.
#if SEQBATCH_BYTES == 64
static inline Vector<float> load_lanes(const float* from, int64_t valid) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << valid) - 1), from);
}
static inline Vector<double> load_lanes(const double* from, int64_t valid) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << valid) - 1), from);
}
static inline void store_lanes(float* to, Vector<float> v, int64_t valid) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << valid) - 1), v);
}
static inline void store_lanes(double* to, Vector<double> v, int64_t valid) {
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << valid) - 1), v);
}
#else
template <typename T>
static inline Vector<T> load_lanes(const T* from, int64_t valid) {
  T lanes[width<T>] = {};
  for (int64_t i = 0; i < valid; i++) lanes[i] = from[i];
  return load(lanes);
}
template <typename T>
static inline void store_lanes(T* to, Vector<T> v, int64_t valid) {
  for (int64_t i = 0; i < valid; i++) to[i] = v[i];
}
#endif
template <typename T>
static inline Vector<T> load(const T* from, int64_t valid) {
  return valid >= width<T> ? load(from) : load_lanes(from, std::max<int64_t>(valid, 0));
}
template <typename T>
static inline void store(T* to, Vector<T> v, int64_t valid) {
  if (valid >= width<T>) return store(to, v);
  store_lanes(to, v, std::max<int64_t>(valid, 0));
}
template <typename T>
static inline Vector<T> all(T x) {
  return x - Vector<T>{};
}

// For a loop that waits.
static inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Calls write(k, v) with v[lane] = row(lane)[k], for the numbers k of 16 bytes. Only moves numbers: no bit changes.
#if defined(__x86_64__)
#if SEQBATCH_BYTES == 64
#define SEQBATCH_X86(name) _mm512_##name
template <typename Row>
static inline __m512 load_quarters(Row row) {
  __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(row(0)));
  v = _mm512_insertf32x4(v, _mm_loadu_ps(row(1)), 1);
  v = _mm512_insertf32x4(v, _mm_loadu_ps(row(2)), 2);
  return _mm512_insertf32x4(v, _mm_loadu_ps(row(3)), 3);
}
#elif SEQBATCH_BYTES == 32
#define SEQBATCH_X86(name) _mm256_##name
template <typename Row>
static inline __m256 load_quarters(Row row) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row(0))), _mm_loadu_ps(row(1)), 1);
}
#else
#define SEQBATCH_X86(name) _mm_##name
template <typename Row>
static inline __m128 load_quarters(Row row) {
  return _mm_loadu_ps(row(0));
}
#endif
template <typename Row, typename Write>
static inline void transpose(Row row, Write write, const float*) {
  auto rows = [&](int i) { return load_quarters([&](int quarter) { return row(4 * quarter + i); }); };
  auto pairs = [](auto a, auto b) { return SEQBATCH_X86(castps_pd)(SEQBATCH_X86(unpacklo_ps)(a, b)); };
  auto later_pairs = [](auto a, auto b) { return SEQBATCH_X86(castps_pd)(SEQBATCH_X86(unpackhi_ps)(a, b)); };
  auto write_pairs = [&](int k, auto v) { write(k, SEQBATCH_X86(castpd_ps)(v)); };
  auto a = rows(0), b = rows(1), c = rows(2), d = rows(3);
  write_pairs(0, SEQBATCH_X86(unpacklo_pd)(pairs(a, b), pairs(c, d)));
  write_pairs(1, SEQBATCH_X86(unpackhi_pd)(pairs(a, b), pairs(c, d)));
  write_pairs(2, SEQBATCH_X86(unpacklo_pd)(later_pairs(a, b), later_pairs(c, d)));
  write_pairs(3, SEQBATCH_X86(unpackhi_pd)(later_pairs(a, b), later_pairs(c, d)));
}
template <typename Row, typename Write>
static inline void transpose(Row row, Write write, const double*) {
  auto rows = [&](int i) {
    return SEQBATCH_X86(castps_pd)(load_quarters([&](int quarter) { return reinterpret_cast<const float*>(row(2 * quarter + i)); }));
  };
  auto a = rows(0), b = rows(1);
  write(0, SEQBATCH_X86(unpacklo_pd)(a, b));
  write(1, SEQBATCH_X86(unpackhi_pd)(a, b));
}
#undef SEQBATCH_X86
#else
template <typename Row, typename Write, typename T>
static inline void transpose(Row row, Write write, const T*) {
  for (int64_t k = 0; k < static_cast<int64_t>(16 / sizeof(T)); k++) {
    T lanes[width<T>];
    for (int lane = 0; lane < width<T>; lane++) lanes[lane] = row(lane)[k];
    write(k, load(lanes));
  }
}
#endif

// a * b + c, rounded once where the processor can. Written out, because a compiler that is left to fuse products and sums
// does so differently in different places, and the bits of a row must not depend on the rows beside it.
static inline Vector<float> fused(Vector<float> a, Vector<float> b, Vector<float> c) {
#if SEQBATCH_BYTES == 64
  return _mm512_fmadd_ps(a, b, c);
#elif SEQBATCH_BYTES == 32
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__ARM_NEON)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}
static inline Vector<double> fused(Vector<double> a, Vector<double> b, Vector<double> c) {
#if SEQBATCH_BYTES == 64
  return _mm512_fmadd_pd(a, b, c);
#elif SEQBATCH_BYTES == 32
  return _mm256_fmadd_pd(a, b, c);
#elif defined(__ARM_NEON)
  return vfmaq_f64(c, a, b);
#else
  return a * b + c;
#endif
}

// While it exists, this thread rounds as another one does: torch.set_flush_denormal acts on the calling thread only, and the
// bits must not depend on the thread that computes them.
class RoundsAs {
 public:
#if defined(__x86_64__)
  using Mode = unsigned int;
  static Mode of_this_thread() { return _mm_getcsr(); }
  static void set(Mode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
  using Mode = uint64_t;
  static Mode of_this_thread() {
    Mode mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void set(Mode mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
  using Mode = int;
  static Mode of_this_thread() { return 0; }
  static void set(Mode) {}
#endif
  explicit RoundsAs(Mode mode) : before_(of_this_thread()) { set(mode); }
  ~RoundsAs() { set(before_); }
  RoundsAs(const RoundsAs&) = delete;
  RoundsAs& operator=(const RoundsAs&) = delete;

 private:
  Mode before_;
};

// Cephes' expf and exp (Moshier, netlib.org/cephes): within 2 units in the last place. Beyond the range 0 and infinity;
// NaN stays NaN, because comparisons with it are false.
static inline Vector<float> exponential(Vector<float> x) {
  using V = Vector<float>;
  const V high = all(88.3f), low = all(-87.3f);
  V clamped = x > high ? high : x;
  clamped = clamped < low ? low : clamped;
  const V magic = all(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer, which its low bits then hold
  V shifted = fused(clamped, all(1.44269504088896341f), magic);
  V n = shifted - magic;
  V f = fused(n, all(-0.693359375f), clamped);
  f = fused(n, all(2.12194440e-4f), f);
  V p = all(1.9875691500e-4f);
  p = fused(p, f, all(1.3981999507e-3f));
  p = fused(p, f, all(8.3334519073e-3f));
  p = fused(p, f, all(4.1665795894e-2f));
  p = fused(p, f, all(1.6666665459e-1f));
  p = fused(p, f, all(5.0000001201e-1f));
  p = fused(p, f * f, f) + 1;
  Lanes<float>::Integers bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + (127u << 23);
  V scale;
  std::memcpy(&scale, &bits, sizeof scale);
  V result = p * scale;
  result = x > high ? all(std::numeric_limits<float>::infinity()) : result;
  return x < low ? V{} : result;
}
static inline Vector<double> exponential(Vector<double> x) {
  using V = Vector<double>;
  const V high = all(709.4), low = all(-708.3);
  V clamped = x > high ? high : x;
  clamped = clamped < low ? low : clamped;
  const V magic = all(6755399441055744.0);  // 1.5 * 2^52
  V shifted = fused(clamped, all(1.4426950408889634073599), magic);
  V n = shifted - magic;
  V f = fused(n, all(-6.93145751953125e-1), clamped);
  f = fused(n, all(-1.42860682030941723212e-6), f);
  V square = f * f;
  V p = all(1.26177193074810590878e-4);
  p = fused(p, square, all(3.02994407707441961300e-2));
  p = fused(p, square, all(9.99999999999999999910e-1)) * f;
  V q = all(3.00198505138664455042e-6);
  q = fused(q, square, all(2.52448340349684104192e-3));
  q = fused(q, square, all(2.27265548208155028766e-1));
  q = fused(q, square, all(2.00000000000000000005e0));
  V ratio = p / (q - p);
  V mantissa = 1 + (ratio + ratio);
  Lanes<double>::Integers bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 52) + (uint64_t{1023} << 52);
  V scale;
  std::memcpy(&scale, &bits, sizeof scale);
  V result = mantissa * scale;
  result = x > high ? all(std::numeric_limits<double>::infinity()) : result;
  return x < low ? V{} : result;
}

template <typename V>
static inline V sigmoid(V x) {
  return 1 / (1 + exponential(-x));
}

// Cephes' tanhf and tanh: a polynomial near 0, where 1 - 2 / (exp(2x) + 1) would lose all digits.
static inline Vector<float> small_tanh(Vector<float> x) {
  auto z = x * x;
  auto p = all(-5.70498872745e-3f);
  p = fused(p, z, all(2.06390887954e-2f));
  p = fused(p, z, all(-5.37397155531e-2f));
  p = fused(p, z, all(1.33314422036e-1f));
  p = fused(p, z, all(-3.33332819422e-1f));
  return fused(p * z, x, x);
}
static inline Vector<double> small_tanh(Vector<double> x) {
  auto z = x * x;
  auto p = all(-9.64399179425052238628e-1);
  p = fused(p, z, all(-9.92877231001918586564e1));
  p = fused(p, z, all(-1.61468768441708447952e3));
  auto q = z + all(1.12811678491632931402e2);
  q = fused(q, z, all(2.23548839060100448583e3));
  q = fused(q, z, all(4.84406305325125486048e3));
  return fused(p / q * z, x, x);
}
template <typename V>
static inline V hyperbolic_tangent(V x) {
  V size = x < 0 ? -x : x;
  V large = 1 - 2 / (exponential(size + size) + 1);
  large = x < 0 ? -large : large;
  return size < static_cast<decltype(x[0] + 0)>(0.625) ? small_tanh(x) : large;
}

}  // namespace seqbatch::SEQBATCH_ISA
