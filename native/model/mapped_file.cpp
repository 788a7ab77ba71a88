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
  if (descriptor < 0 || fstat(descriptor, &status) != 0 || status.st_size == 0) {
    const std::string reason = descriptor < 0 ? std::strerror(errno) : "it is empty";
    if (descriptor >= 0) close(descriptor);
    throw std::runtime_error(path + ": cannot be mapped: " + reason);
  }
  size_ = status.st_size;
  void* address = mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor, 0);
  close(descriptor);
  if (address == MAP_FAILED) {
    throw std::runtime_error(path + ": cannot be mapped: " + std::strerror(errno));
  }
  data_ = static_cast<const uint8_t*>(address);
#ifdef MADV_HUGEPAGE
  // Only advice: GEMMs read weights faster from huge pages where the file system supports them.
  madvise(address, size_, MADV_HUGEPAGE);
#endif
}

MappedFile::~MappedFile() { munmap(const_cast<uint8_t*>(data_), size_); }

}  // namespace yocobit
