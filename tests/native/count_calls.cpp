// Counts allocations and system calls of all threads while an engine decodes.
//
//   count_calls MODEL THREADS CACHE   with a description of a model as tests/native/test_native.py
//   writes
//
// After a warm-up a seccomp filter traps every system call in a signal handler. The handler counts
// and forwards calls by which threads wait for each other or migrate off each other's CPU, as other
// processes may need the CPUs; any other call ends the program. Exit status 77 if this system has
// no such filter.

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstdlib>

#include "engine/engine.h"
#include "kernels/family.h"
#include "model_description.h"

namespace {

std::atomic<bool> is_counting{false};
std::atomic<int> n_allocations{0}, n_waits{0};

void count_allocation() {
  if (is_counting) ++n_allocations;
}

}  // namespace

// ---- replaces the C library's, whose own names remain; operator new calls these too ----

extern "C" {

void* __libc_malloc(size_t);
void __libc_free(void*);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t size) {
  count_allocation();
  return __libc_malloc(size);
}

void free(void* memory) {
  if (memory) count_allocation();
  __libc_free(memory);
}

void* calloc(size_t n, size_t size) {
  count_allocation();
  return __libc_calloc(n, size);
}

void* realloc(void* memory, size_t size) {
  count_allocation();
  return __libc_realloc(memory, size);
}

void* aligned_alloc(size_t alignment, size_t size) {
  count_allocation();
  return __libc_memalign(alignment, size);
}

int posix_memalign(void** memory, size_t alignment, size_t size) {
  *memory = aligned_alloc(alignment, size);
  return *memory ? 0 : ENOMEM;
}
}

namespace yocobit {
namespace {

// A last argument that these calls ignore: the filter lets those of the handler pass.
constexpr unsigned kFromHandler = 0x5eed;

[[noreturn]] void end(int status, const char* text, int length) {
  if (write(STDOUT_FILENO, text, length) != length) _exit(2);
  _exit(status);
}

void on_system_call(int, siginfo_t* info, void* context) {
  mcontext_t& registers = static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  const long arguments[] = {registers.gregs[REG_RDI], registers.gregs[REG_RSI],
                            registers.gregs[REG_RDX]};
  auto& result = registers.gregs[REG_RAX];
#else
  const unsigned long arguments[] = {registers.regs[0], registers.regs[1], registers.regs[2]};
  auto& result = registers.regs[0];
#endif
  ++n_waits;
  result = 0;
  const int number = info->si_syscall;
  if (number == SYS_sched_yield || number == SYS_futex || number == SYS_sched_getaffinity ||
      number == SYS_sched_setaffinity) {
    // A wait that fails is harmless: the value has changed already.
    syscall(number, arguments[0], arguments[1], arguments[2], nullptr, nullptr, kFromHandler);
    return;
  }
  char text[64];
  end(1, text, snprintf(text, sizeof(text), "a step made system call %d\n", number));
}

void stop_system_calls() {
  struct sigaction action = {};
  action.sa_sigaction = on_system_call;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSYS, &action, nullptr);
  constexpr auto number = offsetof(seccomp_data, nr), last = offsetof(seccomp_data, args[5]);
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, number),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 5, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 4, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 3, 0),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, last),  // its lower half, on little-endian CPUs
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kFromHandler, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {.len = std::size(filter), .filter = filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) != 0) {
    _exit(77);
  }
}

void count(const char* description, int n_threads, const char* cache) {
  constexpr int kSessions = 3, kPrompt = 1000;
  // On a busy machine more than kRounds, until other processes have left one step undisturbed.
  constexpr int kRounds = 50, kMostRounds = 2000, kMaxTokens = kPrompt + 5 * kMostRounds;
  const ModelDescription model(description);
  const ModelConfig& config = model.config;
  Engine engine(model.path, config, model.tensors, kernel_family(""), n_threads);
  engine.reserve(kMaxTokens);
  std::vector<Session> sessions;
  sessions.reserve(kSessions);
  Session* pointers[kSessions];
  const std::vector<int32_t> prompt(kPrompt, 1);
  for (Session*& pointer : pointers) {
    pointer = &sessions.emplace_back(engine.model(), kMaxTokens, cache_type(cache).type);
    engine.feed(*pointer, prompt.data(), kPrompt, Logits::none, nullptr);
  }
  std::vector<float> logits(size_t{kSessions} * config.vocab_size);
  int n_undisturbed = 0;
  const auto step = [&](int round) {
    const int32_t tokens[kSessions] = {round, round + 1, round + 2};
    const int before = n_waits;
    engine.feed(sessions[0], tokens, 1, Logits::last, logits.data());
    n_undisturbed += n_waits == before;
    engine.feed(sessions[1], tokens, kSessions, Logits::all, logits.data());
    engine.step({}, pointers, tokens, kSessions, logits.data());
  };
  const bool has_cpus = n_threads <= available_cpus();
  step(0);
  stop_system_calls();
  n_undisturbed = 0;
  is_counting = true;
  int n_rounds = 0;
  while (n_rounds < kRounds || (n_undisturbed == 0 && has_cpus && n_rounds < kMostRounds)) {
    step(n_rounds++ % kRounds);
  }
  is_counting = false;

  char text[128];
  const int length = snprintf(text, sizeof(text),
                              "%d allocations, %d calls to wait; %d of %d steps without calls\n",
                              n_allocations.load(), n_waits.load(), n_undisturbed, n_rounds);
  const bool is_good = n_allocations == 0 && (n_undisturbed > 0 || !has_cpus);
  end(is_good ? 0 : 1, text, length);
}

}  // namespace
}  // namespace yocobit

int main(int, char** arguments) { yocobit::count(arguments[1], atoi(arguments[2]), arguments[3]); }
