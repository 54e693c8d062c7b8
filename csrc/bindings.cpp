// Python's view of csrc/: arrays checked on the way in, handed over without a copy on the way out.
// `g2rpo_fast.tree` calls this with contents already checked; what is checked here keeps memory safe.
#include "bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "own_attention.h"
#include "plan.h"
#include "row_ops.h"

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
    fields["node_start_Q"] = to_numpy(plan.node_start, owner);
    fields["node_parent_Q"] = to_numpy(plan.node_parent, owner);
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

using Rows = py::array_t<float, py::array::c_style>;

void same_size(const Rows& one, const Rows& other) {
    if (one.size() != other.size()) throw py::value_error("row_ops: wanted arrays of one size");
}

void check_norm(const Rows& x, const Rows& w, const Rows& scale) {
    if (w.size() == 0 || x.size() != w.size() * scale.size())
        throw py::value_error("row_ops: wanted rows x width elements");
}

void rms_norm_forward(const Rows& x, const Rows& w, float eps, Rows& y, Rows& scale, int threads) {
    check_norm(x, w, scale);
    same_size(x, y);
    const float *xs = x.data(), *ws = w.data();
    float *ys = y.mutable_data(), *scales = scale.mutable_data();
    const int64_t rows = scale.size(), width = w.size();
    const py::gil_scoped_release release;
    g2rpo::rms_norm_forward(xs, ws, eps, rows, width, ys, scales, threads);
}

void rms_norm_backward(const Rows& x, const Rows& w, const Rows& scale, const Rows& dy, Rows& dx, Rows& dw,
                       int threads) {
    check_norm(x, w, scale);
    same_size(x, dy);
    same_size(x, dx);
    same_size(w, dw);
    const float *xs = x.data(), *ws = w.data(), *scales = scale.data(), *dys = dy.data();
    float *dxs = dx.mutable_data(), *dws = dw.mutable_data();
    const int64_t rows = scale.size(), width = w.size();
    const py::gil_scoped_release release;
    g2rpo::rms_norm_backward(xs, ws, scales, dys, rows, width, dxs, dws, threads);
}

void swiglu_forward(const Rows& gate, const Rows& up, Rows& out, int threads) {
    same_size(gate, up);
    same_size(gate, out);
    const float *gates = gate.data(), *ups = up.data();
    float* outs = out.mutable_data();
    const int64_t size = gate.size();
    const py::gil_scoped_release release;
    g2rpo::swiglu_forward(gates, ups, size, outs, threads);
}

void swiglu_backward(const Rows& gate, const Rows& up, const Rows& dout, Rows& dgate, Rows& dup,
                     int threads) {
    for (const Rows* other : {&up, &dout, static_cast<const Rows*>(&dgate), static_cast<const Rows*>(&dup)})
        same_size(gate, *other);
    const float *gates = gate.data(), *ups = up.data(), *douts = dout.data();
    float *dgates = dgate.mutable_data(), *dups = dup.mutable_data();
    const int64_t size = gate.size();
    const py::gil_scoped_release release;
    g2rpo::swiglu_backward(gates, ups, douts, size, dgates, dups, threads);
}

void own_attention(const py::array_t<float>& query, const Rows& keys, const Rows& values, const Rows& prefix,
                   const Rows& lse, Rows& out, int64_t first, int64_t last, float scale, int threads) {
    constexpr auto kFloat = static_cast<py::ssize_t>(sizeof(float));
    if (query.ndim() != 3 || keys.ndim() != 3)
        throw py::value_error("wanted query [X, Q, E], keys [X, L, E]");
    const py::ssize_t items = query.shape(0), queries = query.shape(1), width = query.shape(2);
    if (query.strides(2) != kFloat) throw py::value_error("query: wanted its last dimension contiguous");
    if (keys.shape(0) != items || keys.shape(2) != width) throw py::value_error("keys: wanted [X, L, E]");
    if (first < 0 || first > last || last > keys.shape(1)) throw py::value_error("wanted slots of the cache");
    if (lse.size() != items * queries) throw py::value_error("lse: wanted [X, Q]");
    same_size(keys, values);
    for (const Rows* other : {&prefix, static_cast<const Rows*>(&out)})
        if (other->size() != query.size()) throw py::value_error("prefix, out: wanted [X, Q, E]");
    const g2rpo::OwnAttention step{query.data(),
                                   query.strides(0) / kFloat,
                                   query.strides(1) / kFloat,
                                   keys.data(),
                                   values.data(),
                                   prefix.data(),
                                   lse.data(),
                                   out.mutable_data(),
                                   queries,
                                   keys.shape(1),
                                   width,
                                   first,
                                   last,
                                   scale};
    const py::gil_scoped_release release;
    g2rpo::own_attention(step, items, threads);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "C++ half of g2rpo_fast.";
    module.def("plan_trees", &plan_trees, py::arg("ids_N"), py::arg("ptr_R1"), py::arg("trained_N"),
               py::arg("group_R"), py::arg("token_budget").none(true), py::arg("min_saved"), py::arg("whole"),
               "The fields of each TreePlan; see g2rpo_fast.tree.plan_trees.");
    // noconvert: a converted copy would be written to and lost.
    module.def("rms_norm_forward", &rms_norm_forward, py::arg("x").noconvert(), py::arg("w").noconvert(),
               py::arg("eps"), py::arg("y").noconvert(), py::arg("scale").noconvert(), py::arg("threads"));
    module.def("rms_norm_backward", &rms_norm_backward, py::arg("x").noconvert(), py::arg("w").noconvert(),
               py::arg("scale").noconvert(), py::arg("dy").noconvert(), py::arg("dx").noconvert(),
               py::arg("dw").noconvert(), py::arg("threads"));
    module.def("swiglu_forward", &swiglu_forward, py::arg("gate").noconvert(), py::arg("up").noconvert(),
               py::arg("out").noconvert(), py::arg("threads"));
    module.def("swiglu_backward", &swiglu_backward, py::arg("gate").noconvert(), py::arg("up").noconvert(),
               py::arg("dout").noconvert(), py::arg("dgate").noconvert(), py::arg("dup").noconvert(),
               py::arg("threads"));
    module.def("own_attention", &own_attention, py::arg("query").noconvert(), py::arg("keys").noconvert(),
               py::arg("values").noconvert(), py::arg("prefix").noconvert(), py::arg("lse").noconvert(),
               py::arg("out").noconvert(), py::arg("first"), py::arg("last"), py::arg("scale"),
               py::arg("threads"));
    bind_arena(module);
    bind_cuda(module);
}
