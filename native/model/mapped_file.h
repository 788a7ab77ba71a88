// A whole file mapped for reading; processes that map it share its pages.
#pragma once

#include <cstdint>
#include <string>

namespace yocobit {

class MappedFile {
 public:
  // Throws std::runtime_error if the file cannot be opened or mapped, or is empty.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  const uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace yocobit
