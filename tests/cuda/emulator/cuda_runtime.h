#pragma once
// Stands in for CUDA's cuda_runtime.h, so that the kernels of csrc/cuda compile with a plain C++ compiler and run on
// the CPU, whole and unchanged. Every CUDA thread is a fiber. Barriers and shuffles wait for all who must take part; a
// barrier that some thread never reaches is an error, shared memory starts as NaN, asynchronous copies happen at
// the wait and not before, and the order in which threads run can be turned round: a missing barrier shows.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#define STRUCFAST_CUDA_EMULATOR 1
#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
constexpr cudaError_t cudaErrorInvalidValue = 1;
constexpr cudaError_t cudaErrorInvalidConfiguration = 9;
constexpr cudaError_t cudaErrorLaunchFailure = 719;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

template <typename T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
inline T max(T a, T b) {
  return a < b ? b : a;
}

namespace emulator {

enum class Order { kForward, kReverse, kShuffled };

struct Fiber {
  ucontext_t context;
  jmp_buf resume;
  std::unique_ptr<char[]> stack;
  dim3 index;
  bool started = false, done = false;
  std::vector<std::pair<void*, const void*>> copies;
};

struct Barrier {
  unsigned arrived = 0, generation = 0;
};

struct Warp {
  Barrier barrier;
  unsigned lanes = 0;
  uint64_t values[32];
};

struct State {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  Barrier block;
  unsigned alive = 0, current = 0;
  jmp_buf scheduler;
  const std::function<void()>* body = nullptr;
  std::string error;
  Order order = Order::kForward;
  size_t shared_limit = 227 * 1024;
  uint64_t random = 1;
  uint64_t progress = 0;
  uint64_t launches = 0;
};

// One for the whole library, although every file is compiled with hidden symbols.
__attribute__((visibility("default"))) inline State& state() {
  static State instance;
  return instance;
}

constexpr size_t kStackBytes = 64 * 1024, kCanaryBytes = 256;

// The compiler must not carry a thread's register copies of the fiber's identity across a switch.
__attribute__((noinline)) inline void yield() {
  State& s = state();
  if (_setjmp(s.fibers[s.current].resume) == 0) _longjmp(s.scheduler, 1);
}

__attribute__((noinline)) inline void wait_at(Barrier& barrier, unsigned needed) {
  ++state().progress;
  const unsigned generation = barrier.generation;
  if (++barrier.arrived == needed) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) yield();
}

inline void enter() {
  (*state().body)();
  State& s = state();
  Fiber& self = s.fibers[s.current];
  if (!self.copies.empty()) s.error = "a thread ended with copies to shared memory still under way";
  self.done = true;
  --s.alive;
  ++s.progress;
  // A thread that has ended no longer counts at the block's barrier.
  if (s.alive > 0 && s.block.arrived == s.alive) {
    s.block.arrived = 0;
    ++s.block.generation;
  }
  _longjmp(s.scheduler, 1);
}

inline unsigned char* dynamic_shared_bytes() {
  auto address = reinterpret_cast<uintptr_t>(state().shared.data());
  return reinterpret_cast<unsigned char*>((address + 15) / 16 * 16);
}

inline void copy_16(void* to, const void* from) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) {
    state().error = "a 16-byte copy to shared memory is not aligned";
  }
  state().fibers[state().current].copies.emplace_back(to, from);
}

inline void finish_copies() {
  auto& copies = state().fibers[state().current].copies;
  for (const auto& [to, from] : copies) std::memcpy(to, from, 16);
  copies.clear();
}

inline size_t shared_memory_limit() { return state().shared_limit; }

inline void run_block(unsigned threads) {
  State& s = state();
  s.alive = threads;
  s.block = Barrier();
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = s.fibers[t];
    fiber.started = fiber.done = false;
    fiber.copies.clear();
    fiber.index = dim3(t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y));
    if (!fiber.stack) fiber.stack.reset(new char[kStackBytes]);
  }
  for (unsigned w = 0; w < s.warps.size(); ++w) {
    s.warps[w].barrier = Barrier();
    s.warps[w].lanes = std::min(32u, threads - 32 * w);
  }
  std::vector<unsigned> order(threads);
  for (unsigned t = 0; t < threads; ++t) order[t] = s.order == Order::kReverse ? threads - 1 - t : t;
  volatile unsigned position = 0;
  while (s.alive > 0) {
    const uint64_t before = s.progress;
    if (s.order == Order::kShuffled) {
      for (unsigned t = threads; t > 1; --t) {
        s.random = s.random * 6364136223846793005ull + 1442695040888963407ull;
        std::swap(order[t - 1], order[(s.random >> 33) % t]);
      }
    }
    for (position = 0; position < threads; position = position + 1) {
      Fiber& fiber = s.fibers[order[position]];
      if (fiber.done) continue;
      s.current = order[position];
      threadIdx = fiber.index;
      if (_setjmp(s.scheduler) == 0) {
        if (fiber.started) _longjmp(fiber.resume, 1);
        fiber.started = true;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStackBytes;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, reinterpret_cast<void (*)()>(enter), 0);
        setcontext(&fiber.context);
      }
    }
    if (s.progress == before && s.alive > 0) {
      s.error = "deadlock: a barrier or a shuffle that some thread never reaches";
      return;
    }
  }
}

inline cudaError_t run(const std::function<void()>& body, unsigned grid, dim3 block, size_t shared_bytes) {
  State& s = state();
  const unsigned threads = block.x * block.y * block.z;
  if (grid == 0 || threads == 0 || threads > 1024 || shared_bytes > s.shared_limit)
    return cudaErrorInvalidConfiguration;
  s.error.clear();
  ++s.launches;
  s.body = &body;
  if (s.fibers.size() < threads) s.fibers.resize(threads);
  s.warps.assign((threads + 31) / 32, Warp());
  gridDim = dim3(grid);
  blockDim = block;
  for (unsigned b = 0; b < grid && s.error.empty(); ++b) {
    const unsigned id = s.order == Order::kReverse ? grid - 1 - b : b;
    blockIdx = dim3(id, 0, 0);
    // All bits set is a NaN in every float type.
    s.shared.assign(shared_bytes + kCanaryBytes + 16, 0xff);
    unsigned char* canary = dynamic_shared_bytes() + shared_bytes;
    std::memset(canary, 0x5a, kCanaryBytes);
    run_block(threads);
    for (size_t i = 0; i < kCanaryBytes && s.error.empty(); ++i) {
      if (canary[i] != 0x5a) s.error = "a write beyond the block's shared memory";
    }
  }
  return s.error.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait_at(emulator::state().block, emulator::state().alive); }

template <typename T>
__attribute__((noinline)) T __shfl_xor_sync(unsigned, T value, int offset) {
  auto& s = emulator::state();
  emulator::Warp& warp = s.warps[s.current / 32];
  const unsigned lane = s.current % 32;
  std::memcpy(&warp.values[lane], &value, sizeof(T));
  emulator::wait_at(warp.barrier, warp.lanes);
  T result;
  std::memcpy(&result, &warp.values[lane ^ static_cast<unsigned>(offset)], sizeof(T));
  emulator::wait_at(warp.barrier, warp.lanes);
  return result;
}

template <typename T>
__attribute__((noinline)) T __shfl_up_sync(unsigned, T value, unsigned offset) {
  auto& s = emulator::state();
  emulator::Warp& warp = s.warps[s.current / 32];
  const unsigned lane = s.current % 32;
  std::memcpy(&warp.values[lane], &value, sizeof(T));
  emulator::wait_at(warp.barrier, warp.lanes);
  T result;
  std::memcpy(&result, &warp.values[lane < offset ? lane : lane - offset], sizeof(T));
  emulator::wait_at(warp.barrier, warp.lanes);
  return result;
}

template <typename T>
__attribute__((noinline)) T __shfl_sync(unsigned, T value, int from) {
  auto& s = emulator::state();
  emulator::Warp& warp = s.warps[s.current / 32];
  std::memcpy(&warp.values[s.current % 32], &value, sizeof(T));
  emulator::wait_at(warp.barrier, warp.lanes);
  T result;
  std::memcpy(&result, &warp.values[from], sizeof(T));
  emulator::wait_at(warp.barrier, warp.lanes);
  return result;
}

__attribute__((noinline)) inline unsigned __ballot_sync(unsigned, bool yes) {
  auto& s = emulator::state();
  emulator::Warp& warp = s.warps[s.current / 32];
  warp.values[s.current % 32] = yes;
  emulator::wait_at(warp.barrier, warp.lanes);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < warp.lanes; ++lane) bits |= static_cast<unsigned>(warp.values[lane]) << lane;
  emulator::wait_at(warp.barrier, warp.lanes);
  return bits;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

// Fibers give way at barriers and shuffles only, so a plain update is an atomic one.
template <typename T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to = before + value;
  return before;
}
template <typename T>
T atomicMin(T* to, T value) {
  const T before = *to;
  *to = value < before ? value : before;
  return before;
}

inline void __syncwarp() {
  auto& s = emulator::state();
  emulator::Warp& warp = s.warps[s.current / 32];
  emulator::wait_at(warp.barrier, warp.lanes);
}
