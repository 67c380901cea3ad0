#include "cuda/modulate.cuh"

#include <algorithm>

#include "cuda/reduce.cuh"
#include "cuda/vector_io.cuh"

namespace strucfast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVectors = 4;
// Enough blocks for a large GPU; fixed, so that the order of the sums does not depend on the device.
constexpr int64_t kTargetBlocks = 1024;

template <typename T>
struct BackwardArguments {
  const T* grad;
  const T* x;
  Operand scale;
  T* dx;
  Gradient dscale, dshift;
  Shape shape;
  Divider by_channels;
  // Pieces of a row or a sample, positions in a piece, and tiles of channels beside each other.
  int64_t chunks, chunk, tiles;
  Compute<T>* workspace;
  // Whether any gradient is a sum over pixels.
  bool sums;
};

// dx, the per-pixel gradients, and this vector's share of the per-channel sums.
template <typename T, int V>
__device__ __forceinline__ void backward_vector(const BackwardArguments<T>& p, int64_t at, const Pack<T, V>& grad_pack,
                                                const Pack<T, V>& x_pack, const Compute<T> (&channel_scale)[V],
                                                Compute<T> (&scale_sum)[V], Compute<T> (&shift_sum)[V]) {
  using A = Compute<T>;
  A grad[V], product[V];
  unpack<V>(grad_pack, grad);
  if (p.dx != nullptr) {
    A scale[V], dx[V];
#pragma unroll
    for (int j = 0; j < V; ++j) scale[j] = channel_scale[j];
    if (p.scale.per_pixel) load_operands<T, V>(p.scale, at, scale);
#pragma unroll
    for (int j = 0; j < V; ++j) dx[j] = scale[j] * grad[j];
    store_values<V>(p.dx + at, dx);
  }
  if (p.dscale.data != nullptr) {
    unpack<V>(x_pack, product);
#pragma unroll
    for (int j = 0; j < V; ++j) product[j] *= grad[j];
    if (p.dscale.per_pixel) {
      store_gradients<T, V>(p.dscale, at, product);
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) scale_sum[j] += product[j];
    }
  }
  if (p.dshift.data != nullptr) {
    if (p.dshift.per_pixel) {
      store_gradients<T, V>(p.dshift, at, grad);
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) shift_sum[j] += grad[j];
    }
  }
}

// The sums of one (n,c), either final or one of several chunks for the second kernel.
template <typename T>
__device__ __forceinline__ void write_sums(const BackwardArguments<T>& p, int64_t chunk, int64_t index,
                                           Compute<T> scale_sum, Compute<T> shift_sum) {
  if (!p.sums) return;
  if (p.chunks > 1) {
    Compute<T>* to = p.workspace + 2 * (chunk * p.shape.batch * p.shape.channels + index);
    to[0] = scale_sum;
    to[1] = shift_sum;
    return;
  }
  if (p.dscale.data != nullptr && !p.dscale.per_pixel) store_gradient<T>(p.dscale, index, scale_sum);
  if (p.dshift.data != nullptr && !p.dshift.per_pixel) store_gradient<T>(p.dshift, index, shift_sum);
}

// Contiguous x: a team of blockDim.x threads takes one chunk of one row (n,c).
template <typename T, int V>
__global__ void __launch_bounds__(kThreads) modulate_backward_rows_kernel(BackwardArguments<T> p) {
  using A = Compute<T>;
  __shared__ A scratch[2][kThreads / 32];
  const int team = blockDim.x;
  const int64_t rows = p.shape.batch * p.shape.channels, row_block = blockIdx.x / static_cast<unsigned>(p.chunks);
  const int64_t chunk = blockIdx.x - row_block * p.chunks, row = row_block * blockDim.y + threadIdx.y;
  A scale_sum[V] = {}, shift_sum[V] = {};
  if (row < rows) {
    const int64_t base = row * p.shape.spatial, end = min(p.shape.spatial / V, (chunk + 1) * p.chunk);
    A scale[V] = {};
    if (p.dx != nullptr && !p.scale.per_pixel) {
      const int64_t sample = p.by_channels.quotient(row);
      const A value = load_operand<T>(p.scale, sample * p.scale.stride + row - sample * p.shape.channels);
#pragma unroll
      for (int j = 0; j < V; ++j) scale[j] = value;
    }
    for (int64_t start = chunk * p.chunk + threadIdx.x; start < end; start += kVectors * team) {
      Pack<T, V> grad[kVectors], x[kVectors];
#pragma unroll
      for (int k = 0; k < kVectors; ++k) {
        const int64_t i = start + k * team;
        if (i < end) grad[k] = load_pack<V>(p.grad + base + i * V);
        if (i < end && p.dscale.data != nullptr) x[k] = load_pack<V>(p.x + base + i * V);
      }
#pragma unroll
      for (int k = 0; k < kVectors; ++k) {
        const int64_t i = start + k * team;
        if (i < end) backward_vector<T, V>(p, base + i * V, grad[k], x[k], scale, scale_sum, shift_sum);
      }
    }
  }
  A sums[2] = {0, 0};
#pragma unroll
  for (int j = 0; j < V; ++j) {
    sums[0] += scale_sum[j];
    sums[1] += shift_sum[j];
  }
  sums[0] = warp_sum(sums[0], min(team, 32));
  sums[1] = warp_sum(sums[1], min(team, 32));
  if (team > 32) {
    const int warp = (threadIdx.y * team + threadIdx.x) / 32;
    if (threadIdx.x % 32 == 0) {
      scratch[0][warp] = sums[0];
      scratch[1][warp] = sums[1];
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int k = 1; k < team / 32; ++k) {
        sums[0] += scratch[0][warp + k];
        sums[1] += scratch[1][warp + k];
      }
    }
  }
  if (row < rows && threadIdx.x == 0) write_sums(p, chunk, row, sums[0], sums[1]);
}

// Channels-last x: blockDim.x threads stand side by side over channel vectors, blockDim.y of them over pixels.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads) modulate_backward_channels_last_kernel(BackwardArguments<T> p) {
  using A = Compute<T>;
  __shared__ A scratch[2][kThreads * V];
  const int lanes = blockDim.x, pixels = blockDim.y;
  const int64_t channel_vectors = p.shape.channels / V;
  const int64_t column = blockIdx.x / static_cast<unsigned>(p.chunks), chunk = blockIdx.x - column * p.chunks;
  const int64_t sample = static_cast<unsigned>(column) / static_cast<unsigned>(p.tiles),
                vector = (column - sample * p.tiles) * lanes + threadIdx.x;
  const int64_t end = min(p.shape.spatial, (chunk + 1) * p.chunk);
  A scale_sum[V] = {}, shift_sum[V] = {};
  if (vector < channel_vectors) {
    const int64_t base = sample * p.shape.spatial * p.shape.channels + vector * V;
    A scale[V] = {};
    if (p.dx != nullptr && !p.scale.per_pixel) {
      load_operands<T, V>(p.scale, sample * p.scale.stride + vector * V, scale);
    }
    for (int64_t start = chunk * p.chunk + threadIdx.y; start < end; start += kVectors * pixels) {
      Pack<T, V> grad[kVectors], x[kVectors];
#pragma unroll
      for (int k = 0; k < kVectors; ++k) {
        const int64_t pixel = start + k * pixels;
        if (pixel < end) grad[k] = load_pack<V>(p.grad + base + pixel * p.shape.channels);
        if (pixel < end && p.dscale.data != nullptr) x[k] = load_pack<V>(p.x + base + pixel * p.shape.channels);
      }
#pragma unroll
      for (int k = 0; k < kVectors; ++k) {
        const int64_t pixel = start + k * pixels;
        if (pixel < end) {
          backward_vector<T, V>(p, base + pixel * p.shape.channels, grad[k], x[k], scale, scale_sum, shift_sum);
        }
      }
    }
  }
  const int width = lanes * V;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    scratch[0][threadIdx.y * width + threadIdx.x * V + j] = scale_sum[j];
    scratch[1][threadIdx.y * width + threadIdx.x * V + j] = shift_sum[j];
  }
  __syncthreads();
  for (int c = threadIdx.y * lanes + threadIdx.x; c < width; c += kThreads) {
    const int64_t channel = (column - sample * p.tiles) * width + c;
    if (channel >= p.shape.channels) continue;
    A sums[2] = {0, 0};
    for (int k = 0; k < pixels; ++k) {
      sums[0] += scratch[0][k * width + c];
      sums[1] += scratch[1][k * width + c];
    }
    write_sums(p, chunk, sample * p.shape.channels + channel, sums[0], sums[1]);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) modulate_backward_finish_kernel(BackwardArguments<T> p) {
  const int64_t rows = p.shape.batch * p.shape.channels;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= rows) return;
  Compute<T> sums[2] = {0, 0};
  for (int64_t chunk = 0; chunk < p.chunks; ++chunk) {
    sums[0] += p.workspace[2 * (chunk * rows + row)];
    sums[1] += p.workspace[2 * (chunk * rows + row) + 1];
  }
  p.chunks = 1;
  write_sums(p, 0, row, sums[0], sums[1]);
}

int64_t round_up_power_of_two(int64_t value, int64_t limit) {
  int64_t power = 1;
  while (power < value && power < limit) power *= 2;
  return power;
}

// How a backward pass covers x: `lanes` threads side by side, the rest of the block beside them, `chunks` blocks deep.
struct Plan {
  int64_t lanes, columns, chunks, chunk, tiles;
};

Plan plan_rows(Shape shape, int vector) {
  const int64_t vectors = shape.spatial / vector, rows = shape.batch * shape.channels;
  Plan plan{};
  plan.lanes = round_up_power_of_two(divide_up(vectors, kVectors), kThreads);
  plan.columns = divide_up(rows, kThreads / plan.lanes);
  const int64_t most = divide_up(vectors, plan.lanes * kVectors * 2);
  plan.chunks = std::clamp<int64_t>(divide_up(kTargetBlocks, plan.columns), 1, std::max<int64_t>(most, 1));
  plan.chunk = divide_up(vectors, plan.chunks);
  return plan;
}

Plan plan_channels_last(Shape shape, int vector) {
  const int64_t vectors = shape.channels / vector;
  Plan plan{};
  plan.lanes = round_up_power_of_two(vectors, 64);
  plan.tiles = divide_up(vectors, plan.lanes);
  plan.columns = shape.batch * plan.tiles;
  const int64_t most = divide_up(shape.spatial, kThreads / plan.lanes * kVectors);
  plan.chunks = std::clamp<int64_t>(divide_up(kTargetBlocks, plan.columns), 1, std::max<int64_t>(most, 1));
  plan.chunk = divide_up(shape.spatial, plan.chunks);
  return plan;
}

template <typename T, int V>
cudaError_t run_backward(BackwardArguments<T> p, cudaStream_t stream) {
  const Plan plan = p.shape.channels_last ? plan_channels_last(p.shape, V) : plan_rows(p.shape, V);
  p.chunks = plan.chunks;
  p.chunk = plan.chunk;
  p.tiles = plan.tiles;
  const dim3 block(static_cast<unsigned>(plan.lanes), static_cast<unsigned>(kThreads / plan.lanes));
  const auto kernel =
      p.shape.channels_last ? modulate_backward_channels_last_kernel<T, V> : modulate_backward_rows_kernel<T, V>;
  cudaError_t error = launch(kernel, static_cast<unsigned>(plan.columns * plan.chunks), block, 0, stream, p);
  if (error != cudaSuccess || plan.chunks == 1 || !p.sums) return error;
  const auto grid = static_cast<unsigned>(divide_up(p.shape.batch * p.shape.channels, kThreads));
  return launch(modulate_backward_finish_kernel<T>, grid, dim3(kThreads), 0, stream, p);
}

}  // namespace

template <typename T>
int64_t modulate_workspace(Shape shape, bool scale_per_pixel, bool shift_per_pixel) {
  if (shape.size() == 0 || shape.spatial == 1 || (scale_per_pixel && shift_per_pixel)) return 0;
  int64_t chunks = 1;
  for (const int vector : {1, kFullVector<T>}) {
    if ((shape.channels_last ? shape.channels : shape.spatial) % vector != 0) continue;
    const Plan plan = shape.channels_last ? plan_channels_last(shape, vector) : plan_rows(shape, vector);
    chunks = std::max(chunks, plan.chunks);
  }
  return chunks == 1 ? 0 : 2 * chunks * shape.batch * shape.channels;
}

template <typename T>
cudaError_t modulate_backward(const T* grad, const T* x, Operand scale, T* dx, Gradient dscale, Gradient dshift,
                              Shape shape, Compute<T>* workspace, cudaStream_t stream) {
  if (shape.spatial == 1) {
    simplify_single_pixel(&shape, &scale);
    // The gradients lie as (N,C) without gaps.
    dscale.per_pixel = dshift.per_pixel = true;
  }
  if (scale.per_pixel) shape = flatten_if_elementwise(shape, dscale.per_pixel, dshift.per_pixel);
  if (shape.size() == 0) return cudaSuccess;
  constexpr int V = kFullVector<T>;
  bool vectors = (shape.channels_last ? shape.channels : shape.spatial) % V == 0;
  vectors = vectors && aligned_16(grad) && aligned_16(x) && aligned_16(dx) && aligned_16(dscale.data) &&
            aligned_16(dshift.data);
  vectors = vectors && (vectors_fit<V>(scale) || (!scale.per_pixel && !shape.channels_last));
  const bool sums = (dscale.data != nullptr && !dscale.per_pixel) || (dshift.data != nullptr && !dshift.per_pixel);
  const Divider by_channels(shape.channels, shape.batch * shape.channels);
  const BackwardArguments<T> p{grad, x, scale, dx, dscale, dshift, shape, by_channels, 1, 0, 1, workspace, sums};
  return vectors ? run_backward<T, V>(p, stream) : run_backward<T, 1>(p, stream);
}

#define STRUCFAST_MODULATE(T)                                                                                        \
  template int64_t modulate_workspace<T>(Shape, bool, bool);                                                         \
  template cudaError_t modulate_backward<T>(const T*, const T*, Operand, T*, Gradient, Gradient, Shape, Compute<T>*, \
                                            cudaStream_t);
STRUCFAST_MODULATE(float)
STRUCFAST_MODULATE(double)
STRUCFAST_MODULATE(BFloat16)
STRUCFAST_MODULATE(Float16)
#undef STRUCFAST_MODULATE

}  // namespace strucfast::cuda
