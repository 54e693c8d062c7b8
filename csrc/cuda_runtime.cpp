#include "cuda_runtime.h"

#include <stdexcept>

#ifdef __linux__
#include <dlfcn.h>
#endif

namespace g2rpo {
namespace {

constexpr unsigned kDisableTiming = 2, kInterprocess = 4;  // cudaEventCreateWithFlags
constexpr unsigned kLazyPeerAccess = 1;                    // cudaIpcOpenMemHandle
constexpr unsigned kPortable = 1;                          // cudaHostRegister
constexpr size_t kBlock = size_t{2} << 20;  // cudaMalloc cuts smaller ones from a block that a handle exports

// A failed call also leaves its error for whoever asks next, which would be PyTorch: taken away.
void check(const CudaRuntime& runtime, int code, const std::string& what) {
    if (code == 0) return;
    runtime.getLastError();
    throw std::runtime_error("CUDA: " + what + ": " + runtime.getErrorString(code) + " (error " +
                             std::to_string(code) + ", " + runtime.path + ")");
}

// Makes a device current and, at the end, the one that was.
class OnDevice {
  public:
    OnDevice(const CudaRuntime& runtime, int device) : runtime_(runtime) {
        check(runtime, runtime.getDevice(&before_), "no current device");
        check(runtime, runtime.setDevice(device), "cannot use device " + std::to_string(device));
    }
    ~OnDevice() { runtime_.setDevice(before_); }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

  private:
    const CudaRuntime& runtime_;
    int before_ = 0;
};

// Where nothing may throw. Errors here mean that the driver is shutting down and has freed all itself.
template <class Call>
void release(const CudaRuntime& runtime, int device, Call call) {
    int before = 0;
    const bool switched = runtime.getDevice(&before) == 0 && runtime.setDevice(device) == 0;
    if (switched) call();
    if (switched) runtime.setDevice(before);
    runtime.getLastError();
}

#ifdef __linux__

void* open_library(const std::vector<std::string>& names, std::string& path) {
    for (const int already : {RTLD_NOLOAD, 0}) {
        for (const std::string& name : names) {
            void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | already);
            if (library == nullptr) continue;
            path = name;
            return library;
        }
    }
    return nullptr;
}

template <class Function>
void find(void* library, const std::string& path, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr) throw std::runtime_error("CUDA: " + path + " has no " + name);
}

#endif

}  // namespace

#ifdef __linux__

Runtime load_cuda(const std::vector<std::string>& names) {
    auto found = std::make_shared<CudaRuntime>();
    CudaRuntime& runtime = *found;
    void* const library = open_library(names, runtime.path);
    if (library == nullptr) {
        std::string tried;
        for (const std::string& name : names) {
            dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
            const char* const why = dlerror();
            tried += "\n  " + (why == nullptr ? name : std::string(why));
        }
        throw std::runtime_error("CUDA: wanted the CUDA runtime (libcudart), got none; tried:" + tried);
    }
    const auto get = [&](const char* name, auto& function) { find(library, runtime.path, name, function); };
    get("cudaGetDevice", runtime.getDevice);
    get("cudaSetDevice", runtime.setDevice);
    get("cudaGetLastError", runtime.getLastError);
    get("cudaGetErrorString", runtime.getErrorString);
    get("cudaMalloc", runtime.malloc);
    get("cudaFree", runtime.free);
    get("cudaMemset", runtime.memset);
    get("cudaIpcGetMemHandle", runtime.ipcGetMemHandle);
    get("cudaIpcOpenMemHandle", runtime.ipcOpenMemHandle);
    get("cudaIpcCloseMemHandle", runtime.ipcCloseMemHandle);
    get("cudaEventCreateWithFlags", runtime.eventCreateWithFlags);
    get("cudaEventDestroy", runtime.eventDestroy);
    get("cudaEventRecord", runtime.eventRecord);
    get("cudaStreamWaitEvent", runtime.streamWaitEvent);
    get("cudaIpcGetEventHandle", runtime.ipcGetEventHandle);
    get("cudaIpcOpenEventHandle", runtime.ipcOpenEventHandle);
    get("cudaHostRegister", runtime.hostRegister);
    get("cudaHostUnregister", runtime.hostUnregister);
    return found;
}

#else

Runtime load_cuda(const std::vector<std::string>&) {
    throw std::runtime_error("CUDA: the weight arena needs Linux");
}

#endif

CudaMemory::~CudaMemory() {
    if (data == nullptr) return;
    release(*runtime, device, [&] { imported ? runtime->ipcCloseMemHandle(data) : runtime->free(data); });
}

std::shared_ptr<CudaMemory> create_cuda_memory(const Runtime& runtime, int device, size_t bytes) {
    auto memory = std::make_shared<CudaMemory>();
    memory->runtime = runtime;
    memory->device = device;
    memory->bytes = bytes;
    const OnDevice on(*runtime, device);
    const size_t whole = (bytes + kBlock - 1) / kBlock * kBlock;
    check(*runtime, runtime->malloc(&memory->data, whole),
          "cannot allocate " + std::to_string(whole) + " bytes of device " + std::to_string(device));
    check(*runtime, runtime->memset(memory->data, 0, whole), "cannot clear the arena's memory");
    return memory;
}

std::shared_ptr<CudaMemory> open_cuda_memory(const Runtime& runtime, int device, size_t bytes,
                                             const CudaHandle& handle) {
    auto memory = std::make_shared<CudaMemory>();
    memory->runtime = runtime;
    memory->device = device;
    memory->bytes = bytes;
    memory->imported = true;
    const OnDevice on(*runtime, device);
    check(*runtime, runtime->ipcOpenMemHandle(&memory->data, handle, kLazyPeerAccess),
          "cannot open another process's memory on device " + std::to_string(device));
    return memory;
}

CudaHandle handle_of(const CudaMemory& memory) {
    CudaHandle handle{};
    const OnDevice on(*memory.runtime, memory.device);
    check(*memory.runtime, memory.runtime->ipcGetMemHandle(&handle, memory.data),
          "IPC refused for memory of device " + std::to_string(memory.device));
    return handle;
}

CudaEvent::~CudaEvent() {
    if (event != nullptr) release(*runtime, device, [&] { runtime->eventDestroy(event); });
}

std::shared_ptr<CudaEvent> create_cuda_event(const Runtime& runtime, int device) {
    auto made = std::make_shared<CudaEvent>();
    made->runtime = runtime;
    made->device = device;
    const OnDevice on(*runtime, device);
    check(*runtime, runtime->eventCreateWithFlags(&made->event, kDisableTiming | kInterprocess),
          "cannot create an event for other processes");
    return made;
}

std::shared_ptr<CudaEvent> open_cuda_event(const Runtime& runtime, int device, const CudaHandle& handle) {
    auto opened = std::make_shared<CudaEvent>();
    opened->runtime = runtime;
    opened->device = device;
    const OnDevice on(*runtime, device);
    check(*runtime, runtime->ipcOpenEventHandle(&opened->event, handle),
          "cannot open another process's event on device " + std::to_string(device));
    return opened;
}

CudaHandle handle_of(const CudaEvent& event) {
    CudaHandle handle{};
    const OnDevice on(*event.runtime, event.device);
    check(*event.runtime, event.runtime->ipcGetEventHandle(&handle, event.event), "IPC refused for an event");
    return handle;
}

void record(const CudaEvent& event, uintptr_t stream) {
    const OnDevice on(*event.runtime, event.device);
    check(*event.runtime, event.runtime->eventRecord(event.event, reinterpret_cast<void*>(stream)),
          "cannot record an event");
}

void wait(const CudaEvent& event, uintptr_t stream) {
    const OnDevice on(*event.runtime, event.device);
    check(*event.runtime, event.runtime->streamWaitEvent(reinterpret_cast<void*>(stream), event.event, 0),
          "cannot wait for an event");
}

PinnedMemory::~PinnedMemory() {
    if (memory == nullptr) return;
    runtime->hostUnregister(memory->data);
    runtime->getLastError();
}

std::shared_ptr<PinnedMemory> pin(const Runtime& runtime, int device,
                                  const std::shared_ptr<SharedMemory>& memory) {
    auto pinned = std::make_shared<PinnedMemory>();
    const OnDevice on(*runtime, device);
    check(*runtime, runtime->hostRegister(memory->data, memory->bytes, kPortable),
          "cannot pin " + std::to_string(memory->bytes) + " bytes of host memory");
    pinned->runtime = runtime;
    pinned->memory = memory;
    return pinned;
}

}  // namespace g2rpo
