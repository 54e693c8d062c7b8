#include "edges.h"

#include <algorithm>
#include <cstring>

namespace g2rpo {
namespace {

// A row's way through one node. Offsets count from the node's first position.
struct Passage {
    int32_t first;  // index into ids of the row's token at offset 0
    int32_t end;    // one past the row's last token
    int32_t stop;   // the last offset that is on the row's path
};

// Passages of each node, in row order: those of node i are passages[ptr[i], ptr[i + 1]).
struct Passages {
    std::vector<int32_t> ptr;
    std::vector<Passage> passages;
};

Passages find_passages(const Tree& tree) {
    std::vector<int32_t> ptr(tree.nodes.size() + 1, 0);
    for (const Row& row : tree.rows) {
        for (int32_t node = row.node; node >= 0; node = tree.nodes[node].parent) ++ptr[node + 1];
    }
    for (size_t i = 0; i < tree.nodes.size(); ++i) ptr[i + 1] += ptr[i];
    std::vector<Passage> passages(ptr.back());
    std::vector<int32_t> fill(ptr.begin(), ptr.end() - 1);
    for (const Row& row : tree.rows) {
        for (int32_t id = row.node; id >= 0; id = tree.nodes[id].parent) {
            const Node& node = tree.nodes[id];
            const int32_t stop = std::min(row.length - node.depth, node.length) - 1;
            passages[fill[id]++] = {row.begin + node.depth, row.end, stop};
        }
    }
    return {std::move(ptr), std::move(passages)};
}

void end_edge(int32_t source, int32_t target, Plan& plan) {
    plan.source.append(source);
    plan.target.append(target);
    plan.member_ptr.append(plan.member.size);
}

// One row's trained tokens among ids[index, index + length), predicted from `source` on: one edge each.
void write_run(const Sequences& sequences, int32_t index, int32_t length, int32_t source, Plan& plan) {
    const uint8_t* const begin = sequences.trained + index;
    const uint8_t* const end = begin + length;
    const uint8_t* on = begin;
    while ((on = static_cast<const uint8_t*>(std::memchr(on, 1, end - on))) != nullptr) {
        const auto* off = static_cast<const uint8_t*>(std::memchr(on, 0, end - on));
        if (off == nullptr) off = end;
        const auto from = static_cast<int32_t>(on - begin);
        const auto count = static_cast<int32_t>(off - on);
        const int64_t edge = plan.source.size;
        const int64_t member = plan.member.size;
        std::copy_n(sequences.ids + index + from, count, plan.target.data + edge);
        for (int32_t i = 0; i < count; ++i) {
            plan.source.data[edge + i] = source + from + i;
            plan.member_ptr.data[edge + i + 1] = member + i + 1;
            plan.member.data[member + i] = index + from + i;
        }
        plan.source.size = plan.target.size = edge + count;
        plan.member_ptr.size = edge + count + 1;
        plan.member.size = member + count;
        on = off;
    }
}

// Edges from offsets [from, to), at which every live row goes on to the node's next position.
void write_inner(const Sequences& sequences, const std::vector<Passage>& live, int32_t from, int32_t to,
                 int32_t start, Plan& plan) {
    std::vector<int32_t> next;  // per row that trains anything here, the index of the token after `from`
    for (const Passage& row : live) {
        const int32_t index = row.first + from + 1;
        if (std::memchr(sequences.trained + index, 1, to - from)) next.push_back(index);
    }
    if (next.size() == 1) return write_run(sequences, next[0], to - from, start + from, plan);
    if (next.empty()) return;
    for (int32_t i = 0; i < to - from; ++i) {
        const int64_t before = plan.member.size;
        for (const int32_t index : next) {
            if (sequences.trained[index + i]) plan.member.append(index + i);
        }
        if (plan.member.size > before) end_edge(start + from + i, sequences.ids[next[0] + i], plan);
    }
}

// Edges from an offset at which rows part or end: grouped by target.
void write_parting(const Sequences& sequences, const std::vector<Passage>& live, int32_t offset,
                   int32_t start, Plan& plan) {
    std::vector<int32_t> targets;               // distinct, by first appearance
    std::vector<std::vector<int32_t>> members;  // of each target
    for (const Passage& row : live) {
        const int32_t index = row.first + offset + 1;
        if (index >= row.end || !sequences.trained[index]) continue;
        const int32_t target = sequences.ids[index];
        const size_t slot = std::find(targets.begin(), targets.end(), target) - targets.begin();
        if (slot == targets.size()) {
            targets.push_back(target);
            members.emplace_back();
        }
        members[slot].push_back(index);
    }
    for (size_t slot = 0; slot < targets.size(); ++slot) {
        for (const int32_t index : members[slot]) plan.member.append(index);
        end_edge(start + offset, targets[slot], plan);
    }
}

void write_node_edges(const Sequences& sequences, std::vector<Passage> live, int32_t start, Plan& plan) {
    int32_t from = 0;
    while (!live.empty()) {
        const auto sooner = [](const Passage& a, const Passage& b) { return a.stop < b.stop; };
        const int32_t stop = std::min_element(live.begin(), live.end(), sooner)->stop;
        write_inner(sequences, live, from, stop, start, plan);
        write_parting(sequences, live, stop, start, plan);
        const auto ended = [stop](const Passage& row) { return row.stop == stop; };
        live.erase(std::remove_if(live.begin(), live.end(), ended), live.end());
        from = stop + 1;
    }
}

}  // namespace

void write_edges(const Sequences& sequences, const Tree& tree, const std::vector<int32_t>& starts,
                 Plan& plan) {
    const Passages all = find_passages(tree);
    for (size_t i = 0; i < tree.nodes.size(); ++i) {
        const auto begin = all.passages.begin();
        write_node_edges(sequences, {begin + all.ptr[i], begin + all.ptr[i + 1]}, starts[i], plan);
    }
}

}  // namespace g2rpo
