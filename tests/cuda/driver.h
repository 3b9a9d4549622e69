// The NVIDIA driver beside the library, in the same process and the same contexts: what a test does to a GPU without a hand in
// Duet. Found at run time, so that these programs also start where there is no driver.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace gpu {

int count();  // that the driver shows; 0 without a driver

struct Room {
  uint64_t free, total;  // bytes
};
Room room(int device);

// All memory of a device but about `left` bytes, until it goes.
class Filler {
 public:
  Filler(int device, uint64_t left);
  ~Filler();
  Filler(const Filler&) = delete;
  Filler& operator=(const Filler&) = delete;

 private:
  int device_;
  std::vector<unsigned long long> pieces_;
};

// Runs a kernel that ends in a trap, which the driver never forgives. "", or why it could not.
std::string trap(int device);

}  // namespace gpu
