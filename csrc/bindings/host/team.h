#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace strucfast {

// Threads that live for one call and take tasks many times in it: spawning per step (20 us a thread) would cost as much
// as a step of boosting. The calling thread works too.
class Team {
 public:
  explicit Team(int64_t threads) {
    // A machine that refuses another thread still gets its work done.
    try {
      for (int64_t i = 1; i < threads; ++i) workers_.emplace_back([this] { serve(); });
    } catch (const std::system_error&) {
    }
  }

  ~Team() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      leaving_ = true;
      ++turn_;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // Calls task(0) .. task(count - 1), each once, and returns when all are done; rethrows the first exception.
  void run(int64_t count, const std::function<void(int64_t)>& task) {
    if (workers_.empty() || count < 2) {
      for (int64_t i = 0; i < count; ++i) task(i);
      return;
    }
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      task_ = &task;
      count_ = count;
      next_.store(0, std::memory_order_relaxed);
      busy_ = static_cast<int64_t>(workers_.size());
      ++turn_;
    }
    wake_.notify_all();
    take();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

 private:
  void take() {
    try {
      for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) (*task_)(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
      next_.store(count_, std::memory_order_relaxed);
    }
  }

  void serve() {
    int64_t seen = 0;
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return turn_ != seen; });
        seen = turn_;
        if (leaving_) return;
      }
      take();
      const std::lock_guard<std::mutex> lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int64_t)>* task_ = nullptr;
  std::atomic<int64_t> next_{0};
  int64_t count_ = 0, busy_ = 0, turn_ = 0;
  bool leaving_ = false;
  std::exception_ptr failure_;
};

}  // namespace strucfast
