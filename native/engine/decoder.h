// The forward pass over rows: tokens of one session or of many, each at its own position.
//
// Logits are a pure function of model and tokens. Every value is computed by one thread in one
// order; threads, rows side by side and early exit only decide who computes what, and whether.
//
// Letters:  N rows   C model width   F feed-forward width   H heads   G K/V heads   D head size
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "engine/kv_cache.h"
#include "engine/rope.h"
#include "kernels/kernels.h"
#include "model/packed_model.h"
#include "runtime/thread_pool.h"

namespace yocobit {

struct Session;

// A token to take in. Rows of one session stand together, in the order of their positions.
struct Row {
  Session* session;
  int64_t position;
  int32_t token;
};

class Decoder {
 public:
  static constexpr int kMaxRows = 128;

  Decoder(const PackedModel& model, const Kernels& kernels, ThreadPool& pool);

  // Take in rows[n], n <= kMaxRows; write the logits [n_logits][V] of the last n_logits of them.
  // The cross-decoder runs for those rows only.
  void forward(const Row* rows, int n, int n_logits, float* logits);

  int64_t buffer_bytes() const { return buffer_bytes_; }

 private:
  // Positions that one thread attends over at a time; at fixed multiples, whoever asks.
  static constexpr int64_t kPartition = 512;
  // Partial results of a head that are kept at a time, of all rows; at least two of each.
  static constexpr int64_t kPartials = 2 * kMaxRows;

  struct Output {  // of a projection
    const Linear* linear;
    float* y;  // [N][M]
  };

  struct Segment {  // rows of one session
    int begin, end;
  };

  struct Attention {
    int index;  // of the layer's cache: its own, or n_self_layers for the shared one
    const Rotation& rotation;
    int n_heads;
    int64_t window;  // 0 sees everything
    bool stores;     // whether the rows' keys and values are in k_ and v_, to be cached first
    bool is_first;   // of the cross layers
  };

  struct Span {  // positions that a row sees, of those chosen, and the partitions that they are in
    int64_t begin, end, first, size;
  };

  void find_segments();
  bool is_decoding() const { return static_cast<int>(segments_.size()) == n_; }  // a row each
  void self_decode();
  void keep_last_rows(int n);
  void cross_decode();
  void write_logits(float* logits);

  void embed();
  void retain(const Layer& layer, int index);
  void self_attend(const Layer& layer, int index);
  void cross_attend(const Layer& layer, bool is_first);
  void gate_memory(const Layer& layer);
  void feed_forward(const Layer& layer);

  void store_shared_keys_values();
  void store_keys_values(int index, const Rotation& rotation, int row, int head);
  void attend(const Attention& layer);
  bool chooses(int row) const;
  void choose_blocks();
  Span span(const Attention& layer, int row) const;
  void attend_partition(const Attention& layer, int row, int head, int64_t partition, int64_t place,
                        int64_t places);
  void attend_partitions(const Attention& layer, int64_t first, int64_t n, int64_t places,
                         bool is_last);
  void finish_head(const Attention& layer, int row, int head, int64_t places);

  void prepare(const float* x, int size, const float* norm);
  bool shares_rows() const;
  void apply(std::initializer_list<Output> outputs);
  template <typename Finish>
  void apply_alike(std::initializer_list<Output> outputs, const Finish& finish);
  template <typename Finish>
  void apply_to_blocks(std::initializer_list<Output> outputs, const Finish& finish);
  void apply_rows(const Output& output, int group_begin, int group_end, int row_begin, int row_end);
  void project_out(const Linear& linear, float* x, const float* norm);

  template <typename T>
  Buffer<T> allocate(size_t n);

  const PackedModel& model_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  Rotation retention_rotation_, window_rotation_, full_rotation_, cross_rotation_;
  std::vector<Rotation*> turned_;  // those of them whose angles are not another's

  int n_ = 0;  // rows at work
  std::vector<Row> rows_;
  std::vector<Segment> segments_;

  int64_t buffer_bytes_ = 0;
  Buffer<float> x_;             // [N][C], the residual stream
  Buffer<float> normed_;        // [N][max(C, F)], input of projections
  Buffer<int8_t> codes_;        // [N][stride], the same in int8
  Buffer<int16_t> wide_codes_;  // [N][wide_stride], in int16 for an int8 head
  Buffer<int32_t> wide_sums_;   // [N][wide_stride / 64]
  Buffer<float> code_scales_;   // [N]
  Buffer<int32_t> code_sums_;   // [N]
  int code_stride_, wide_stride_;
  Buffer<float> q_, k_, v_, g_, y_;  // [N][C]; k and v [N][G * D]
  Buffer<float> memory_;             // [N][C], only for gated memory units
  Buffer<float> decay_;              // [N][H]
  Buffer<float> gate_, up_;          // [N][F]
  Buffer<float> partials_;           // [N][H][kPartials / N][D + kPartialExtra]
  Buffer<int32_t> chosen_;           // [N][G][cross_blocks], unless all are attended to
};

}  // namespace yocobit
