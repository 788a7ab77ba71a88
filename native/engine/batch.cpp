#include "engine/batch.h"

namespace yocobit {

Batch::Batch(int max_tokens) {
  rows_.reserve(max_tokens);
  segments_.reserve(max_tokens);
}

void Batch::assign(const BatchRow* rows, int n) {
  rows_.assign(rows, rows + n);
  find_segments();
}

void Batch::keep_last(int n) {
  rows_.erase(rows_.begin(), rows_.end() - n);
  find_segments();
}

void Batch::find_segments() {
  segments_.clear();
  for (int row = 0; row < size(); ++row) {
    if (row == 0 || rows_[row].session != rows_[row - 1].session) segments_.push_back({row, row});
    segments_.back().end = row + 1;
  }
}

}  // namespace yocobit
