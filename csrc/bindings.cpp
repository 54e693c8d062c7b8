// Python's view of csrc/: arrays checked on the way in, handed over without a copy on the way out.
// `g2rpo_fast.tree` calls this with contents already checked; what is checked here keeps memory safe.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "plan.h"

namespace py = pybind11;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

void check(const Array<int32_t>& ids, const Array<int64_t>& ptr, const Array<bool>& trained,
           const Array<int32_t>& group) {
    if (ids.ndim() != 1 || ptr.ndim() != 1 || trained.ndim() != 1 || group.ndim() != 1) {
        throw py::value_error("wanted one-dimensional arrays");
    }
    if (ids.size() > std::numeric_limits<int32_t>::max())
        throw py::value_error("ids_N: wanted < 2**31 tokens");
    if (trained.size() != ids.size()) throw py::value_error("trained_N: wanted as many entries as ids_N");
    if (ptr.size() != group.size() + 1) throw py::value_error("ptr_R1: wanted one entry more than group_R");
    bool good = ptr.at(0) == 0 && ptr.at(ptr.size() - 1) == ids.size();
    for (py::ssize_t i = 0; i + 1 < ptr.size(); ++i) good = good && ptr.at(i) <= ptr.at(i + 1);
    if (!good) throw py::value_error("ptr_R1: wanted it to rise from 0 to the number of tokens");
}

template <class T>
py::array_t<T> to_numpy(const g2rpo::Slice<T>& slice, const py::capsule& owner) {
    return py::array_t<T>(slice.size, slice.data, owner);
}

py::dict to_fields(const g2rpo::Plan& plan, const py::capsule& owner) {
    py::dict fields;
    fields["token_S"] = to_numpy(plan.token, owner);
    fields["position_S"] = to_numpy(plan.position, owner);
    fields["end_S"] = to_numpy(plan.end, owner);
    fields["source_T"] = to_numpy(plan.source, owner);
    fields["target_T"] = to_numpy(plan.target, owner);
    fields["member_ptr_T1"] = to_numpy(plan.member_ptr, owner);
    fields["member_M"] = to_numpy(plan.member, owner);
    fields["row_B"] = to_numpy(plan.row, owner);
    fields["last_B"] = to_numpy(plan.last, owner);
    fields["unshared_tokens"] = plan.unshared_tokens;
    return fields;
}

// Keeps the memory for as long as any array of any plan lives.
py::capsule own(const g2rpo::Memory& memory) {
    using Owner = std::shared_ptr<std::byte>;
    return py::capsule(new Owner(memory.bytes), [](void* owner) { delete static_cast<Owner*>(owner); });
}

py::list plan_trees(const Array<int32_t>& ids, const Array<int64_t>& ptr, const Array<bool>& trained,
                    const Array<int32_t>& group, std::optional<int64_t> token_budget, int64_t min_saved,
                    bool whole) {
    check(ids, ptr, trained, group);
    const g2rpo::Sequences sequences{ids.data(), ptr.data(), reinterpret_cast<const uint8_t*>(trained.data()),
                                     group.data(), static_cast<int32_t>(group.size())};
    const int64_t budget = token_budget.value_or(std::numeric_limits<int64_t>::max());
    g2rpo::Plans plans;
    {
        const py::gil_scoped_release release;
        plans = g2rpo::plan_trees(sequences, budget, min_saved, whole);
    }
    const py::capsule owner = own(plans.memory);
    py::list all;
    for (const g2rpo::Plan& plan : plans.plans) all.append(to_fields(plan, owner));
    return all;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "C++ half of g2rpo_fast.";
    module.def("plan_trees", &plan_trees, py::arg("ids_N"), py::arg("ptr_R1"), py::arg("trained_N"),
               py::arg("group_R"), py::arg("token_budget").none(true), py::arg("min_saved"), py::arg("whole"),
               "The fields of each TreePlan; see g2rpo_fast.tree.plan_trees.");
}
