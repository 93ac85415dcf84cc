// Runs a recurrent layer or cell of PyTorch on a batch without Python code, if nothing about the call is unusual.
//
// A kernel takes two microseconds for one step of one sequence. Python took thirty to check, prepare and wrap the call; the
// same takes seven here. If anything is unusual, `run` returns None, and Python runs the call. Once gradients are recorded
// it raises what autograd raises.
#include "shortcut.h"

#include <new>
#include <vector>

#include "layer_calls.h"
#include "python_tensors.h"

namespace {

using namespace seqbatch;

// What `configure` is given, by these names; _encoders/recurrent_shortcut.py has their meaning. They live as long as the process.
#define SEQBATCH_GIVEN(X)                                                                                       \
  X(Tensor) X(Parameter) X(dispatch_keys) X(dense) X(dense_in_inference_mode) X(float32) X(float64) X(cpu)      \
  X(is_grad_enabled) X(is_autocast_enabled) X(is_tracing) X(is_transformed) X(modes) X(forward_ad) X(threads)   \
  X(function_modes) X(hooks_of_all) X(module_call) X(SequenceBatch) X(Lengths) X(LSTMState) X(RNNState)         \
  X(LayerForm) X(apply) X(kernels) X(empty_like)
#define SEQBATCH_DECLARE_GIVEN(name) PyObject* name = nullptr;
struct Given {
  SEQBATCH_GIVEN(SEQBATCH_DECLARE_GIVEN)
} given;
#undef SEQBATCH_DECLARE_GIVEN

// `kind` is -1 for RNN, whose option sets it.
struct LayerType {
  PyObject* type;
  PyObject* forward;  // that of PyTorch, when seqbatch was imported
  int32_t kind;
  bool is_cell;
};
std::vector<LayerType> layer_types;
bool is_configured = false;

constexpr int MAX_LAYERS = 8;  // deeper ones run by Python
// By layer, direction, and position in `LayerSizes::positions`; a cell has those of one direction without a suffix.
PyObject* weight_names[MAX_LAYERS][2][MAX_WEIGHTS];
PyObject* cell_weight_names[MAX_WEIGHTS];
PyObject* zero = nullptr;

// Each of the functions below returns false or null where Python must run the call, with or without an error.

bool is_true(PyObject* object) { return object != nullptr && PyObject_IsTrue(object) == 1; }
bool is_false(PyObject* object) { return object != nullptr && PyObject_IsTrue(object) == 0; }
PyObject* type_of(PyObject* object) { return reinterpret_cast<PyObject*>(Py_TYPE(object)); }

// Return true if a function without arguments returns false or 0.
bool is_off(PyObject* function) {
  Ref found(PyObject_CallNoArgs(function));
  return is_false(found.get());
}

bool get_number(PyObject* dict, PyObject* name, int64_t& number) {
  return as_number(PyDict_GetItemWithError(dict, name), number);
}

// Read a bool; a missing option, and any other object, is left to Python.
bool get_bool(PyObject* dict, PyObject* name, bool& option) {
  int64_t number = 0;
  if (!get_number(dict, name, number)) return false;
  option = number != 0;
  return true;
}

bool is_dense(PyObject* tensor) {
  if (type_of(tensor) != given.Tensor && type_of(tensor) != given.Parameter) return false;
  Ref keys(PyObject_CallFunctionObjArgs(given.dispatch_keys, tensor, nullptr));
  if (!keys) return false;
  const int equals = PyObject_RichCompareBool(keys.get(), given.dense, Py_EQ);
  return equals == 1 || (equals == 0 && PyObject_RichCompareBool(keys.get(), given.dense_in_inference_mode, Py_EQ) == 1);
}

// Read a tensor of this dtype if a kernel can read its memory as it is.
bool read(PyObject* tensor, PyObject* dtype, Array& array) {
  if (tensor == nullptr) return false;
  array.tensor = Ref::borrow(tensor);
  if (!is_dense(tensor)) return false;
  Ref found(PyObject_GetAttr(tensor, names.dtype));
  if (found.get() != dtype) return false;
  Ref is_contiguous(PyObject_CallMethodObjArgs(tensor, names.is_contiguous, nullptr));
  if (!is_true(is_contiguous.get())) return false;
  // The address is null if the storage was freed.
  return read_shape(tensor, array) && read_address(tensor, array.address) && array.address != nullptr;
}

// Return true if no transform, mode, hook of all modules or autocast must see what a layer does.
bool is_undisturbed() {
  for (PyObject* question : {given.is_tracing, given.is_transformed, given.modes, given.function_modes})
    if (!is_off(question)) return false;
  Ref level(PyObject_GetAttr(given.forward_ad, names._current_level));
  int64_t depth = 0;
  if (!as_number(level.get(), depth) || depth >= 0) return false;
  Ref autocasts(PyObject_CallFunctionObjArgs(given.is_autocast_enabled, given.cpu, nullptr));
  if (!is_false(autocasts.get())) return false;
  for (Py_ssize_t i = 0; i < PyTuple_Size(given.hooks_of_all); i++)
    if (!is_false(PyTuple_GetItem(given.hooks_of_all, i))) return false;
  return true;
}

// What is to be run: a layer, a batch and a state, and what was read of them.
struct Request {
  const LayerType* type = nullptr;
  LayerSizes sizes;  // the input size is that of the first layer
  int64_t layers = 1;
  bool is_double = false;
  Ref attributes, parameters, structure;
  std::vector<int64_t> walk;
  Array values, state[2];  // hidden and cell
  std::vector<Array> weights;

  int states() const { return states_of(sizes.kind); }
  int64_t directions() const { return sizes.directions; }
};

// Read which kernels are in use, if any are.
bool read_instruction_set(Request& request) {
  Ref is_there(PyObject_GetAttr(given.kernels, names.IS_THERE)), number(PyObject_GetAttr(given.kernels, names.ISA_NUMBER));
  int64_t isa = 0;
  if (!is_true(is_there.get()) || !as_number(number.get(), isa)) return false;
  request.sizes.isa = static_cast<int32_t>(isa);
  return true;
}

bool has_stock_forward(const LayerType& layer_type) {
  Ref forward(PyObject_GetAttr(layer_type.type, names.forward)), call(PyObject_GetAttr(layer_type.type, names.__call__));
  return forward.get() == layer_type.forward && call.get() == given.module_call;
}

// Return true for a layer of PyTorch without hooks or a `forward` of its own: bypassing it cannot be observed.
bool is_stock(PyObject* layer, Request& request) {
  for (const LayerType& known : layer_types)
    if (known.type == type_of(layer)) request.type = &known;
  if (request.type == nullptr || !has_stock_forward(*request.type)) return false;
  request.attributes = Ref(PyObject_GenericGetDict(layer, nullptr));
  PyObject* own = request.attributes.get();
  if (own == nullptr || PyDict_GetItemWithError(own, names.forward) != nullptr) return false;
  for (PyObject* hooks : {names._forward_pre_hooks, names._forward_hooks, names._backward_pre_hooks, names._backward_hooks})
    if (!is_false(PyDict_GetItemWithError(own, hooks))) return false;
  return true;
}

// Read which kind of layer it is, by the option that PyTorch reads; it must be one that its type can have.
bool read_kind(Request& request) {
  const LayerType& type = *request.type;
  request.sizes.kind = type.kind;
  if (type.is_cell && type.kind >= 0) return true;
  PyObject* option = PyDict_GetItemWithError(request.attributes.get(), type.is_cell ? names.nonlinearity : names.mode);
  if (option == nullptr || !PyUnicode_Check(option)) return false;
  const char* const cell_options[KINDS] = {"", "", "tanh", "relu"};
  int32_t found = -1;
  for (int32_t i = 0; i < KINDS; i++)
    if (PyUnicode_CompareWithASCIIString(option, type.is_cell ? cell_options[i] : KIND_NAMES[i]) == 0) found = i;
  request.sizes.kind = found;
  return type.kind < 0 ? found >= RNN_TANH : found == type.kind;
}

bool read_layer(PyObject* layer, Request& request) {
  if (!is_stock(layer, request) || !read_kind(request)) return false;
  PyObject* own = request.attributes.get();
  LayerSizes& sizes = request.sizes;
  int64_t projection = 0;
  bool has_bias = false, is_bidirectional = false, is_training = false;
  if (!get_bool(own, names.bias, has_bias)) return false;
  if (!get_number(own, names.input_size, sizes.input_size) || !get_number(own, names.hidden_size, sizes.hidden_size)) return false;
  if (sizes.input_size <= 0 || sizes.hidden_size <= 0) return false;
  if (request.type->is_cell) {
    if (PyDict_GetItemWithError(own, names.proj_size) != nullptr) return false;  // which PyTorch's cells do not have
  } else {
    if (!get_number(own, names.num_layers, request.layers) || !get_number(own, names.proj_size, projection)) return false;
    if (request.layers < 1 || request.layers > MAX_LAYERS || projection < 0 || (projection > 0 && sizes.kind != LSTM)) return false;
    if (!get_bool(own, names.bidirectional, is_bidirectional) || !get_bool(own, names.training, is_training)) return false;
    sizes.directions = is_bidirectional ? 2 : 1;
    // Dropout between layers draws random numbers, by PyTorch.
    const bool draws = request.layers > 1 && is_training;
    if (draws && !is_false(PyDict_GetItemWithError(own, names.dropout))) return false;
  }
  sizes.output_size = projection ? projection : sizes.hidden_size;
  sizes.weights = 2 + (has_bias ? 2 : 0) + (projection ? 1 : 0);
  request.parameters = Ref::borrow(PyDict_GetItemWithError(own, names._parameters));
  return request.parameters && PyDict_CheckExact(request.parameters.get());
}

bool read_batch(PyObject* batch, Request& request) {
  if (type_of(batch) != given.SequenceBatch) return false;
  request.structure = Ref(PyObject_GetAttr(batch, names.structure));
  Ref values(PyObject_GetAttr(batch, names.values));
  if (!request.structure || !values || type_of(request.structure.get()) != given.Lengths) return false;
  if (!read_walk(request.structure.get(), request.walk, request.sizes.sequences, request.sizes.steps)) return false;
  request.sizes.walk = request.walk.data();
  Ref dtype(PyObject_GetAttr(values.get(), names.dtype));
  request.is_double = dtype.get() == given.float64;
  if (!request.is_double && dtype.get() != given.float32) return false;
  return read(values.get(), dtype.get(), request.values) && request.values.has_shape({request.sizes.steps, request.sizes.input_size});
}

bool read_state(PyObject* state, PyObject* dtype, Request& request) {
  if (state == Py_None) return true;
  if (type_of(state) != (request.states() == 2 ? given.LSTMState : given.RNNState)) return false;
  PyObject* parts[] = {names.hidden, names.cell};
  for (int i = 0; i < request.states(); i++) {
    Ref part(PyObject_GetAttr(state, parts[i]));
    if (!read(part.get(), dtype, request.state[i])) return false;
    if (!request.state[i].has_shape({request.layers, request.directions(), request.sizes.sequences, request.sizes.state_size(i)}))
      return false;
  }
  return true;
}

bool read_weights(PyObject* dtype, Request& request) {
  const LayerSizes& sizes = request.sizes;
  const int64_t rows = weight_gates(sizes.kind) * sizes.hidden_size, out = sizes.output_size;
  const auto positions = sizes.positions();
  for (int64_t i = 0; i < request.layers; i++) {
    const int64_t input = i ? sizes.directions * out : sizes.input_size;
    for (int64_t d = 0; d < sizes.directions; d++)
      for (int w = 0; w < MAX_WEIGHTS; w++) {
        if (positions[w] < 0) continue;
        PyObject* name = request.type->is_cell ? cell_weight_names[w] : weight_names[i][d][w];
        Array weight;
        if (!read(PyDict_GetItemWithError(request.parameters.get(), name), dtype, weight)) return false;
        const bool fits = w == 0   ? weight.has_shape({rows, input})
                          : w == 1 ? weight.has_shape({rows, out})
                          : w == 4 ? weight.has_shape({out, sizes.hidden_size})
                                   : weight.has_shape({rows});
        if (!fits) return false;
        request.weights.push_back(std::move(weight));
      }
  }
  return true;
}

// Find out whether gradients are recorded through the call.
bool find_gradients(const Request& request, bool& wants) {
  Ref is_on(PyObject_CallNoArgs(given.is_grad_enabled));
  if (!is_on) return false;
  if (is_on.get() != Py_True) return true;
  const auto look = [&wants](const Array& array) {
    if (wants || !array.tensor) return true;
    Ref found(PyObject_GetAttr(array.tensor.get(), names.requires_grad));
    wants = is_true(found.get());
    return static_cast<bool>(found);
  };
  for (const Array& weight : request.weights)
    if (!look(weight)) return false;
  return look(request.values) && look(request.state[0]) && look(request.state[1]);
}

// Make an object of a class with slots without calling its `__init__`, as its `_of` does.
Ref make(PyObject* type, std::initializer_list<std::pair<PyObject*, PyObject*>> slots) {
  Ref made(PyType_GenericAlloc(reinterpret_cast<PyTypeObject*>(type), 0));
  for (const auto& [name, value] : slots)
    if (!made || PyObject_GenericSetAttr(made.get(), name, value) != 0) return Ref();
  return made;
}

PyObject* wrap(const Request& request, PyObject* values, PyObject* hidden, PyObject* cell) {
  Ref batch = make(given.SequenceBatch, {{names.values, values}, {names.structure, request.structure.get()}});
  Ref state = cell == nullptr ? make(given.RNNState, {{names.hidden, hidden}})
                              : make(given.LSTMState, {{names.hidden, hidden}, {names.cell, cell}});
  return batch && state ? PyTuple_Pack(2, batch.get(), state.get()) : nullptr;
}

template <typename T>
int run_layers(const Request& request, const std::vector<Array>& outputs, const Array* finals, int32_t threads) {
  LayerSizes sizes = request.sizes;
  sizes.threads = threads;
  const void* x = request.values.address;
  for (int64_t i = 0; i < request.layers; i++) {
    Call<T> call = make_call<T>(sizes, x);
    for (int64_t d = 0; d < sizes.directions; d++) {
      const int64_t index = i * sizes.directions + d;
      const auto weight = [&](int position) { return request.weights[index * sizes.weights + position].address; };
      set_direction(sizes, call, d, index, weight, outputs[i].address, {request.state[0].address, request.state[1].address},
                    {finals[0].address, finals[1].address});
    }
    if (forward(call) != 0) return 1;
    x = outputs[i].address;
    sizes.input_size = sizes.directions * sizes.output_size;
  }
  return 0;
}

// Make a tensor of this shape; quicker if another one has it.
bool make_result(const Array& other, PyObject* like, std::initializer_list<int64_t> shape, Array& array) {
  if (!other.has_shape(shape)) return new_empty(like, shape, array);
  array.tensor = Ref(PyObject_CallFunctionObjArgs(given.empty_like, other.tensor.get(), nullptr));
  return array.tensor && read_address(array.tensor.get(), array.address);
}

PyObject* run_without_gradients(const Request& request) {
  const LayerSizes& sizes = request.sizes;
  PyObject* like = request.values.tensor.get();
  std::vector<Array> outputs(request.layers);
  for (Array& output : outputs)
    if (!make_result(request.values, like, {sizes.steps, sizes.directions * sizes.output_size}, output)) return nullptr;
  Array finals[2];
  for (int i = 0; i < request.states(); i++) {
    const int64_t size = sizes.state_size(i);
    if (!make_result(request.state[i], like, {request.layers, sizes.directions, sizes.sequences, size}, finals[i])) return nullptr;
  }
  Ref found(PyObject_CallNoArgs(given.threads));
  int64_t number = 1;
  if (!as_number(found.get(), number)) return nullptr;
  const int32_t threads = static_cast<int32_t>(number);
  int failed;
  Py_BEGIN_ALLOW_THREADS;
  failed = request.is_double ? run_layers<double>(request, outputs, finals, threads) : run_layers<float>(request, outputs, finals, threads);
  Py_END_ALLOW_THREADS;
  return failed ? nullptr : wrap(request, outputs.back().tensor.get(), finals[0].tensor.get(), finals[1].tensor.get());
}

// Run one layer by the autograd function of _engines/native.py.
PyObject* run_with_gradients(const Request& request, bool& has_begun) {
  if (request.layers != 1) return nullptr;
  has_begun = true;
  Ref form(PyObject_CallFunction(given.LayerForm, "OOii", kind_names[request.sizes.kind], request.structure.get(),
                                 static_cast<int>(request.sizes.directions), request.sizes.weights));
  Ref list(PyList_New(0));
  if (!list || !append(list.get(), std::move(form)) || !append(list.get(), request.values)) return nullptr;
  for (const Array& weight : request.weights)
    if (!append(list.get(), weight)) return nullptr;
  for (const Array& part : request.state) {
    if (!part.tensor) continue;
    Ref of_layer(PyObject_CallMethodObjArgs(part.tensor.get(), names.select, zero, zero, nullptr));
    if (!append(list.get(), std::move(of_layer))) return nullptr;
  }
  Ref arguments(PyList_AsTuple(list.get()));
  Ref results(arguments ? PyObject_CallObject(given.apply, arguments.get()) : nullptr);
  if (!results || !PyTuple_Check(results.get()) || PyTuple_Size(results.get()) != 1 + request.states()) return nullptr;
  // A copy, because the backward pass reads the output, which callers may modify in place.
  Ref values(PyObject_CallMethodObjArgs(PyTuple_GetItem(results.get(), 0), names.clone, nullptr)), finals[2];
  if (!values) return nullptr;
  for (int i = 0; i < request.states(); i++) {
    finals[i] = Ref(PyObject_CallMethodObjArgs(PyTuple_GetItem(results.get(), 1 + i), names.unsqueeze, zero, nullptr));
    if (!finals[i]) return nullptr;
  }
  return wrap(request, values.get(), finals[0].get(), finals[1].get());
}

PyObject* run_or_null(PyObject* layer, PyObject* batch, PyObject* state, bool& has_begun) {
  Request request;
  if (!is_undisturbed() || !read_instruction_set(request) || !read_layer(layer, request) || !read_batch(batch, request)) return nullptr;
  PyObject* dtype = request.is_double ? given.float64 : given.float32;
  if (!read_state(state, dtype, request) || !read_weights(dtype, request)) return nullptr;
  bool wants = false;
  if (!find_gradients(request, wants)) return nullptr;
  return wants ? run_with_gradients(request, has_begun) : run_without_gradients(request);
}

}  // namespace

namespace seqbatch {

// run(layer, batch, state): the pair (batch, state), or None where Python must run the call.
PyObject* run_shortcut(PyObject*, PyObject* const* arguments, Py_ssize_t number) {
  PyObject* result = nullptr;
  bool has_begun = false;  // to record gradients: checkpoints stop autograd by an error, which must reach them
  try {
    if (number == 3 && is_configured) result = run_or_null(arguments[0], arguments[1], arguments[2], has_begun);
  } catch (const std::bad_alloc&) {  // because Python runs the call again, and raises MemoryError
  }
  if (result != nullptr) return result;
  // Other errors are raised again by Python, with its text; KeyboardInterrupt would not be.
  if (PyErr_Occurred() && (has_begun || !PyErr_ExceptionMatches(PyExc_Exception))) return nullptr;
  PyErr_Clear();
  Py_RETURN_NONE;
}

// configure(objects, layer_types): set what `run` uses.
PyObject* configure_shortcut(PyObject*, PyObject* arguments) {
  PyObject *objects, *types;
  if (!PyArg_ParseTuple(arguments, "O!O!", &PyDict_Type, &objects, &PyList_Type, &types)) return nullptr;
  layer_types.clear();
  for (Py_ssize_t i = 0; i < PyList_Size(types); i++) {
    LayerType layer_type;
    int is_cell;
    PyObject* row = PyList_GetItem(types, i);
    if (!PyArg_ParseTuple(row, "OOip", &layer_type.type, &layer_type.forward, &layer_type.kind, &is_cell)) return nullptr;
    Py_INCREF(layer_type.type);
    Py_INCREF(layer_type.forward);
    layer_type.is_cell = is_cell != 0;
    layer_types.push_back(layer_type);
  }
#define SEQBATCH_SET(name)                                                            \
  if (PyObject* found = PyDict_GetItemString(objects, #name)) {                       \
    given.name = found;                                                               \
    Py_INCREF(found);                                                                 \
  } else {                                                                            \
    return PyErr_Format(PyExc_KeyError, "configure: `objects` must have %s", #name);  \
  }
  SEQBATCH_GIVEN(SEQBATCH_SET)
#undef SEQBATCH_SET
  is_configured = true;
  Py_RETURN_NONE;
}

bool make_shortcut_names() {
  const char* kinds[MAX_WEIGHTS] = {"weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"};
  for (int w = 0; w < MAX_WEIGHTS; w++) {
    if ((cell_weight_names[w] = PyUnicode_InternFromString(kinds[w])) == nullptr) return false;
    for (int i = 0; i < MAX_LAYERS; i++)
      for (int d = 0; d < 2; d++) {
        PyObject* name = PyUnicode_FromFormat("%s_l%d%s", kinds[w], i, d ? "_reverse" : "");
        if (name == nullptr) return false;
        PyUnicode_InternInPlace(&name);
        weight_names[i][d][w] = name;
      }
  }
  return (zero = PyLong_FromLong(0)) != nullptr;
}

}  // namespace seqbatch
