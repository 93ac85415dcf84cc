// What Python passes to copy rows between layouts: plain pointers and sizes, checked before the call. See __init__.py, which mirrors it.
#pragma once
#include <cstdint>

namespace seqbatch {

// A row is one step of one sequence, `row` bytes of any dtype. In `flat` the rows of a sequence stand side by side, and the
// sequences one after another. In `other` a step stands at place * sequence_stride + position * step_stride.
struct Rows {
  char* flat;               // (steps, row)
  char* other;              // a padded tensor, or the data of a PackedSequence
  const char* fill;         // one element, for padding; null for zeros
  const int64_t* lengths;   // (sequences)
  const int64_t* places;    // (sequences): only for packed data, the place of each sequence within a step; else null
  const int64_t* sizes;     // (time): only for packed data, how many sequences have each step; else null
  int64_t sequences;
  int64_t time;             // steps of the longest sequence, or more if padded
  int64_t row;              // bytes
  int64_t element;          // bytes
  int64_t sequence_stride;  // bytes
  int64_t step_stride;      // bytes
  int32_t is_left;          // padding stands before the steps
  int32_t into_flat;        // from `other`, whose padding is not read; else to `other`
  int32_t threads;
};

// Returns 0, or 1 if there is not enough memory.
int copy(const Rows&);

// Write the least length, the greatest and their sum to `found` (3). Returns 0 if one is negative or the sum too large, else 1.
int measure(const int64_t* lengths, int64_t sequences, int64_t* found);

// Sort sequences from longest to shortest, equals in order. Writes to all but the first three:
// order and rank (sequences), which undo each other, and sizes (longest): how many sequences have each step.
void sort(const int64_t* lengths, int64_t sequences, int64_t longest, int64_t* order, int64_t* rank, int64_t* sizes);

// Write how kernels walk through the sequences, the longest first and equals in order, to `walk` (3, sequences): where each
// starts in the flat values, its length, and its index in the caller's order. It may throw std::bad_alloc.
void sort_walk(const int64_t* lengths, int64_t sequences, int64_t* walk);

// Compute lengths (sequences) from the parts of a PackedSequence. Returns 1 if they fit each other and `steps`, else 0.
int unpack(const int64_t* sizes, int64_t longest, const int64_t* order, const int64_t* rank, int64_t sequences, int64_t steps,
           int64_t* lengths);

}  // namespace seqbatch
