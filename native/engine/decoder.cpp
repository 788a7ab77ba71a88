#include "engine/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "engine/session.h"

namespace yocobit {
namespace {

// sigmoid(logit)^(1/16). In double: one scalar per head and token decides how far a layer sees.
float decay_from_logit(float logit) {
  const double z = logit;
  const double log_sigmoid = z < 0 ? z - std::log1p(std::exp(z)) : -std::log1p(std::exp(-z));
  return static_cast<float>(std::exp(log_sigmoid / 16));
}

bool has_mixer(const ModelConfig& config, Mixer mixer) {
  return std::find(config.layers.begin(), config.layers.end(), mixer) != config.layers.end();
}

// The rope of a mixer, or none where no layer has it: its angles are then never computed.
RopeKind rope_if_present(const ModelConfig& config, Mixer mixer, RopeKind kind) {
  return has_mixer(config, mixer) ? kind : RopeKind::none;
}

}  // namespace

template <typename T>
Buffer<T> Decoder::allocate(size_t n) {
  buffer_bytes_ += static_cast<int64_t>(n * sizeof(T));
  return make_buffer<T>(n);
}

Decoder::Decoder(const PackedModel& model, const Kernels& kernels, ThreadPool& pool)
    : model_(model),
      kernels_(kernels),
      pool_(pool),
      retention_rotation_(
          rope_if_present(model.config, Mixer::retention, model.config.retention_rope),
          model.config.self_head_dim(), model.config.rope_theta, kMaxRows),
      window_rotation_(rope_if_present(model.config, Mixer::window, model.config.window_rope),
                       model.config.self_head_dim(), model.config.rope_theta, kMaxRows),
      full_rotation_(rope_if_present(model.config, Mixer::full, model.config.full_rope),
                     model.config.head_dim(), model.config.rope_theta, kMaxRows),
      cross_rotation_(rope_if_present(model.config, Mixer::cross, model.config.cross_rope),
                      model.config.head_dim(), model.config.rope_theta, kMaxRows) {
  for (Rotation* rotation :
       {&retention_rotation_, &window_rotation_, &full_rotation_, &cross_rotation_}) {
    const bool is_shared = std::any_of(turned_.begin(), turned_.end(),
                                       [&](Rotation* other) { return rotation->share(*other); });
    if (!is_shared) turned_.push_back(rotation);
  }
  const size_t N = kMaxRows, C = model.config.d_model, F = model.config.d_ff;
  const size_t wide = std::max(C, F);
  code_stride_ = static_cast<int>(round_up(wide, kSignBlock));
  x_ = allocate<float>(N * C);
  normed_ = allocate<float>(N * wide);
  codes_ = allocate<int8_t>(N * code_stride_);
  wide_stride_ = static_cast<int>(round_up(C, kInt4Block));
  wide_codes_ = allocate<int16_t>(N * wide_stride_);
  wide_sums_ = allocate<int32_t>(N * wide_stride_ / kInt4Block);
  code_scales_ = allocate<float>(N);
  code_sums_ = allocate<int32_t>(N);
  for (Buffer<float>* buffer : {&q_, &k_, &v_, &g_, &y_}) *buffer = allocate<float>(N * C);
  if (has_mixer(model.config, Mixer::gmu)) memory_ = allocate<float>(N * C);
  decay_ = allocate<float>(N * model.config.n_self_heads);
  gate_ = allocate<float>(N * F);
  up_ = allocate<float>(N * F);
  rows_.reserve(N);
  segments_.reserve(N);
  int64_t size = 0;  // of a partial result of all heads, where they are widest
  for (const Mixer mixer : model.config.layers) {
    if (mixer == Mixer::retention || mixer == Mixer::gmu) continue;
    const int H = mixer == Mixer::window ? model.config.n_self_heads : model.config.n_heads;
    size = std::max(size, model.config.d_model + int64_t{H} * kPartialExtra);
  }
  partials_ = allocate<float>(kPartials * size);
  if (model.config.cross_attention != CrossAttention::full) {
    chosen_ = allocate<int32_t>(N * model.config.n_kv_heads * model.config.cross_blocks());
  }
}

void Decoder::forward(const Row* rows, int n, int n_logits, float* logits) {
  rows_.assign(rows, rows + n);
  find_segments();
  pool_.run(n, [&](int64_t begin, int64_t end) {
    for (int row = static_cast<int>(begin); row < end; ++row) {
      for (Rotation* rotation : turned_) rotation->turn(row, rows_[row].position);
    }
  });
  self_decode();
  if (n_logits == 0) return;
  keep_last_rows(n_logits);
  cross_decode();
  write_logits(logits);
}

void Decoder::find_segments() {
  n_ = static_cast<int>(rows_.size());
  segments_.clear();
  for (int row = 0; row < n_; ++row) {
    if (row == 0 || rows_[row].session != rows_[row - 1].session) segments_.push_back({row, row});
    segments_.back().end = row + 1;
  }
}

void Decoder::self_decode() {
  embed();
  for (int i = 0; i < model_.n_self_layers; ++i) {
    const Layer& layer = model_.layers[i];
    if (layer.mixer == Mixer::retention) {
      retain(layer, i);
    } else {
      self_attend(layer, i);
    }
    feed_forward(layer);
  }
  if (!model_.has_cross_decoder()) return;
  if (memory_) std::swap(memory_, y_);  // what the last mixer left, before gate and projection
  prepare(x_.get(), model_.config.d_model, model_.shared_norm);
  apply({{&model_.shared_k, k_.get()}, {&model_.shared_v, v_.get()}});
  store_shared_keys_values();
}

// Early exit: only rows whose logits are asked for go on.
void Decoder::keep_last_rows(int n) {
  const int first = n_ - n, C = model_.config.d_model;
  if (first == 0) return;
  for (float* rows : {x_.get(), memory_.get()}) {
    if (rows) std::memmove(rows, rows + static_cast<size_t>(first) * C, sizeof(float) * n * C);
  }
  rows_.erase(rows_.begin(), rows_.begin() + first);
  find_segments();
  for (int row = 0; row < n; ++row) cross_rotation_.turn(row, rows_[row].position);
}

void Decoder::cross_decode() {
  bool is_first = true;
  for (size_t i = model_.n_self_layers; i < model_.layers.size(); ++i) {
    const Layer& layer = model_.layers[i];
    if (layer.mixer == Mixer::gmu) {
      gate_memory(layer);
    } else {
      cross_attend(layer, is_first);
      is_first = false;
    }
    feed_forward(layer);
  }
}

void Decoder::embed() {
  const DenseMatrix& table = model_.embedding;
  const int C = table.k;
  const float root = model_.config.scale_embedding ? std::sqrt(static_cast<float>(C)) : 1.0f;
  const int64_t row_size = row_bytes(table.type, C);
  for (int row = 0; row < n_; ++row) {
    const int64_t token = rows_[row].token;
    float* x = &x_[static_cast<size_t>(row) * C];
    const uint8_t* stored = static_cast<const uint8_t*>(table.values) + token * row_size;
    kernels_.load(stored, table.scales ? table.scales[token] : 1.0f, C, table.type, x);
    for (int c = 0; c < C; ++c) x[c] *= root;
  }
}

void Decoder::write_logits(float* logits) {
  const DenseMatrix& head = model_.head;
  const int V = model_.config.vocab_size, C = model_.config.d_model;
  const bool is_int4 = model_.int4_head.has_value();
  const bool is_integer = is_int4 || head.type == FloatType::i8;
  pool_.run(n_, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* normed = &normed_[row * C];
      kernels_.rms_norm(&x_[row * C], model_.norm, C, model_.config.norm_eps, normed);
      if (!is_integer) continue;
      kernels_.quantize_wide_row(normed, C, wide_stride_, &wide_codes_[row * wide_stride_],
                                 &code_scales_[row], &wide_sums_[row * wide_stride_ / kInt4Block]);
    }
  });
  const WideRows x = {.codes = wide_codes_.get(),
                      .sums = wide_sums_.get(),
                      .scales = code_scales_.get(),
                      .n = n_,
                      .stride = wide_stride_};
  pool_.run((V + kRowsPerGroup - 1) / kRowsPerGroup, [&](int64_t begin, int64_t end) {
    const int group_begin = static_cast<int>(begin), group_end = static_cast<int>(end);
    const int first = group_begin * kRowsPerGroup, last = std::min(group_end * kRowsPerGroup, V);
    if (is_int4) {
      kernels_.int4_matmul(*model_.int4_head, x, group_begin, group_end, logits, V);
    } else if (is_integer) {
      kernels_.int8_matmul(head, x, first, last, logits, V);
    } else {
      kernels_.dense_matmul(head, normed_.get(), n_, first, last, logits, V);
    }
  });
}

void Decoder::feed_forward(const Layer& layer) {
  const FeedForwardKind kind = model_.config.ffn;
  const int F = model_.config.d_ff;
  prepare(x_.get(), model_.config.d_model, layer.ffn_norm);
  const auto activate = [&](int row_begin, int row_end, int begin, int end) {
    for (int row = row_begin; row < row_end; ++row) {
      float* gate = &gate_[static_cast<size_t>(row) * F + begin];
      const float* up = &up_[static_cast<size_t>(row) * F + begin];
      if (kind == FeedForwardKind::swiglu) kernels_.silu_multiply(gate, up, end - begin, gate);
      if (kind == FeedForwardKind::relu2) kernels_.relu2_multiply(gate, up, end - begin, gate);
      if (kind == FeedForwardKind::sign) kernels_.sign(up, end - begin, gate);
    }
  };
  if (kind == FeedForwardKind::sign) {
    apply_alike({{&layer.up, up_.get()}}, activate);
  } else {
    apply_alike({{&layer.gate, gate_.get()}, {&layer.up, up_.get()}}, activate);
  }
  project_out(layer.down, gate_.get(), layer.down_norm);
}

void Decoder::retain(const Layer& layer, int index) {
  const ModelConfig& config = model_.config;
  const int C = config.d_model, H = config.n_self_heads, D = config.self_head_dim();
  const float key_scale = 1.0f / std::sqrt(static_cast<float>(D));
  prepare(x_.get(), C, layer.mixer_norm);
  apply({{&layer.q, q_.get()}, {&layer.k, k_.get()}, {&layer.v, v_.get()}, {&layer.g, g_.get()}});
  pool_.run(static_cast<int64_t>(segments_.size()) * H, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const Segment& segment = segments_[item / H];
      const int head = static_cast<int>(item % H), n = segment.end - segment.begin;
      const size_t at = static_cast<size_t>(segment.begin) * C + head * D;
      float* decays = &decay_[static_cast<size_t>(head) * kMaxRows + segment.begin];
      kernels_.dense_matmul(layer.decay.row(head), &normed_[static_cast<size_t>(segment.begin) * C],
                            n, 0, 1, decays, 1);
      for (int i = 0; i < n; ++i) {
        float* k = &k_[at + static_cast<size_t>(i) * C];
        decays[i] = decay_from_logit(decays[i]);
        retention_rotation_.apply(kernels_, segment.begin + i,
                                  &q_[at + static_cast<size_t>(i) * C]);
        retention_rotation_.apply(kernels_, segment.begin + i, k);
        for (int d = 0; d < D; ++d) k[d] *= key_scale;
      }
      float* state = rows_[segment.begin].session->layers[index].retention.get();
      kernels_.retain(state + static_cast<size_t>(head) * D * D, &q_[at], &k_[at], &v_[at], C,
                      decays, n, D, &y_[at]);
      for (int i = 0; i < n; ++i) {
        float* y = &y_[at + static_cast<size_t>(i) * C];
        kernels_.rms_norm(y, nullptr, D, config.norm_eps, y);
        float* g = &g_[at + static_cast<size_t>(i) * C];
        kernels_.silu_multiply(g, y, D, g);
      }
    }
  });
  project_out(layer.out, g_.get(), layer.out_norm);
}

void Decoder::gate_memory(const Layer& layer) {
  const int C = model_.config.d_model;
  prepare(x_.get(), C, layer.mixer_norm);
  apply_alike({{&layer.g, g_.get()}}, [&](int row_begin, int row_end, int begin, int end) {
    for (int row = row_begin; row < row_end; ++row) {
      const size_t at = static_cast<size_t>(row) * C + begin;
      kernels_.silu_multiply(&g_[at], &memory_[at], end - begin, &g_[at]);
    }
  });
  project_out(layer.out, g_.get(), layer.out_norm);
}

// stream += linear(norm(x)).
void Decoder::project_out(const Linear& linear, float* x, const float* norm) {
  const int C = linear.m;
  prepare(x, linear.k, norm);
  apply_alike({{&linear, q_.get()}}, [&](int row_begin, int row_end, int begin, int end) {
    for (int row = row_begin; row < row_end; ++row) {
      const size_t at = static_cast<size_t>(row) * C + begin;
      kernels_.add(&q_[at], end - begin, &x_[at]);
    }
  });
}

// Make x [N][size], normalised if norm is given, the input of the next projections.
void Decoder::prepare(const float* x, int size, const float* norm) {
  const int padded = static_cast<int>(round_up(size, kSignBlock));
  pool_.run(n_, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* from = x + row * size;
      float* to = &normed_[row * size];
      if (norm) {
        kernels_.rms_norm(from, norm, size, model_.config.norm_eps, to);
      } else {
        std::memcpy(to, from, size * sizeof(float));
      }
      if (model_.config.weights == WeightKind::dense) continue;
      kernels_.quantize_row(to, size, padded, &codes_[row * code_stride_], &code_scales_[row],
                            &code_sums_[row]);
    }
  });
}

// Whether threads share the rows at work, rather than output features: what a kernel prepares for a
// block of rows then serves all weights.
bool Decoder::shares_rows() const {
  return model_.config.weights != WeightKind::dense && n_ >= kTokenBlock * pool_.size();
}

// y [N][M] = W times what prepare() left, for projections of the same input.
void Decoder::apply(std::initializer_list<Output> outputs) {
  if (shares_rows()) {
    apply_to_blocks(outputs, [](int, int) {});
    return;
  }
  int n_groups = 0;
  for (const Output& output : outputs) n_groups += output.linear->n_groups();
  pool_.run(n_groups, [&](int64_t begin, int64_t end) {
    int64_t first = 0;  // group of this output, counted over all
    for (const Output& output : outputs) {
      const int64_t n = output.linear->n_groups();
      const int64_t from = std::max(begin - first, int64_t{0}), to = std::min(end - first, n);
      if (from < to) apply_rows(output, static_cast<int>(from), static_cast<int>(to), 0, n_);
      first += n;
    }
  });
}

// The same for projections alike in M, each thread then calling finish(row_begin, row_end, begin,
// end) for the rows and features that it has computed of all of them.
template <typename Finish>
void Decoder::apply_alike(std::initializer_list<Output> outputs, const Finish& finish) {
  const Linear& first = *outputs.begin()->linear;
  if (shares_rows()) {
    apply_to_blocks(outputs,
                    [&](int row_begin, int row_end) { finish(row_begin, row_end, 0, first.m); });
    return;
  }
  pool_.run(first.n_groups(), [&](int64_t begin, int64_t end) {
    const int group_begin = static_cast<int>(begin), group_end = static_cast<int>(end);
    for (const Output& output : outputs) apply_rows(output, group_begin, group_end, 0, n_);
    finish(0, n_, group_begin * kRowsPerGroup, std::min(group_end * kRowsPerGroup, first.m));
  });
}

template <typename Finish>
void Decoder::apply_to_blocks(std::initializer_list<Output> outputs, const Finish& finish) {
  pool_.run((n_ + kTokenBlock - 1) / kTokenBlock, [&](int64_t begin, int64_t end) {
    const int row_begin = static_cast<int>(begin) * kTokenBlock;
    const int row_end = std::min(static_cast<int>(end) * kTokenBlock, n_);
    for (const Output& output : outputs) {
      apply_rows(output, 0, output.linear->n_groups(), row_begin, row_end);
    }
    finish(row_begin, row_end);
  });
}

// Groups of eight output features by the given rows.
void Decoder::apply_rows(const Output& output, int group_begin, int group_end, int row_begin,
                         int row_end) {
  const Linear& linear = *output.linear;
  float* y = output.y + static_cast<ptrdiff_t>(row_begin) * linear.m;
  if (linear.kind == WeightKind::dense) {
    kernels_.dense_matmul(linear.dense, &normed_[static_cast<size_t>(row_begin) * linear.k],
                          row_end - row_begin, group_begin * kRowsPerGroup,
                          std::min(group_end * kRowsPerGroup, linear.m), y, linear.m);
    return;
  }
  const QuantizedRows x = {.codes = &codes_[static_cast<size_t>(row_begin) * code_stride_],
                           .scales = &code_scales_[row_begin],
                           .sums = &code_sums_[row_begin],
                           .n = row_end - row_begin,
                           .stride = code_stride_};
  const auto matmul =
      linear.kind == WeightKind::ternary ? kernels_.ternary_matmul : kernels_.sign_matmul;
  matmul(linear.bits, x, group_begin, group_end, y, linear.m);
}

}  // namespace yocobit
