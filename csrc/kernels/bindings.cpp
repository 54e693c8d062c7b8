// g2rpo_kernels._cpu: tensors checked on the way in, so that memory is safe; contents are the caller's.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "logit_rows.h"
#include "tensor_view.h"
#include "tile_lists.h"

namespace py = pybind11;

namespace {

using Logits = g2rpo::TensorView<float>;
using Floats = g2rpo::TensorView<float>;
using Longs = g2rpo::TensorView<int64_t>;
using Ints = g2rpo::TensorView<int32_t>;

// Numbers that lie side by side.
Floats floats(py::handle tensor, const char* name) { return Floats(tensor, name).gapless(); }
Longs longs(py::handle tensor, const char* name) { return Longs(tensor, name).gapless(); }
Ints ints(py::handle tensor, const char* name) { return Ints(tensor, name).gapless(); }

constexpr int64_t kMostInt = std::numeric_limits<int32_t>::max();

// Rows of any stride, each without gaps.
g2rpo::LogitRows rows_of(const Logits& z) {
    if (z.ndim() != 2 || z.shape(1) < 1) throw py::value_error("logits: wanted [rows, at least one column]");
    if (z.shape(1) > 1 && z.stride(1) != 1) throw py::value_error("logits: wanted rows without gaps");
    return {z.data(), z.shape(0), z.shape(1), z.stride(0)};
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

void row_sums(py::handle z_, py::handle target_, float divisor, bool keep_exp, py::handle max_,
              py::handle rest_, py::handle moment_, py::handle target_logit_, int threads) {
    const Logits z(z_, "z");
    const Longs target = longs(target_, "target");
    const Floats max = floats(max_, "max"), rest = floats(rest_, "rest"), moment = floats(moment_, "moment"),
                 target_logit = floats(target_logit_, "target_logit");
    const g2rpo::LogitRows rows = rows_of(z);
    check_targets(target, rows);
    for (const Floats* values : {&max, &rest, &moment, &target_logit}) check_rows(*values, rows);
    const g2rpo::RowSums out{max.data(), rest.data(), moment.data(), target_logit.data()};
    const py::gil_scoped_release release;
    g2rpo::row_sums(rows, target.data(), divisor, keep_exp, out, threads);
}

void row_gradients(py::handle z_, py::handle target_, float divisor, bool squashed, py::handle max_,
                   py::handle log_sum_, py::handle scale_, py::handle entropy_, py::handle at_target_,
                   py::handle dz_, int threads) {
    const Logits z(z_, "z"), dz(dz_, "dz");
    const Longs target = longs(target_, "target");
    const Floats max = floats(max_, "max"), log_sum = floats(log_sum_, "log_sum"),
                 scale = floats(scale_, "scale"), at_target = floats(at_target_, "at_target");
    std::optional<Floats> entropy;
    if (!entropy_.is_none()) entropy = floats(entropy_, "entropy");
    const g2rpo::LogitRows rows = rows_of(z), out = rows_of(dz);
    if (rows.rows != out.rows || rows.width != out.width)
        throw py::value_error("dz: wanted the shape of the logits");
    check_targets(target, rows);
    for (const Floats* values : {&max, &log_sum, &scale, &at_target}) check_rows(*values, rows);
    if (entropy) check_rows(*entropy, rows);
    const g2rpo::RowFactors factors{max.data(), log_sum.data(), scale.data(),
                                    entropy ? entropy->data() : nullptr, at_target.data()};
    const py::gil_scoped_release release;
    g2rpo::row_gradients(rows, target.data(), divisor, squashed, factors, out, threads);
}

// A tree's masks, held for as long as the problem points into them.
struct Masks {
    Masks(py::handle end_, py::handle position_) : end(ints(end_, "end")) {
        if (!position_.is_none()) position = ints(position_, "position");
    }
    Ints end;
    std::optional<Ints> position;
};

g2rpo::TileProblem tiles_of(const Masks& masks, int64_t window, int64_t block_q, int64_t block_kv) {
    const auto& [end, position] = masks;
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

void query_lists(py::handle end, py::handle position, int64_t window, int64_t block_q, int64_t block_kv,
                 py::handle work_, py::handle key_) {
    const Masks masks(end, position);
    const g2rpo::TileProblem problem = tiles_of(masks, window, block_q, block_kv);
    const Ints work = ints(work_, "work"), key = ints(key_, "key");
    check_list("work", work, 4 * problem.num_q());
    check_list("key", key, problem.most_pairs());
    const py::gil_scoped_release release;
    g2rpo::query_lists(problem, work.data(), key.data());
}

void kv_lists(py::handle end, py::handle position, int64_t window, int64_t block_q, int64_t block_kv,
              int64_t least, int64_t most, py::handle work_, py::handle query_, py::handle slot_) {
    const Masks masks(end, position);
    const g2rpo::TileProblem problem = tiles_of(masks, window, block_q, block_kv);
    if (std::min(least, most) < 1 || std::max(least, most) > kMostInt)
        throw py::value_error("least, most: wanted at least one");
    const Ints work = ints(work_, "work"), query = ints(query_, "query"), slot = ints(slot_, "slot");
    check_list("work", work, 5 * (problem.num_kv() + most));
    check_list("query", query, problem.most_pairs());
    check_list("slot", slot, 2 * problem.num_kv());
    const py::gil_scoped_release release;
    g2rpo::kv_lists(problem, least, most, work.data(), query.data(), slot.data());
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
    module.doc() =
        "C++ sweeps over rows of logits, float32, and tile lists of tree attention; see "
        "g2rpo_kernels.logprob.sweeps and g2rpo_kernels.tree_attention.tile_lists.cpp.";
    module.def("row_sums", &row_sums, py::arg("z"), py::arg("target"), py::arg("divisor"),
               py::arg("keep_exp"), py::arg("max"), py::arg("rest"), py::arg("moment"),
               py::arg("target_logit"), py::arg("threads"));
    module.def("row_gradients", &row_gradients, py::arg("z"), py::arg("target"), py::arg("divisor"),
               py::arg("squashed"), py::arg("max"), py::arg("log_sum"), py::arg("scale"), py::arg("entropy"),
               py::arg("at_target"), py::arg("dz"), py::arg("threads"));
    module.def("query_lists", &query_lists, py::arg("end"), py::arg("position"), py::arg("window"),
               py::arg("block_q"), py::arg("block_kv"), py::arg("work"), py::arg("key"));
    module.def("kv_lists", &kv_lists, py::arg("end"), py::arg("position"), py::arg("window"),
               py::arg("block_q"), py::arg("block_kv"), py::arg("least"), py::arg("most"), py::arg("work"),
               py::arg("query"), py::arg("slot"));
}
