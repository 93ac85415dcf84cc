// The module of Python: runs one layer on tensors, forward and backward, and has the shortcut of shortcut.cpp.
//
// Its callers have checked dtypes, shapes and devices of all tensors but the lengths.
#include <Python.h>

#include <new>
#include <vector>

#include "layer_calls.h"
#include "python_tensors.h"
#include "shortcut.h"

namespace {

using namespace seqbatch;

// One layer, and its tensors: those that `LayerForm` in _engines/_stack.py describes.
struct Layer {
  LayerSizes sizes;
  bool is_double = false;
  std::vector<int64_t> walk;
  Array inputs;
  std::vector<Array> weights, start;

  int states() const { return states_of(sizes.kind); }
  const void* weight(int64_t direction, int position) const { return weights[direction * sizes.weights + position].address; }
};

States states_in(const std::vector<Array>& parts) {
  States states{};
  for (size_t i = 0; i < parts.size(); i++) states[i] = parts[i].address;
  return states;
}

bool read_form(PyObject* form, Layer& layer) {
  if (!PyTuple_Check(form) || PyTuple_Size(form) != 4) return false;
  PyObject* mode = PyTuple_GetItem(form, 0);
  layer.sizes.kind = -1;
  for (int i = 0; i < KINDS; i++)
    if (PyUnicode_Check(mode) && PyUnicode_CompareWithASCIIString(mode, KIND_NAMES[i]) == 0) layer.sizes.kind = i;
  int64_t directions, weights;
  if (!as_number(PyTuple_GetItem(form, 2), directions) || !as_number(PyTuple_GetItem(form, 3), weights)) return false;
  if (!read_walk(PyTuple_GetItem(form, 1), layer.walk, layer.sizes.sequences, layer.sizes.steps)) return false;
  layer.sizes.directions = static_cast<int32_t>(directions);
  layer.sizes.weights = static_cast<int>(weights);
  layer.sizes.walk = layer.walk.data();
  return layer.sizes.kind >= 0 && (directions == 1 || directions == 2) && weights >= 2 && weights <= MAX_WEIGHTS;
}

bool read_tensors(PyObject* tensors, Layer& layer) {
  const Py_ssize_t number = PySequence_Size(tensors), weights = layer.sizes.directions * layer.sizes.weights;
  if (number != 1 + weights && number != 1 + weights + layer.states()) return false;
  for (Py_ssize_t i = 0; i < number; i++) {
    Ref tensor(PySequence_GetItem(tensors, i));
    Array array;
    if (!tensor || !read_contiguous(tensor.get(), array)) return false;
    if (i == 0) {
      layer.inputs = std::move(array);
    } else {
      (i <= weights ? layer.weights : layer.start).push_back(std::move(array));
    }
  }
  if (layer.inputs.axes != 2 || layer.inputs.shape[0] != layer.sizes.steps || layer.weights[1].axes != 2) return false;
  layer.sizes.input_size = layer.inputs.shape[1];
  layer.sizes.hidden_size = layer.weights[1].shape[0] / weight_gates(layer.sizes.kind);
  layer.sizes.output_size = layer.weights[1].shape[1];
  return true;
}

// The last arguments of both functions: is_double, threads, isa.
bool read_options(PyObject* const* options, Layer& layer) {
  int64_t threads, isa;
  if (!as_number(options[1], threads) || !as_number(options[2], isa)) return false;
  layer.is_double = options[0] == Py_True;
  layer.sizes.threads = static_cast<int32_t>(threads);
  layer.sizes.isa = static_cast<int32_t>(isa);
  return true;
}

template <typename T>
int run_forward(const Layer& layer, const Array& output, const std::vector<Array>& finals, const Array& saved) {
  const LayerSizes& sizes = layer.sizes;
  Call<T> call = make_call<T>(sizes, layer.inputs.address);
  for (int64_t d = 0; d < sizes.directions; d++) {
    const auto weight = [&](int position) { return layer.weight(d, position); };
    set_direction(sizes, call, d, d, weight, output.address, states_in(layer.start), states_in(finals));
    call.direction[d].saved = row<T>(saved.address, d, saved.shape[1] * saved.shape[2]);
  }
  return forward(call);
}

// forward(form, tensors, keep, is_double, threads, isa): outputs, final states, and what the backward pass needs, empty
// unless it is kept; None if there is not enough memory.
PyObject* forward_of_python(PyObject*, PyObject* const* arguments, Py_ssize_t number) {
  Layer layer;
  if (number != 6 || !read_form(arguments[0], layer) || !read_tensors(arguments[1], layer) || !read_options(arguments + 3, layer)) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "forward: the arguments are not those of a layer");
    return nullptr;
  }
  const LayerSizes& sizes = layer.sizes;
  PyObject* like = layer.inputs.tensor.get();
  Ref results(PyList_New(0));
  Array output, saved;
  std::vector<Array> finals(layer.states());
  if (!results || !new_empty(like, {sizes.steps, sizes.directions * sizes.output_size}, output) || !append(results.get(), output)) return nullptr;
  for (int part = 0; part < layer.states(); part++)
    if (!new_empty(like, {sizes.directions, sizes.sequences, sizes.state_size(part)}, finals[part]) || !append(results.get(), finals[part]))
      return nullptr;
  const int64_t kept = arguments[2] == Py_True ? sizes.steps : 0;
  if (!new_empty(like, {sizes.directions, kept, saved_numbers(sizes.kind) * sizes.hidden_size}, saved) || !append(results.get(), saved))
    return nullptr;
  int failed;
  Py_BEGIN_ALLOW_THREADS;
  failed = layer.is_double ? run_forward<double>(layer, output, finals, saved) : run_forward<float>(layer, output, finals, saved);
  Py_END_ALLOW_THREADS;
  if (failed) Py_RETURN_NONE;
  return PyList_AsTuple(results.get());
}

// What the backward pass reads besides the layer, and writes; an address is null where a gradient is not there.
struct Gradients {
  Array output, saved, gates, inputs;
  std::vector<Array> results, weights, start;  // `results`: of the output and the final states
};

template <typename T>
int run_backward(const Layer& layer, const Gradients& gradients) {
  const LayerSizes& sizes = layer.sizes;
  Call<T> call = make_call<T>(sizes, layer.inputs.address);
  call.grad_x = static_cast<T*>(gradients.inputs.address);
  for (int64_t d = 0; d < sizes.directions; d++) {
    Direction<T>& direction = call.direction[d];
    const auto weight = [&](int position) { return layer.weight(d, position); };
    set_direction(sizes, call, d, d, weight, gradients.output.address, states_in(layer.start), States{});
    set_weight_gradients(sizes, direction, [&](int position) { return gradients.weights[d * sizes.weights + position].address; });
    direction.saved = row<T>(gradients.saved.address, d, gradients.saved.shape[1] * gradients.saved.shape[2]);
    direction.grad_gates = row<T>(gradients.gates.address, d, gradients.gates.shape[1] * gradients.gates.shape[2]);
    if (gradients.results[0].address) direction.grad_out = static_cast<const T*>(gradients.results[0].address) + d * sizes.output_size;
    const T** of_finals[] = {&direction.grad_final_hidden, &direction.grad_final_cell};
    T** of_states[] = {&direction.grad_hidden, &direction.grad_cell};
    for (int part = 0; part < layer.states(); part++) {
      const int64_t size = sizes.sequences * sizes.state_size(part);
      *of_finals[part] = row<T>(gradients.results[1 + part].address, d, size);
      if (!layer.start.empty()) *of_states[part] = row<T>(gradients.start[part].address, d, size);
    }
  }
  return backward(call);
}

bool new_like(const Array& other, PyObject* like, Array& array) {
  switch (other.axes) {
    case 1: return new_empty(like, {other.shape[0]}, array);
    case 2: return new_empty(like, {other.shape[0], other.shape[1]}, array);
    case 3: return new_empty(like, {other.shape[0], other.shape[1], other.shape[2]}, array);
    default: return false;
  }
}

// Return true and make the gradient of a tensor if it is wanted; and add it, or None, to the results.
bool make_gradient(PyObject* wanted, Py_ssize_t index, const Array& other, PyObject* like, PyObject* results, Array& array) {
  Ref is_wanted(PySequence_GetItem(wanted, index));
  if (!is_wanted) return false;
  if (PyObject_IsTrue(is_wanted.get()) != 1) return append(results, Ref::borrow(Py_None));
  return new_like(other, like, array) && append(results, array);
}

bool read_gradients(PyObject* const* arguments, const Layer& layer, Gradients& gradients, PyObject* results) {
  PyObject *like = layer.inputs.tensor.get(), *wanted = arguments[5];
  if (!read_contiguous(arguments[1], gradients.output) || !read_contiguous(arguments[2], gradients.saved)) return false;
  if (gradients.saved.axes != 3 || PySequence_Size(arguments[4]) != 1 + layer.states()) return false;
  gradients.results.resize(1 + layer.states());
  for (int i = 0; i < 1 + layer.states(); i++) {
    Ref gradient(PySequence_GetItem(arguments[4], i));
    if (!gradient || (gradient.get() != Py_None && !read_contiguous(gradient.get(), gradients.results[i]))) return false;
  }
  gradients.weights.resize(layer.weights.size());
  gradients.start.resize(layer.start.size());
  Py_ssize_t index = 0;
  if (!make_gradient(wanted, index++, layer.inputs, like, results, gradients.inputs)) return false;
  for (size_t i = 0; i < layer.weights.size(); i++)
    if (!make_gradient(wanted, index++, layer.weights[i], like, results, gradients.weights[i])) return false;
  for (size_t i = 0; i < layer.start.size(); i++)  // which the kernels compute in any case
    if (!new_like(layer.start[i], like, gradients.start[i]) || !append(results, gradients.start[i])) return false;
  const LayerSizes& sizes = layer.sizes;
  return new_empty(like, {sizes.directions, sizes.steps, gate_numbers(sizes.kind) * sizes.hidden_size}, gradients.gates);
}

// backward(form, output, saved, tensors, gradients, wanted, is_double, threads, isa): a list of the gradients of the
// tensors, with None for those that are not wanted; None in its place if there is not enough memory.
PyObject* backward_of_python(PyObject*, PyObject* const* arguments, Py_ssize_t number) {
  Layer layer;
  Gradients gradients;
  Ref results(PyList_New(0));
  if (!results) return nullptr;
  if (number != 9 || !read_form(arguments[0], layer) || !read_tensors(arguments[3], layer) || !read_options(arguments + 6, layer) ||
      !read_gradients(arguments, layer, gradients, results.get())) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "backward: the arguments are not those of a layer");
    return nullptr;
  }
  int failed;
  Py_BEGIN_ALLOW_THREADS;
  failed = layer.is_double ? run_backward<double>(layer, gradients) : run_backward<float>(layer, gradients);
  Py_END_ALLOW_THREADS;
  if (failed) Py_RETURN_NONE;
  return results.release();
}

// Call a function, and turn a lack of memory into an error of Python, because no exception of C++ may reach it.
template <PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)>
PyObject* guarded(PyObject* self, PyObject* const* arguments, Py_ssize_t number) {
  try {
    return function(self, arguments, number);
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

// To be raised with each change of what Python and this module pass to each other: __init__.py has the same number.
constexpr int INTERFACE = 1;

PyCFunction as_method(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function));
}

PyMethodDef methods[] = {
    {"forward", as_method(guarded<forward_of_python>), METH_FASTCALL, "Run one layer."},
    {"backward", as_method(guarded<backward_of_python>), METH_FASTCALL, "Compute the gradients of one layer."},
    {"configure", configure_shortcut, METH_VARARGS, "Set what `run` uses."},
    {"run", as_method(run_shortcut), METH_FASTCALL, "Run a layer on a batch, or return None."},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef definition = {PyModuleDef_HEAD_INIT, "library", "The compiled kernels.", -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit_library() {
  if (!make_names() || !make_shortcut_names()) return nullptr;
  PyObject* module = PyModule_Create(&definition);
  if (module != nullptr && PyModule_AddIntConstant(module, "INTERFACE", INTERFACE) != 0) Py_CLEAR(module);
  return module;
}
