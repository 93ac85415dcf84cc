// Tests of the copies of rows through their C interface. test_sanitized.py builds it with sanitizers and runs it.
//
// Every case is compared with plain loops. All buffers have the exact size, so that the address sanitizer finds an access
// one past their ends.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "../../seqbatch/_kernels/rows.h"

extern "C" {
int seqbatch_copy(const seqbatch::Rows*);
int seqbatch_measure(const int64_t*, int64_t, int64_t*);
void seqbatch_sort(const int64_t*, int64_t, int64_t, int64_t*, int64_t*, int64_t*);
int seqbatch_unpack(const int64_t*, int64_t, const int64_t*, const int64_t*, int64_t, int64_t, int64_t*);
}

namespace {

using Ints = std::vector<int64_t>;
using Bytes = std::vector<char>;

std::mt19937 generator(0);

void require(bool holds, const char* what) {
  if (holds) return;
  std::printf("%s is wrong\n", what);
  std::exit(1);
}

Bytes random_bytes(int64_t number) {
  Bytes bytes(number);
  for (char& byte : bytes) byte = static_cast<char>(generator());
  return bytes;
}

int64_t sum(const Ints& lengths) { return std::accumulate(lengths.begin(), lengths.end(), int64_t{0}); }
int64_t longest(const Ints& lengths) { return lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end()); }

void test_walk(const Ints& lengths) {
  const int64_t number = lengths.size();
  Ints walk(3 * number, -1), wanted(number);
  seqbatch::sort_walk(lengths.data(), number, walk.data());
  std::iota(wanted.begin(), wanted.end(), int64_t{0});
  std::stable_sort(wanted.begin(), wanted.end(), [&](int64_t i, int64_t j) { return lengths[i] > lengths[j]; });
  for (int64_t place = 0; place < number; place++) {
    const int64_t i = wanted[place];
    require(walk[place] == std::accumulate(lengths.begin(), lengths.begin() + i, int64_t{0}), "the start in a walk");
    require(walk[number + place] == lengths[i], "the length in a walk");
    require(walk[2 * number + place] == i, "the index in a walk");
  }
}

struct Sorted {
  Ints order, rank, sizes;
};

Sorted sort(const Ints& lengths) {
  Sorted s{Ints(lengths.size()), Ints(lengths.size()), Ints(longest(lengths))};
  seqbatch_sort(lengths.data(), lengths.size(), longest(lengths), s.order.data(), s.rank.data(), s.sizes.data());
  return s;
}

// Where a step of a sequence stands in the other layout, as a number of rows.
using Place = int64_t (*)(const seqbatch::Rows&, const Ints&, int64_t, int64_t);

int64_t padded_place(const seqbatch::Rows& rows, const Ints& lengths, int64_t i, int64_t step) {
  if (rows.is_left) step += rows.time - lengths[i];
  return (i * rows.sequence_stride + step * rows.step_stride) / rows.row;
}

int64_t packed_place(const seqbatch::Rows& rows, const Ints&, int64_t i, int64_t step) {
  return std::accumulate(rows.sizes, rows.sizes + step, int64_t{0}) + rows.places[i];
}

// Both ways, against plain loops.
void test_copy(seqbatch::Rows rows, const Ints& lengths, int64_t cells, Place place) {
  const Bytes flat = random_bytes(sum(lengths) * rows.row);
  Bytes wanted(cells * rows.row), other = random_bytes(wanted.size()), back = random_bytes(flat.size());
  for (int64_t i = 0; i < cells * rows.row; i++) wanted[i] = rows.fill ? rows.fill[i % rows.element] : 0;
  int64_t row = 0;
  for (size_t i = 0; i < lengths.size(); i++)
    for (int64_t step = 0; step < lengths[i]; step++, row++)
      std::copy_n(&flat[row * rows.row], rows.row, &wanted[place(rows, lengths, i, step) * rows.row]);
  Bytes given = flat;
  rows.flat = given.data(), rows.other = other.data(), rows.into_flat = 0;
  require(seqbatch_copy(&rows) == 0 && other == wanted && given == flat, "a copy from flat values");
  rows.flat = back.data(), rows.into_flat = 1;
  require(seqbatch_copy(&rows) == 0 && back == flat && other == wanted, "a copy to flat values");
}

void test_layouts(const Ints& lengths, int64_t row, int64_t element, int64_t extra, int32_t threads) {
  const Bytes fill = random_bytes(element);
  const int64_t sequences = lengths.size(), time = longest(lengths) + extra;
  seqbatch::Rows rows{};
  rows.lengths = lengths.data(), rows.sequences = sequences, rows.row = row, rows.element = element, rows.threads = threads;
  rows.time = time;
  for (int32_t is_left : {0, 1})
    for (const char* value : {static_cast<const char*>(nullptr), fill.data()}) {
      rows.is_left = is_left, rows.fill = value;
      rows.sequence_stride = time * row, rows.step_stride = row;
      test_copy(rows, lengths, sequences * time, padded_place);
      rows.sequence_stride = row, rows.step_stride = sequences * row;
      test_copy(rows, lengths, sequences * time, padded_place);
    }
  const Sorted s = sort(lengths);
  rows.is_left = 0, rows.fill = nullptr, rows.time = longest(lengths);
  rows.places = s.rank.data(), rows.sizes = s.sizes.data();
  test_copy(rows, lengths, sum(lengths), packed_place);
}

void test_sort(const Ints& lengths) {
  Ints order(lengths.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  const Sorted s = sort(lengths);
  require(s.order == order, "the order");
  for (size_t i = 0; i < order.size(); i++) require(s.rank[order[i]] == static_cast<int64_t>(i), "a rank");
  for (size_t step = 0; step < s.sizes.size(); step++) {
    const auto is_running = [&](int64_t length) { return length > static_cast<int64_t>(step); };
    require(s.sizes[step] == std::count_if(lengths.begin(), lengths.end(), is_running), "the size of a step");
  }
  Ints found(3);
  require(seqbatch_measure(lengths.data(), lengths.size(), found.data()), "to measure");
  const int64_t least = lengths.empty() ? 0 : *std::min_element(lengths.begin(), lengths.end());
  require(found == Ints{least, longest(lengths), sum(lengths)}, "a measure");
}

bool unpack(const Sorted& s, int64_t steps, const Ints& wanted) {
  Ints lengths(s.order.size(), -1);
  if (!seqbatch_unpack(s.sizes.data(), s.sizes.size(), s.order.data(), s.rank.data(), lengths.size(), steps, lengths.data()))
    return false;
  require(lengths == wanted, "the lengths of packed data");
  return true;
}

void test_unpack() {
  const Ints lengths{2, 4, 2, 1};
  const Sorted right = sort(lengths);  // order 1 0 2 3, sizes 4 3 1 1
  require(unpack(right, 9, lengths), "to unpack");
  require(!unpack(right, 8, lengths), "a number of steps");
  for (Ints order : {Ints{1, 0, 2, 4}, Ints{-1, 0, 2, 3}, Ints{1, 1, 2, 3}, Ints{0, 1, 2, 3}})
    require(!unpack({order, right.rank, right.sizes}, 9, lengths), "an order");
  for (Ints sizes : {Ints{4, 3, 2, 0}, Ints{4, 1, 3, 1}, Ints{4, 6, -2, 1}, Ints{5, 2, 1, 1}, Ints{3, 3, 3}, Ints{}})
    require(!unpack({right.order, right.rank, sizes}, 9, lengths), "the sizes");
  require(unpack({{}, {}, {}}, 0, {}), "to unpack nothing");
  Ints found(3);
  const int64_t most = std::numeric_limits<int64_t>::max();
  for (Ints wrong : {Ints{3, -1}, Ints{most, 1}, Ints{most, most, 2}})
    require(!seqbatch_measure(wrong.data(), wrong.size(), found.data()), "a measure of wrong lengths");
}

}  // namespace

int main() {
  int turn = 0;  // so that the rest takes turns, in place of all combinations
  const Ints patterns[] = {{}, {0}, {0, 0}, {1}, {3, 3}, {1, 5, 0, 2}, {7, 6, 6, 1, 1}, {0, 40, 1, 1, 0}, Ints(30, 1)};
  for (const Ints& lengths : patterns) {
    test_sort(lengths);
    test_walk(lengths);
    for (int64_t element : {1, 2, 4, 8, 16})
      for (int64_t number : {1, 2, 3, 100}) {
        test_layouts(lengths, element * number, element, turn % 3, 1 + turn % 4);
        turn++;
      }
  }
  Ints large(100);  // by several threads, in several blocks
  for (int64_t& length : large) length = generator() % 200;
  test_walk(large);
  test_walk({3, 9000, 1, 9000, 2});
  for (int32_t threads : {1, 2, 5}) test_layouts(large, 400, 4, 3, threads);
  test_layouts({3000}, 300, 4, 1, 4);
  test_layouts({3, 2}, 100000, 4, 1, 4);
  test_unpack();
  std::printf("rows are right\n");
}
