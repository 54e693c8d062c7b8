// g2rpo_kernels._cpu: arrays checked on the way in, so that memory is safe; contents are the caller's.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "logit_rows.h"
#include "tile_lists.h"

namespace py = pybind11;

namespace {

using Logits = py::array_t<float>;
using Floats = py::array_t<float, py::array::c_style>;
using Longs = py::array_t<int64_t, py::array::c_style>;
using Ints = py::array_t<int32_t, py::array::c_style>;

constexpr int64_t kMostInt = std::numeric_limits<int32_t>::max();

// Rows of any stride, each without gaps.
g2rpo::LogitRows rows_of(Logits& z) {
    const auto item = static_cast<py::ssize_t>(sizeof(float));
    if (z.ndim() != 2 || z.shape(1) < 1) throw py::value_error("logits: wanted [rows, at least one column]");
    if ((z.shape(1) > 1 && z.strides(1) != item) || z.strides(0) % item != 0)
        throw py::value_error("logits: wanted rows without gaps");
    return {z.mutable_data(), z.shape(0), z.shape(1), z.strides(0) / item};
}

void check_targets(const Longs& target, const g2rpo::LogitRows& z) {
    if (target.size() != z.rows) throw py::value_error("target: wanted an entry for each row");
    const int64_t* const values = target.data();
    for (int64_t row = 0; row < z.rows; ++row)
        if (values[row] < -1 || values[row] >= z.width)
            throw py::index_error("target: wanted -1 or a column, got " + std::to_string(values[row]) +
                                  " in row " + std::to_string(row));
}

void check_rows(const Floats& values, const g2rpo::LogitRows& z) {
    if (values.size() != z.rows) throw py::value_error("row values: wanted an entry for each row");
}

void row_sums(Logits z, const Longs& target, float divisor, bool keep_exp, Floats max, Floats rest,
              Floats moment, Floats target_logit, int threads) {
    const g2rpo::LogitRows rows = rows_of(z);
    check_targets(target, rows);
    for (const Floats* values : {&max, &rest, &moment, &target_logit}) check_rows(*values, rows);
    const g2rpo::RowSums out{max.mutable_data(), rest.mutable_data(), moment.mutable_data(),
                             target_logit.mutable_data()};
    const int64_t* const targets = target.data();
    const py::gil_scoped_release release;
    g2rpo::row_sums(rows, targets, divisor, keep_exp, out, threads);
}

void row_gradients(Logits z, const Longs& target, float divisor, bool squashed, const Floats& max,
                   const Floats& log_sum, const Floats& scale, const std::optional<Floats>& entropy,
                   const Floats& at_target, Logits dz, int threads) {
    const g2rpo::LogitRows rows = rows_of(z), out = rows_of(dz);
    if (rows.rows != out.rows || rows.width != out.width)
        throw py::value_error("dz: wanted the shape of the logits");
    check_targets(target, rows);
    for (const Floats* values : {&max, &log_sum, &scale, &at_target}) check_rows(*values, rows);
    if (entropy) check_rows(*entropy, rows);
    const g2rpo::RowFactors factors{max.data(), log_sum.data(), scale.data(),
                                    entropy ? entropy->data() : nullptr, at_target.data()};
    const int64_t* const targets = target.data();
    const py::gil_scoped_release release;
    g2rpo::row_gradients(rows, targets, divisor, squashed, factors, out, threads);
}

g2rpo::TileProblem tiles_of(const Ints& end, const std::optional<Ints>& position, int64_t window,
                            int64_t block_q, int64_t block_kv) {
    if (end.ndim() != 1 || end.size() < 1) throw py::value_error("end: wanted [rows], at least one");
    if (position && position->size() != end.size())
        throw py::value_error("position: wanted an entry for each row");
    if (std::min(block_q, block_kv) < 1 || std::max(block_q, block_kv) > kMostInt)
        throw py::value_error("tile: wanted at least one row of each axis");
    const g2rpo::TileProblem problem{end.data(), position ? position->data() : nullptr,
                                     end.size(), std::clamp(window, -kMostInt, kMostInt),
                                     block_q,    block_kv};
    if (problem.most_pairs() > kMostInt) throw py::value_error("end: too many rows for tiles this small");
    return problem;
}

void check_list(const char* name, const Ints& list, int64_t wanted) {
    if (list.size() != wanted)
        throw py::value_error(std::string(name) + ": wanted " + std::to_string(wanted) + " numbers, got " +
                              std::to_string(list.size()));
}

void query_lists(const Ints& end, const std::optional<Ints>& position, int64_t window, int64_t block_q,
                 int64_t block_kv, Ints work, Ints key) {
    const g2rpo::TileProblem problem = tiles_of(end, position, window, block_q, block_kv);
    check_list("work", work, 4 * problem.num_q());
    check_list("key", key, problem.most_pairs());
    int32_t *const work_out = work.mutable_data(), *const key_out = key.mutable_data();
    const py::gil_scoped_release release;
    g2rpo::query_lists(problem, work_out, key_out);
}

void kv_lists(const Ints& end, const std::optional<Ints>& position, int64_t window, int64_t block_q,
              int64_t block_kv, int64_t least, int64_t most, Ints work, Ints query, Ints slot) {
    const g2rpo::TileProblem problem = tiles_of(end, position, window, block_q, block_kv);
    if (std::min(least, most) < 1 || std::max(least, most) > kMostInt)
        throw py::value_error("least, most: wanted at least one");
    check_list("work", work, 5 * (problem.num_kv() + most));
    check_list("query", query, problem.most_pairs());
    check_list("slot", slot, 2 * problem.num_kv());
    int32_t *const work_out = work.mutable_data(), *const query_out = query.mutable_data(),
                   *const slot_out = slot.mutable_data();
    const py::gil_scoped_release release;
    g2rpo::kv_lists(problem, least, most, work_out, query_out, slot_out);
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
    module.doc() =
        "C++ sweeps over rows of logits, float32, and tile lists of tree attention; see "
        "g2rpo_kernels.logprob.sweeps and g2rpo_kernels.tree_attention.tile_lists.cpp.";
    // noconvert: a converted copy would be written to and lost.
    module.def("row_sums", &row_sums, py::arg("z").noconvert(), py::arg("target").noconvert(),
               py::arg("divisor"), py::arg("keep_exp"), py::arg("max").noconvert(),
               py::arg("rest").noconvert(), py::arg("moment").noconvert(),
               py::arg("target_logit").noconvert(), py::arg("threads"));
    module.def("row_gradients", &row_gradients, py::arg("z").noconvert(), py::arg("target").noconvert(),
               py::arg("divisor"), py::arg("squashed"), py::arg("max").noconvert(),
               py::arg("log_sum").noconvert(), py::arg("scale").noconvert(),
               py::arg("entropy").noconvert().none(true), py::arg("at_target").noconvert(),
               py::arg("dz").noconvert(), py::arg("threads"));
    module.def("query_lists", &query_lists, py::arg("end").noconvert(),
               py::arg("position").noconvert().none(true), py::arg("window"), py::arg("block_q"),
               py::arg("block_kv"), py::arg("work").noconvert(), py::arg("key").noconvert());
    module.def("kv_lists", &kv_lists, py::arg("end").noconvert(), py::arg("position").noconvert().none(true),
               py::arg("window"), py::arg("block_q"), py::arg("block_kv"), py::arg("least"), py::arg("most"),
               py::arg("work").noconvert(), py::arg("query").noconvert(), py::arg("slot").noconvert());
}
