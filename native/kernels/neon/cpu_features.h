// Whether this ARM CPU has the dot products of ARMv8.2 and the int8 matrix products of ARMv8.6.
#pragma once

#if defined(__APPLE__)
#include <sys/sysctl.h>

#include <cstddef>
#else
#include <asm/hwcap.h>
#include <sys/auxv.h>
#ifndef HWCAP2_I8MM  // Linux headers before 5.10
#define HWCAP2_I8MM (1 << 13)
#endif
#endif

#include "simd/target.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

#if defined(__APPLE__)
inline bool has_feature(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
inline bool has_dotprod() { return has_feature("hw.optional.arm.FEAT_DotProd"); }
inline bool has_i8mm() { return has_feature("hw.optional.arm.FEAT_I8MM"); }
#else
inline bool has_dotprod() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }
inline bool has_i8mm() { return getauxval(AT_HWCAP2) & HWCAP2_I8MM; }
#endif

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
