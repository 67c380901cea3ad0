#include <cstdio>

#include "cuda/device.h"

// One right kernel and four wrong ones, for the test of the emulator itself: prints what each is judged to be.
namespace {

// Every thread writes its number; the neighbour's is read after a barrier, if there is one.
template <bool Barrier>
void neighbour(int* out) {
  int* shared = strucfast::cuda::dynamic_shared<int>();
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (Barrier) __syncthreads();
  out[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}

void divergent(int* out) {
  if (threadIdx.x < 40) __syncthreads();
  out[threadIdx.x] = __shfl_xor_sync(~0u, static_cast<int>(threadIdx.x), 1);
}

void overrun(int*) { strucfast::cuda::dynamic_shared<int>()[blockDim.x] = 7; }

void unfinished(int* out) { strucfast::cuda::copy_16_to_shared(strucfast::cuda::dynamic_shared<int>(), out); }

void judge(const char* name, void (*kernel)(int*)) {
  alignas(16) int out[64];
  std::string verdict;
  for (const auto order : {emulator::Order::kForward, emulator::Order::kReverse}) {
    emulator::state().order = order;
    const int error = strucfast::cuda::launch(kernel, 1, dim3(64), 64 * sizeof(int), nullptr, +out);
    if (error != 0) {
      verdict = emulator::state().error;
    } else {
      bool right = true;
      for (int t = 0; t < 64; ++t) right = right && out[t] == (t + 1) % 64;
      verdict = right ? "right numbers" : "wrong numbers";
    }
    if (verdict != "right numbers") break;
  }
  std::printf("%s: %s\n", name, verdict.c_str());
}

}  // namespace

// Divider against the division itself, below and above 2^31.
bool divides() {
  uint64_t random = 1;
  for (int64_t divisor : {1ll, 2ll, 3ll, 4ll, 5ll, 7ll, 64ll, 4096ll, 4099ll, 65535ll, 1ll << 30, (1ll << 31) - 1,
                          (1ll << 31) + 7, 3ll << 40}) {
    for (int64_t limit : {1ll << 31, 1ll << 50}) {
      const strucfast::cuda::Divider by(divisor, limit);
      for (int turn = 0; turn < 2000; ++turn) {
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        int64_t n = static_cast<int64_t>(random >> 13) % limit;
        // Multiples and their neighbours, where a wrong magic number shows first.
        if (turn % 2 == 0) n = n / divisor * divisor + turn % 4 / 2 * (divisor - 1);
        if (n < limit && by.quotient(n) != n / divisor) return false;
      }
      if (by.quotient(limit - 1) != (limit - 1) / divisor || by.quotient(0) != 0) return false;
    }
  }
  return true;
}

int main() {
  std::printf("division: %s\n", divides() ? "right numbers" : "wrong numbers");
  judge("good", neighbour<true>);
  judge("no barrier", neighbour<false>);
  judge("divergent", divergent);
  judge("overrun", overrun);
  judge("unfinished copy", unfinished);
}
