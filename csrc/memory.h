// One allocation for all arrays of a call. It is not cleared, and large ones ask for huge pages: a step's
// plans are some 100 MB that are written once, and 4 KB page faults would cost more than planning does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace g2rpo {

// An array inside the allocation, filled from the front.
template <class T>
struct Slice {
    T* data = nullptr;
    int64_t size = 0;

    void append(T value) { data[size++] = value; }
};

struct Memory {
    std::shared_ptr<std::byte> bytes;  // owns
    size_t used = 0;
};

constexpr size_t kSliceAlignment = 64;

// Bytes that a slice of `capacity` elements takes.
template <class T>
size_t slice_bytes(int64_t capacity) {
    const size_t bytes = static_cast<size_t>(capacity) * sizeof(T);
    return (bytes + kSliceAlignment - 1) / kSliceAlignment * kSliceAlignment;
}

Memory allocate(size_t bytes);

template <class T>
Slice<T> take_slice(Memory& memory, int64_t capacity) {
    T* data = reinterpret_cast<T*>(memory.bytes.get() + memory.used);
    memory.used += slice_bytes<T>(capacity);
    return {data};
}

}  // namespace g2rpo
