// `Sequences` to `TreePlan`s (g2rpo_fast/types.py): tries, bins, streams and edges. Twin:
// g2rpo_fast/tree/twin.py.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace g2rpo {

// Views of the fields of `Sequences`, already checked.
struct Sequences {
    const int32_t* ids;
    const int64_t* ptr;
    const uint8_t* trained;
    const int32_t* group;
    int32_t num_rows;
};

// An array that is not cleared first: its pages are touched once, by who fills it.
template <class T>
struct Buffer {
    std::unique_ptr<T[]> data;
    int64_t size = 0;

    explicit Buffer(int64_t capacity) : data(new T[capacity]) {}
    void append(T value) { data[size++] = value; }
};

struct Plan {
    Buffer<int32_t> token, position, end;
    Buffer<int32_t> source, target;
    Buffer<int64_t> member_ptr, member;
    Buffer<int32_t> row, last;
    int64_t unshared_tokens = 0;

    Plan(int64_t num_positions, int64_t max_members, int64_t num_rows);
};

std::vector<Plan> plan_trees(const Sequences& sequences, int64_t token_budget, int64_t min_saved, bool whole);

}  // namespace g2rpo
