#include "engine/attention.h"

#include <algorithm>

#include "engine/session.h"

namespace yocobit {
namespace {

// Parts of the work for each thread, of which some take longer than others.
constexpr int kPartsPerThread = 4;

// The positions [begin, end) that a row attends to, in `n_splits` KV splits from `first_split` on,
// of which the first and the last may be partial.
struct Span {
  int64_t begin, end, first_split, n_splits;
};

// One call of attend() or store_shared_kv().
class Attention {
 public:
  Attention(const ForwardPass& pass, const AttentionLayer& layer)
      : pass_(pass),
        batch_(pass.batch),
        ws_(pass.workspace),
        layer_(layer),
        H_(layer.heads.n_heads),
        G_(layer.heads.n_kv_heads),
        D_(layer.heads.head_dim),
        padded_(layer.heads.padded_dim()),
        n_queries_(H_ / G_),
        n_rows_(rows_together()) {}

  void run();
  void store_kv(int row, int head) const;

 private:
  KvCache& cache(int row) const { return *batch_[row].session->kv_cache(layer_.cache); }
  int32_t* selected(int row, int head) const;
  bool is_sparse(int row) const;
  int n_parts() const { return (batch_.size() + n_rows_ - 1) / n_rows_; }
  Span span(int row) const;
  int rows_together() const;
  bool share_tiles(int row, int other) const;
  float* query(int row, int query_head) const;
  float* partial(int row, int query_head, int64_t slot, int64_t n_slots) const;

  void prepare(int row, int head) const;
  float* pad(float* head, float* padded) const;
  void norm_and_rotate(int row, const float* norm, float* head) const;
  void select_blocks() const;
  void attend_split(int begin, int end, int head, int64_t split, int64_t slot,
                    int64_t n_slots) const;
  void attend_splits(int64_t first, int64_t n, int64_t n_slots, bool is_last) const;
  void normalize(int row, int query_head, int64_t n_slots) const;

  const ForwardPass& pass_;
  const Batch& batch_;
  Workspace& ws_;
  const AttentionLayer& layer_;
  const int H_, G_, D_, padded_, n_queries_;  // n_queries_: query heads of a KV head
  const int n_rows_;                          // adjacent rows that one thread computes together
};

void Attention::run() {
  const int N = batch_.size();
  int64_t n_splits = 0;
  bool any_selects = false;
  for (int row = 0; row < N; ++row) {
    n_splits = std::max(n_splits, span(row).n_splits);
    any_selects |= layer_.selects && is_sparse(row);
  }
  // One barrier where no row attends to the new keys of another and there is nothing to combine.
  const bool sees_own_only = !layer_.stores_kv || batch_.is_decode();
  const bool is_one_phase = n_splits == 1 && sees_own_only && !any_selects;
  pass_.pool.parallel_for(int64_t{n_parts()} * G_, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int first = static_cast<int>(i / G_) * n_rows_, head = static_cast<int>(i % G_);
      const int last = std::min(first + n_rows_, N);
      for (int row = first; row < last; ++row) prepare(row, head);
      if (!is_one_phase) continue;
      attend_split(first, last, head, 0, 0, 1);
      for (int row = first; row < last; ++row) {
        for (int query = 0; query < n_queries_; ++query) {
          normalize(row, head * n_queries_ + query, 1);
        }
      }
    }
  });
  if (is_one_phase) return;
  if (any_selects) select_blocks();
  // As many splits of every row at a time as there are slots; a row's first slot holds the combined
  // result of the splits before.
  const int64_t n_slots = kPartialsPerRow * pass_.model.config.ffn->max_batch_tokens / N;
  for (int64_t first = 0; first < n_splits;) {
    const int64_t n = std::min(n_splits - first, n_slots - (first > 0));
    attend_splits(first, n, n_slots, first + n == n_splits);
    first += n;
  }
}

// Return the head [D], or its copy in `padded` with zeros after it if the padded size is larger.
float* Attention::pad(float* head, float* padded) const {
  if (padded_ == D_) return head;
  std::fill(std::copy_n(head, D_, padded), padded + padded_, 0.0f);
  return padded;
}

// The query [padded_] that prepare() writes.
float* Attention::query(int row, int query_head) const {
  const Buffer<float>& queries = padded_ == D_ ? ws_.q : ws_.g;
  return &queries[(int64_t{row} * H_ + query_head) * padded_];
}

// Cache the K and V of a row and KV head, and normalise and rotate the queries of the head.
void Attention::prepare(int row, int head) const {
  if (layer_.stores_kv) store_kv(row, head);
  for (int i = 0; i < n_queries_; ++i) {
    const int query_head = head * n_queries_ + i;
    norm_and_rotate(row, layer_.q_norm,
                    pad(&ws_.q[(int64_t{row} * H_ + query_head) * D_], query(row, query_head)));
  }
}

// Apply RMSNorm, unless norm is nullptr, and RoPE to one head [D] of a row, in the model's order.
void Attention::norm_and_rotate(int row, const float* norm, float* head) const {
  const ModelConfig& config = pass_.model.config;
  const bool is_after = config.qk_norm == QKNorm::after_rope;
  if (is_after) layer_.rope.apply(pass_.kernels, row, head);
  if (norm) pass_.kernels.rms_norm(head, norm, D_, config.norm_eps, head);
  if (!is_after) layer_.rope.apply(pass_.kernels, row, head);
}

// Cache the key in workspace.k, normalised and rotated, and the value in workspace.v. The caches of
// all heads and layers cross page boundaries at the same positions. Each commits its next page in
// advance, at a position of its own, which spreads the page faults over several steps.
void Attention::store_kv(int row, int head) const {
  const BatchRow& token = batch_[row];
  KvCache& kv = cache(row);
  const int64_t at = (int64_t{row} * G_ + head) * D_;
  float padded[2][kMaxHeadDim];
  float *k = pad(&ws_.k[at], padded[0]), *v = pad(&ws_.v[at], padded[1]);
  norm_and_rotate(row, layer_.k_norm, k);
  kv.store(pass_.kernels, head, token.position, k, v);
  const bool is_last = row + 1 == batch_.size() || batch_[row + 1].session != token.session;
  const int64_t phase = token.position + int64_t{layer_.cache} * G_ + head;
  if (is_last && (!batch_.is_decode() || phase % kv.positions_per_page() == 0)) {
    kv.commit_ahead(head, token.position);
  }
}

// Whether a row sees more blocks of the shared cache than it may attend to.
bool Attention::is_sparse(int row) const {
  return layer_.is_sparse && n_blocks(batch_[row].position) > pass_.model.config.cross_blocks();
}

int32_t* Attention::selected(int row, int head) const {
  return &ws_.selected[(int64_t{row} * G_ + head) * pass_.model.config.cross_blocks()];
}

// Select blocks by the queries of this layer, for it and the cross layers after it. One thread
// handles all rows of a session and head, because they share the scratch of its block index.
void Attention::select_blocks() const {
  pass_.pool.parallel_for(int64_t{batch_.n_segments()} * G_, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Segment& segment = batch_.segments()[i / G_];
      const int head = static_cast<int>(i % G_);
      for (int row = segment.begin; row < segment.end; ++row) {
        if (!is_sparse(row)) continue;
        Session& session = *batch_[row].session;
        session.block_index->select(pass_.kernels, cache(row), head, query(row, head * n_queries_),
                                    n_queries_, batch_[row].position, selected(row, head));
      }
    }
  });
}

Span Attention::span(int row) const {
  int64_t end = batch_[row].position + 1;
  if (is_sparse(row)) {  // positions of the selected blocks; the last of them may be partial
    end -= (n_blocks(batch_[row].position) - pass_.model.config.cross_blocks()) * kAttentionTile;
  }
  const int64_t begin = layer_.window ? std::max<int64_t>(0, end - layer_.window) : 0;
  const int64_t first = begin / kKvSplit;
  return {.begin = begin,
          .end = end,
          .first_split = first,
          .n_splits = (end - 1) / kKvSplit - first + 1};
}

float* Attention::partial(int row, int query_head, int64_t slot, int64_t n_slots) const {
  const int64_t index = int64_t{row} * H_ + query_head;
  return &ws_.partials[(index * n_slots + slot) * (padded_ + kPartialExtra)];
}

// As many rows as have kQueriesTogether queries, if there are enough for all threads. Results
// depend on the row only.
int Attention::rows_together() const {
  if (batch_.is_decode()) return 1;
  const int n_parts = kPartsPerThread * pass_.pool.size();
  return std::clamp(batch_.size() * G_ / n_parts, 1, std::max(kQueriesTogether / n_queries_, 1));
}

// Whether two rows attend to one cache, and to nearly the same positions of it.
bool Attention::share_tiles(int row, int other) const {
  return batch_[row].session == batch_[other].session && !is_sparse(row) && !is_sparse(other) &&
         span(row).first_split == span(other).first_split;
}

// Attend over one KV split of the spans of the rows [begin, end); the partial results go to a slot
// of each row.
void Attention::attend_split(int begin, int end, int head, int64_t split, int64_t slot,
                             int64_t n_slots) const {
  AttentionQuery queries[kQueriesTogether];
  int n = 0;
  const auto attend_together = [&](int row) {
    if (n == 0) return;
    KeysValues view = cache(row).view(head);
    if (is_sparse(row)) view.tiles = selected(row, head);
    pass_.kernels.attend(queries, n, view, pass_.model.config.score_scale(layer_.heads));
    n = 0;
  };
  for (int row = begin; row < end; ++row) {
    if (row > begin && !share_tiles(row - 1, row)) attend_together(row - 1);
    const Span seen = span(row);
    if (split >= seen.n_splits) continue;
    const int64_t from = (seen.first_split + split) * kKvSplit;
    for (int i = head * n_queries_; i < (head + 1) * n_queries_; ++i) {
      if (n == kQueriesTogether) attend_together(row);
      queries[n++] = {.q = query(row, i),
                      .begin = std::max(seen.begin, from),
                      .end = std::min(seen.end, from + kKvSplit),
                      .partial = partial(row, i, slot, n_slots)};
    }
  }
  attend_together(end - 1);
}

// Splits [first, first + n) of every row, combined with those before.
void Attention::attend_splits(int64_t first, int64_t n, int64_t n_slots, bool is_last) const {
  const int N = batch_.size();
  const bool has_before = first > 0;
  // Adjacent rows read the same keys and values, which then hit the CPU's caches.
  pass_.pool.parallel_for(G_ * n * n_parts(), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int row = static_cast<int>(i % n_parts()) * n_rows_;
      const int head = static_cast<int>(i / n_parts() / n);
      const int64_t split = i / n_parts() % n;
      attend_split(row, std::min(row + n_rows_, N), head, first + split, split + has_before,
                   n_slots);
    }
  });
  pass_.pool.parallel_for(int64_t{N} * H_, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int row = static_cast<int>(i / H_), query_head = static_cast<int>(i % H_);
      const int64_t left = span(row).n_splits - first;
      const int64_t n_partials = std::min(n, left) + has_before;
      pass_.kernels.combine(partial(row, query_head, 0, n_slots), padded_ + kPartialExtra,
                            static_cast<int>(n_partials), padded_);
      if (is_last) normalize(row, query_head, n_slots);
    }
  });
}

void Attention::normalize(int row, int query_head, int64_t n_slots) const {
  float* y = &ws_.y[(int64_t{row} * H_ + query_head) * D_];
  float padded[kMaxHeadDim];
  float* output = padded_ == D_ ? y : padded;
  pass_.kernels.normalize(partial(row, query_head, 0, n_slots), padded_, output);
  if (output != y) std::copy_n(output, D_, y);
}

}  // namespace

void attend(const ForwardPass& pass, const AttentionLayer& layer) { Attention(pass, layer).run(); }

void store_shared_kv(const ForwardPass& pass, const AttentionLayer& layer) {
  const Batch& batch = pass.batch;
  const Attention attention(pass, layer);
  const int G = layer.heads.n_kv_heads;
  pass.pool.parallel_for(int64_t{batch.size()} * G, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      attention.store_kv(static_cast<int>(i / G), static_cast<int>(i % G));
    }
  });
  const auto completes_block = [&](const Segment& segment) {
    const int64_t begin = batch[segment.begin].position, end = batch[segment.end - 1].position + 1;
    return batch[segment.begin].session->block_index &&
           begin / kAttentionTile != end / kAttentionTile;
  };
  const auto& segments = batch.segments();
  if (std::none_of(segments.begin(), segments.end(), completes_block)) return;
  pass.pool.parallel_for(int64_t{batch.n_segments()} * G, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Segment& segment = segments[i / G];
      if (!completes_block(segment)) continue;
      Session& session = *batch[segment.begin].session;
      session.block_index->update(pass.kernels, *session.shared_kv, static_cast<int>(i % G),
                                  batch[segment.begin].position,
                                  batch[segment.end - 1].position + 1);
    }
  });
}

}  // namespace yocobit
