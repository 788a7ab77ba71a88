#include "session.h"

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace yocobit {
namespace {

// Denormals and rounding as the standard has them while we compute, whatever the caller set.
class DefaultFloatEnvironment {
 public:
  DefaultFloatEnvironment() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatEnvironment() { std::fesetenv(&saved_); }

 private:
  std::fenv_t saved_;
};

// sigmoid(logit)^(1/16). In double: one scalar per head and token decides how far a layer sees.
float decay_from_logit(float logit) {
  const double z = logit;
  const double log_sigmoid = z < 0 ? z - std::log1p(std::exp(z)) : -std::log1p(std::exp(-z));
  return static_cast<float>(std::exp(log_sigmoid / 16));
}

}  // namespace

Session::Session(Engine& engine, int64_t max_tokens, FloatType cache_type)
    : engine_(engine),
      model_(engine.model),
      kernels_(engine.kernels),
      max_tokens_(max_tokens),
      cache_type_(cache_type) {
  const ModelConfig& config = model_.config;
  if (max_tokens < 1 || max_tokens > int64_t{1} << 40) {
    throw std::invalid_argument("max_tokens must be between 1 and 2^40 but is " +
                                std::to_string(max_tokens));
  }
  const int C = config.d_model, F = config.d_ff;
  for (const Layer& layer : model_.layers) {
    LayerState& state = states_.emplace_back();
    const int self_dim = config.self_head_dim(), dim = config.head_dim();
    if (layer.mixer == Mixer::retention) {
      const size_t size = size_t{1} * C * self_dim;
      state.retention = make_buffer<float>(size);
      std::memset(state.retention.get(), 0, size * sizeof(float));
    } else if (layer.mixer == Mixer::window) {
      state.kv.emplace(cache_type, config.n_self_kv_heads, self_dim,
                       int64_t{config.window} + kChunk);
    } else if (layer.mixer == Mixer::full) {
      state.kv.emplace(cache_type, config.n_kv_heads, dim, max_tokens);
    } else if (!shared_) {
      shared_.emplace(cache_type, config.n_kv_heads, dim, max_tokens);
    }
  }
  retention_rotation_ = make_rotation(config.retention_rope, config.self_head_dim());
  window_rotation_ = make_rotation(config.window_rope, config.self_head_dim());
  full_rotation_ = make_rotation(config.full_rope, config.head_dim());
  cross_rotation_ = make_rotation(config.cross_rope, config.head_dim());

  const size_t wide = std::max(C, F);
  quantized_.stride = static_cast<int>(round_up(wide, kSignBlock));
  stream_ = make_buffer<float>(kChunk * C);
  normed_ = make_buffer<float>(kChunk * wide);
  codes_ = make_buffer<int8_t>(size_t{kChunk} * quantized_.stride);
  code_scales_ = make_buffer<float>(kChunk);
  code_sums_ = make_buffer<int32_t>(kChunk);
  for (Buffer<float>* buffer : {&q_, &k_, &v_, &g_, &y_}) *buffer = make_buffer<float>(kChunk * C);
  decay_ = make_buffer<float>(kChunk * config.n_self_heads);
  gate_ = make_buffer<float>(size_t{kChunk} * F);
  up_ = make_buffer<float>(size_t{kChunk} * F);
  quantized_.codes = codes_.get();
  quantized_.scales = code_scales_.get();
  quantized_.sums = code_sums_.get();
}

void Session::feed(const int32_t* tokens, int64_t n, Logits which, float* logits) {
  const int V = model_.config.vocab_size;
  for (int64_t i = 0; i < n; ++i) {
    if (tokens[i] < 0 || tokens[i] >= V) {
      throw std::invalid_argument("token " + std::to_string(i) + " must be in [0, " +
                                  std::to_string(V) + ") but is " + std::to_string(tokens[i]));
    }
  }
  std::lock_guard<std::mutex> turn_taking(engine_.mutex);
  if (n > max_tokens_ - position_) {
    throw std::invalid_argument("session: has room for " + std::to_string(max_tokens_) +
                                " tokens and holds " + std::to_string(position_) + ", so " +
                                std::to_string(n) +
                                " more do not fit; make it with a larger max_tokens");
  }
  const DefaultFloatEnvironment environment;
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int size = static_cast<int>(std::min<int64_t>(kChunk, n - begin));
    self_decode(tokens + begin, size);
    if (which == Logits::all) {
      cross_decode();
      write_logits(logits + begin * V);
    } else if (which == Logits::last && begin + size == n) {
      // Early exit: only the last token goes on.
      x_ += static_cast<ptrdiff_t>(size - 1) * model_.config.d_model;
      first_ += size - 1;
      n_ = 1;
      turn(cross_rotation_);
      cross_decode();
      write_logits(logits);
    }
  }
}

void Session::self_decode(const int32_t* tokens, int n) {
  const ModelConfig& config = model_.config;
  n_ = n;
  first_ = position_;
  x_ = stream_.get();
  for (Rotation* rotation :
       {&retention_rotation_, &window_rotation_, &full_rotation_, &cross_rotation_}) {
    turn(*rotation);
  }
  embed(tokens);
  for (int i = 0; i < model_.n_self_layers; ++i) {
    const Layer& layer = model_.layers[i];
    prepare(x_, config.d_model, layer.mixer_norm);
    if (layer.mixer == Mixer::retention) {
      retain(layer, states_[i]);
    } else if (layer.mixer == Mixer::window) {
      self_attend(layer, *states_[i].kv, window_rotation_, config.n_self_heads, config.window);
    } else {
      self_attend(layer, *states_[i].kv, full_rotation_, config.n_heads, 0);
    }
    feed_forward(layer);
  }
  if (shared_) {
    prepare(x_, config.d_model, model_.shared_norm);
    apply(model_.shared_k, k_.get());
    apply(model_.shared_v, v_.get());
    store_keys_values(*shared_, cross_rotation_);
  }
  position_ += n;
}

void Session::cross_decode() {
  for (size_t i = model_.n_self_layers; i < model_.layers.size(); ++i) {
    cross_attend(model_.layers[i]);
    feed_forward(model_.layers[i]);
  }
}

void Session::embed(const int32_t* tokens) {
  const DenseMatrix& table = model_.embedding;
  const int C = table.k;
  const float root = std::sqrt(static_cast<float>(C));
  const int64_t row_bytes = C * size_bytes(table.type);
  for (int token = 0; token < n_; ++token) {
    float* x = x_ + token * C;
    const uint8_t* row = static_cast<const uint8_t*>(table.values) + tokens[token] * row_bytes;
    kernels_.load(row, table.scales ? table.scales[tokens[token]] : 1.0f, C, table.type, x);
    for (int c = 0; c < C; ++c) x[c] *= root;
  }
}

void Session::write_logits(float* logits) {
  const DenseMatrix& head = model_.head;
  for (int token = 0; token < n_; ++token) {
    kernels_.rms_norm(x_ + token * head.k, model_.norm, head.k, model_.config.norm_eps,
                      &normed_[token * head.k]);
  }
  engine_.pool.run(head.m, [&](int64_t begin, int64_t end) {
    kernels_.dense_matmul(head, normed_.get(), n_, begin, end, logits, head.m);
  });
}

void Session::feed_forward(const Layer& layer) {
  const ModelConfig& config = model_.config;
  const int C = config.d_model, F = config.d_ff;
  prepare(x_, C, layer.ffn_norm);
  apply(layer.up, up_.get());
  if (config.ffn != FeedForwardKind::sign) apply(layer.gate, gate_.get());
  engine_.pool.run(n_, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      float* gate = &gate_[token * F];
      const float* up = &up_[token * F];
      if (config.ffn == FeedForwardKind::swiglu) kernels_.silu_multiply(gate, up, F, gate);
      if (config.ffn == FeedForwardKind::relu2) kernels_.relu2_multiply(gate, up, F, gate);
      if (config.ffn == FeedForwardKind::sign) kernels_.sign(up, F, gate);
    }
  });
  project_out(layer.down, gate_.get(), layer.down_norm);
}

void Session::retain(const Layer& layer, LayerState& state) {
  const ModelConfig& config = model_.config;
  const int C = config.d_model, H = config.n_self_heads, D = config.self_head_dim();
  const float key_scale = 1.0f / std::sqrt(static_cast<float>(D));
  apply(layer.q, q_.get());
  apply(layer.k, k_.get());
  apply(layer.v, v_.get());
  apply(layer.g, g_.get());
  engine_.pool.run(H, [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) {
      kernels_.dense_matmul(layer.decay, normed_.get(), n_, h, h + 1, decay_.get(), H);
      for (int token = 0; token < n_; ++token) {
        const int64_t at = int64_t{token} * C + h * D;
        rotate(retention_rotation_, token, &q_[at]);
        rotate(retention_rotation_, token, &k_[at]);
        for (int d = 0; d < D; ++d) k_[at + d] *= key_scale;
        kernels_.retention_step(&state.retention[h * D * D], &q_[at], &k_[at], &v_[at],
                                decay_from_logit(decay_[token * H + h]), D, &y_[at]);
        kernels_.rms_norm(&y_[at], nullptr, D, config.norm_eps, &y_[at]);
        kernels_.silu_multiply(&g_[at], &y_[at], D, &y_[at]);
      }
    }
  });
  project_out(layer.out, y_.get(), layer.out_norm);
}

void Session::self_attend(const Layer& layer, KeyValueCache& cache, const Rotation& rotation,
                          int n_heads, int window) {
  apply(layer.q, q_.get());
  apply(layer.k, k_.get());
  apply(layer.v, v_.get());
  store_keys_values(cache, rotation);
  attend(cache, rotation, n_heads, window);
  project_out(layer.out, y_.get(), layer.out_norm);
}

void Session::cross_attend(const Layer& layer) {
  prepare(x_, model_.config.d_model, layer.mixer_norm);
  apply(layer.q, q_.get());
  attend(*shared_, cross_rotation_, model_.config.n_heads, 0);
  project_out(layer.out, y_.get(), layer.out_norm);
}

void Session::store_keys_values(KeyValueCache& cache, const Rotation& rotation) {
  const int G = cache.n_heads(), D = cache.head_dim();
  engine_.pool.run(int64_t{n_} * G, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int token = static_cast<int>(i / G), head = static_cast<int>(i % G);
      rotate(rotation, token, &k_[i * D]);
      cache.store(kernels_, head, first_ + token, &k_[i * D], &v_[i * D]);
    }
  });
}

// Queries in q_ to outputs in y_; window 0 sees everything.
void Session::attend(const KeyValueCache& cache, const Rotation& rotation, int n_heads,
                     int window) {
  const int D = cache.head_dim(), queries_per_head = n_heads / cache.n_heads();
  const float scale = 1.0f / std::sqrt(static_cast<float>(D));
  engine_.pool.run(int64_t{n_} * n_heads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int token = static_cast<int>(i / n_heads), head = static_cast<int>(i % n_heads);
      const int64_t last = first_ + token + 1;
      rotate(rotation, token, &q_[i * D]);
      kernels_.attend(&q_[i * D], cache.view(head / queries_per_head),
                      window ? std::max<int64_t>(0, last - window) : 0, last, scale, &y_[i * D]);
    }
  });
}

// stream += linear(norm(x)); x is overwritten.
void Session::project_out(const Linear& linear, float* x, const float* norm) {
  const int C = linear.m, K = linear.k;
  prepare(x, K, norm);
  apply(linear, q_.get());
  engine_.pool.run(n_, [&](int64_t begin, int64_t end) {
    kernels_.add(&q_[begin * C], static_cast<int>((end - begin) * C), x_ + begin * C);
  });
}

// Make x [N][size], normalised if norm is given, the input of the next projections.
void Session::prepare(const float* x, int size, const float* norm) {
  engine_.pool.run(n_, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) prepare_row(x, size, norm, token);
  });
}

void Session::prepare_row(const float* x, int size, const float* norm, int token) {
  const size_t at = static_cast<size_t>(token) * size;
  if (norm) {
    kernels_.rms_norm(x + at, norm, size, model_.config.norm_eps, &normed_[at]);
  } else {
    std::memcpy(&normed_[at], x + at, size * sizeof(float));
  }
  if (model_.config.weights == WeightKind::dense) return;
  kernels_.quantize_row(&normed_[at], size, static_cast<int>(round_up(size, kSignBlock)),
                        &codes_[static_cast<size_t>(token) * quantized_.stride],
                        &code_scales_[token], &code_sums_[token]);
}

// y [N][M] = W times what prepare() left.
void Session::apply(const Linear& linear, float* y) {
  quantized_.n = n_;
  if (linear.kind == WeightKind::dense) {
    engine_.pool.run(linear.m, [&](int64_t begin, int64_t end) {
      kernels_.dense_matmul(linear.dense, normed_.get(), n_, begin, end, y, linear.m);
    });
    return;
  }
  const auto matmul =
      linear.kind == WeightKind::ternary ? kernels_.ternary_matmul : kernels_.sign_matmul;
  const int n_groups = (linear.m + kRowsPerGroup - 1) / kRowsPerGroup;
  if (n_ < kTokenBlock * engine_.pool.size()) {
    engine_.pool.run(n_groups, [&](int64_t begin, int64_t end) {
      matmul(linear.bits, quantized_, begin, end, y, linear.m);
    });
    return;
  }
  // What a kernel prepares for a block of tokens then serves all rows.
  engine_.pool.run((n_ + kTokenBlock - 1) / kTokenBlock, [&](int64_t begin, int64_t end) {
    const int first = static_cast<int>(begin) * kTokenBlock;
    const QuantizedRows rows = {
        .codes = quantized_.codes + static_cast<ptrdiff_t>(first) * quantized_.stride,
        .scales = quantized_.scales + first,
        .sums = quantized_.sums + first,
        .n = std::min(static_cast<int>(end) * kTokenBlock, n_) - first,
        .stride = quantized_.stride};
    matmul(linear.bits, rows, 0, n_groups, y + static_cast<ptrdiff_t>(first) * linear.m, linear.m);
  });
}

Session::Rotation Session::make_rotation(RopeKind kind, int head_dim) const {
  Rotation rotation = {
      .kind = kind, .head_dim = head_dim, .frequencies = {}, .cosine = {}, .sine = {}};
  if (kind == RopeKind::none) return rotation;
  const int pairs = head_dim / 2;
  const double last = kind == RopeKind::interleaved ? pairs - 1 : pairs;
  for (int i = 0; i < pairs; ++i) {
    rotation.frequencies.push_back(std::pow(model_.config.rope_theta, -(i / last)));
  }
  rotation.cosine.resize(static_cast<size_t>(kChunk) * pairs);
  rotation.sine.resize(static_cast<size_t>(kChunk) * pairs);
  return rotation;
}

// Set the angles of the chunk at work, in double: float loses them past position 1e5.
void Session::turn(Rotation& rotation) const {
  const size_t pairs = rotation.frequencies.size();
  for (int token = 0; token < n_; ++token) {
    for (size_t i = 0; i < pairs; ++i) {
      const double angle = static_cast<double>(first_ + token) * rotation.frequencies[i];
      rotation.cosine[token * pairs + i] = static_cast<float>(std::cos(angle));
      rotation.sine[token * pairs + i] = static_cast<float>(std::sin(angle));
    }
  }
}

void Session::rotate(const Rotation& rotation, int token, float* head) const {
  if (rotation.kind == RopeKind::none) return;
  const size_t at = token * rotation.frequencies.size();
  const auto rope =
      rotation.kind == RopeKind::interleaved ? kernels_.rope_interleaved : kernels_.rope_half;
  rope(head, &rotation.cosine[at], &rotation.sine[at], rotation.head_dim);
}

const KeyValueCache* Session::keys_values(int layer) const {
  if (model_.layers[layer].mixer == Mixer::cross) return &*shared_;
  return states_[layer].kv ? &*states_[layer].kv : nullptr;
}

SessionMemory Session::memory() const {
  const ModelConfig& config = model_.config;
  SessionMemory memory = {};
  for (size_t i = 0; i < states_.size(); ++i) {
    if (states_[i].retention) {
      memory.retention += int64_t{4} * config.d_model * config.self_head_dim();
    }
    if (!states_[i].kv) continue;
    const KeyValueCache& kv = *states_[i].kv;
    const bool is_window = model_.layers[i].mixer == Mixer::window;
    (is_window ? memory.window : memory.full) += kv.capacity() * kv.bytes_per_position();
    if (!is_window) memory.full_per_token += kv.bytes_per_position();
  }
  if (shared_) {
    memory.shared_kv_per_token = shared_->bytes_per_position();
    memory.shared_kv = shared_->capacity() * shared_->bytes_per_position();
  }
  const int64_t wide = std::max(config.d_model, config.d_ff);
  memory.buffers =
      kChunk * (4 * (6 * config.d_model + wide + 2 * config.d_ff + config.n_self_heads + 2) +
                int64_t{quantized_.stride});
  return memory;
}

}  // namespace yocobit
