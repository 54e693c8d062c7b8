// The parts of the module, one for each file of bindings.
#pragma once

#include <pybind11/pybind11.h>

void bind_arena(pybind11::module_& module);
void bind_cuda(pybind11::module_& module);  // after bind_arena
