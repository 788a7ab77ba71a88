// Whether tiles can be used: the CPU has AMX for int8 and Linux gives permission.
#pragma once

#ifndef YOCOBIT_EMULATED
#include <cpuid.h>

#include <cstdint>
#endif

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "simd/target.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

#ifdef YOCOBIT_EMULATED

inline bool has_tiles() { return true; }

#else

// The CPU has the instructions and the system saves the registers, XTILECFG and XTILEDATA.
inline bool has_amx() {
  constexpr uint32_t kOsXsave = 1u << 27, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
  constexpr uint32_t kTileState = 1u << 17 | 1u << 18;
  uint32_t eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & kOsXsave)) return false;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if (!(edx & kAmxTile) || !(edx & kAmxInt8)) return false;
  asm volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return (eax & kTileState) == kTileState;
}

// Linux permits tile data to a process that requests it: to all its threads, and to children that
// it forks. It is denied (ENOSPC) if a thread has an alternate signal stack that is too small for
// tile data, as that of faulthandler was before Python 3.9.12 and 3.10.4: the family is not
// supported then.
inline bool is_permitted() {
#ifdef __linux__
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

inline bool has_tiles() { return has_amx() && is_permitted(); }

#endif

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
