#include "engine/forward_pass.h"

namespace yocobit {
namespace {

// Values of a row of int8 codes, and of int16 codes, of K values.
int int8_row_size(int K) { return static_cast<int>(round_up(K, kSignBlock)); }
int int16_row_size(int K) { return static_cast<int>(round_up(K, kInt4Block)); }

}  // namespace

ActivationEncodings::ActivationEncodings(LinearOutputs outputs) {
  for (const LinearOutput& output : outputs) {
    const ActivationEncoding encoding = output.linear->format->activations;
    float32 |= encoding == ActivationEncoding::float32;
    int8_per_token |= encoding == ActivationEncoding::int8_per_token;
    int16_per_token |= encoding == ActivationEncoding::int16_per_token;
    int8_per_group |= encoding == ActivationEncoding::int8_per_group;
  }
}

Activations ForwardPass::encode(const float* x, int n, const float* norm,
                                LinearOutputs outputs) const {
  Workspace& ws = workspace;
  const int K = outputs.begin()->linear->k;
  const float* own_norm = outputs.begin()->linear->norm;
  const ActivationEncodings needs(outputs);
  if (norm || own_norm || needs.int8_per_token || needs.int16_per_token || needs.int8_per_group) {
    pool.parallel_for(n, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const float* from = x + row * K;
        const auto normalize = [&](const float* weight, float eps) {
          float* normed = &ws.normed[row * K];
          kernels.rms_norm(from, weight, K, eps, normed);
          from = normed;
        };
        if (norm) normalize(norm, model.config.norm_eps);
        if (own_norm) normalize(own_norm, model.config.projection_norm_eps);
        quantize_row(from, K, row, needs);
      }
    });
  }
  const int int8_size = int8_row_size(K);
  return {.values = norm || own_norm ? ws.normed.get() : x,
          .int8 = {.codes = ws.int8_codes.get(),
                   .scales = ws.int8_scales.get(),
                   .sums = ws.int8_sums.get(),
                   .n = n,
                   .stride = int8_size},
          .int16 = {.codes = ws.int16_codes.get(),
                    .sums = ws.int16_sums.get(),
                    .scales = ws.int16_scales.get(),
                    .n = n,
                    .stride = int16_row_size(K)},
          .grouped = {.codes = ws.grouped_codes.get(),
                      .scales = ws.grouped_scales.get(),
                      .sums = ws.grouped_sums.get(),
                      .n = n,
                      .stride = int8_size,
                      .n_parts = model.config.activation_parts()},
          .n = n,
          .k = K};
}

// Write a row x [K] to the buffers of the encodings.
void ForwardPass::quantize_row(const float* x, int K, int64_t row,
                               const ActivationEncodings& encodings) const {
  Workspace& ws = workspace;
  const int int8_size = int8_row_size(K), int16_size = int16_row_size(K);
  if (encodings.int8_per_token) {
    kernels.quantize_int8_row(x, K, int8_size, &ws.int8_codes[row * int8_size],
                              &ws.int8_scales[row], &ws.int8_sums[row]);
  }
  if (encodings.int16_per_token) {
    kernels.quantize_int16_row(x, K, int16_size, &ws.int16_codes[row * int16_size],
                               &ws.int16_scales[row],
                               &ws.int16_sums[row * (int16_size / kInt4Block)]);
  }
  if (encodings.int8_per_group) {
    const int n_parts = model.config.activation_parts(), n_groups = int8_size / kActivationGroup;
    kernels.quantize_grouped_row(
        x, K, int8_size, n_parts, int8_size, &ws.grouped_codes[row * n_parts * int8_size],
        &ws.grouped_scales[row * n_groups], &ws.grouped_sums[row * n_groups]);
  }
}

void ForwardPass::copy_encoded(const Activations& x, LinearOutputs outputs, int from,
                               int to) const {
  const auto copy_row = [&](auto* values, int64_t row_size) {
    std::copy_n(values + from * row_size, row_size, values + to * row_size);
  };
  const ActivationEncodings encodings(outputs);
  Workspace& ws = workspace;
  if (encodings.float32) copy_row(ws.normed.get(), x.k);
  if (encodings.int8_per_token) {
    copy_row(ws.int8_codes.get(), x.int8.stride);
    copy_row(ws.int8_scales.get(), 1);
    copy_row(ws.int8_sums.get(), 1);
  }
  if (encodings.int16_per_token) {
    copy_row(ws.int16_codes.get(), x.int16.stride);
    copy_row(ws.int16_scales.get(), 1);
    copy_row(ws.int16_sums.get(), x.int16.stride / kInt4Block);
  }
  if (encodings.int8_per_group) {
    const int n_groups = x.grouped.stride / kActivationGroup;
    copy_row(ws.grouped_codes.get(), int64_t{x.grouped.n_parts} * x.grouped.stride);
    copy_row(ws.grouped_scales.get(), n_groups);
    copy_row(ws.grouped_sums.get(), n_groups);
  }
}

// Whether threads split the rows of the batch rather than output features: an int8 kernel then
// prepares each block of rows once for all weights.
bool ForwardPass::splits_rows(LinearOutputs outputs) const {
  return batch.size() >= kTokenBlock * pool.size() &&
         std::all_of(outputs.begin(), outputs.end(), [](const LinearOutput& output) {
           return output.linear->format->activations == ActivationEncoding::int8_per_token;
         });
}

Activations ForwardPass::project(const float* x, const float* norm, LinearOutputs outputs) const {
  if (have_own_inputs(outputs)) {
    Activations input = {};
    for (const LinearOutput& output : outputs) input = project(x, norm, {output});
    return input;
  }
  const Activations input = encode(x, batch.size(), norm, outputs);
  if (splits_rows(outputs)) {
    apply_by_rows(input, outputs, [](int, int) {});
    return input;
  }
  int n_groups = 0;
  for (const LinearOutput& output : outputs) n_groups += output.linear->n_groups();
  pool.parallel_for(n_groups, [&](int64_t begin, int64_t end) {
    int64_t first = 0;  // group of this output, counted over all
    for (const auto& [linear, y] : outputs) {
      const int64_t n = linear->n_groups();
      const int64_t from = std::max(begin - first, int64_t{0}), to = std::min(end - first, n);
      if (from < to) {
        linear->apply(kernels, input, static_cast<int>(from), static_cast<int>(to), y, linear->m);
      }
      first += n;
    }
  });
  return input;
}

void ForwardPass::add_to_stream(const Linear& linear, const float* x, const float* norm,
                                const float* post_norm) const {
  float* y = workspace.q.get();  // the queries are no longer needed
  project_to_stream(linear, x, norm, y, [](int, int, int, int) {}, post_norm);
}

void ForwardPass::add_part(int row_begin, int row_end, int begin, int end, float* y) const {
  const int C = model.config.d_model;
  const float scale = model.config.residual_scale;
  for (int row = row_begin; row < row_end; ++row) {
    const size_t at = static_cast<size_t>(row) * C;
    if (scale != 1.0f) {
      for (int c = begin; c < end; ++c) y[at + c] *= scale;
    }
    kernels.add(&y[at + begin], end - begin, &workspace.stream[at + begin]);
  }
}

void ForwardPass::add_normed(const float* post_norm, float* y) const {
  const int C = model.config.d_model;
  pool.parallel_for(batch.size(), [&](int64_t begin, int64_t end) {
    for (int row = static_cast<int>(begin); row < end; ++row) {
      float* x = y + static_cast<size_t>(row) * C;
      kernels.rms_norm(x, post_norm, C, model.config.norm_eps, x);
      add_part(row, row + 1, 0, C, y);
    }
  });
}

}  // namespace yocobit
