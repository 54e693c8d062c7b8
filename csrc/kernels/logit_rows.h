// Sweeps over rows of logits on a CPU, float32: the sums that log-probability and entropy are made of, and
// d loss / d logits. Results do not depend on the number of threads.
#pragma once

#include <cstdint>

namespace g2rpo {

// `rows` rows of `width` floats, `stride` floats apart.
struct LogitRows {
    float* data;
    int64_t rows, width, stride;

    float* row(int64_t i) const { return data + i * stride; }
};

// Of z / divisor, a value each row; the sums leave the target's column out (-1 = none of these).
struct RowSums {
    float* max;
    float* rest;          // sum of exp(z - max)
    float* moment;        // sum of (z - max) exp(z - max)
    float* target_logit;  // -inf where the target is -1
};

// With `keep_exp` writes exp(z - max) over the logits, and -rest over the target's: s times d(-logp) / dz for
// s = rest + exp(z_target - max).
void row_sums(const LogitRows& z, const int64_t* target, float divisor, bool keep_exp, const RowSums& out,
              int threads);

// What d loss / d logits needs of a row: p = exp(z / divisor - max - log_sum), dz = p (scale - entropy log
// p).
struct RowFactors {
    const float* max;
    const float* log_sum;
    const float* scale;
    const float* entropy;    // nullptr = 0
    const float* at_target;  // dz of the target's column, which would cancel
};

// d loss / d logits from z to dz, which may be the same rows. `squashed`: z is tanh of what to differentiate
// by, whose slope 1 - z^2 multiplies all columns.
void row_gradients(const LogitRows& z, const int64_t* target, float divisor, bool squashed,
                   const RowFactors& factors, const LogitRows& dz, int threads);

}  // namespace g2rpo
