// Row operations of transformer blocks on a CPU, each in one sweep: RMSNorm and the gated SiLU, forward and
// backward, float32. Results do not depend on the number of threads.
#pragma once

#include <cstdint>

namespace g2rpo {

// y = w * x / sqrt(mean(x^2) + eps) for `rows` rows of `width`; `scale[row]` = 1 / sqrt(...).
void rms_norm_forward(const float* x, const float* w, float eps, int64_t rows, int64_t width, float* y,
                      float* scale, int threads);

// dx and dw of the above from dy.
void rms_norm_backward(const float* x, const float* w, const float* scale, const float* dy, int64_t rows,
                       int64_t width, float* dx, float* dw, int threads);

// out = silu(gate) * up.
void swiglu_forward(const float* gate, const float* up, int64_t size, float* out, int threads);

// dgate and dup of the above from dout.
void swiglu_backward(const float* gate, const float* up, const float* dout, int64_t size, float* dgate,
                     float* dup, int threads);

}  // namespace g2rpo
