// The shortcut of Python, in shortcut.cpp.
#pragma once
#include <Python.h>

namespace seqbatch {

bool make_shortcut_names();
PyObject* configure_shortcut(PyObject*, PyObject* arguments);
PyObject* run_shortcut(PyObject*, PyObject* const* arguments, Py_ssize_t number);

}  // namespace seqbatch
