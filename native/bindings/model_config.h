// A model's configuration and tensors, from the objects that yocobit.packing makes.
#pragma once

#include <nanobind/nanobind.h>

#include "model/packed_model.h"

namespace yocobit {

// From ModelConfig.to_dict(); std::invalid_argument for a name that the engine's tables do not have
// or a number that the engine does not support.
ModelConfig model_config(const nanobind::dict& fields);

// From {name: (dtype, shape, begin, end)} and the weight formats of the matrices, {name: format}.
TensorEntries tensor_entries(const nanobind::dict& tensors, const nanobind::dict& formats);

}  // namespace yocobit
