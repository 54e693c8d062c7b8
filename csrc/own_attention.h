// One decoding step's attention over each row's own tokens, merged with what is known of its prefix: float32.
#pragma once

#include <cstdint>

namespace g2rpo {

// Dimension key: X = (row, KV head), Q query heads of a KV head, L slots of the cache, E head width.
struct OwnAttention {
    const float* query;  // [X, Q, E], a query's numbers side by side
    int64_t query_stride, head_stride;
    const float *keys, *values;  // [X, L, E], contiguous
    const float *prefix, *lse;   // [X, Q, E] and [X, Q]: attention over the prefix alone, and its log-sum-exp
    float* out;                  // [X, Q, E]
    int64_t num_queries, num_slots, width;
    int64_t first, last;  // slots that are seen
    float scale;
};

// out = (e^lse prefix + sum_i e^{s_i} v_i) / (e^lse + sum_i e^{s_i}), s_i = scale q k_i, i in [first, last)
// for X items. Results do not depend on the number of threads.
void own_attention(const OwnAttention& step, int64_t items, int threads);

}  // namespace g2rpo
