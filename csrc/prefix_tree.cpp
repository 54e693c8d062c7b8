#include "prefix_tree.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace g2rpo {
namespace {

struct TrieNode {
    int32_t first = 0;
    int32_t length = 0;
    int32_t first_child = -1;
    int32_t last_child = -1;
    int32_t next_sibling = -1;
    int32_t num_children = 0;
};

using Trie = std::vector<TrieNode>;  // node 0 is the empty path

constexpr int32_t kNone = -1;

int32_t common_length(const int32_t* a, const int32_t* b, int32_t limit) {
    constexpr int32_t kBlock = 64;
    int32_t i = 0;
    while (i + kBlock <= limit && std::memcmp(a + i, b + i, kBlock * sizeof(int32_t)) == 0) i += kBlock;
    while (i < limit && a[i] == b[i]) ++i;
    return i;
}

int32_t find_child(const Trie& trie, const int32_t* ids, int32_t node, int32_t token) {
    int32_t child = trie[node].first_child;
    while (child != kNone && ids[trie[child].first] != token) child = trie[child].next_sibling;
    return child;
}

void add_leaf(Trie& trie, int32_t node, int32_t first, int32_t length) {
    const auto leaf = static_cast<int32_t>(trie.size());
    trie.push_back({first, length});
    TrieNode& parent = trie[node];
    (parent.num_children++ ? trie[parent.last_child].next_sibling : parent.first_child) = leaf;
    parent.last_child = leaf;
}

// Cuts `node` after `length` tokens; what follows becomes its only child.
void cut(Trie& trie, int32_t node, int32_t length) {
    TrieNode lower = trie[node];
    lower.first += length;
    lower.length -= length;
    lower.next_sibling = kNone;
    const auto lower_id = static_cast<int32_t>(trie.size());
    trie.push_back(lower);
    TrieNode& upper = trie[node];
    upper.length = length;
    upper.first_child = upper.last_child = lower_id;
    upper.num_children = 1;
}

// Every token is compared at most once. A row that ends inside a run does not cut it, and a longer row
// lengthens a leaf, so a node ends only where it branches or where its longest row ends.
void insert(Trie& trie, const int32_t* ids, const Row& row) {
    int32_t node = 0;
    int32_t at = row.begin;
    const int32_t stop = row.begin + row.length;
    while (at < stop) {
        const int32_t child = find_child(trie, ids, node, ids[at]);
        if (child == kNone && node != 0 && trie[node].num_children == 0) {
            trie[node].first = at - trie[node].length;
            trie[node].length += stop - at;
            return;
        }
        if (child == kNone) return add_leaf(trie, node, at, stop - at);
        const int32_t limit = std::min(trie[child].length, stop - at);
        const int32_t common = common_length(ids + trie[child].first, ids + at, limit);
        at += common;
        if (common < limit) cut(trie, child, common);
        node = child;
        if (common < limit) return add_leaf(trie, node, at, stop - at);
    }
}

// The node that holds the row's last encoded token.
int32_t find_end(const Trie& trie, const int32_t* ids, const Row& row) {
    int32_t node = 0;
    for (int32_t used = 0; used < row.length; used += trie[node].length) {
        node = find_child(trie, ids, node, ids[row.begin + used]);
    }
    return node;
}

struct Pending {
    int32_t trie_node;
    int32_t parent;
    int32_t depth;
    int32_t taken;  // positions that it copies from the unshared nodes above
};

void push_children(const Trie& trie, std::vector<Pending>& pending, Pending of) {
    const auto from = static_cast<int64_t>(pending.size());
    for (int32_t child = trie[of.trie_node].first_child; child != kNone; child = trie[child].next_sibling) {
        pending.push_back({child, of.parent, of.depth, of.taken});
    }
    std::reverse(pending.begin() + from, pending.end());
}

// Fills tree.nodes; returns each trie node's index there, kNone if its branches hold copies instead.
std::vector<int32_t> lay_out(const Trie& trie, int64_t min_saved, Tree& tree) {
    std::vector<int32_t> index(trie.size(), kNone);
    std::vector<Pending> pending;
    push_children(trie, pending, {0, kNone, 0, 0});
    while (!pending.empty()) {
        const Pending next = pending.back();
        pending.pop_back();
        const TrieNode& run = trie[next.trie_node];
        // The row that `run` refers to came through everything above it: a copy only starts earlier.
        const int32_t length = next.taken + run.length;
        if (run.num_children > 0 && (run.num_children - int64_t{1}) * length < min_saved) {
            push_children(trie, pending, {next.trie_node, next.parent, next.depth, length});
            continue;
        }
        const auto id = static_cast<int32_t>(tree.nodes.size());
        index[next.trie_node] = id;
        tree.nodes.push_back({run.first - next.taken, next.depth, length, next.parent});
        tree.size += length;
        push_children(trie, pending, {next.trie_node, id, next.depth + length, 0});
    }
    return index;
}

}  // namespace

Tree build_tree(const int32_t* ids, std::vector<Row> rows, int64_t min_saved) {
    Trie trie(1);
    for (const Row& row : rows) insert(trie, ids, row);
    Tree tree;
    const std::vector<int32_t> index = lay_out(trie, min_saved, tree);
    for (Row& row : rows) {
        int32_t end = find_end(trie, ids, row);
        while (index[end] == kNone) end = trie[end].first_child;
        row.node = index[end];
    }
    tree.rows = std::move(rows);
    return tree;
}

}  // namespace g2rpo
