// The few functions of the CUDA runtime that the weight arena needs, found at run time: one build serves
// machines with and without a GPU, and every libcudart since 11.
//
// Memory comes from cudaMalloc itself, not from PyTorch's allocator: its handles exist whatever the
// allocator's settings (expandable segments have none), and export nothing but the arena.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ipc_arena.h"

namespace g2rpo {

struct CudaHandle {  // cudaIpcMemHandle_t and cudaIpcEventHandle_t, passed by value
    char bytes[64];
};

struct CudaRuntime {
    std::string path;  // the library that was loaded
    int (*getDevice)(int*);
    int (*setDevice)(int);
    int (*getLastError)();
    const char* (*getErrorString)(int);
    int (*malloc)(void**, size_t);
    int (*free)(void*);
    int (*memset)(void*, int, size_t);
    int (*ipcGetMemHandle)(CudaHandle*, void*);
    int (*ipcOpenMemHandle)(void**, CudaHandle, unsigned);
    int (*ipcCloseMemHandle)(void*);
    int (*eventCreateWithFlags)(void**, unsigned);
    int (*eventDestroy)(void*);
    int (*eventRecord)(void*, void*);
    int (*streamWaitEvent)(void*, void*, unsigned);
    int (*ipcGetEventHandle)(CudaHandle*, void*);
    int (*ipcOpenEventHandle)(void**, CudaHandle);
    int (*hostRegister)(void*, size_t, unsigned);
    int (*hostUnregister)(void*);
};

using Runtime = std::shared_ptr<const CudaRuntime>;

// The first of `names` (a soname or a path) that this process has loaded already, else the first that can be.
// Throws std::runtime_error that says why each could not.
Runtime load_cuda(const std::vector<std::string>& names);

// Memory of a GPU, cudaMalloc'ed here or opened from a handle; freed or closed when the struct goes.
struct CudaMemory {
    Runtime runtime;
    int device = 0;
    void* data = nullptr;
    size_t bytes = 0;
    bool imported = false;

    CudaMemory() = default;
    CudaMemory(const CudaMemory&) = delete;
    CudaMemory& operator=(const CudaMemory&) = delete;
    ~CudaMemory();
};

std::shared_ptr<CudaMemory> create_cuda_memory(const Runtime& runtime, int device, size_t bytes);  // zeros
std::shared_ptr<CudaMemory> open_cuda_memory(const Runtime& runtime, int device, size_t bytes,
                                             const CudaHandle& handle);
CudaHandle handle_of(const CudaMemory& memory);

// An event without timing that other processes can wait for.
struct CudaEvent {
    Runtime runtime;
    int device = 0;
    void* event = nullptr;

    CudaEvent() = default;
    CudaEvent(const CudaEvent&) = delete;
    CudaEvent& operator=(const CudaEvent&) = delete;
    ~CudaEvent();
};

std::shared_ptr<CudaEvent> create_cuda_event(const Runtime& runtime, int device);
std::shared_ptr<CudaEvent> open_cuda_event(const Runtime& runtime, int device, const CudaHandle& handle);
CudaHandle handle_of(const CudaEvent& event);
void record(const CudaEvent& event, uintptr_t stream);
// The stream's later work waits for the latest record at the time of this call, of whatever process.
void wait(const CudaEvent& event, uintptr_t stream);

// Shared memory of the CPU, pinned for the GPUs of this process; let go when the struct goes.
struct PinnedMemory {
    Runtime runtime;
    std::shared_ptr<SharedMemory> memory;

    PinnedMemory() = default;
    PinnedMemory(const PinnedMemory&) = delete;
    PinnedMemory& operator=(const PinnedMemory&) = delete;
    ~PinnedMemory();
};

std::shared_ptr<PinnedMemory> pin(const Runtime& runtime, int device,
                                  const std::shared_ptr<SharedMemory>& memory);

}  // namespace g2rpo
