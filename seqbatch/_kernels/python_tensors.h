// Owned references to Python objects, and tensors that are read and made by their Python methods.
//
// It uses Python's limited API alone, and nothing of torch's C++, so that one binary serves all versions of both.
#pragma once
#include <Python.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <utility>
#include <vector>

#include "rows.h"

namespace seqbatch {

// An owned reference, or null.
class Ref {
 public:
  Ref() = default;
  explicit Ref(PyObject* owned) : object_(owned) {}
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref& operator=(Ref&& other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Ref() { Py_XDECREF(object_); }
  static Ref borrow(PyObject* object) {
    Py_XINCREF(object);
    return Ref(object);
  }
  PyObject* get() const { return object_; }
  PyObject* release() { return std::exchange(object_, nullptr); }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  PyObject* object_ = nullptr;
};

// The names of attributes and methods, as Python objects; made once, because making one takes longer than a look-up.
#define SEQBATCH_NAMES(X)                                                                                       \
  X(ISA_NUMBER) X(IS_THERE) X(__call__) X(_backward_hooks) X(_backward_pre_hooks) X(_current_level)             \
  X(_forward_hooks) X(_forward_pre_hooks) X(_parameters) X(bias) X(bidirectional) X(cell) X(clone)              \
  X(contiguous) X(data_ptr) X(dropout) X(dtype) X(forward) X(hidden) X(hidden_size) X(input_size)               \
  X(is_contiguous) X(mode) X(new_empty) X(nonlinearity) X(num_layers) X(proj_size) X(requires_grad) X(select)   \
  X(shape) X(structure) X(tensor) X(training) X(unsqueeze) X(values)
#define SEQBATCH_DECLARE_NAME(name) PyObject* name = nullptr;
struct Names {
  SEQBATCH_NAMES(SEQBATCH_DECLARE_NAME)
};
#undef SEQBATCH_DECLARE_NAME
inline Names names;

// The names of kinds of layers, by their numbers; see recurrent.h.
constexpr int KINDS = 4;
constexpr const char* KIND_NAMES[KINDS] = {"LSTM", "GRU", "RNN_TANH", "RNN_RELU"};
inline PyObject* kind_names[KINDS];
inline PyObject* int64_dtype = nullptr;

inline bool make_names() {
#define SEQBATCH_INTERN(name) \
  if ((names.name = PyUnicode_InternFromString(#name)) == nullptr) return false;
  SEQBATCH_NAMES(SEQBATCH_INTERN)
#undef SEQBATCH_INTERN
  for (int i = 0; i < KINDS; i++)
    if ((kind_names[i] = PyUnicode_InternFromString(KIND_NAMES[i])) == nullptr) return false;
  Ref torch(PyImport_ImportModule("torch"));
  if (torch) int64_dtype = PyObject_GetAttrString(torch.get(), "int64");
  return int64_dtype != nullptr;
}

// The functions below return false if an object is not what they read, with or without an error of Python.

inline bool as_number(PyObject* object, int64_t& number) {
  if (object == nullptr || !PyLong_Check(object)) return false;
  number = PyLong_AsLongLong(object);
  return !(number == -1 && PyErr_Occurred());
}

// A tensor whose memory holds its values in order, and what kernels read of it.
struct Array {
  Ref tensor;
  void* address = nullptr;
  std::array<int64_t, 4> shape{};
  int axes = 0;

  bool has_shape(std::initializer_list<int64_t> wanted) const {
    if (axes != static_cast<int>(wanted.size())) return false;
    int i = 0;
    for (int64_t size : wanted)
      if (shape[i++] != size) return false;
    return true;
  }
};

inline bool read_address(PyObject* tensor, void*& address) {
  Ref found(PyObject_CallMethodObjArgs(tensor, names.data_ptr, nullptr));
  if (!found) return false;
  address = PyLong_AsVoidPtr(found.get());
  return !PyErr_Occurred();
}

inline bool read_shape(PyObject* tensor, Array& array) {
  Ref shape(PyObject_GetAttr(tensor, names.shape));
  if (!shape || !PyTuple_Check(shape.get())) return false;
  const Py_ssize_t axes = PyTuple_Size(shape.get());
  if (axes > static_cast<Py_ssize_t>(array.shape.size())) return false;
  array.axes = static_cast<int>(axes);
  for (Py_ssize_t i = 0; i < axes; i++)
    if (!as_number(PyTuple_GetItem(shape.get(), i), array.shape[i])) return false;
  return true;
}

// Read a tensor, or a contiguous copy. Without memory it must be empty: its storage may have been freed.
inline bool read_contiguous(PyObject* tensor, Array& array) {
  array.tensor = Ref(PyObject_CallMethodObjArgs(tensor, names.contiguous, nullptr));
  if (!array.tensor || !read_shape(array.tensor.get(), array) || !read_address(array.tensor.get(), array.address)) return false;
  int64_t numbers = 1;
  for (int i = 0; i < array.axes; i++) numbers *= array.shape[i];
  return array.address != nullptr || numbers == 0;
}

// Read the lengths of a batch, none of which is 0, and sort the sequences: `walk` is that of `sort_walk`. The lengths are
// checked here too, because kernels read and write memory by them.
inline bool read_walk(PyObject* structure, std::vector<int64_t>& walk, int64_t& sequences, int64_t& steps) {
  Ref tensor(PyObject_GetAttr(structure, names.tensor));
  Ref dtype(tensor ? PyObject_GetAttr(tensor.get(), names.dtype) : nullptr);
  Array lengths;
  if (dtype.get() != int64_dtype || !read_contiguous(tensor.get(), lengths) || lengths.axes != 1) return false;
  sequences = lengths.shape[0];
  const int64_t* begin = static_cast<const int64_t*>(lengths.address);
  steps = 0;
  for (int64_t i = 0; i < sequences; i++)
    if (begin[i] <= 0 || __builtin_add_overflow(steps, begin[i], &steps)) return false;
  walk.resize(3 * sequences);
  sort_walk(begin, sequences, walk.data());
  return sequences > 0;
}

// Make a tensor like another, of this shape, and of any values.
inline bool new_empty(PyObject* like, std::initializer_list<int64_t> shape, Array& array) {
  Ref sizes(PyTuple_New(static_cast<Py_ssize_t>(shape.size())));
  if (!sizes) return false;
  for (int64_t size : shape) {
    PyObject* number = PyLong_FromLongLong(size);
    if (number == nullptr || PyTuple_SetItem(sizes.get(), array.axes, number) != 0) return false;
    array.shape[array.axes++] = size;
  }
  array.tensor = Ref(PyObject_CallMethodObjArgs(like, names.new_empty, sizes.get(), nullptr));
  return array.tensor && read_address(array.tensor.get(), array.address);
}

inline bool append(PyObject* list, Ref item) { return item && PyList_Append(list, item.get()) == 0; }
inline bool append(PyObject* list, const Array& array) { return append(list, Ref::borrow(array.tensor.get())); }

}  // namespace seqbatch
