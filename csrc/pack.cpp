#include "pack.h"

#include <algorithm>
#include <numeric>
#include <tuple>

namespace g2rpo {
namespace {

// Positions that both rows' paths hold.
int32_t shared_length(const Tree& tree, const Row& a, const Row& b) {
    int32_t node_a = a.node;
    int32_t node_b = b.node;
    while (node_a != node_b) {
        int32_t& later = node_a > node_b ? node_a : node_b;
        later = tree.nodes[later].parent;
    }
    if (node_a < 0) return 0;
    const int32_t node_end = tree.nodes[node_a].depth + tree.nodes[node_a].length;
    return std::min({a.length, b.length, node_end});
}

std::vector<Row> depth_first_rows(const Tree& tree) {
    std::vector<Row> rows = tree.rows;
    std::sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) {
        return std::tie(a.node, a.length, a.row) < std::tie(b.node, b.length, b.row);
    });
    return rows;
}

// Which nodes of a tree the current part holds.
struct Held {
    std::vector<int32_t> part;   // the last part that took the node
    std::vector<int32_t> index;  // the node's index in that part
};

// Adds a row that comes after the part's rows in depth-first order.
void add_row(const Tree& tree, Row row, int32_t part_id, Held& held, Tree& part) {
    std::vector<int32_t> path;  // upwards, to the first node that the part already holds
    for (int32_t node = row.node; node >= 0; node = tree.nodes[node].parent) {
        path.push_back(node);
        if (held.part[node] == part_id) break;
    }
    for (auto node = path.rbegin(); node != path.rend(); ++node) {
        Node copy = tree.nodes[*node];
        if (*node == row.node) copy.length = row.length - copy.depth;
        if (held.part[*node] != part_id) {
            held.part[*node] = part_id;
            held.index[*node] = static_cast<int32_t>(part.nodes.size());
            if (copy.parent >= 0) copy.parent = held.index[copy.parent];
            part.nodes.push_back(copy);
            part.size += copy.length;
        } else {
            int32_t& length = part.nodes[held.index[*node]].length;
            part.size += std::max(copy.length - length, 0);
            length = std::max(copy.length, length);
        }
    }
    row.node = held.index[row.node];
    part.rows.push_back(row);
}

}  // namespace

std::vector<Tree> split_tree(const Tree& tree, int64_t budget) {
    std::vector<Tree> parts(1);
    Held held{std::vector<int32_t>(tree.nodes.size(), -1), std::vector<int32_t>(tree.nodes.size(), -1)};
    const std::vector<Row> rows = depth_first_rows(tree);
    for (size_t i = 0; i < rows.size(); ++i) {
        // In this order, what a row shares with the part it shares with the row before it.
        const int32_t shared = i == 0 ? 0 : shared_length(tree, rows[i - 1], rows[i]);
        const int64_t size = parts.back().size + rows[i].length - shared;
        if (size > std::max<int64_t>(budget, rows[i].length)) parts.emplace_back();
        add_row(tree, rows[i], static_cast<int32_t>(parts.size()) - 1, held, parts.back());
    }
    for (Tree& part : parts) {
        std::sort(part.rows.begin(), part.rows.end(),
                  [](const Row& a, const Row& b) { return a.row < b.row; });
    }
    return parts;
}

std::vector<std::vector<int32_t>> first_fit(const std::vector<int64_t>& sizes, int64_t budget) {
    std::vector<int32_t> order(sizes.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return sizes[a] > sizes[b]; });
    std::vector<std::vector<int32_t>> bins;
    std::vector<int64_t> used;
    for (const int32_t item : order) {
        const auto fits = [&](int64_t held) { return held + sizes[item] <= budget; };
        const auto bin = std::find_if(used.begin(), used.end(), fits) - used.begin();
        if (bin == static_cast<int64_t>(used.size())) {
            bins.emplace_back();
            used.push_back(0);
        }
        bins[bin].push_back(item);
        used[bin] += sizes[item];
    }
    return bins;
}

}  // namespace g2rpo
