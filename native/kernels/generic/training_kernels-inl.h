// The generic training kernels, as entries of a family's record.
#pragma once

#include "kernels/generic/input_gradient-inl.h"
#include "kernels/generic/training_forward-inl.h"
#include "kernels/generic/weight_gradient-inl.h"
#include "kernels/training_kernels.h"
#include "simd/target.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr TrainingKernels kGenericTrainingKernels = {
    .quantize_rows = quantize_rows,
    .pack = pack,
    .project = project,
    .pack_transposed = pack_transposed,
    .input_gradient = input_gradient,
    .weight_gradient = weight_gradient,
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
