#include "memory.h"

#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace g2rpo {

Memory allocate(size_t bytes) {
    constexpr size_t kHugePage = size_t{2} << 20;
    const bool large = bytes >= 2 * kHugePage;
    const size_t alignment = large ? kHugePage : kSliceAlignment;
    const size_t rounded = (bytes / alignment + 1) * alignment;
    void* const memory = std::aligned_alloc(alignment, rounded);
    if (memory == nullptr) throw std::bad_alloc();
#ifdef __linux__
    if (large) madvise(memory, rounded, MADV_HUGEPAGE);  // a hint: nothing depends on whether it is taken
#endif
    return {std::shared_ptr<std::byte>(static_cast<std::byte*>(memory), std::free)};
}

}  // namespace g2rpo
