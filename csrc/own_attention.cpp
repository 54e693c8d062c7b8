#include "own_attention.h"

#include <vector>

#include "parallel.h"
#include "vector_math.h"

namespace g2rpo {
namespace {

constexpr int64_t kWorthSharing = 1 << 21;  // multiplications of a step, below which threads cost more

// E = 0: the width is known at run time only.
template <int64_t E>
G2RPO_INLINE float dot(const float* a, const float* b, int64_t width) {
    const int64_t size = E == 0 ? width : E;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t e = 0; e < size; ++e) sum += a[e] * b[e];
    return sum;
}

template <int64_t E>
G2RPO_INLINE void attend(const OwnAttention& step, int64_t x, int64_t q, float* weight) {
    const int64_t size = E == 0 ? step.width : E, count = step.last - step.first;
    const float* const query = step.query + x * step.query_stride + q * step.head_stride;
    const float* const keys = step.keys + (x * step.num_slots + step.first) * size;
    const float* const values = step.values + (x * step.num_slots + step.first) * size;
    const int64_t place = x * step.num_queries + q;
    const float lse = step.lse[place];
    float largest = lse;
    for (int64_t i = 0; i < count; ++i) {
        weight[i] = step.scale * dot<E>(query, keys + i * size, size);
        largest = weight[i] > largest ? weight[i] : largest;
    }
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) {
        weight[i] = exp_of(weight[i] - largest);
        sum += weight[i];
    }
    const float of_prefix = exp_of(lse - largest), total = sum + of_prefix;
    const float* const prefix = step.prefix + place * size;
    float* const out = step.out + place * size;
    constexpr int64_t kTile = E == 0 ? 16 : (E < 64 ? E : 64);  // of sums that registers hold
    int64_t start = 0;
    for (; start + kTile <= size; start += kTile) {
        float sums[kTile];
        for (int64_t e = 0; e < kTile; ++e) sums[e] = of_prefix * prefix[start + e];
        for (int64_t i = 0; i < count; ++i)
            for (int64_t e = 0; e < kTile; ++e) sums[e] += weight[i] * values[i * size + start + e];
        for (int64_t e = 0; e < kTile; ++e) out[start + e] = sums[e] / total;
    }
    for (; start < size; ++start) {
        float mixed = of_prefix * prefix[start];
        for (int64_t i = 0; i < count; ++i) mixed += weight[i] * values[i * size + start];
        out[start] = mixed / total;
    }
}

template <int64_t E>
G2RPO_INLINE void attend_all(const OwnAttention& step, int64_t first, int64_t last, float* weight) {
    for (int64_t x = first; x < last; ++x)
        for (int64_t q = 0; q < step.num_queries; ++q) attend<E>(step, x, q, weight);
}

G2RPO_VECTORISED
void own_attention_range(const OwnAttention& step, int64_t first, int64_t last, float* weight) {
    switch (step.width) {
        case 32:
            return attend_all<32>(step, first, last, weight);
        case 64:
            return attend_all<64>(step, first, last, weight);
        case 128:
            return attend_all<128>(step, first, last, weight);
        default:
            return attend_all<0>(step, first, last, weight);
    }
}

}  // namespace

void own_attention(const OwnAttention& step, int64_t items, int threads) {
    const int64_t work = 2 * items * step.num_queries * (step.last - step.first) * step.width;
    share_out(items, work < kWorthSharing ? 1 : threads, [&](int64_t first, int64_t last) {
        std::vector<float> weight(static_cast<size_t>(step.last - step.first));
        own_attention_range(step, first, last, weight.data());
    });
}

}  // namespace g2rpo
