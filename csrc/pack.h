// Trees into bins of at most `budget` positions.
#pragma once

#include <cstdint>
#include <vector>

#include "prefix_tree.h"

namespace g2rpo {

// Parts of a tree, each the paths of some rows: rows in depth-first order of their ends, greedily while a
// part stays within the budget. A part is over it only if it is a single path.
std::vector<Tree> split_tree(const Tree& tree, int64_t budget);

// First fit, largest first, equal sizes in their order. Returns the indices of each bin.
std::vector<std::vector<int32_t>> first_fit(const std::vector<int64_t>& sizes, int64_t budget);

}  // namespace g2rpo
