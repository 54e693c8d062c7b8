// g2rpo_kernels._cpu: arrays checked on the way in, so that memory is safe; contents are the caller's.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>

#include "logit_rows.h"

namespace py = pybind11;

namespace {

using Logits = py::array_t<float>;
using Floats = py::array_t<float, py::array::c_style>;
using Longs = py::array_t<int64_t, py::array::c_style>;

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

}  // namespace

PYBIND11_MODULE(_cpu, module) {
    module.doc() = "C++ sweeps over rows of logits, float32; see g2rpo_kernels.logprob.sweeps.";
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
}
