// Edges (source position, target token) of one tree, each with the row tokens that it stands for.
#pragma once

#include <cstdint>
#include <vector>

#include "plan.h"
#include "prefix_tree.h"

namespace g2rpo {

// Appends the tree's edges to the plan, by source and then by first appearance in row order; members ascend.
// `starts` are the stream positions of the tree's nodes.
void write_edges(const Sequences& sequences, const Tree& tree, const std::vector<int32_t>& starts,
                 Plan& plan);

}  // namespace g2rpo
