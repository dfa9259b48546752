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

PyMethodDef g_methods[] = {
    {"build_info", build_info, METH_NOARGS,
     "What this extension was built with, and the instruction set it runs in."},
    {"select_isa", select_isa, METH_O,
     "Run the CPU kernels in this instruction set: 'base', 'avx2' or 'avx512'."},
    {"pool_bytes", pool_bytes, METH_NOARGS,
     "Bytes of the CPU operators' pool that are in use, and that wait for the next call."},
    {"release_pool", release_pool, METH_NOARGS, "Gives what waits in the pool back to the operating system."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef g_module = {
    PyModuleDef_HEAD_INIT, "_C", nullptr, -1, g_methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&g_module); }
