// Arithmetic that the compiler's vectoriser can spread over lanes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define G2RPO_INLINE inline __attribute__((always_inline))

namespace g2rpo {

constexpr int64_t kLanes = 16;  // partial results of a loop, one vector register

// e^x to two units in the last place, without branches. |x| beyond 87 saturates.
G2RPO_INLINE float exp_of(float x) {
    // One bound, not a minimum of a maximum: GCC makes branches of these, and no vectors.
    const float bound = x < 0.0f ? -87.0f : 87.0f;
    x = std::fabs(x) > 87.0f ? bound : x;
    const float shifted = x * 1.44269504088896341f + 12582912.0f;  // rounds to an integer in the low bits
    const float n = shifted - 12582912.0f;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    const int32_t power = (bits + 127) << 23;
    float scale;
    std::memcpy(&scale, &power, sizeof scale);
    return p * scale;
}

G2RPO_INLINE double sum_of(const float* lanes) {
    double sum = 0;
    for (int64_t i = 0; i < kLanes; ++i) sum += lanes[i];
    return sum;
}

}  // namespace g2rpo
