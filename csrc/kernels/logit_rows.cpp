#include "logit_rows.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "../parallel.h"
#include "../vector_math.h"

namespace g2rpo {
namespace {

constexpr int64_t kBlock = 512;   // logits summed in float32; beyond, float64
constexpr float kFloor = -87.0f;  // below it exp(x) counts as 0: float's normal numbers end at exp(-87.3)
constexpr float kNone = -std::numeric_limits<float>::infinity();

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

// By reference: vectors of 64 bytes have no settled way to be passed by value.
G2RPO_INLINE void load(const float* x, Lanes& lanes) { std::memcpy(&lanes, x, sizeof lanes); }

G2RPO_INLINE double total_of(const Lanes& lanes) {
    float values[kLanes];
    std::memcpy(values, &lanes, sizeof values);
    return sum_of(values);
}

G2RPO_INLINE float exp_below(float x) { return x < kFloor ? 0.0f : exp_of(x); }

// A block of a row, `count` logits divided and then -inf up to a whole vector.
struct Block {
    alignas(64) float value[kBlock];
    int64_t padded;

    G2RPO_INLINE void load(const float* z, int64_t count, float divisor) {
        padded = (count + kLanes - 1) / kLanes * kLanes;
        if (divisor == 1.0f) {
            std::memcpy(value, z, static_cast<size_t>(count) * sizeof *z);
        } else {
            for (int64_t i = 0; i < count; ++i) value[i] = z[i] / divisor;
        }
        for (int64_t i = count; i < padded; ++i) value[i] = kNone;
    }
};

// The largest logit. It passes over NaN, which the sums then show.
G2RPO_INLINE float max_of(const float* z, int64_t width) {
    float largest = kNone;
    Lanes values, lanes = {};
    lanes += kNone;
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) {
        load(z + i, values);
        lanes = values > lanes ? values : lanes;
    }
    for (; i < width; ++i) largest = std::max(largest, z[i]);
    for (int64_t j = 0; j < kLanes; ++j) largest = std::max(largest, lanes[j]);
    return largest;
}

G2RPO_VECTORISED
void sum_rows(const LogitRows& z, const int64_t* target, float divisor, bool keep_exp, const RowSums& out,
              int64_t first, int64_t last) {
    Block block;
    alignas(64) float below[kBlock];
    for (int64_t row = first; row < last; ++row) {
        float* const z_row = z.row(row);
        // Division by a positive number keeps the order.
        const float largest = max_of(z_row, z.width) / divisor;
        const float at_target = target[row] < 0 ? kNone : z_row[target[row]] / divisor;
        double rest = 0, moment = 0;
        for (int64_t start = 0; start < z.width; start += kBlock) {
            const int64_t count = std::min(kBlock, z.width - start);
            block.load(z_row + start, count, divisor);
            if (start <= target[row] && target[row] < start + count) block.value[target[row] - start] = kNone;
            for (int64_t i = 0; i < block.padded; ++i) {
                below[i] = std::max(block.value[i] - largest, kFloor - 1.0f);
                block.value[i] = exp_below(below[i]);
            }
            Lanes exp_lanes, below_lanes, sums = {}, moments = {};
            for (int64_t i = 0; i < block.padded; i += kLanes) {
                load(block.value + i, exp_lanes);
                load(below + i, below_lanes);
                sums += exp_lanes;
                moments += below_lanes * exp_lanes;
            }
            rest += total_of(sums);
            moment += total_of(moments);
            if (keep_exp) std::memcpy(z_row + start, block.value, static_cast<size_t>(count) * sizeof(float));
        }
        out.max[row] = largest;
        out.rest[row] = static_cast<float>(rest);
        out.moment[row] = static_cast<float>(moment);
        out.target_logit[row] = at_target;
        if (keep_exp && target[row] >= 0) z_row[target[row]] = -static_cast<float>(rest);
    }
}

G2RPO_VECTORISED
void differentiate_rows(const LogitRows& z, const int64_t* target, float divisor, bool squashed,
                        const RowFactors& factors, const LogitRows& dz, int64_t first, int64_t last) {
    Block block;
    for (int64_t row = first; row < last; ++row) {
        const float largest = factors.max[row], log_sum = factors.log_sum[row], scale = factors.scale[row];
        const float entropy = factors.entropy == nullptr ? 0.0f : factors.entropy[row];
        const float* const z_row = z.row(row);
        float* const dz_row = dz.row(row);
        const float at_target = target[row] < 0 ? 0.0f : z_row[target[row]];
        for (int64_t start = 0; start < z.width; start += kBlock) {
            const int64_t count = std::min(kBlock, z.width - start);
            block.load(z_row + start, count, divisor);
            for (int64_t i = 0; i < block.padded; ++i) {
                const float logp = std::max(block.value[i] - largest, kFloor - 1.0f) - log_sum;
                block.value[i] = exp_below(logp) * (scale - entropy * logp);
            }
            if (squashed)
                for (int64_t i = 0; i < count; ++i)
                    block.value[i] *= 1.0f - z_row[start + i] * z_row[start + i];
            std::memcpy(dz_row + start, block.value, static_cast<size_t>(count) * sizeof(float));
        }
        if (target[row] >= 0) {
            const float slope = squashed ? 1.0f - at_target * at_target : 1.0f;
            dz_row[target[row]] = factors.at_target[row] * slope;
        }
    }
}

}  // namespace

void row_sums(const LogitRows& z, const int64_t* target, float divisor, bool keep_exp, const RowSums& out,
              int threads) {
    share_out(z.rows, threads,
              [&](int64_t first, int64_t last) { sum_rows(z, target, divisor, keep_exp, out, first, last); });
}

void row_gradients(const LogitRows& z, const int64_t* target, float divisor, bool squashed,
                   const RowFactors& factors, const LogitRows& dz, int threads) {
    share_out(z.rows, threads, [&](int64_t first, int64_t last) {
        differentiate_rows(z, target, divisor, squashed, factors, dz, first, last);
    });
}

}  // namespace g2rpo
