// Tile lists of tree attention; g2rpo_kernels.tree_attention.tile_lists.pytorch is the definition.
#pragma once

#include <algorithm>
#include <cstdint>

namespace g2rpo {

// A packed stream of trees under tiles of block_q query rows by block_kv key rows. Any END is safe: query
// tiles beyond the stream do not exist, and no key tile is visited from before itself.
struct TileProblem {
    const int32_t* end;       // [size]
    const int32_t* position;  // [size], nullptr = no window
    int64_t size, window, block_q, block_kv;

    int64_t num_q() const { return (size + block_q - 1) / block_q; }
    int64_t num_kv() const { return (size + block_kv - 1) / block_kv; }
    // The most pairs of tiles that any tree can visit.
    int64_t most_pairs() const {
        int64_t pairs = 0;
        for (int64_t m = 0; m < num_q(); ++m)
            pairs += std::min(num_kv(), ((m + 1) * block_q - 1) / block_kv + 1);
        return pairs;
    }
};

// work [num_q, 4], key [most_pairs].
void query_lists(const TileProblem& problem, int32_t* work, int32_t* key);

// Items of at least `least` query tiles, at most num_kv + `most` of them: work [num_kv + most, 5],
// query [most_pairs], slot [num_kv, 2].
void kv_lists(const TileProblem& problem, int64_t least, int64_t most, int32_t* work, int32_t* query,
              int32_t* slot);

}  // namespace g2rpo
