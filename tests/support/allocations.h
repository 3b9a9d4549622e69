// How much memory a call takes at most. Linking allocations.cc counts every `new` of the program.
#pragma once
#include <cstddef>
#include <functional>

// The most bytes that were allocated at once during `call`, above what was allocated before.
size_t peak_allocated(const std::function<void()>& call);
