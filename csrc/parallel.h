// Loops over the cores, and loops for the compiler's vectoriser.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

// One copy of a function for each instruction set.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define G2RPO_VECTORISED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define G2RPO_VECTORISED
#endif

namespace g2rpo {

// Calls work(first, last) for runs of [0, items), the first on this thread.
inline void share_out(int64_t items, int threads, const std::function<void(int64_t, int64_t)>& work) {
    const int64_t parts = std::clamp<int64_t>(threads, 1, std::max<int64_t>(items, 1));
    std::vector<std::thread> others;
    for (int64_t part = 1; part < parts; ++part)
        others.emplace_back(work, items * part / parts, items * (part + 1) / parts);
    work(0, items / parts);
    for (std::thread& other : others) other.join();
}

}  // namespace g2rpo
