#include "checksum.h"

#include <atomic>
#include <cstring>

#include "parallel.h"

namespace g2rpo {
namespace {

constexpr uint64_t kStep = 0x9E3779B97F4A7C15u;
constexpr int64_t kBlockWords = 1 << 16;  // of one work item

inline __attribute__((always_inline)) uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

G2RPO_VECTORISED
uint64_t sum_words(const uint64_t* words, int64_t first, int64_t last) {
    uint64_t sum = 0;
    for (int64_t i = first; i < last; ++i) sum += mix(words[i] + static_cast<uint64_t>(i + 1) * kStep);
    return sum;
}

}  // namespace

uint64_t checksum(const std::byte* data, size_t bytes, int threads) {
    const auto* words = reinterpret_cast<const uint64_t*>(data);
    const auto whole = static_cast<int64_t>(bytes / 8);
    std::atomic<uint64_t> total{bytes};
    share_out((whole + kBlockWords - 1) / kBlockWords, threads, [&](int64_t first, int64_t last) {
        total += sum_words(words, first * kBlockWords, std::min(whole, last * kBlockWords));
    });
    if (bytes % 8 != 0) {
        uint64_t rest = 0;
        std::memcpy(&rest, data + whole * 8, bytes % 8);
        total += mix(rest + static_cast<uint64_t>(whole + 1) * kStep);
    }
    return total;
}

}  // namespace g2rpo
