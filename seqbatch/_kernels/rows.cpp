// Copies rows between flat values and padded or packed ones, and sorts sequences by length.
#include "rows.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>
#include <utility>
#include <vector>

namespace seqbatch {
namespace {

constexpr int64_t BLOCK = 32 << 10;        // bytes of a sequence that are copied at once: those of its neighbours stay cached
constexpr int64_t PER_THREAD = 128 << 10;  // bytes; PyTorch shares copies from 32,768 numbers on, which are as many in single precision
constexpr int64_t TASKS = 4;               // for each thread, because tasks are unequal

// Fill with copies of one element.
void fill(char* to, int64_t bytes, const Rows& rows) {
  if (bytes <= 0) return;
  if (!rows.fill) {
    std::memset(to, 0, bytes);
    return;
  }
  std::memcpy(to, rows.fill, rows.element);
  for (int64_t done = rows.element; done < bytes; done *= 2) std::memcpy(to + done, to, std::min(done, bytes - done));
}

// Copy, or fill, `number` rows. SIZE is that of a row where it is known, because then no function is called for each.
template <int64_t SIZE>
void copy_apart(char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t number, int64_t row) {
  for (int64_t i = 0; i < number; i++) std::memcpy(to + i * to_stride, from + i * from_stride, SIZE ? SIZE : row);
}

void copy_apart(char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t number, int64_t row) {
  if (to_stride == row && from_stride == row) {
    std::memcpy(to, from, number * row);
  } else if (row == 4) {
    copy_apart<4>(to, to_stride, from, from_stride, number, row);
  } else if (row == 8) {
    copy_apart<8>(to, to_stride, from, from_stride, number, row);
  } else {
    copy_apart<0>(to, to_stride, from, from_stride, number, row);
  }
}

// The steps from position `begin` to `end` of one sequence, whose first row is `flat`.
void copy_steps(const Rows& rows, char* flat, int64_t sequence, int64_t begin, int64_t end, const int64_t* firsts) {
  const int64_t length = rows.lengths[sequence], shift = rows.is_left ? rows.time - length : 0;
  const int64_t first = std::clamp(shift, begin, end), last = std::clamp(shift + length, begin, end);
  if (firsts) {  // a step of packed data holds as many rows as there are sequences that have it
    char* other = rows.other + rows.places[sequence] * rows.row;
    for (int64_t i = first; i < last; i++) {
      char *to = other + firsts[i] * rows.row, *from = flat + i * rows.row;
      if (rows.into_flat) std::swap(to, from);
      std::memcpy(to, from, rows.row);
    }
    return;
  }
  char* other = rows.other + sequence * rows.sequence_stride;
  const auto at = [&](int64_t i) { return other + i * rows.step_stride; };
  if (first < last) {
    char* run = flat + (first - shift) * rows.row;
    if (rows.into_flat)
      copy_apart(run, rows.row, at(first), rows.step_stride, last - first, rows.row);
    else
      copy_apart(at(first), rows.step_stride, run, rows.row, last - first, rows.row);
  }
  if (rows.into_flat) return;
  if (rows.step_stride == rows.row) {
    fill(at(begin), (first - begin) * rows.row, rows);
    fill(at(last), (end - last) * rows.row, rows);
  } else {
    for (int64_t i = begin; i < first; i++) fill(at(i), rows.row, rows);
    for (int64_t i = last; i < end; i++) fill(at(i), rows.row, rows);
  }
}

// Where each run of counts starts, and where the last ends.
std::vector<int64_t> starts_of(const int64_t* counts, int64_t number) {
  std::vector<int64_t> starts(number + 1);
  for (int64_t i = 0; i < number; i++) starts[i + 1] = starts[i] + counts[i];
  return starts;
}

void copy_all(const Rows& rows) {
  const auto starts = starts_of(rows.lengths, rows.sequences);
  const auto firsts = starts_of(rows.sizes, rows.sizes ? rows.time : 0);
  const int64_t cells = rows.sizes || rows.into_flat ? starts.back() : rows.sequences * rows.time;
  const int64_t threads = std::clamp<int64_t>(cells * rows.row / PER_THREAD, 1, std::max(rows.threads, 1));
  const int64_t groups = threads == 1 ? 1 : std::min(rows.sequences, TASKS * threads);
  const int64_t steps = std::max<int64_t>(BLOCK / rows.row, 1), blocks = (rows.time + steps - 1) / steps;
  const auto run = [&](int64_t task) {
    const int64_t group = task % groups, begin = task / groups * steps, end = std::min(begin + steps, rows.time);
    for (int64_t i = rows.sequences * group / groups; i < rows.sequences * (group + 1) / groups; i++)
      copy_steps(rows, rows.flat + starts[i] * rows.row, i, begin, end, rows.sizes ? firsts.data() : nullptr);
  };
  if (threads == 1) {
    for (int64_t task = 0; task < blocks * groups; task++) run(task);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < blocks * groups; task++) run(task);
}

}  // namespace

int copy(const Rows& rows) {
  try {
    copy_all(rows);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

int measure(const int64_t* lengths, int64_t sequences, int64_t* found) {
  int64_t least = sequences ? lengths[0] : 0, greatest = least, total = 0;
  for (int64_t i = 0; i < sequences; i++) {
    least = std::min(least, lengths[i]);
    greatest = std::max(greatest, lengths[i]);
    if (__builtin_add_overflow(total, lengths[i], &total)) return 0;
  }
  found[0] = least, found[1] = greatest, found[2] = total;
  return least >= 0;
}

void sort(const int64_t* lengths, int64_t sequences, int64_t longest, int64_t* order, int64_t* rank, int64_t* sizes) {
  std::fill(sizes, sizes + longest, 0);
  for (int64_t i = 0; i < sequences; i++)
    if (lengths[i]) sizes[lengths[i] - 1]++;
  for (int64_t step = longest - 2; step >= 0; step--) sizes[step] += sizes[step + 1];
  // Before the sequences of a length stand those that have one step more, so that each size is a place to start from.
  int64_t of_longest = 0;
  for (int64_t i = 0; i < sequences; i++) {
    int64_t& next = lengths[i] == longest ? of_longest : sizes[lengths[i]];
    rank[i] = next;
    order[next++] = i;
  }
  // Now each is counted up to where those of a step less start, which is the size of the step before.
  for (int64_t step = 0; step + 1 < longest; step++) sizes[step] = sizes[step + 1];
  if (longest) sizes[longest - 1] = of_longest;
}

void sort_walk(const int64_t* lengths, int64_t sequences, int64_t* walk) {
  int64_t *starts = walk, *sorted = walk + sequences, *index = walk + 2 * sequences;
  std::vector<int64_t> all_starts(sequences);
  int64_t total = 0, longest = 0;
  for (int64_t i = 0; i < sequences; i++) {
    all_starts[i] = total;
    total += lengths[i];
    longest = std::max(longest, lengths[i]);
  }
  if (longest <= 4 * sequences) {  // by counting, which takes linear time in both
    std::vector<int64_t> places(longest + 1);
    for (int64_t i = 0; i < sequences; i++) places[lengths[i]]++;
    for (int64_t length = longest, place = 0; length >= 0; length--) place += std::exchange(places[length], place);
    for (int64_t i = 0; i < sequences; i++) index[places[lengths[i]]++] = i;
  } else {
    std::iota(index, index + sequences, int64_t{0});
    std::stable_sort(index, index + sequences, [lengths](int64_t i, int64_t j) { return lengths[i] > lengths[j]; });
  }
  for (int64_t place = 0; place < sequences; place++) {
    starts[place] = all_starts[index[place]];
    sorted[place] = lengths[index[place]];
  }
}

int unpack(const int64_t* sizes, int64_t longest, const int64_t* order, const int64_t* rank, int64_t sequences, int64_t steps,
           int64_t* lengths) {
  if (sequences != (longest ? sizes[0] : 0)) return 0;
  for (int64_t i = 0; i < sequences; i++)
    if (order[i] < 0 || order[i] >= sequences || rank[order[i]] != i) return 0;
  int64_t total = 0;
  for (int64_t step = 0; step < longest; step++) {
    const int64_t size = sizes[step], next = step + 1 < longest ? sizes[step + 1] : 0;
    if (size < 1 || next < 0 || next > size) return 0;
    total += size;
    for (int64_t i = next; i < size; i++) lengths[order[i]] = step + 1;
  }
  return total == steps;
}

}  // namespace seqbatch
