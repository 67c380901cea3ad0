#include "cuda/histogram.cuh"

#include <algorithm>

#include "cuda/reduce.cuh"

namespace strucfast::cuda {
namespace {

constexpr int kRangeThreads = 256;
constexpr int kHistogramThreads = 512;
// Rows of one code that a thread takes between two barriers.
constexpr int kItems = 4;
// Factor values of a chunk of rows, waiting in shared memory for all codes.
constexpr int kStaged = 8192;
// Two for every multiprocessor of the largest cards.
constexpr int64_t kBlocks = 264;

template <typename T>
__device__ __forceinline__ bool is_strange(T value) {
  return !(value - value == T(0));
}
template <>
__device__ __forceinline__ bool is_strange<int64_t>(int64_t) {
  return false;
}

// One block: up to 256 columns of a range of rows. A thread keeps to its column while neighbours read neighbours.
template <typename T>
__global__ void __launch_bounds__(kRangeThreads, 1)
    column_range_kernel(const T* values, int64_t rows, int64_t columns, unsigned parts, T* partial) {
  __shared__ T lowest[kRangeThreads], highest[kRangeThreads];
  __shared__ int strange[kRangeThreads];
  const unsigned tile = blockIdx.x / parts, part = blockIdx.x - tile * parts;
  const int64_t first = static_cast<int64_t>(tile) * kRangeThreads;
  const auto width = static_cast<int>(min(columns - first, static_cast<int64_t>(kRangeThreads)));
  const int at_once = kRangeThreads / width, row = threadIdx.x / width;
  const int64_t column = first + threadIdx.x % width, each = (rows + parts - 1) / parts;
  // A part without rows of its own looks at the last row once more.
  const int64_t begin = min(part * each, rows - 1), end = min(begin + each, rows);
  T low = values[begin * columns + column], high = low;
  bool found = false;
  if (row < at_once) {
#pragma unroll 4
    for (int64_t r = begin + row; r < end; r += at_once) {
      const T value = values[r * columns + column];
      low = value < low ? value : low;
      high = value > high ? value : high;
      found |= is_strange(value);
    }
  }
  lowest[threadIdx.x] = low;
  highest[threadIdx.x] = high;
  strange[threadIdx.x] = found;
  __syncthreads();
  for (int count = at_once; count > 1;) {
    const int half = (count + 1) / 2;
    if (row < count - half) {
      const int mine = threadIdx.x, other = threadIdx.x + half * width;
      lowest[mine] = min(lowest[mine], lowest[other]);
      highest[mine] = max(highest[mine], highest[other]);
      strange[mine] |= strange[other];
    }
    __syncthreads();
    count = half;
  }
  if (row == 0) {
    T* out = partial + part * 3 * columns;
    out[column] = lowest[threadIdx.x];
    out[columns + column] = highest[threadIdx.x];
    out[2 * columns + column] = T(strange[threadIdx.x]);
  }
}

// One warp: the parts of one column.
template <typename T>
__global__ void __launch_bounds__(kRangeThreads, 1)
    column_range_finish_kernel(const T* partial, unsigned parts, int64_t columns, T* out) {
  const int lane = threadIdx.x % 32;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * (kRangeThreads / 32) + threadIdx.x / 32;
  if (column >= columns) return;
  T low = partial[column], high = partial[columns + column], strange = T(0);
  for (unsigned part = lane; part < parts; part += 32) {
    const T* own = partial + part * 3 * columns + column;
    low = min(low, own[0]);
    high = max(high, own[columns]);
    strange = max(strange, own[2 * columns]);
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    low = min(low, __shfl_xor_sync(kAllLanes, low, offset));
    high = max(high, __shfl_xor_sync(kAllLanes, high, offset));
    strange = max(strange, __shfl_xor_sync(kAllLanes, strange, offset));
  }
  if (lane == 0) {
    out[column] = low;
    out[columns + column] = high;
    out[2 * columns + column] = strange;
  }
}

// How the work is cut: a block takes `codes` codes of a range of rows.
struct HistogramPlan {
  int codes;
  unsigned parts;
  int64_t rows_a_part;
};

// The guess is off by at most a step where the edges are what equal steps round to; the edges decide in any case.
template <typename T>
__device__ __forceinline__ int label_of(T x, const T* edges, int bins, T lowest, T scale) {
  const T guess = (x - lowest) * scale;
  // Also where the guess is NaN, because the range overflows or underflows, it starts inside.
  int label = guess > T(0) ? (guess < T(bins - 1) ? static_cast<int>(guess) : bins - 1) : 0;
  while (label > 0 && x < edges[label]) --label;
  while (label < bins - 1 && x >= edges[label + 1]) ++label;
  return label;
}

// A thread keeps to its code, so that lanes of a warp meet in one cell only where they hold rows of the same code: two
// or three lanes of 32 with a dozen codes. Factors become places in a table once per chunk of rows, for all codes.
// Shared: the block's tables fit into shared memory and are added to the counts at the end; else every count is an
// atomic in global memory. Integer sums: the same counts in whatever order.
template <typename T, bool Shared>
__global__ void __launch_bounds__(kHistogramThreads, Shared ? 2 : 1)
    joint_histogram_kernel(HistogramJob<T> job, HistogramPlan plan) {
  const unsigned tile = blockIdx.x / plan.parts, part = blockIdx.x - tile * plan.parts;
  const int64_t first = static_cast<int64_t>(tile) * plan.codes;
  const auto codes = static_cast<int>(min(job.columns - first, static_cast<int64_t>(plan.codes)));
  const auto bins = static_cast<int>(job.bins);
  const int64_t cells = codes * job.bins * job.values;

  T* block_edges = dynamic_shared<T>();
  auto* tables = reinterpret_cast<uint32_t*>(block_edges + (Shared ? codes * (job.bins + 1) : 0));
  auto* staged = reinterpret_cast<int32_t*>(tables + (Shared ? cells : 0));
  const T* edges = job.edges + first * (job.bins + 1);
  if (Shared) {
    for (int i = threadIdx.x; i < codes * (bins + 1); i += kHistogramThreads) block_edges[i] = edges[i];
    for (int i = threadIdx.x; i < cells; i += kHistogramThreads) tables[i] = 0;
    __syncthreads();
    edges = block_edges;
  }

  const int at_once = kHistogramThreads / codes, code = threadIdx.x % codes, own_row = threadIdx.x / codes;
  edges += code * (job.bins + 1);
  const T lowest = edges[0], scale = T(bins) / (edges[bins] - lowest);
  auto* counts = reinterpret_cast<unsigned long long*>(job.counts) + first * job.bins * job.values;

  const int chunk = at_once * kItems, factors_at_once = kStaged / chunk;
  const int64_t begin = part * plan.rows_a_part, end = min(begin + plan.rows_a_part, job.rows);
  for (int64_t row = begin; row < end; row += chunk) {
    const auto rows = static_cast<int>(min(end - row, static_cast<int64_t>(chunk)));
    int labels[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int r = own_row + i * at_once;
      labels[i] = -1;
      if (own_row < at_once && r < rows)
        labels[i] = label_of(job.codes[(row + r) * job.columns + first + code], edges, bins, lowest, scale);
    }
    for (int64_t k = 0; k < job.num_factors; k += factors_at_once) {
      const auto factors = static_cast<int>(min(job.num_factors - k, static_cast<int64_t>(factors_at_once)));
      for (int i = threadIdx.x; i < rows * factors; i += kHistogramThreads) {
        const int r = i / factors;
        const int64_t factor = k + (i - r * factors), start = job.starts[factor];
        // As unsigned numbers, in which the difference of any two int64 is defined and negative ones are large.
        const auto value = static_cast<uint64_t>(job.factors[(row + r) * job.num_factors + factor]) -
                           static_cast<uint64_t>(job.low[factor]);
        const bool inside = value < static_cast<uint64_t>(job.starts[factor + 1] - start);
        staged[i] = inside ? static_cast<int32_t>(start + static_cast<int64_t>(value)) : -1;
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        if (labels[i] < 0) continue;
        const int32_t* own = staged + (own_row + i * at_once) * factors;
        const int64_t table = (static_cast<int64_t>(code) * bins + labels[i]) * job.values;
        for (int f = 0; f < factors; ++f) {
          const int32_t value = own[f];
          if (value < 0) continue;
          if (Shared) {
            atomicAdd(tables + static_cast<int>(table) + value, 1u);
          } else {
            atomicAdd(counts + table + value, 1ull);
          }
        }
      }
      // The next factors go where these were.
      __syncthreads();
    }
  }
  if (Shared) {
    for (int i = threadIdx.x; i < cells; i += kHistogramThreads) {
      const uint32_t count = tables[i];
      if (count != 0) atomicAdd(counts + i, static_cast<unsigned long long>(count));
    }
  }
}

template <typename T>
size_t shared_bytes(const HistogramJob<T>& job, int64_t codes) {
  return codes * ((job.bins + 1) * sizeof(T) + job.bins * job.values * sizeof(uint32_t)) + kStaged * sizeof(int32_t);
}

}  // namespace

int64_t column_range_parts(int64_t rows, int64_t columns) {
  const int64_t tiles = divide_up(columns, kRangeThreads);
  // At least eight rows a thread, and no more blocks than keep a card busy.
  const int64_t at_once = kRangeThreads / std::min<int64_t>(columns, kRangeThreads);
  return std::clamp<int64_t>(rows / (8 * at_once), 1, std::max<int64_t>(1, 2 * kBlocks / tiles));
}

template <typename T>
cudaError_t column_range(const T* values, int64_t rows, int64_t columns, T* out, T* workspace, cudaStream_t stream) {
  const int64_t tiles = divide_up(columns, kRangeThreads);
  const auto parts = static_cast<unsigned>(column_range_parts(rows, columns));
  const cudaError_t error = launch(column_range_kernel<T>, static_cast<unsigned>(tiles * parts), dim3(kRangeThreads), 0,
                                   stream, values, rows, columns, parts, workspace);
  if (error != cudaSuccess) return error;
  const auto grid = static_cast<unsigned>(divide_up(columns, kRangeThreads / 32));
  return launch(column_range_finish_kernel<T>, grid, dim3(kRangeThreads), 0, stream,
                static_cast<const T*>(workspace), parts, columns, out);
}

template <typename T>
cudaError_t joint_histogram(const HistogramJob<T>& job, cudaStream_t stream) {
  if (job.rows == 0 || job.columns == 0 || job.num_factors == 0) return cudaSuccess;
  const size_t limit = shared_memory_limit();
  const bool fits = job.bins * job.values < (1 << 20) && shared_bytes(job, 1) <= limit;
  int64_t codes = std::min<int64_t>(job.columns, kHistogramThreads);
  if (fits) {
    // Two blocks on a multiprocessor hide each other's barriers; each takes 1 KB more than it asks for.
    const size_t half = limit / 2 - 1024, budget = shared_bytes(job, 1) <= half ? half : limit;
    const size_t fixed = shared_bytes(job, 0), each = shared_bytes(job, 1) - fixed;
    codes = std::min(codes, static_cast<int64_t>((budget - fixed) / each));
  }
  const int64_t tiles = divide_up(job.columns, codes);
  codes = divide_up(job.columns, tiles);
  // A block that only empties its tables has not earned them.
  const int64_t chunk = kHistogramThreads / codes * kItems;
  const int64_t least = fits ? std::max(chunk, job.bins * job.values / job.num_factors) : chunk;
  const int64_t parts = std::clamp<int64_t>(divide_up(job.rows, least), 1, std::max<int64_t>(1, kBlocks / tiles));
  const HistogramPlan plan{static_cast<int>(codes), static_cast<unsigned>(parts), divide_up(job.rows, parts)};
  const auto grid = static_cast<unsigned>(tiles * parts);
  if (fits)
    return launch(joint_histogram_kernel<T, true>, grid, dim3(kHistogramThreads), shared_bytes(job, codes), stream, job,
                  plan);
  return launch(joint_histogram_kernel<T, false>, grid, dim3(kHistogramThreads), kStaged * sizeof(int32_t), stream, job,
                plan);
}

template cudaError_t column_range<float>(const float*, int64_t, int64_t, float*, float*, cudaStream_t);
template cudaError_t column_range<double>(const double*, int64_t, int64_t, double*, double*, cudaStream_t);
template cudaError_t column_range<int64_t>(const int64_t*, int64_t, int64_t, int64_t*, int64_t*, cudaStream_t);
template cudaError_t joint_histogram<float>(const HistogramJob<float>&, cudaStream_t);
template cudaError_t joint_histogram<double>(const HistogramJob<double>&, cudaStream_t);

}  // namespace strucfast::cuda
