#include "plan.h"

#include <algorithm>
#include <cassert>
#include <unordered_map>
#include <utility>

#include "edges.h"
#include "pack.h"
#include "prefix_tree.h"

namespace g2rpo {
namespace {

int32_t count_trained(const uint8_t* trained, int64_t length) {
    int32_t count = 0;
    for (int64_t i = 0; i < length; ++i) count += trained[i];
    return count;
}

Row make_row(const Sequences& sequences, int32_t row, bool whole) {
    const int64_t begin = sequences.ptr[row];
    const int64_t end = sequences.ptr[row + 1];
    int64_t stop = end;
    if (!whole) {
        while (stop > begin && !sequences.trained[stop - 1]) --stop;
        if (stop > begin) --stop;  // nothing reads the position of the last trained token
    }
    const int32_t num_trained = count_trained(sequences.trained + begin, end - begin);
    return {row, static_cast<int32_t>(begin), static_cast<int32_t>(end), static_cast<int32_t>(stop - begin),
            num_trained};
}

// Groups by first appearance; rows that encode nothing are left out.
std::vector<std::vector<Row>> group_rows(const Sequences& sequences, bool whole) {
    std::vector<std::vector<Row>> groups;
    std::unordered_map<int32_t, size_t> index;
    for (int32_t row = 0; row < sequences.num_rows; ++row) {
        const Row made = make_row(sequences, row, whole);
        const auto [place, is_new] = index.try_emplace(sequences.group[row], groups.size());
        if (is_new) groups.emplace_back();
        if (made.length > 0) groups[place->second].push_back(made);
    }
    return groups;
}

std::vector<Tree> build_parts(const Sequences& sequences, int64_t budget, int64_t min_saved, bool whole) {
    std::vector<Tree> parts;
    for (std::vector<Row>& rows : group_rows(sequences, whole)) {
        if (rows.empty()) continue;
        Tree tree = build_tree(sequences.ids, std::move(rows), min_saved);
        if (tree.size <= budget) {
            parts.push_back(std::move(tree));
            continue;
        }
        for (Tree& part : split_tree(tree, budget)) parts.push_back(std::move(part));
    }
    return parts;
}

// Stream position of each node, the first at `offset`.
std::vector<int32_t> node_starts(const Tree& tree, int32_t offset) {
    std::vector<int32_t> starts(tree.nodes.size());
    for (size_t i = 0; i < tree.nodes.size(); ++i) {
        starts[i] = offset;
        offset += tree.nodes[i].length;
    }
    return starts;
}

// Where each node's subtree ends: all positions of a node see the same queries.
std::vector<int32_t> node_ends(const Tree& tree, const std::vector<int32_t>& starts) {
    std::vector<int32_t> ends(tree.nodes.size(), 0);
    for (size_t i = tree.nodes.size(); i-- > 0;) {
        const Node& node = tree.nodes[i];
        ends[i] = std::max(ends[i], starts[i] + node.length);
        if (node.parent >= 0) ends[node.parent] = std::max(ends[node.parent], ends[i]);
    }
    return ends;
}

void write_node(const int32_t* ids, const Node& node, int32_t start, int32_t end, Plan& plan) {
    std::copy_n(ids + node.first, node.length, plan.token.data + start);
    int32_t* position = plan.position.data + start;
    for (int32_t i = 0; i < node.length; ++i) position[i] = node.depth + i;
    std::fill_n(plan.end.data + start, node.length, end);
}

// A part of a split tree may hold one child of a node: the two are one run, hence one node of the plan.
void write_nodes(const Tree& tree, const std::vector<int32_t>& starts, const std::vector<int32_t>& ends,
                 Plan& plan) {
    std::vector<int64_t> index(tree.nodes.size());
    for (size_t i = 0; i < tree.nodes.size(); ++i) {
        const int32_t parent = tree.nodes[i].parent;
        const bool continues = i > 0 && parent == static_cast<int32_t>(i) - 1 && ends[i] == ends[i - 1];
        if (!continues) {
            plan.node_start.append(starts[i]);
            plan.node_parent.append(parent < 0 ? -1 : index[parent]);
        }
        index[i] = plan.node_start.size - 1;
    }
}

void write_tree(const Sequences& sequences, const Tree& tree, Plan& plan) {
    const auto offset = static_cast<int32_t>(plan.token.size);
    const std::vector<int32_t> starts = node_starts(tree, offset);
    const std::vector<int32_t> ends = node_ends(tree, starts);
    for (size_t i = 0; i < tree.nodes.size(); ++i) {
        write_node(sequences.ids, tree.nodes[i], starts[i], ends[i], plan);
    }
    write_nodes(tree, starts, ends, plan);
    plan.token.size = plan.position.size = plan.end.size = offset + tree.size;
    for (const Row& row : tree.rows) {
        const int32_t last = starts[row.node] + row.length - 1 - tree.nodes[row.node].depth;
        plan.row.append(row.row);
        plan.last.append(last);
        plan.unshared_tokens += row.length;
    }
    write_edges(sequences, tree, starts, plan);
}

struct Capacity {
    int64_t positions = 0, members = 0, rows = 0, nodes = 0;
};

Capacity measure(const std::vector<Tree>& parts, const std::vector<int32_t>& bin) {
    Capacity need;
    for (const int32_t part : bin) {
        need.positions += parts[part].size;
        need.nodes += static_cast<int64_t>(parts[part].nodes.size());
        need.rows += static_cast<int64_t>(parts[part].rows.size());
        for (const Row& row : parts[part].rows) need.members += row.num_trained;
    }
    return need;
}

size_t plan_bytes(const Capacity& need) {
    return 3 * slice_bytes<int32_t>(need.positions) + 2 * slice_bytes<int32_t>(need.members) +
           slice_bytes<int64_t>(need.members + 1) + slice_bytes<int64_t>(need.members) +
           2 * slice_bytes<int32_t>(need.rows) + 2 * slice_bytes<int64_t>(need.nodes);
}

Plan take_plan(Memory& memory, const Capacity& need) {
    Plan plan;
    plan.token = take_slice<int32_t>(memory, need.positions);
    plan.position = take_slice<int32_t>(memory, need.positions);
    plan.end = take_slice<int32_t>(memory, need.positions);
    plan.source = take_slice<int32_t>(memory, need.members);
    plan.target = take_slice<int32_t>(memory, need.members);
    plan.member_ptr = take_slice<int64_t>(memory, need.members + 1);
    plan.member = take_slice<int64_t>(memory, need.members);
    plan.row = take_slice<int32_t>(memory, need.rows);
    plan.last = take_slice<int32_t>(memory, need.rows);
    plan.node_start = take_slice<int64_t>(memory, need.nodes);
    plan.node_parent = take_slice<int64_t>(memory, need.nodes);
    plan.member_ptr.append(0);
    return plan;
}

}  // namespace

Plans plan_trees(const Sequences& sequences, int64_t token_budget, int64_t min_saved, bool whole) {
    const std::vector<Tree> parts = build_parts(sequences, token_budget, min_saved, whole);
    std::vector<int64_t> sizes;
    for (const Tree& part : parts) sizes.push_back(part.size);
    const std::vector<std::vector<int32_t>> bins = first_fit(sizes, token_budget);
    size_t bytes = 0;
    for (const std::vector<int32_t>& bin : bins) bytes += plan_bytes(measure(parts, bin));
    Plans all{allocate(bytes), {}};
    for (const std::vector<int32_t>& bin : bins) {
        Plan plan = take_plan(all.memory, measure(parts, bin));
        for (const int32_t part : bin) write_tree(sequences, parts[part], plan);
        all.plans.push_back(plan);
    }
    assert(all.memory.used == bytes);
    return all;
}

}  // namespace g2rpo
