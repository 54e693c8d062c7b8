// The prefix tree of one group's rows: a compressed trie by token ids, its nodes in depth-first order.
// Indices are int32: `ids` holds fewer than 2^31 tokens.
#pragma once

#include <cstdint>
#include <vector>

namespace g2rpo {

// A row of `Sequences` and the part of it that is encoded: ids[begin, begin + length).
struct Row {
    int32_t row;
    int32_t begin;
    int32_t end;     // one past its last token
    int32_t length;  // encoded tokens, >= 1
    int32_t num_trained;
    int32_t node = -1;  // where its last encoded token is
};

// A run of positions without branches; its tokens are ids[first, first + length).
struct Node {
    int32_t first;
    int32_t depth;  // positions above it
    int32_t length;
    int32_t parent;  // -1 at a root; always less than the node's own index
};

struct Tree {
    std::vector<Node> nodes;  // depth-first
    std::vector<Row> rows;    // ascending
    int64_t size = 0;         // positions
};

// The rows' tree. Nodes branch in order of first appearance. A node stays shared only if
// (branches - 1) * length >= min_saved; otherwise every branch takes a copy of it, top-down.
Tree build_tree(const int32_t* ids, std::vector<Row> rows, int64_t min_saved);

}  // namespace g2rpo
