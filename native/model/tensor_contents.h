// The values that a tensor of a packed model may hold. Kernel families agree on these only, so
// every value is checked once before a model is used: one pass over the file.
#pragma once

#include <cstdint>
#include <string>

namespace yocobit {

// A closed set: one rule for each kind of tensor that does not allow all bit patterns.
struct ContentRule {
  const char* text;  // such as "hold codes 0 to 2"
  int item_bytes;

  // The first invalid item of [begin, end), or `end`.
  int64_t (*find_invalid)(const void* data, int64_t begin, int64_t end);

  // The value of an item, for a message.
  std::string (*describe)(const void* data, int64_t item);
};

extern const ContentRule kTernaryCodes;    // bytes of four codes 0, 1 or 2
extern const ContentRule kInt8Codes;       // int8 in [-127, 127]
extern const ContentRule kFiniteF32;       // weights, norms and decays
extern const ContentRule kFiniteF16;       // weights
extern const ContentRule kPositiveF32;     // scales of tensors and rows
extern const ContentRule kNotNegativeF16;  // scales of groups: 0 for a group of zeros

}  // namespace yocobit
