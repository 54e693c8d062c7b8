#include "plan.h"

#include <algorithm>
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
    std::copy_n(ids + node.first, node.length, plan.token.data.get() + start);
    int32_t* position = plan.position.data.get() + start;
    for (int32_t i = 0; i < node.length; ++i) position[i] = node.depth + i;
    std::fill_n(plan.end.data.get() + start, node.length, end);
}

void write_tree(const Sequences& sequences, const Tree& tree, Plan& plan) {
    const auto offset = static_cast<int32_t>(plan.token.size);
    const std::vector<int32_t> starts = node_starts(tree, offset);
    const std::vector<int32_t> ends = node_ends(tree, starts);
    for (size_t i = 0; i < tree.nodes.size(); ++i) {
        write_node(sequences.ids, tree.nodes[i], starts[i], ends[i], plan);
    }
    plan.token.size = plan.position.size = plan.end.size = offset + tree.size;
    for (const Row& row : tree.rows) {
        const int32_t last = starts[row.node] + row.length - 1 - tree.nodes[row.node].depth;
        plan.row.append(row.row);
        plan.last.append(last);
        plan.unshared_tokens += row.length;
    }
    write_edges(sequences, tree, starts, plan);
}

Plan make_plan(const Sequences& sequences, const std::vector<Tree>& parts, const std::vector<int32_t>& bin) {
    int64_t num_positions = 0, max_members = 0, num_rows = 0;
    for (const int32_t part : bin) {
        num_positions += parts[part].size;
        num_rows += static_cast<int64_t>(parts[part].rows.size());
        for (const Row& row : parts[part].rows) max_members += row.num_trained;
    }
    Plan plan(num_positions, max_members, num_rows);
    for (const int32_t part : bin) write_tree(sequences, parts[part], plan);
    return plan;
}

}  // namespace

Plan::Plan(int64_t num_positions, int64_t max_members, int64_t num_rows)
    : token(num_positions),
      position(num_positions),
      end(num_positions),
      source(max_members),
      target(max_members),
      member_ptr(max_members + 1),
      member(max_members),
      row(num_rows),
      last(num_rows) {
    member_ptr.append(0);
}

std::vector<Plan> plan_trees(const Sequences& sequences, int64_t token_budget, int64_t min_saved,
                             bool whole) {
    const std::vector<Tree> parts = build_parts(sequences, token_budget, min_saved, whole);
    std::vector<int64_t> sizes;
    for (const Tree& part : parts) sizes.push_back(part.size);
    std::vector<Plan> plans;
    for (const std::vector<int32_t>& bin : first_fit(sizes, token_budget)) {
        plans.push_back(make_plan(sequences, parts, bin));
    }
    return plans;
}

}  // namespace g2rpo
