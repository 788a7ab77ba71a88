#include "model/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace yocobit {

MappedFile::MappedFile(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status;
  const bool is_open = descriptor >= 0 && fstat(descriptor, &status) == 0;
  if (!is_open || status.st_size == 0) {
    const std::string reason = is_open ? "it is empty" : std::strerror(errno);
    if (descriptor >= 0) close(descriptor);
    throw std::runtime_error(path + ": cannot be mapped: " + reason);
  }
  size_ = status.st_size;
  void* address = mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor, 0);
  const int error = errno;
  close(descriptor);
  if (address == MAP_FAILED) {
    throw std::runtime_error(path + ": cannot be mapped: " + std::strerror(error));
  }
  data_ = static_cast<const uint8_t*>(address);
#ifdef MADV_HUGEPAGE
  // Only advice: GEMMs read weights faster from huge pages where the file system supports them.
  madvise(address, size_, MADV_HUGEPAGE);
#endif
}

MappedFile::~MappedFile() { munmap(const_cast<uint8_t*>(data_), size_); }

}  // namespace yocobit
