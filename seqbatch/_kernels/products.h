// What the kernels share: the product of a few rows and laid out numbers, that layout, and memory that a thread keeps.
//
// Like vectors.h, it is compiled once for each instruction set, which is why all of it has internal linkage.
#pragma once
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#include "vectors.h"

namespace seqbatch::SEQBATCH_ISA {
namespace {

constexpr int ROWS = SEQBATCH_ROWS;
constexpr int SUMS = 4;  // vectors of sums of one row, in registers
#ifdef SEQBATCH_TEST     // so that small tests reach every branch
constexpr int64_t SMALL_WORK = 0;
constexpr size_t MOST_KEPT = size_t{1} << 20;
#else
constexpr int64_t SMALL_WORK = int64_t{1} << 19;  // in multiplications: less runs in one thread
constexpr size_t MOST_KEPT = size_t{1} << 28;     // in bytes
#endif

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// acc[r][g] += rows[r][k] * weights[k][g], for all k in order; but the last gate of the weights is added to acc[r][LAST].
//
// Some of its callers are `noinline`, because in a larger function GCC keeps one of the vectors in memory, or `flatten`,
// because with more callers it inlines this into none. Either costs some 5 % of the whole call.
template <typename T, int R, int G, int LAST>
inline void multiply(Vector<T> (&acc)[R][SUMS], const T* const* rows, int64_t size, const T* weights, int64_t stride = G * width<T>) {
  constexpr int W = width<T>;
  // A copy, because the compiler cannot know that `rows` does not point to `acc`, and would store `acc` after each product.
  Vector<T> sums[R][SUMS];
  for (int r = 0; r < R; r++)
    for (int g = 0; g < SUMS; g++) sums[r][g] = acc[r][g];
  for (int64_t k = 0; k < size; k++) {
    Vector<T> w[G];
    for (int g = 0; g < G; g++) w[g] = load(weights + k * stride + g * W);
    for (int r = 0; r < R; r++) {
      Vector<T> x = all(rows[r][k]);
      for (int g = 0; g < G - 1; g++) sums[r][g] = fused(x, w[g], sums[r][g]);
      sums[r][LAST] = fused(x, w[G - 1], sums[r][LAST]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int g = 0; g < SUMS; g++) acc[r][g] = sums[r][g];
}

// Allocates as std::allocator does. Because its type is local to this file, the functions of a List are local too. Those of
// a std::vector are not: the linker would keep one copy for all instruction sets, which older processors may be unable to run.
template <typename T>
struct Allocator {
  using value_type = T;
  Allocator() = default;
  template <typename U>
  Allocator(const Allocator<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T))); }
  void deallocate(T* data, size_t) { ::operator delete(data); }
  friend bool operator==(const Allocator&, const Allocator&) { return true; }
  friend bool operator!=(const Allocator&, const Allocator&) { return false; }
};
template <typename T>
using List = std::vector<T, Allocator<T>>;

// Calls f(first, std::integral_constant<int, R>) for blocks of at most ROWS rows.
template <int R = ROWS, typename F>
inline void in_blocks(int64_t rows, F f) {
  int64_t first = 0;
  for (; first + R <= rows; first += R) f(first, std::integral_constant<int, R>{});
  if constexpr (R > 1) {
    if (first < rows) in_blocks<R - 1>(rows - first, [&](int64_t i, auto r) { f(first + i, r); });
  }
}

// Memory that a thread keeps for its next calls, until it ends: up to four blocks, and MOST_KEPT in all. The first use of a
// new page takes longer than laying out weights in it: if nothing were kept, 2 steps of an LSTM with 2048 units, whose weights
// take 128 MiB, would take 1.7 times as long.
class Kept {
 public:
  struct Block {
    void* data;
    size_t size;
  };

  ~Kept() {
    for (auto& block : blocks_) std::free(block.data);
  }

  // An empty block if there is not enough memory.
  Block take(size_t size) {
    Block *best = nullptr, *largest = &blocks_[0];
    for (auto& block : blocks_) {
      if (block.size >= size && block.data && (!best || block.size < best->size)) best = &block;
      if (block.size > largest->size) largest = &block;
    }
    if (best) return std::exchange(*best, {});
    std::free(std::exchange(*largest, {}).data);
    size = (size / 64 + 1) * 64;
    void* data = std::aligned_alloc(64, size);
    return {data, data ? size : 0};
  }

  // Keeps the block in place of the smallest one, or frees it.
  void put_back(Block block) {
    Block* smallest = &blocks_[0];
    size_t size = block.size;
    for (auto& other : blocks_) {
      if (other.size < smallest->size) smallest = &other;
      size += other.size;
    }
    if (smallest->size < block.size && size - smallest->size <= MOST_KEPT) std::swap(*smallest, block);
    std::free(block.data);
  }

 private:
  Block blocks_[4] = {};
};

Kept& kept_by_this_thread() {
  static thread_local Kept kept;
  return kept;
}

// Memory for some numbers, which may hold anything; null where there is not enough.
template <typename T>
struct Buffer {
  explicit Buffer(int64_t size) : block(kept_by_this_thread().take(size * sizeof(T))), data(static_cast<T*>(block.data)) {}
  ~Buffer() { kept_by_this_thread().put_back(block); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Kept::Block block;
  T* data;
};

// to[k * stride + lane] = from[lane * from_stride + k], for the `lanes` rows that exist and at most a vector of them. All other
// lanes get the numbers of the first row, because they are never read. Returns the sum of 0 * from[lane * from_stride + k] over all
// k: 0, or NaN in lanes that have NaN or infinity.
template <typename T, bool IS_FULL>
Vector<T> transpose_lanes(const T* from, int64_t from_stride, int64_t size, int64_t lanes, T* to, int64_t stride) {
  constexpr int64_t AT_ONCE = 16 / sizeof(T);
  Vector<T> sums[AT_ONCE] = {};
  auto row = [&](int64_t lane) { return from + (IS_FULL || lane < lanes ? lane : 0) * from_stride; };
  int64_t k = 0;
  for (; k + AT_ONCE <= size; k += AT_ONCE)
    transpose([&](int64_t lane) { return row(lane) + k; }, [&](int64_t i, Vector<T> v) {
      store(to + (k + i) * stride, v);
      sums[i] = fused(v, Vector<T>{}, sums[i]);
    }, from);
  for (; k < size; k++) {
    T numbers[width<T>];
    for (int lane = 0; lane < width<T>; lane++) numbers[lane] = row(lane)[k];
    store(to + k * stride, load(numbers));
    sums[0] = fused(load(numbers), Vector<T>{}, sums[0]);
  }
  for (int64_t i = 1; i < AT_ONCE; i++) sums[0] += sums[i];
  return sums[0];
}

// The same for any number of lanes; without one, as an RNN may have in its last vector, `from` must be a row nevertheless.
template <typename T>
Vector<T> transpose_rows(const T* from, int64_t from_stride, int64_t size, int64_t lanes, T* to, int64_t stride) {
  return lanes >= width<T> ? transpose_lanes<T, true>(from, from_stride, size, lanes, to, stride)
                           : transpose_lanes<T, false>(from, from_stride, size, lanes, to, stride);
}

}  // namespace
}  // namespace seqbatch::SEQBATCH_ISA
