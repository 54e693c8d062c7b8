// Memory that two processes see: anonymous files (memfd), and the control page that says what is in a slot.
//
// An anonymous file has no name, so nothing is left behind when its last user dies, however it dies. Another
// process opens it as /proc/<owner>/fd/<n>, for which it needs the same user and the same PID namespace.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace g2rpo {

// A mapping of an anonymous file; unmapped, and the descriptor closed, when the struct goes.
struct SharedMemory {
    std::byte* data = nullptr;
    size_t bytes = 0;
    int fd = -1;         // the owner keeps it open for others to find; an importer closes it at once
    uint64_t inode = 0;  // tells this file from another that took the descriptor's number later

    SharedMemory() = default;
    SharedMemory(const SharedMemory&) = delete;
    SharedMemory& operator=(const SharedMemory&) = delete;
    ~SharedMemory();
};

// Zeros, every page present: the first touch of a page is far slower than a copy. Throws std::runtime_error.
std::shared_ptr<SharedMemory> create_shared(size_t bytes, int threads);
std::shared_ptr<SharedMemory> open_shared(pid_t owner, int fd, uint64_t inode, size_t bytes, int threads);

// Nobody can open it any more; the mapping stays.
void close_descriptor(SharedMemory& memory);

// Start of a process in clock ticks after boot; 0 = there is none, or one that is ending.
uint64_t process_start(pid_t pid);

constexpr int kSlots = 2;

struct SlotState {
    std::atomic<uint64_t> sequence;  // 0 = never written, odd = being written, even = complete
    std::atomic<int64_t> version;
    std::atomic<uint64_t> bytes;
    std::atomic<uint64_t> checksum;
    std::atomic<uint64_t> has_checksum;
};

struct Control {
    uint64_t magic;
    uint64_t fingerprint;  // of the manifest
    int64_t owner;
    uint64_t owner_start;  // with `owner`, one process among all that ever had this id
    std::atomic<uint64_t> closed;
    SlotState slots[kSlots];
};

struct SlotReading {
    uint64_t sequence;
    int64_t version;
    uint64_t bytes, checksum;
    bool has_checksum;
};

Control& create_control(SharedMemory& memory, uint64_t fingerprint);
// Throws std::runtime_error where the page is no control page, or one of another layout.
Control& open_control(SharedMemory& memory, uint64_t fingerprint);

void begin_slot(SlotState& slot, int64_t version);
void publish_slot(SlotState& slot, uint64_t bytes, uint64_t checksum, bool has_checksum);
// One consistent reading; `sequence` is odd if the writer came in between.
SlotReading read_slot(const SlotState& slot);

}  // namespace g2rpo
