#include <cuda_runtime.h>

// What the tests turn on the emulator: the order of threads and blocks, and the size of shared memory.
extern "C" {
__attribute__((visibility("default"))) void emulator_set_order(int order) {
  emulator::state().order = static_cast<emulator::Order>(order);
}
__attribute__((visibility("default"))) void emulator_set_shared_limit(long long bytes) {
  emulator::state().shared_limit = static_cast<size_t>(bytes);
}
__attribute__((visibility("default"))) long long emulator_launches() {
  return static_cast<long long>(emulator::state().launches);
}
}
