#include "model/tensor_contents.h"

#include <algorithm>
#include <bit>
#include <cstdio>

namespace yocobit {
namespace {

// Items between two tests of the result: the loop over them is vectorised.
constexpr int64_t kRun = 4096;

// `invalid(item)` is not 0 for an invalid item.
template <typename T, T (*invalid)(T)>
int64_t find_invalid(const void* data, int64_t begin, int64_t end) {
  const T* items = static_cast<const T*>(data);
  for (int64_t first = begin; first < end; first += kRun) {
    const int64_t last = std::min(first + kRun, end);
    T found = 0;
    for (int64_t i = first; i < last; ++i) found |= invalid(items[i]);
    if (!found) continue;
    return std::find_if(items + first, items + last, [](T item) { return invalid(item) != 0; }) -
           items;
  }
  return end;
}

uint8_t is_code_3(uint8_t codes) { return codes & codes >> 1 & 0x55; }
uint8_t is_int8_min(uint8_t code) { return code == 0x80; }
uint32_t is_not_finite(uint32_t bits) { return (bits & 0x7f800000u) == 0x7f800000u; }
uint16_t is_not_finite_f16(uint16_t bits) { return (bits & 0x7c00u) == 0x7c00u; }
uint32_t is_not_positive(uint32_t bits) { return bits - 1 >= 0x7f7fffffu; }
uint16_t is_negative_f16(uint16_t bits) { return bits >= 0x7c00u; }

std::string describe_code_3(const void*, int64_t) { return "3"; }
std::string describe_int8(const void*, int64_t) { return "-128"; }

std::string describe_f32(const void* data, int64_t item) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", double{static_cast<const float*>(data)[item]});
  return text;
}

std::string describe_f16(const void* data, int64_t item) {
  const uint16_t bits = static_cast<const uint16_t*>(data)[item];
  const std::string sign = bits & 0x8000u ? "-" : "";
  if ((bits & 0x7c00u) != 0x7c00u) return "negative";
  return sign + (bits & 0x3ffu ? "nan" : "inf");
}

}  // namespace

const ContentRule kTernaryCodes = {"hold codes 0 to 2", 1, find_invalid<uint8_t, is_code_3>,
                                   describe_code_3};
const ContentRule kInt8Codes = {"hold values from -127 to 127", 1,
                                find_invalid<uint8_t, is_int8_min>, describe_int8};
const ContentRule kFiniteF32 = {"be finite", 4, find_invalid<uint32_t, is_not_finite>,
                                describe_f32};
const ContentRule kFiniteF16 = {"be finite", 2, find_invalid<uint16_t, is_not_finite_f16>,
                                describe_f16};
const ContentRule kPositiveF32 = {"be finite and positive", 4,
                                  find_invalid<uint32_t, is_not_positive>, describe_f32};
const ContentRule kNotNegativeF16 = {"be finite and not negative", 2,
                                     find_invalid<uint16_t, is_negative_f16>, describe_f16};

}  // namespace yocobit
