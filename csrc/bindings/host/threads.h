#pragma once
#include <algorithm>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace strucfast {

// How many ranges parallel_ranges makes of [0, count): at most `threads`, each of at least `grain`.
inline int64_t range_parts(int64_t count, int64_t threads, int64_t grain) {
  return std::max<int64_t>(1, std::min(threads, count / std::max<int64_t>(1, grain)));
}

// Splits [0, count) into range_parts(...) ranges and calls run(part, begin, end) for each, part 0 on the calling
// thread. Threads are spawned per call: no pool has to survive a fork (DataLoader workers), and 20 us a thread is small
// beside a batch.
template <class Run>
void parallel_ranges(int64_t count, int64_t threads, int64_t grain, const Run& run) {
  if (count <= 0) return;
  const int64_t parts = range_parts(count, threads, grain);
  std::vector<std::exception_ptr> failures(parts);
  const auto guarded = [&](int64_t part) {
    try {
      run(part, count * part / parts, count * (part + 1) / parts);
    } catch (...) {
      failures[part] = std::current_exception();
    }
  };
  std::vector<std::thread> workers;
  workers.reserve(parts);
  int64_t started = 1;
  // A machine that refuses another thread still gets its work done, on this one.
  try {
    for (; started < parts; ++started) workers.emplace_back(guarded, started);
  } catch (const std::system_error&) {
  }
  guarded(0);
  for (int64_t part = started; part < parts; ++part) guarded(part);
  for (std::thread& worker : workers) worker.join();
  for (const std::exception_ptr& failure : failures)
    if (failure) std::rethrow_exception(failure);
}

// OMP_NUM_THREADS if it is a positive number, else the CPUs this process may run on.
int64_t default_threads();

}  // namespace strucfast
