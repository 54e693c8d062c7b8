#include "ipc_arena.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>

#include "parallel.h"

#ifdef __linux__
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace g2rpo {
namespace {

constexpr uint64_t kMagic = 0x31616E6572413247u;  // "G2Arena1"
static_assert(std::atomic<uint64_t>::is_always_lock_free, "the control page needs atomics without locks");

#ifdef __linux__

constexpr size_t kPage = 4096;
constexpr size_t kRun = size_t{32} << 20;  // bytes made present at a time
constexpr int kPopulateRead = 22, kPopulateWrite = 23;

[[noreturn]] void fail(const std::string& what) {
    throw std::runtime_error("arena: " + what + ": " + std::strerror(errno));
}

// Present pages: by madvise where the kernel (5.14) knows how, else one access to each. Returns errno, or 0.
int populate_run(std::byte* data, size_t bytes, bool write) {
    if (madvise(data, bytes, write ? kPopulateWrite : kPopulateRead) == 0) return 0;
    if (errno != EINVAL && errno != ENOSYS) return errno;
    for (size_t at = 0; at < bytes; at += kPage) {
        auto* const byte = reinterpret_cast<volatile unsigned char*>(data + at);
        if (write) {
            *byte = 0;
        } else {
            (void)*byte;
        }
    }
    return 0;
}

void populate(const SharedMemory& memory, bool write, int threads) {
    const auto runs = static_cast<int64_t>((memory.bytes + kRun - 1) / kRun);
    std::atomic<int> error{0};
    share_out(runs, threads, [&](int64_t first, int64_t last) {
        for (int64_t run = first; run < last; ++run) {
            const size_t begin = static_cast<size_t>(run) * kRun;
            const int got = populate_run(memory.data + begin, std::min(kRun, memory.bytes - begin), write);
            if (got != 0) error = got;
        }
    });
    errno = error;
    if (error != 0) fail("cannot make " + std::to_string(memory.bytes) + " bytes of memory present");
}

void map(SharedMemory& memory, size_t bytes) {
    void* const at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory.fd, 0);
    if (at == MAP_FAILED) fail("cannot map " + std::to_string(bytes) + " bytes");
    memory.data = static_cast<std::byte*>(at);
    memory.bytes = bytes;
    madvise(at, bytes, MADV_HUGEPAGE);  // a hint: nothing depends on whether it is taken
}

uint64_t inode_of(int fd, size_t bytes) {
    struct stat status;
    if (fstat(fd, &status) != 0) fail("cannot read the size of its memory");
    return static_cast<size_t>(status.st_size) == bytes ? status.st_ino : 0;
}

int open_of(pid_t owner, int fd) {
    const std::string path = "/proc/" + std::to_string(owner) + "/fd/" + std::to_string(fd);
    const int opened = open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (opened >= 0) return opened;
    const bool gone = errno == ENOENT || errno == ENXIO;
    fail(gone ? "the owner (process " + std::to_string(owner) + ") has ended or closed it; no " + path
              : "cannot open " + path +
                    ", which needs the owner's user and the right to trace it (PTRACE_MODE_READ)");
}

#endif

}  // namespace

#ifdef __linux__

SharedMemory::~SharedMemory() {
    if (data != nullptr) munmap(data, bytes);
    close_descriptor(*this);
}

void close_descriptor(SharedMemory& memory) {
    if (memory.fd >= 0) close(memory.fd);
    memory.fd = -1;
}

std::shared_ptr<SharedMemory> create_shared(size_t bytes, int threads) {
    auto memory = std::make_shared<SharedMemory>();
    memory->fd = memfd_create("g2rpo-arena", MFD_CLOEXEC);
    if (memory->fd < 0) fail("cannot create an anonymous file");
    if (ftruncate(memory->fd, static_cast<off_t>(bytes)) != 0)
        fail("cannot size an anonymous file to " + std::to_string(bytes) + " bytes");
    map(*memory, bytes);
    populate(*memory, true, threads);
    memory->inode = inode_of(memory->fd, bytes);
    return memory;
}

std::shared_ptr<SharedMemory> open_shared(pid_t owner, int fd, uint64_t inode, size_t bytes, int threads) {
    auto memory = std::make_shared<SharedMemory>();
    memory->fd = open_of(owner, fd);
    memory->inode = inode_of(memory->fd, bytes);
    if (memory->inode != inode)
        throw std::runtime_error("arena: descriptor " + std::to_string(fd) + " of process " +
                                 std::to_string(owner) + " is another file than the arena's, which has " +
                                 std::to_string(bytes) + " bytes: the owner closed it or was restarted");
    map(*memory, bytes);
    close_descriptor(*memory);
    populate(*memory, false, threads);
    return memory;
}

#else

SharedMemory::~SharedMemory() = default;

void close_descriptor(SharedMemory&) {}

std::shared_ptr<SharedMemory> create_shared(size_t, int) {
    throw std::runtime_error("arena: needs Linux (memfd_create)");
}

std::shared_ptr<SharedMemory> open_shared(pid_t, int, uint64_t, size_t, int) {
    throw std::runtime_error("arena: needs Linux (/proc)");
}

#endif

namespace {

// The kernel's flag (PF_EXITING) of a process that has begun to end. One that held a GPU takes a while to
// end: its files are closed, so that whoever waits for it goes on, long before it is a zombie.
constexpr uint64_t kExiting = 0x4;

}  // namespace

// Fields 3 (state), 9 (flags) and 22 (start) of /proc/<pid>/stat, counted behind the name, which may hold
// anything.
uint64_t process_start(pid_t pid) {
    std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
    std::string line;
    if (!std::getline(file, line)) return 0;
    std::istringstream rest(line.substr(line.rfind(')') + 1));
    std::string state, field;
    rest >> state;
    for (int i = 4; i < 9; ++i) rest >> field;
    uint64_t flags = 0, start = 0;
    rest >> flags;
    for (int i = 10; i < 22; ++i) rest >> field;
    rest >> start;
    const bool ended = state == "Z" || state == "X" || (flags & kExiting) != 0;
    return ended ? 0 : start;
}

Control& create_control(SharedMemory& memory, uint64_t fingerprint) {
    if (memory.bytes < sizeof(Control)) throw std::runtime_error("arena: control page too small");
    auto& control = *new (memory.data) Control{};
    control.fingerprint = fingerprint;
#ifdef __linux__
    control.owner = getpid();
#endif
    control.owner_start = process_start(static_cast<pid_t>(control.owner));
    control.magic = kMagic;
    return control;
}

Control& open_control(SharedMemory& memory, uint64_t fingerprint) {
    if (memory.bytes < sizeof(Control)) throw std::runtime_error("arena: control page too small");
    auto& control = *std::launder(reinterpret_cast<Control*>(memory.data));
    if (control.magic != kMagic)
        throw std::runtime_error("arena: control page: wanted G2Arena1, got no such");
    if (control.fingerprint != fingerprint)
        throw std::runtime_error("arena: layout: wanted fingerprint " + std::to_string(fingerprint) +
                                 ", got " + std::to_string(control.fingerprint));
    return control;
}

void begin_slot(SlotState& slot, int64_t version) {
    slot.sequence.store(slot.sequence.load() | 1);  // still odd after a write that failed half-way
    slot.version.store(version);
}

void publish_slot(SlotState& slot, uint64_t bytes, uint64_t checksum, bool has_checksum) {
    slot.bytes.store(bytes);
    slot.checksum.store(checksum);
    slot.has_checksum.store(has_checksum);
    slot.sequence.store((slot.sequence.load() | 1) + 1);
}

SlotReading read_slot(const SlotState& slot) {
    const uint64_t before = slot.sequence.load();
    SlotReading reading{before, slot.version.load(), slot.bytes.load(), slot.checksum.load(),
                        slot.has_checksum.load() != 0};
    if (slot.sequence.load() != before) reading.sequence = before | 1;
    return reading;
}

}  // namespace g2rpo
