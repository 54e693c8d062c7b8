#include "row_ops.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"
#include "vector_math.h"

namespace g2rpo {
namespace {

constexpr int64_t kBlockElements = 1 << 13;  // of one work item: large enough to share out, small for a cache
constexpr int64_t kSummedRows = 64;          // of dw in float32; beyond, float64

G2RPO_VECTORISED
void norm_forward_rows(const float* x, const float* w, float eps, int64_t rows, int64_t width, float* y,
                       float* scale) {
    for (int64_t row = 0; row < rows; ++row, x += width, y += width) {
        float lanes[kLanes] = {};
        int64_t i = 0;
        for (; i + kLanes <= width; i += kLanes)
            for (int64_t j = 0; j < kLanes; ++j) lanes[j] += x[i + j] * x[i + j];
        for (; i < width; ++i) lanes[0] += x[i] * x[i];
        const float s = 1.0f / std::sqrt(static_cast<float>(sum_of(lanes)) / static_cast<float>(width) + eps);
        for (i = 0; i < width; ++i) y[i] = w[i] * (x[i] * s);
        scale[row] = s;
    }
}

// dx = s * (w dy) - x * s^3 * mean(w dy x); dw += dy * x * s.
G2RPO_VECTORISED
void norm_backward_rows(const float* x, const float* w, const float* scale, const float* dy, int64_t rows,
                        int64_t width, float* dx, float* dw) {
    for (int64_t row = 0; row < rows; ++row, x += width, dy += width, dx += width) {
        float lanes[kLanes] = {};
        int64_t i = 0;
        for (; i + kLanes <= width; i += kLanes)
            for (int64_t j = 0; j < kLanes; ++j) lanes[j] += w[i + j] * dy[i + j] * x[i + j];
        for (; i < width; ++i) lanes[0] += w[i] * dy[i] * x[i];
        const float s = scale[row];
        const float back = static_cast<float>(sum_of(lanes)) / static_cast<float>(width) * s * s * s;
        for (i = 0; i < width; ++i) {
            dx[i] = s * (w[i] * dy[i]) - x[i] * back;
            dw[i] += dy[i] * (x[i] * s);
        }
    }
}

G2RPO_VECTORISED
void swiglu_forward_range(const float* gate, const float* up, int64_t size, float* out) {
    for (int64_t i = 0; i < size; ++i) out[i] = gate[i] / (1.0f + exp_of(-gate[i])) * up[i];
}

G2RPO_VECTORISED
void swiglu_backward_range(const float* gate, const float* up, const float* dout, int64_t size, float* dgate,
                           float* dup) {
    for (int64_t i = 0; i < size; ++i) {
        const float sigmoid = 1.0f / (1.0f + exp_of(-gate[i]));
        dup[i] = dout[i] * (gate[i] * sigmoid);
        dgate[i] = dout[i] * up[i] * (sigmoid * (1.0f + gate[i] * (1.0f - sigmoid)));
    }
}

int64_t blocks_of(int64_t items, int64_t per_block) { return (items + per_block - 1) / per_block; }

}  // namespace

void rms_norm_forward(const float* x, const float* w, float eps, int64_t rows, int64_t width, float* y,
                      float* scale, int threads) {
    const int64_t per_block = std::max<int64_t>(1, kBlockElements / width);
    share_out(blocks_of(rows, per_block), threads, [&](int64_t first, int64_t last) {
        const int64_t begin = first * per_block, end = std::min(rows, last * per_block);
        norm_forward_rows(x + begin * width, w, eps, end - begin, width, y + begin * width, scale + begin);
    });
}

void rms_norm_backward(const float* x, const float* w, const float* scale, const float* dy, int64_t rows,
                       int64_t width, float* dx, float* dw, int threads) {
    const int64_t per_block = std::clamp<int64_t>(kBlockElements / width, 1, kSummedRows);
    const int64_t blocks = blocks_of(rows, per_block);
    std::vector<float> partial(static_cast<size_t>(blocks * width), 0.0f);
    share_out(blocks, threads, [&](int64_t first, int64_t last) {
        for (int64_t block = first; block < last; ++block) {
            const int64_t begin = block * per_block, end = std::min(rows, begin + per_block);
            norm_backward_rows(x + begin * width, w, scale + begin, dy + begin * width, end - begin, width,
                               dx + begin * width, partial.data() + block * width);
        }
    });
    for (int64_t i = 0; i < width; ++i) {
        double sum = 0;
        for (int64_t block = 0; block < blocks; ++block)
            sum += partial[static_cast<size_t>(block * width + i)];
        dw[i] = static_cast<float>(sum);
    }
}

void swiglu_forward(const float* gate, const float* up, int64_t size, float* out, int threads) {
    share_out(blocks_of(size, kBlockElements), threads, [&](int64_t first, int64_t last) {
        const int64_t begin = first * kBlockElements, end = std::min(size, last * kBlockElements);
        swiglu_forward_range(gate + begin, up + begin, end - begin, out + begin);
    });
}

void swiglu_backward(const float* gate, const float* up, const float* dout, int64_t size, float* dgate,
                     float* dup, int threads) {
    share_out(blocks_of(size, kBlockElements), threads, [&](int64_t first, int64_t last) {
        const int64_t begin = first * kBlockElements, end = std::min(size, last * kBlockElements);
        swiglu_backward_range(gate + begin, up + begin, dout + begin, end - begin, dgate + begin,
                              dup + begin);
    });
}

}  // namespace g2rpo
