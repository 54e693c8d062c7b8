// 64-bit checksum of memory, the same on any number of threads and (by its Python twin) on a GPU.
#pragma once

#include <cstddef>
#include <cstdint>

namespace g2rpo {

// bytes + sum over 8-byte words w_i of mix(w_i + (i + 1) * 0x9E3779B97F4A7C15), modulo 2^64; mix is the
// finaliser of splitmix64 (Steele et al. 2014), a bijection: one changed word always shows. The last word is
// filled up with zeros. `data` aligned to 8.
uint64_t checksum(const std::byte* data, size_t bytes, int threads);

}  // namespace g2rpo
