// Python's view of memory and events of a GPU that other processes open. `g2rpo_fast.rollout.sync` calls
// this.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "cuda_runtime.h"

namespace py = pybind11;

namespace {

using g2rpo::CudaEvent;
using g2rpo::CudaHandle;
using g2rpo::CudaMemory;
using g2rpo::CudaRuntime;
using g2rpo::PinnedMemory;
using g2rpo::Runtime;
using NoGil = py::call_guard<py::gil_scoped_release>;

py::bytes to_bytes(const CudaHandle& handle) { return {handle.bytes, sizeof handle.bytes}; }

CudaHandle to_handle(const std::string& bytes) {
    CudaHandle handle;
    if (bytes.size() != sizeof handle.bytes)
        throw py::value_error("handle: wanted 64 bytes, got " + std::to_string(bytes.size()));
    std::memcpy(handle.bytes, bytes.data(), sizeof handle.bytes);
    return handle;
}

// Version 3: what torch.as_tensor makes a tensor of without a copy, keeping the object.
py::dict array_interface(const CudaMemory& memory) {
    py::dict fields;
    fields["shape"] = py::make_tuple(memory.bytes);
    fields["typestr"] = "|u1";
    fields["data"] = py::make_tuple(reinterpret_cast<uintptr_t>(memory.data), false);
    fields["strides"] = py::none();
    fields["version"] = 3;
    return fields;
}

void bind_cuda_memory(py::module_& module) {
    py::class_<CudaMemory, std::shared_ptr<CudaMemory>>(module, "CudaMemory")
        .def_static("create", &g2rpo::create_cuda_memory, py::arg("runtime"), py::arg("device"),
                    py::arg("nbytes"), NoGil())
        .def_static(
            "open",
            [](const Runtime& runtime, int device, size_t bytes, const std::string& handle) {
                return g2rpo::open_cuda_memory(runtime, device, bytes, to_handle(handle));
            },
            py::arg("runtime"), py::arg("device"), py::arg("nbytes"), py::arg("handle"), NoGil())
        .def_readonly("nbytes", &CudaMemory::bytes)
        .def_property_readonly("handle", [](const CudaMemory& memory) { return to_bytes(handle_of(memory)); })
        .def_property_readonly("__cuda_array_interface__", &array_interface);
}

void bind_cuda_event(py::module_& module) {
    py::class_<CudaEvent, std::shared_ptr<CudaEvent>>(module, "CudaEvent")
        .def_static("create", &g2rpo::create_cuda_event, py::arg("runtime"), py::arg("device"), NoGil())
        .def_static(
            "open",
            [](const Runtime& runtime, int device, const std::string& handle) {
                return g2rpo::open_cuda_event(runtime, device, to_handle(handle));
            },
            py::arg("runtime"), py::arg("device"), py::arg("handle"), NoGil())
        .def_property_readonly("handle", [](const CudaEvent& event) { return to_bytes(handle_of(event)); })
        .def("record", &g2rpo::record, py::arg("stream"), NoGil())
        .def("wait", &g2rpo::wait, py::arg("stream"), NoGil());
}

}  // namespace

void bind_cuda(py::module_& module) {
    py::class_<CudaRuntime, std::shared_ptr<CudaRuntime>>(module, "CudaRuntime")
        .def_static(
            "load",
            [](const std::vector<std::string>& names) {
                return std::const_pointer_cast<CudaRuntime>(g2rpo::load_cuda(names));
            },
            py::arg("names"), NoGil())
        .def_readonly("path", &CudaRuntime::path);
    bind_cuda_memory(module);
    bind_cuda_event(module);
    py::class_<PinnedMemory, std::shared_ptr<PinnedMemory>>(module, "PinnedMemory")
        .def_static("create", &g2rpo::pin, py::arg("runtime"), py::arg("device"), py::arg("memory"), NoGil());
}
