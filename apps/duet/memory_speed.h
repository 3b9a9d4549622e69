// How fast this machine streams memory into its cores: the limit of recurrent mode, whose time goes into reading weights.
#pragma once
#include <cstdint>

namespace duet {

// Bytes per second with which `threads` threads sum a large buffer; about 0.3 s.
double memory_read_speed(uint32_t threads);
// The physical cores of this process's affinity mask, as the library counts them.
uint32_t physical_cores();

}  // namespace duet
