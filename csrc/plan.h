// `Sequences` to `TreePlan`s (g2rpo_fast/types.py): tries, bins, streams and edges. Twin:
// g2rpo_fast/tree/twin.py.
#pragma once

#include <cstdint>
#include <vector>

#include "memory.h"

namespace g2rpo {

// Views of the fields of `Sequences`, already checked.
struct Sequences {
    const int32_t* ids;
    const int64_t* ptr;
    const uint8_t* trained;
    const int32_t* group;
    int32_t num_rows;
};

struct Plan {
    Slice<int32_t> token, position, end;
    Slice<int32_t> source, target;
    Slice<int64_t> member_ptr, member;
    Slice<int32_t> row, last;
    Slice<int64_t> node_start, node_parent;  // runs of positions with equal end
    int64_t unshared_tokens = 0;
};

struct Plans {
    Memory memory;  // of all arrays
    std::vector<Plan> plans;
};

Plans plan_trees(const Sequences& sequences, int64_t token_budget, int64_t min_saved, bool whole);

}  // namespace g2rpo
