// The tokens of one forward pass: of one session or of many, each at its own position.
//
// Letters:  N rows (tokens)
#pragma once

#include <cstdint>
#include <vector>

namespace yocobit {

struct Session;

struct BatchRow {
  Session* session;
  int64_t position;
  int32_t token;
};

// Rows [begin, end) of one session, in the order of their positions.
struct Segment {
  int begin, end;
};

// Rows of one session are adjacent. Only the constructor allocates.
class Batch {
 public:
  explicit Batch(int max_tokens);

  // Replace the rows by rows [n]; n <= max_tokens.
  void assign(const BatchRow* rows, int n);

  // Drop all rows but the last n.
  void keep_last(int n);

  int size() const { return static_cast<int>(rows_.size()); }
  const BatchRow& operator[](int row) const { return rows_[row]; }
  const std::vector<Segment>& segments() const { return segments_; }
  int n_segments() const { return static_cast<int>(segments_.size()); }

  // Whether every row belongs to a different session, so that no row attends to another.
  bool is_decode() const { return n_segments() == size(); }

 private:
  void find_segments();

  std::vector<BatchRow> rows_;
  std::vector<Segment> segments_;
};

}  // namespace yocobit
