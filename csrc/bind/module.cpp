// The extension module: importing it registers the ops; its own functions tell what was built. Limited Python
// API. The oldest Python that the wheel (cp310-abi3) runs on, whatever torch asks of its own extensions.
#undef Py_LIMITED_API
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

#include "bind/pool.h"
#include "launch/cpu_isa.h"

namespace {

#ifdef ADE_WITH_CUDA
constexpr bool kWithCuda = true;
#else
constexpr bool kWithCuda = false;
#endif

PyObject* build_info(PyObject*, PyObject*) {
  return Py_BuildValue("{s:O,s:s,s:s,s:s,s:s}", "cuda", kWithCuda ? Py_True : Py_False, "cuda_version",
                       ADE_CUDA_VERSION, "cuda_archs", ADE_CUDA_ARCHS, "compiler", ADE_COMPILER, "isa",
                       ade::cpu::active_isa());
}

PyObject* select_isa(PyObject*, PyObject* name) {
  PyObject* const bytes = PyUnicode_AsUTF8String(name);
  if (bytes == nullptr) return nullptr;
  const bool selected = ade::cpu::select_isa(PyBytes_AsString(bytes));
  Py_DECREF(bytes);
  if (!selected) return PyErr_Format(PyExc_ValueError, "select_isa: this processor has no %R", name);
  Py_RETURN_NONE;
}

PyObject* pool_bytes(PyObject*, PyObject*) {
  return Py_BuildValue("(LL)", static_cast<long long>(ade::bind::pool::bytes_taken()),
                       static_cast<long long>(ade::bind::pool::bytes_waiting()));
}

PyObject* release_pool(PyObject*, PyObject*) {
  ade::bind::pool::release();
  Py_RETURN_NONE;
}

// Whether what a dictionary, a list or another mapping holds is `kept`, object by object. passing: keys of a
// dictionary that do not matter, or None. -1: an error.
int is_same(PyObject* part, PyObject* passing, PyObject* kept) {
  const Py_ssize_t size = PyTuple_Size(kept);
  Py_ssize_t at = 0;
  const auto next = [&](PyObject* value) { return at < size && PyTuple_GetItem(kept, at++) == value; };
  if (PyDict_Check(part)) {
    PyObject *key, *value;
    for (Py_ssize_t place = 0; PyDict_Next(part, &place, &key, &value);) {
      const int passes = passing == Py_None ? 0 : PySet_Contains(passing, key);
      if (passes < 0) return -1;
      if (!passes && !next(value)) return 0;
    }
    return at == size;
  }
  PyObject* const values = PyList_Check(part) ? PySequence_List(part) : PyMapping_Values(part);
  if (values == nullptr) return -1;
  const Py_ssize_t count = PyList_Size(values);
  bool same = count == size;
  for (Py_ssize_t i = 0; same && i < count; ++i) same = next(PyList_GetItem(values, i));
  Py_DECREF(values);
  return same;
}

PyObject* same_values(PyObject*, PyObject* args) {
  PyObject *parts, *passing, *kept;
  if (!PyArg_ParseTuple(args, "O!O!O!", &PyTuple_Type, &parts, &PyTuple_Type, &passing, &PyTuple_Type, &kept))
    return nullptr;
  const Py_ssize_t count = PyTuple_Size(parts);
  if (PyTuple_Size(passing) != count || PyTuple_Size(kept) != count)
    return PyErr_Format(PyExc_ValueError, "same_values: parts, passing and kept must be of one length");
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* const values = PyTuple_GetItem(kept, i);
    if (!PyTuple_Check(values))
      return PyErr_Format(PyExc_TypeError, "same_values: kept must be tuples, got %R", values);
    const int same = is_same(PyTuple_GetItem(parts, i), PyTuple_GetItem(passing, i), values);
    if (same < 0) return nullptr;
    if (same == 0) Py_RETURN_FALSE;
  }
  Py_RETURN_TRUE;
}

PyMethodDef g_methods[] = {
    {"build_info", build_info, METH_NOARGS,
     "What this extension was built with, and the instruction set it runs in."},
    {"select_isa", select_isa, METH_O,
     "Run the CPU kernels in this instruction set: 'base', 'avx2' or 'avx512'."},
    {"pool_bytes", pool_bytes, METH_NOARGS,
     "Bytes of the CPU operators' pool that are in use, and that wait for the next call."},
    {"release_pool", release_pool, METH_NOARGS, "Gives what waits in the pool back to the operating system."},
    {"same_values", same_values, METH_VARARGS,
     "same_values(parts, passing, kept): whether the values of each of `parts` (dictionaries, lists, "
     "mappings) "
     "are the very objects in its tuple of `kept`; `passing` has for each None or a set of keys to skip."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef g_module = {
    PyModuleDef_HEAD_INIT, "_C", nullptr, -1, g_methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&g_module); }
