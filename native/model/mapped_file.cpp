#include "model/mapped_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <mutex>

#include "runtime/fork.h"

namespace yocobit {

// A mapped file in the list that the signal handler reads. The list only grows: entries are reused,
// never freed, so that the handler can walk it at any time.
struct MappedFile::Guard {
  std::atomic<const uint8_t*> begin{nullptr};  // nullptr: not in use
  std::atomic<const uint8_t*> end{nullptr};
  char message[1024] = {};
  Guard* next = nullptr;
};

namespace {

constexpr int kExitCode = 2;  // errors.USER_ERROR
constexpr int kMaxName = 800;

timespec modified(const struct stat& status) {
#ifdef __APPLE__
  return status.st_mtimespec;
#else
  return status.st_mtim;
#endif
}

[[noreturn]] void refuse(const std::string& path, const std::string& reason) {
  throw std::runtime_error(path + ": cannot be mapped: " + reason);
}

}  // namespace

class SigbusHandler {
 public:
  using Guard = MappedFile::Guard;

  // Guard a mapped file; installs the handler for the first.
  static Guard* add(const std::string& path, const uint8_t* begin, int64_t size) {
    const std::lock_guard<ForkSafeMutex> lock(mutex());
    Guard* guard = first_;
    while (guard && guard->begin) guard = guard->next;
    const bool is_new = !guard;
    if (is_new) guard = new Guard;
    std::string name = path.size() > kMaxName ? "..." + path.substr(path.size() - kMaxName) : path;
    for (char& c : name) {
      if (static_cast<unsigned char>(c) < ' ' || c == 0x7f) c = '?';
    }
    std::snprintf(guard->message, sizeof(guard->message),
                  "error: %s: was truncated or overwritten while it was in use; copy it again and "
                  "restart\n",
                  name.c_str());
    guard->end = begin + size;
    guard->begin = begin;
    if (is_new) {
      guard->next = first_;
      first_ = guard;
    }
    if (!is_installed_) install();
    return guard;
  }

  static void remove(Guard* guard) {
    const std::lock_guard<ForkSafeMutex> lock(mutex());
    guard->begin = nullptr;
  }

 private:
  static ForkSafeMutex& mutex() {
    static ForkSafeMutex* const instance = new ForkSafeMutex;
    return *instance;
  }

  static void install() {
    struct sigaction action = {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    is_installed_ = sigaction(SIGBUS, &action, &previous_) == 0;
  }

  static void handle(int number, siginfo_t* info, void* context) {
    const auto* address = static_cast<const uint8_t*>(info->si_addr);
    for (Guard* guard = first_; guard && info->si_code == BUS_ADRERR; guard = guard->next) {
      const uint8_t* begin = guard->begin;
      if (!begin || address < begin || address >= guard->end) continue;
      const ssize_t written = write(STDERR_FILENO, guard->message, std::strlen(guard->message));
      static_cast<void>(written);
      _exit(kExitCode);
    }
    if (previous_.sa_flags & SA_SIGINFO) {
      previous_.sa_sigaction(number, info, context);
    } else if (previous_.sa_handler == SIG_DFL || previous_.sa_handler == SIG_IGN) {
      signal(number, SIG_DFL);
      raise(number);  // delivered when this handler returns
    } else {
      previous_.sa_handler(number);
    }
  }

  inline static std::atomic<Guard*> first_{nullptr};
  inline static struct sigaction previous_ = {};
  inline static bool is_installed_ = false;
};

MappedFile::MappedFile(const std::string& path) : path_(path) {
  // Without O_NONBLOCK, opening a FIFO waits for a writer.
  descriptor_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) refuse(path, std::strerror(errno));
  struct stat status;
  std::string reason;
  if (fstat(descriptor_, &status) != 0) {
    reason = std::strerror(errno);
  } else if (!S_ISREG(status.st_mode)) {
    reason = "it is not a regular file";
  } else if (status.st_size == 0) {
    reason = "it is empty";
  } else {
    size_ = status.st_size;
    modified_s_ = modified(status).tv_sec;
    modified_ns_ = modified(status).tv_nsec;
    void* address = mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor_, 0);
    if (address == MAP_FAILED) {
      reason = std::strerror(errno);
    } else {
      data_ = static_cast<const uint8_t*>(address);
    }
  }
  if (!data_) {
    close(descriptor_);
    refuse(path, reason);
  }
#ifdef MADV_HUGEPAGE
  // Only advice: GEMMs read weights faster from huge pages where the file system supports them.
  madvise(const_cast<uint8_t*>(data_), size_, MADV_HUGEPAGE);
#endif
  guard_ = SigbusHandler::add(path, data_, size_);
}

MappedFile::~MappedFile() {
  SigbusHandler::remove(guard_);
  munmap(const_cast<uint8_t*>(data_), size_);
  close(descriptor_);
}

void MappedFile::check_unchanged() const {
  struct stat status;
  if (fstat(descriptor_, &status) != 0) return;
  const timespec now = modified(status);
  if (status.st_size == size_ && now.tv_sec == modified_s_ && now.tv_nsec == modified_ns_) return;
  throw FileChangedError(path_ +
                         ": was truncated or overwritten while it was in use; load it again, and "
                         "replace files by renaming");
}

}  // namespace yocobit
