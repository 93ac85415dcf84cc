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
  X(function_modes)                                                                                             \
  X(hooks_of_all) X(module_call) X(SequenceBatch) X(Lengths) X(LSTMState) X(RNNState) X(LayerForm) X(apply)     \
  X(kernels) X(empty_like)
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
  const int is_dense = PyObject_RichCompareBool(keys.get(), given.dense, Py_EQ);
  return is_dense == 1 || (is_dense == 0 && PyObject_RichCompareBool(keys.get(), given.dense_in_inference_mode, Py_EQ) == 1);
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

// A layer, its batch and its state, and what was read of them.
struct Problem {
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
bool read_instruction_set(Problem& problem) {
  Ref is_there(PyObject_GetAttr(given.kernels, names.IS_THERE)), number(PyObject_GetAttr(given.kernels, names.ISA_NUMBER));
  int64_t isa = 0;
  if (!is_true(is_there.get()) || !as_number(number.get(), isa)) return false;
  problem.sizes.isa = static_cast<int32_t>(isa);
  return true;
}

bool has_stock_forward(const LayerType& layer_type) {
  Ref forward(PyObject_GetAttr(layer_type.type, names.forward)), call(PyObject_GetAttr(layer_type.type, names.__call__));
  return forward.get() == layer_type.forward && call.get() == given.module_call;
}

// Return true for a layer of PyTorch without hooks or a `forward` of its own: bypassing it cannot be observed.
bool is_stock(PyObject* layer, Problem& problem) {
  for (const LayerType& known : layer_types)
    if (known.type == type_of(layer)) problem.type = &known;
  if (problem.type == nullptr || !has_stock_forward(*problem.type)) return false;
  problem.attributes = Ref(PyObject_GenericGetDict(layer, nullptr));
  PyObject* own = problem.attributes.get();
  if (own == nullptr || PyDict_GetItemWithError(own, names.forward) != nullptr) return false;
  for (PyObject* hooks : {names._forward_pre_hooks, names._forward_hooks, names._backward_pre_hooks, names._backward_hooks})
    if (!is_false(PyDict_GetItemWithError(own, hooks))) return false;
  return true;
}

// Read which kind of layer it is, by the option that PyTorch reads; it must be one that its type can have.
bool read_kind(Problem& problem) {
  const LayerType& type = *problem.type;
  problem.sizes.kind = type.kind;
  if (type.is_cell && type.kind >= 0) return true;
  PyObject* option = PyDict_GetItemWithError(problem.attributes.get(), type.is_cell ? names.nonlinearity : names.mode);
  if (option == nullptr || !PyUnicode_Check(option)) return false;
  const char* const cell_options[KINDS] = {"", "", "tanh", "relu"};
  int32_t found = -1;
  for (int32_t i = 0; i < KINDS; i++)
    if (PyUnicode_CompareWithASCIIString(option, type.is_cell ? cell_options[i] : KIND_NAMES[i]) == 0) found = i;
  problem.sizes.kind = found;
  return type.kind < 0 ? found >= RNN_TANH : found == type.kind;
}

bool read_layer(PyObject* layer, Problem& problem) {
  if (!is_stock(layer, problem) || !read_kind(problem)) return false;
  PyObject* own = problem.attributes.get();
  LayerSizes& sizes = problem.sizes;
  int64_t projection = 0;
  bool has_bias = false, is_bidirectional = false, is_training = false;
  if (!get_bool(own, names.bias, has_bias)) return false;
  if (!get_number(own, names.input_size, sizes.input_size) || !get_number(own, names.hidden_size, sizes.hidden_size)) return false;
  if (sizes.input_size <= 0 || sizes.hidden_size <= 0) return false;
  if (problem.type->is_cell) {
    if (PyDict_GetItemWithError(own, names.proj_size) != nullptr) return false;  // which PyTorch's cells do not have
  } else {
    if (!get_number(own, names.num_layers, problem.layers) || !get_number(own, names.proj_size, projection)) return false;
    if (problem.layers < 1 || problem.layers > MAX_LAYERS || projection < 0 || (projection > 0 && sizes.kind != LSTM)) return false;
    if (!get_bool(own, names.bidirectional, is_bidirectional) || !get_bool(own, names.training, is_training)) return false;
    sizes.directions = is_bidirectional ? 2 : 1;
    // Dropout between layers draws random numbers, by PyTorch.
    const bool draws = problem.layers > 1 && is_training;
    if (draws && !is_false(PyDict_GetItemWithError(own, names.dropout))) return false;
  }
  sizes.output_size = projection ? projection : sizes.hidden_size;
  sizes.weights = 2 + (has_bias ? 2 : 0) + (projection ? 1 : 0);
  problem.parameters = Ref::borrow(PyDict_GetItemWithError(own, names._parameters));
  return problem.parameters && PyDict_CheckExact(problem.parameters.get());
}

bool read_batch(PyObject* batch, Problem& problem) {
  if (type_of(batch) != given.SequenceBatch) return false;
  problem.structure = Ref(PyObject_GetAttr(batch, names.structure));
  Ref values(PyObject_GetAttr(batch, names.values));
  if (!problem.structure || !values || type_of(problem.structure.get()) != given.Lengths) return false;
  if (!read_walk(problem.structure.get(), problem.walk, problem.sizes.sequences, problem.sizes.steps)) return false;
  problem.sizes.walk = problem.walk.data();
  Ref dtype(PyObject_GetAttr(values.get(), names.dtype));
  problem.is_double = dtype.get() == given.float64;
  if (!problem.is_double && dtype.get() != given.float32) return false;
  return read(values.get(), dtype.get(), problem.values) && problem.values.has_shape({problem.sizes.steps, problem.sizes.input_size});
}

bool read_state(PyObject* state, PyObject* dtype, Problem& problem) {
  if (state == Py_None) return true;
  if (type_of(state) != (problem.states() == 2 ? given.LSTMState : given.RNNState)) return false;
  PyObject* parts[] = {names.hidden, names.cell};
  for (int i = 0; i < problem.states(); i++) {
    Ref part(PyObject_GetAttr(state, parts[i]));
    if (!read(part.get(), dtype, problem.state[i])) return false;
    if (!problem.state[i].has_shape({problem.layers, problem.directions(), problem.sizes.sequences, problem.sizes.state_size(i)}))
      return false;
  }
  return true;
}

bool read_weights(PyObject* dtype, Problem& problem) {
  const LayerSizes& sizes = problem.sizes;
  const int64_t rows = weight_gates(sizes.kind) * sizes.hidden_size, out = sizes.output_size;
  const auto positions = sizes.positions();
  for (int64_t i = 0; i < problem.layers; i++) {
    const int64_t input = i ? sizes.directions * out : sizes.input_size;
    for (int64_t d = 0; d < sizes.directions; d++)
      for (int w = 0; w < MAX_WEIGHTS; w++) {
        if (positions[w] < 0) continue;
        PyObject* name = problem.type->is_cell ? cell_weight_names[w] : weight_names[i][d][w];
        Array weight;
        if (!read(PyDict_GetItemWithError(problem.parameters.get(), name), dtype, weight)) return false;
        const bool fits = w == 0   ? weight.has_shape({rows, input})
                          : w == 1 ? weight.has_shape({rows, out})
                          : w == 4 ? weight.has_shape({out, sizes.hidden_size})
                                   : weight.has_shape({rows});
        if (!fits) return false;
        problem.weights.push_back(std::move(weight));
      }
  }
  return true;
}

// Find out whether gradients are recorded through the call.
bool find_gradients(const Problem& problem, bool& wants) {
  Ref is_on(PyObject_CallNoArgs(given.is_grad_enabled));
  if (!is_on) return false;
  if (is_on.get() != Py_True) return true;
  const auto look = [&wants](const Array& array) {
    if (wants || !array.tensor) return true;
    Ref found(PyObject_GetAttr(array.tensor.get(), names.requires_grad));
    wants = is_true(found.get());
    return static_cast<bool>(found);
  };
  for (const Array& weight : problem.weights)
    if (!look(weight)) return false;
  return look(problem.values) && look(problem.state[0]) && look(problem.state[1]);
}

// Make an object of a class with slots without calling its `__init__`, as its `_of` does.
Ref make(PyObject* type, std::initializer_list<std::pair<PyObject*, PyObject*>> slots) {
  Ref made(PyType_GenericAlloc(reinterpret_cast<PyTypeObject*>(type), 0));
  for (const auto& [name, value] : slots)
    if (!made || PyObject_GenericSetAttr(made.get(), name, value) != 0) return Ref();
  return made;
}

PyObject* wrap(const Problem& problem, PyObject* values, PyObject* hidden, PyObject* cell) {
  Ref batch = make(given.SequenceBatch, {{names.values, values}, {names.structure, problem.structure.get()}});
  Ref state = cell == nullptr ? make(given.RNNState, {{names.hidden, hidden}})
                              : make(given.LSTMState, {{names.hidden, hidden}, {names.cell, cell}});
  return batch && state ? PyTuple_Pack(2, batch.get(), state.get()) : nullptr;
}

template <typename T>
int run_layers(const Problem& problem, const std::vector<Array>& outputs, const Array* finals, int32_t threads) {
  LayerSizes sizes = problem.sizes;
  sizes.threads = threads;
  const void* x = problem.values.address;
  for (int64_t i = 0; i < problem.layers; i++) {
    Call<T> call = make_call<T>(sizes, x);
    for (int64_t d = 0; d < sizes.directions; d++) {
      Direction<T>& direction = call.direction[d];
      const int64_t index = i * sizes.directions + d;
      set_weights(sizes, direction, [&](int position) { return problem.weights[index * sizes.weights + position].address; });
      direction.out = static_cast<T*>(outputs[i].address) + d * sizes.output_size;
      T** final_states[] = {&direction.final_hidden, &direction.final_cell};
      const T** states[] = {&direction.hidden, &direction.cell};
      for (int part = 0; part < problem.states(); part++) {
        const int64_t size = sizes.sequences * sizes.state_size(part);
        *final_states[part] = row<T>(finals[part].address, index, size);
        *states[part] = row<T>(problem.state[part].address, index, size);
      }
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

PyObject* run_without_gradients(const Problem& problem) {
  const LayerSizes& sizes = problem.sizes;
  PyObject* like = problem.values.tensor.get();
  std::vector<Array> outputs(problem.layers);
  for (Array& output : outputs)
    if (!make_result(problem.values, like, {sizes.steps, sizes.directions * sizes.output_size}, output)) return nullptr;
  Array finals[2];
  for (int i = 0; i < problem.states(); i++) {
    const int64_t size = sizes.state_size(i);
    if (!make_result(problem.state[i], like, {problem.layers, sizes.directions, sizes.sequences, size}, finals[i])) return nullptr;
  }
  Ref found(PyObject_CallNoArgs(given.threads));
  int64_t number = 1;
  if (!as_number(found.get(), number)) return nullptr;
  const int32_t threads = static_cast<int32_t>(number);
  int failed;
  Py_BEGIN_ALLOW_THREADS;
  failed = problem.is_double ? run_layers<double>(problem, outputs, finals, threads) : run_layers<float>(problem, outputs, finals, threads);
  Py_END_ALLOW_THREADS;
  return failed ? nullptr : wrap(problem, outputs.back().tensor.get(), finals[0].tensor.get(), finals[1].tensor.get());
}

// Run one layer by the autograd function of _engines/native.py.
PyObject* run_with_gradients(const Problem& problem, bool& has_begun) {
  if (problem.layers != 1) return nullptr;
  has_begun = true;
  Ref form(PyObject_CallFunction(given.LayerForm, "OOii", kind_names[problem.sizes.kind], problem.structure.get(),
                                 static_cast<int>(problem.sizes.directions), problem.sizes.weights));
  Ref list(PyList_New(0));
  if (!list || !append(list.get(), std::move(form)) || !append(list.get(), problem.values)) return nullptr;
  for (const Array& weight : problem.weights)
    if (!append(list.get(), weight)) return nullptr;
  for (const Array& part : problem.state) {
    if (!part.tensor) continue;
    Ref of_layer(PyObject_CallMethodObjArgs(part.tensor.get(), names.select, zero, zero, nullptr));
    if (!append(list.get(), std::move(of_layer))) return nullptr;
  }
  Ref arguments(PyList_AsTuple(list.get()));
  Ref results(arguments ? PyObject_CallObject(given.apply, arguments.get()) : nullptr);
  if (!results || !PyTuple_Check(results.get()) || PyTuple_Size(results.get()) != 1 + problem.states()) return nullptr;
  // A copy, because the backward pass reads the output, which callers may modify in place.
  Ref values(PyObject_CallMethodObjArgs(PyTuple_GetItem(results.get(), 0), names.clone, nullptr)), finals[2];
  if (!values) return nullptr;
  for (int i = 0; i < problem.states(); i++) {
    finals[i] = Ref(PyObject_CallMethodObjArgs(PyTuple_GetItem(results.get(), 1 + i), names.unsqueeze, zero, nullptr));
    if (!finals[i]) return nullptr;
  }
  return wrap(problem, values.get(), finals[0].get(), finals[1].get());
}

PyObject* run_or_null(PyObject* layer, PyObject* batch, PyObject* state, bool& has_begun) {
  Problem problem;
  if (!is_undisturbed() || !read_instruction_set(problem) || !read_layer(layer, problem) || !read_batch(batch, problem)) return nullptr;
  PyObject* dtype = problem.is_double ? given.float64 : given.float32;
  if (!read_state(state, dtype, problem) || !read_weights(dtype, problem)) return nullptr;
  bool wants = false;
  if (!find_gradients(problem, wants)) return nullptr;
  return wants ? run_with_gradients(problem, has_begun) : run_without_gradients(problem);
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
