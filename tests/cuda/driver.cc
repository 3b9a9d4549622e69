#include "cuda/driver.h"

#include <dlfcn.h>

#include <algorithm>
#include <stdexcept>
#include <type_traits>

namespace gpu {
namespace {

using Result = int;  // of cuda.h: CUresult, CUcontext, CUmodule, CUfunction, CUdeviceptr
using Context = void*;
using Address = unsigned long long;

struct Driver {
  Result (*init)(unsigned) = nullptr;
  Result (*count)(int*) = nullptr;
  Result (*retain)(Context*, int) = nullptr;
  Result (*release)(int) = nullptr;
  Result (*push)(Context) = nullptr;
  Result (*pop)(Context*) = nullptr;
  Result (*room)(size_t*, size_t*) = nullptr;
  Result (*allocate)(Address*, size_t) = nullptr;
  Result (*free)(Address) = nullptr;
  Result (*load)(void**, const void*) = nullptr;
  Result (*function)(void**, void*, const char*) = nullptr;
  Result (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**) = nullptr;
  Result (*synchronize)() = nullptr;
  int n_devices = 0;

  Driver() {
    void* so = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!so) return;
    bool all = true;
    const auto look_up = [&](auto& f, const char* name) {
      f = reinterpret_cast<std::remove_reference_t<decltype(f)>>(::dlsym(so, name));
      all &= f != nullptr;
    };
    look_up(init, "cuInit"), look_up(count, "cuDeviceGetCount");
    look_up(retain, "cuDevicePrimaryCtxRetain"), look_up(release, "cuDevicePrimaryCtxRelease_v2");
    look_up(push, "cuCtxPushCurrent_v2"), look_up(pop, "cuCtxPopCurrent_v2");
    look_up(room, "cuMemGetInfo_v2"), look_up(allocate, "cuMemAlloc_v2"), look_up(free, "cuMemFree_v2");
    look_up(load, "cuModuleLoadData"), look_up(function, "cuModuleGetFunction"), look_up(launch, "cuLaunchKernel"), look_up(synchronize, "cuCtxSynchronize");
    if (!all || init(0) != 0 || count(&n_devices) != 0) n_devices = 0;
  }
};

const Driver& driver() {
  static const Driver d;
  return d;
}

void must(Result r, const char* what) {
  if (r != 0) throw std::runtime_error(std::string(what) + " failed with " + std::to_string(r));
}

// The context that the CUDA runtime uses too, the thread's while this lives.
class Primary {
 public:
  explicit Primary(int device) : device_(device) {
    Context c = nullptr;
    must(driver().retain(&c, device), "cuDevicePrimaryCtxRetain");
    must(driver().push(c), "cuCtxPushCurrent");
  }
  ~Primary() {
    Context c = nullptr;
    driver().pop(&c);
    driver().release(device_);
  }
  Primary(const Primary&) = delete;
  Primary& operator=(const Primary&) = delete;

 private:
  int device_;
};

// For compute capability 8.0 and newer, as the backend is.
constexpr const char* kTrap = R"(
.version 7.0
.target sm_80
.address_size 64
.visible .entry fault() { trap; }
)";

}  // namespace

int count() { return driver().n_devices; }

Room room(int device) {
  const Primary here(device);
  size_t free = 0, total = 0;
  must(driver().room(&free, &total), "cuMemGetInfo");
  return {free, total};
}

Filler::Filler(int device, uint64_t left) : device_(device) {
  const Primary here(device);
  constexpr uint64_t kSmallest = 1 << 20;
  const auto to_fill = [&] {
    size_t free = 0, total = 0;
    must(driver().room(&free, &total), "cuMemGetInfo");
    return free > left ? free - left : 0;
  };
  uint64_t piece = to_fill();
  while (piece >= kSmallest) {
    Address at = 0;
    if (driver().allocate(&at, piece) == 0)
      pieces_.push_back(at), piece = std::min<uint64_t>(piece, to_fill());
    else
      piece /= 2;  // not in one piece
  }
}

Filler::~Filler() {
  const Primary here(device_);
  for (const Address at : pieces_) driver().free(at);
}

std::string trap(int device) {
  const Primary here(device);
  void *module = nullptr, *function = nullptr;
  if (const Result r = driver().load(&module, kTrap); r != 0) return "the driver cannot compile PTX here (" + std::to_string(r) + ")";
  must(driver().function(&function, module, "fault"), "cuModuleGetFunction");
  must(driver().launch(function, 1, 1, 1, 1, 1, 1, 0, nullptr, nullptr, nullptr), "cuLaunchKernel");
  return driver().synchronize() != 0 ? "" : "the trap was not noticed";
}

}  // namespace gpu
