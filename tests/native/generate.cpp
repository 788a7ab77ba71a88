// generate MODEL CACHE N TOKEN...: with every family that this CPU supports, also emulated ones, N
// greedy tokens after the prompt TOKEN..., and a checksum of all logits. MODEL as
// model_description.h reads it.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "engine/engine.h"
#include "kernel_equality.h"
#include "kernels/family.h"
#include "model_description.h"

namespace yocobit::test {
namespace {

void generate(const KernelFamily& family, const ModelDescription& model, const char* cache,
              const std::vector<int32_t>& prompt, int n_generated) {
  const int vocab_size = model.config.vocab_size, n_prompt = static_cast<int>(prompt.size());
  Engine engine(model.path, model.config, model.tensors, family, 1);
  engine.reserve(n_prompt + n_generated);
  Session session(engine.model(), n_prompt + n_generated, cache_type(cache).type);
  std::vector<float> logits(size_t(n_prompt) * vocab_size);
  engine.feed(session, prompt.data(), n_prompt, Logits::all, logits.data());
  Checksum checksum;
  checksum.add(logits);
  logits.erase(logits.begin(), logits.end() - vocab_size);
  std::printf("%s:", family.name);
  for (int i = 0; i < n_generated; ++i) {
    const auto likeliest = std::max_element(logits.begin(), logits.end());
    const int32_t token = static_cast<int32_t>(likeliest - logits.begin());
    std::printf(" %d", token);
    engine.feed(session, &token, 1, Logits::last, logits.data());
    checksum.add(logits);
  }
  std::printf(" %016llx\n", static_cast<unsigned long long>(checksum.value()));
}

}  // namespace
}  // namespace yocobit::test

int main(int n_arguments, char** arguments) {
  using namespace yocobit;
  const ModelDescription model(arguments[1]);
  std::vector<int32_t> prompt;
  for (int i = 4; i < n_arguments; ++i) prompt.push_back(std::atoi(arguments[i]));
  std::vector<KernelFamily> families = supported_families();
  families.insert(families.end(), emulated_families().begin(), emulated_families().end());
  for (const KernelFamily& family : families) {
    test::generate(family, model, arguments[2], prompt, std::atoi(arguments[3]));
  }
}
