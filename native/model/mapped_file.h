// A whole file mapped for reading; processes that map it share its pages.
//
// If a rename replaces the file, its mapping keeps the old content. If it is overwritten in place,
// the mapping changes, and reading a page beyond a truncated end raises SIGBUS. For addresses in
// mapped files, a handler ends the process with a line that names the file. Other SIGBUS go to the
// handler that was installed before the first file was mapped.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace yocobit {

// A mapped file was overwritten or truncated in place.
class FileChangedError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

class MappedFile {
 public:
  // Throws std::runtime_error if the file cannot be opened or mapped, is empty, or not a regular
  // file.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return data_; }
  int64_t size() const { return size_; }

  // Throw FileChangedError if the file's size or time of modification is no longer what it was when
  // the file was mapped. One system call.
  void check_unchanged() const;

 private:
  friend class SigbusHandler;
  struct Guard;

  std::string path_;
  int descriptor_ = -1;
  const uint8_t* data_ = nullptr;
  int64_t size_ = 0;
  int64_t modified_s_ = 0, modified_ns_ = 0;
  Guard* guard_ = nullptr;
};

}  // namespace yocobit
