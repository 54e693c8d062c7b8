// Python's view of the weight arena's memory. `g2rpo_fast.rollout.sync` calls this.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "bindings.h"
#include "checksum.h"
#include "ipc_arena.h"

namespace py = pybind11;

namespace {

using Shared = std::shared_ptr<g2rpo::SharedMemory>;

Shared create_shared(size_t bytes, int threads) {
    if (bytes == 0) throw py::value_error("arena: wanted at least one byte");
    const py::gil_scoped_release release;
    return g2rpo::create_shared(bytes, threads);
}

Shared open_shared(pid_t owner, int fd, uint64_t inode, size_t bytes, int threads) {
    if (bytes == 0) throw py::value_error("arena: wanted at least one byte");
    const py::gil_scoped_release release;
    return g2rpo::open_shared(owner, fd, inode, bytes, threads);
}

uint64_t checksum(const py::buffer& buffer, int threads) {
    const py::buffer_info info = buffer.request();
    py::ssize_t stride = info.itemsize;
    for (auto dim = static_cast<size_t>(info.ndim); dim-- > 0; stride *= info.shape[dim])
        if (info.shape[dim] != 1 && info.strides[dim] != stride)
            throw py::value_error("checksum: wanted a contiguous array");
    if (reinterpret_cast<uintptr_t>(info.ptr) % 8 != 0)
        throw py::value_error("checksum: wanted an array aligned to 8 bytes");
    const auto bytes = static_cast<size_t>(info.size * info.itemsize);
    const py::gil_scoped_release release;
    return g2rpo::checksum(static_cast<const std::byte*>(info.ptr), bytes, threads);
}

// The control page and the memory that holds it.
struct ControlPage {
    Shared memory;
    g2rpo::Control* control;

    g2rpo::SlotState& slot(int index) const {
        if (index < 0 || index >= g2rpo::kSlots)
            throw py::value_error("slot: wanted 0 or 1, got " + std::to_string(index));
        return control->slots[index];
    }
};

py::tuple read_slot(const ControlPage& page, int index) {
    const g2rpo::SlotReading slot = g2rpo::read_slot(page.slot(index));
    const auto sum = slot.has_checksum ? std::optional<uint64_t>(slot.checksum) : std::nullopt;
    return py::make_tuple(slot.sequence, slot.version, slot.bytes, sum);
}

bool owner_alive(const ControlPage& page) {
    const g2rpo::Control& control = *page.control;
    return g2rpo::process_start(static_cast<pid_t>(control.owner)) == control.owner_start;
}

void bind_memory(py::module_& module) {
    py::class_<g2rpo::SharedMemory, Shared>(module, "SharedMemory", py::buffer_protocol())
        .def_static("create", &create_shared, py::arg("nbytes"), py::arg("threads"))
        .def_static("open", &open_shared, py::arg("owner"), py::arg("fd"), py::arg("inode"),
                    py::arg("nbytes"), py::arg("threads"))
        .def_readonly("fd", &g2rpo::SharedMemory::fd)
        .def_readonly("inode", &g2rpo::SharedMemory::inode)
        .def_readonly("nbytes", &g2rpo::SharedMemory::bytes)
        .def("close", &g2rpo::close_descriptor)
        .def_buffer([](g2rpo::SharedMemory& memory) {
            return py::buffer_info(reinterpret_cast<uint8_t*>(memory.data),
                                   static_cast<py::ssize_t>(memory.bytes));
        });
}

void bind_control(py::module_& module) {
    py::class_<ControlPage>(module, "ControlPage")
        .def_static(
            "create",
            [](const Shared& memory, uint64_t fingerprint) {
                return ControlPage{memory, &g2rpo::create_control(*memory, fingerprint)};
            },
            py::arg("memory"), py::arg("fingerprint"))
        .def_static(
            "open",
            [](const Shared& memory, uint64_t fingerprint) {
                return ControlPage{memory, &g2rpo::open_control(*memory, fingerprint)};
            },
            py::arg("memory"), py::arg("fingerprint"))
        .def(
            "begin",
            [](const ControlPage& page, int slot, int64_t version) {
                g2rpo::begin_slot(page.slot(slot), version);
            },
            py::arg("slot"), py::arg("version"))
        .def(
            "publish",
            [](const ControlPage& page, int slot, uint64_t bytes, std::optional<uint64_t> sum) {
                g2rpo::publish_slot(page.slot(slot), bytes, sum.value_or(0), sum.has_value());
            },
            py::arg("slot"), py::arg("nbytes"), py::arg("checksum").none(true))
        .def("read", &read_slot, py::arg("slot"))
        .def("close", [](const ControlPage& page) { page.control->closed = 1; })
        .def_property_readonly("closed", [](const ControlPage& page) { return page.control->closed != 0; })
        .def_property_readonly("owner_alive", &owner_alive)
        .def_property_readonly("memory", [](const ControlPage& page) { return page.memory; });
}

}  // namespace

void bind_arena(py::module_& module) {
    bind_memory(module);
    bind_control(module);
    module.def("checksum", &checksum, py::arg("array"), py::arg("threads"));
}
