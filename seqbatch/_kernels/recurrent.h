// What Python passes to the kernels: plain pointers and sizes, checked before the call. See __init__.py, which mirrors it.
#pragma once
#include <cstdint>

#include "instruction_sets.h"

namespace seqbatch {

enum Kind : int32_t { LSTM = 0, GRU = 1, RNN_TANH = 2, RNN_RELU = 3 };

// One direction of one layer. Rows of `out` and of its gradient are `out_stride` apart; everything else is contiguous.
// `output` is the size of an output and of a hidden state: `projection`, or `hidden` without one.
// Pointers that may be null: biases, initial states, final states, `saved`, and all gradients that are not wanted.
template <typename T>
struct Direction {
  const T* weight_ih;  // (gates * hidden, input)
  const T* weight_hh;  // (gates * hidden, output)
  const T* bias_ih;    // (gates * hidden)
  const T* bias_hh;
  const T* weight_hr;  // (output, hidden), of an LSTM with a projection
  const T* hidden;     // (sequences, output), in the caller's order: the initial state
  const T* cell;       // (sequences, hidden)
  T* out;              // (steps, output)
  T* saved;            // (steps, saved numbers * hidden): what backward needs, see saved_numbers
  T* final_hidden;     // as the initial state
  T* final_cell;
  const T* grad_out;  // as out
  const T* grad_final_hidden;
  const T* grad_final_cell;
  T* grad_gates;   // (steps, gate_numbers * hidden)
  T* grad_hidden;  // as the initial state
  T* grad_cell;
  T* grad_weight_ih;  // as the weights and biases themselves
  T* grad_weight_hh;
  T* grad_bias_ih;
  T* grad_bias_hh;
  T* grad_weight_hr;
};

template <typename T>
struct Call {
  int32_t kind;
  int32_t directions;  // 1 or 2; the second runs from the last step to the first
  int32_t threads;
  int32_t isa;  // which kernels, as seqbatch_isa returns
  int64_t sequences;
  int64_t steps;
  int64_t input_size;
  int64_t hidden_size;
  int64_t projection;  // features of the outputs of an LSTM with a projection, else 0
  int64_t out_stride;
  const int64_t* starts;   // (sequences): where each begins in the flat values, the longest first
  const int64_t* lengths;  // (sequences): none is 0
  const int64_t* index;    // (sequences): its position in the caller's order
  const T* x;              // (steps, input)
  T* grad_x;               // (steps, input), or null
  Direction<T> direction[2];
};

// Numbers per unit and step: LSTM i, f, g, o, cell; GRU r, z, n and the hidden part of n; RNN none, `out` is enough.
constexpr int saved_numbers(int32_t kind) { return kind == LSTM ? 5 : kind == GRU ? 4 : 0; }
// LSTM i, f, g, o; GRU n, r, z and the hidden part of n, so that both weights take three that stand side by side.
constexpr int gate_numbers(int32_t kind) { return kind == LSTM || kind == GRU ? 4 : 1; }

// Each returns 0, or 1 if there is not enough memory.
#define SEQBATCH_DECLARE(isa)                                 \
  namespace isa {                                             \
  int forward(const Call<float>&);                            \
  int forward(const Call<double>&);                           \
  int backward(const Call<float>&);                           \
  int backward(const Call<double>&);                          \
  }
SEQBATCH_FOR_EACH_ISA(SEQBATCH_DECLARE)
#undef SEQBATCH_DECLARE

}  // namespace seqbatch
