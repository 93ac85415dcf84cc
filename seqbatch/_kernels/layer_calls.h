// Calls of the kernels for one layer, from addresses and sizes that were read from tensors.
#pragma once
#include <array>

#include "recurrent.h"

extern "C" {
int seqbatch_forward_float(const seqbatch::Call<float>*);
int seqbatch_forward_double(const seqbatch::Call<double>*);
int seqbatch_backward_float(const seqbatch::Call<float>*);
int seqbatch_backward_double(const seqbatch::Call<double>*);
}

namespace seqbatch {

inline int forward(const Call<float>& call) { return seqbatch_forward_float(&call); }
inline int forward(const Call<double>& call) { return seqbatch_forward_double(&call); }
inline int backward(const Call<float>& call) { return seqbatch_backward_float(&call); }
inline int backward(const Call<double>& call) { return seqbatch_backward_double(&call); }

constexpr int MAX_WEIGHTS = 5;

constexpr int weight_gates(int32_t kind) { return kind == LSTM ? 4 : kind == GRU ? 3 : 1; }
// An LSTM has a cell state too.
constexpr int states_of(int32_t kind) { return kind == LSTM ? 2 : 1; }

// One layer in all its directions, without its tensors.
struct LayerSizes {
  int32_t kind = 0, directions = 1, threads = 1, isa = 0;
  int weights = 0;                // of one direction, in PyTorch's order: with biases 4 or 5, with a projection 3 or 5
  const int64_t* walk = nullptr;  // (3, sequences), as `sort_walk` writes it
  int64_t sequences = 0, steps = 0, input_size = 0, hidden_size = 0, output_size = 0;

  bool has_bias() const { return weights >= 4; }
  bool has_projection() const { return weights % 2 == 1; }
  // The last axis of a state: part 0 is the hidden state, part 1 the cell state.
  int64_t state_size(int part) const { return part == 0 ? output_size : hidden_size; }
  // The position of each weight among those of its direction, or -1: weight_ih, weight_hh, bias_ih, bias_hh, weight_hr.
  std::array<int, MAX_WEIGHTS> positions() const {
    return {0, 1, has_bias() ? 2 : -1, has_bias() ? 3 : -1, has_projection() ? weights - 1 : -1};
  }
};

template <typename T>
Call<T> make_call(const LayerSizes& sizes, const void* x) {
  Call<T> call{};
  call.kind = sizes.kind;
  call.directions = sizes.directions;
  call.threads = sizes.threads;
  call.isa = sizes.isa;
  call.sequences = sizes.sequences;
  call.steps = sizes.steps;
  call.input_size = sizes.input_size;
  call.hidden_size = sizes.hidden_size;
  call.projection = sizes.has_projection() ? sizes.output_size : 0;
  call.out_stride = sizes.directions * sizes.output_size;
  call.starts = sizes.walk;
  call.lengths = sizes.walk + sizes.sequences;
  call.index = sizes.walk + 2 * sizes.sequences;
  call.x = static_cast<const T*>(x);
  return call;
}

// The address of row `index` of a tensor whose rows have `size` numbers, or null if the tensor is not there.
template <typename T>
T* row(void* address, int64_t index, int64_t size) {
  return address == nullptr ? nullptr : static_cast<T*>(address) + index * size;
}

// The addresses of a hidden state and of a cell state; null for those that are not there.
using States = std::array<void*, 2>;

// Set the weights of a direction; `weight(i)` is the address of the one at position i.
template <typename T, typename Weight>
void set_weights(const LayerSizes& sizes, Direction<T>& direction, Weight weight) {
  const T** fields[] = {&direction.weight_ih, &direction.weight_hh, &direction.bias_ih, &direction.bias_hh, &direction.weight_hr};
  const auto positions = sizes.positions();
  for (int w = 0; w < MAX_WEIGHTS; w++)
    if (positions[w] >= 0) *fields[w] = static_cast<const T*>(weight(positions[w]));
}

// The same for the gradients of the weights, any of which may be null.
template <typename T, typename Weight>
void set_weight_gradients(const LayerSizes& sizes, Direction<T>& direction, Weight weight) {
  T** fields[] = {&direction.grad_weight_ih, &direction.grad_weight_hh, &direction.grad_bias_ih, &direction.grad_bias_hh,
                  &direction.grad_weight_hr};
  const auto positions = sizes.positions();
  for (int w = 0; w < MAX_WEIGHTS; w++)
    if (positions[w] >= 0) *fields[w] = static_cast<T*>(weight(positions[w]));
}


// Set the weights, the outputs and the states of direction `d`, which has row `state_row` of the states.
template <typename T, typename Weight>
void set_direction(const LayerSizes& sizes, Call<T>& call, int64_t d, int64_t state_row, Weight weight, void* output,
                   const States& start, const States& finals) {
  Direction<T>& direction = call.direction[d];
  set_weights(sizes, direction, weight);
  direction.out = static_cast<T*>(output) + d * sizes.output_size;
  const int64_t hidden_row = sizes.sequences * sizes.state_size(0), cell_row = sizes.sequences * sizes.state_size(1);
  direction.hidden = row<T>(start[0], state_row, hidden_row);
  direction.cell = row<T>(start[1], state_row, cell_row);
  direction.final_hidden = row<T>(finals[0], state_row, hidden_row);
  direction.final_cell = row<T>(finals[1], state_row, cell_row);
}

}  // namespace seqbatch
