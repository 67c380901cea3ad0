#include <algorithm>

#include "cuda/activation.cuh"
#include "cuda/str_tfm.cuh"
#include "cuda/str_tfm_tile.cuh"

// Two launches. The first walks each tile of samples back through its MLP and writes the gradients of all
// pre-activations; the second multiplies them with the layers' inputs, one block per tile of a weight, over the whole
// batch in order: no partial sums, no atomics.
namespace strucfast::cuda {
namespace {

template <typename T>
struct BackwardArguments {
  StrTfmLayers<T> layers;
  StrTfmGradients<T> g;
  int64_t tiles, hidden_width, delta_width;
  int widest;
};

template <typename T>
__device__ __forceinline__ T scale_slope_any(ScaleMap map, T scale) {
  switch (map) {
    case ScaleMap::kExp: return scale_slope<ScaleMap::kExp>(scale);
    case ScaleMap::kExpHalf: return scale_slope<ScaleMap::kExpHalf>(scale);
    case ScaleMap::kSoftplusShift: return scale_slope<ScaleMap::kSoftplusShift>(scale);
    case ScaleMap::kSigmoid2: return scale_slope<ScaleMap::kSigmoid2>(scale);
    default: return scale_slope<ScaleMap::kOnePlus>(scale);
  }
}

template <typename T, typename Tile>
__global__ void __launch_bounds__(kTileThreads) str_tfm_delta_kernel(BackwardArguments<T> args) {
  const StrTfmLayers<T>& layers = args.layers;
  const int64_t variable = blockIdx.x / static_cast<unsigned>(args.tiles);
  const int64_t first_sample = (blockIdx.x - variable * args.tiles) * Tile::kSamples;
  const auto samples = static_cast<int>(min(layers.samples - first_sample, static_cast<int64_t>(Tile::kSamples)));

  T* piece = dynamic_shared<T>();
  T* input = piece + 2 * Tile::kPiece;
  T* output = input + args.widest * Tile::kSamples;
  const auto delta_at = [&](int64_t sample) {
    return (variable * layers.samples + first_sample + sample) * args.delta_width;
  };

  const int outputs = layers.widths[layers.count], channels = outputs / 2;
  for (int i = threadIdx.x; i < outputs * Tile::kSamples; i += kTileThreads) {
    const int sample = i / outputs, feature = i - sample * outputs;
    T delta = T(0);
    if (sample < samples) {
      const int64_t at = ((first_sample + sample) * layers.variables + variable) * channels;
      if (feature < channels) {
        delta = args.g.grad_scale[at + feature] * scale_slope_any(layers.scale_map, args.g.scale[at + feature]);
      } else {
        delta = args.g.grad_shift[at + feature - channels];
      }
      args.g.workspace[delta_at(sample) + args.hidden_width + feature] = delta;
    }
    input[feature * Tile::kSamples + sample] = delta;
  }

  int64_t offset = args.hidden_width;
  const int lowest = args.g.du == nullptr ? 1 : 0;
  for (int layer = layers.count - 1; layer >= lowest; --layer) {
    const int rows = layers.widths[layer + 1], columns = layers.widths[layer];
    const T* weight = layers.weights[layer] + variable * rows * columns;
    offset -= columns;
    for (int column = 0; column < columns; column += Tile::kRows) {
      T sums[Tile::kPerThread][4] = {};
      // At least once, for the barrier: a layer may have no outputs.
      for (int row = 0; row < max(rows, 1); row += Tile::kColumns) {
        // Before the load all are done with the last piece, after it all of this one is there.
        __syncthreads();
        Tile::load_columns(weight, rows, columns, row, column, piece);
        __syncthreads();
        Tile::multiply_transposed(piece, input + row * Tile::kSamples, min(rows - row, Tile::kColumns), sums);
      }
#pragma unroll
      for (int r = 0; r < Tile::kPerThread; ++r) {
        const int feature = column + Tile::row_of(r);
        if (feature >= columns) continue;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const int sample = Tile::sample_of() + n;
          T delta = T(0);
          if (sample < samples && layer == 0) {
            args.g.du[((first_sample + sample) * layers.variables + variable) * columns + feature] = sums[r][n];
          } else if (sample < samples) {
            const T hidden =
                args.g
                    .saved[(variable * layers.samples + first_sample + sample) * args.hidden_width + offset + feature];
            delta = sums[r][n] * AnyActivation{layers.activation}(hidden).slope;
            args.g.workspace[delta_at(sample) + offset + feature] = delta;
          }
          output[feature * Tile::kSamples + sample] = delta;
        }
      }
    }
    T* swap = input;
    input = output;
    output = swap;
  }
}

constexpr int kEdge = 32;

// A layer without inputs still has biases.
__host__ __device__ constexpr int tiles_across(int columns) { return columns == 0 ? 1 : (columns + kEdge - 1) / kEdge; }
__host__ __device__ constexpr int tiles_down(int rows) { return (rows + kEdge - 1) / kEdge; }

// dweights[l][o][i] = sum_n delta[n][o] in[n][i] on a kEdge x kEdge tile; dbiases beside the first column of tiles.
template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    str_tfm_weights_kernel(BackwardArguments<T> args, int64_t tiles_per_variable) {
  __shared__ __align__(16) T deltas[kEdge * kEdge];
  __shared__ __align__(16) T inputs[kEdge * (kEdge + 4)];
  const StrTfmLayers<T>& layers = args.layers;
  const int64_t variable = blockIdx.x / static_cast<unsigned>(tiles_per_variable);
  auto tile = static_cast<int>(blockIdx.x - variable * tiles_per_variable);
  int layer = 0, rows = 0, columns = 0, wide = 0;
  int64_t offset = 0;
  for (;; ++layer) {
    rows = layers.widths[layer + 1];
    columns = layers.widths[layer];
    wide = tiles_across(columns);
    const int tiles = tiles_down(rows) * wide;
    if (tile < tiles) break;
    tile -= tiles;
    offset += rows;
  }
  const int row = tile / wide * kEdge, column = tile % wide * kEdge;
  const int o = static_cast<int>(threadIdx.x) / 8 * 2, i = static_cast<int>(threadIdx.x) % 8 * 4;
  T sums[2][4] = {}, bias[2] = {};
  for (int64_t first = 0; first < layers.samples; first += kEdge) {
    __syncthreads();
    for (int k = threadIdx.x; k < kEdge * kEdge; k += kTileThreads) {
      const int64_t sample = first + k / kEdge;
      const int r = row + k % kEdge, c = column + k % kEdge;
      const bool inside = sample < layers.samples;
      const int64_t line = variable * layers.samples + sample;
      deltas[k] = inside && r < rows ? args.g.workspace[line * args.delta_width + offset + r] : T(0);
      T value = T(0);
      if (inside && c < columns) {
        if (layer == 0) {
          value = args.g.u[(sample * layers.variables + variable) * columns + c];
        } else {
          const T hidden = args.g.saved[line * args.hidden_width + offset - columns + c];
          value = AnyActivation{layers.activation}(hidden).value;
        }
      }
      inputs[k / kEdge * (kEdge + 4) + k % kEdge] = value;
    }
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < kEdge; ++k) {
      const Pack<T, 4> value = load_pack<4>(inputs + k * (kEdge + 4) + i);
      const Pack<T, 2> delta = load_pack<2>(deltas + k * kEdge + o);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        bias[r] += delta.items[r];
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[r][c] += delta.items[r] * value.items[c];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int feature = row + o + r;
    if (feature >= rows) continue;
    if (column == 0 && i == 0) args.g.dbiases[layer][variable * rows + feature] = bias[r];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (column + i + c < columns)
        args.g.dweights[layer][(variable * rows + feature) * columns + column + i + c] = sums[r][c];
    }
  }
}

template <typename T, typename Tile>
cudaError_t run(BackwardArguments<T> args, size_t bytes, cudaStream_t stream) {
  args.tiles = (args.layers.samples + Tile::kSamples - 1) / Tile::kSamples;
  const auto grid = static_cast<unsigned>(args.tiles * args.layers.variables);
  return launch(str_tfm_delta_kernel<T, Tile>, grid, dim3(kTileThreads), bytes, stream, args);
}

}  // namespace

template <typename T>
cudaError_t str_tfm_backward(const StrTfmLayers<T>& layers, const StrTfmGradients<T>& gradients, cudaStream_t stream) {
  if (layers.samples == 0 || layers.variables == 0) return cudaSuccess;
  const int64_t hidden = layers.hidden_width();
  BackwardArguments<T> args{layers, gradients, 0, hidden, hidden + layers.widths[layers.count], 0};
  for (int l = 0; l <= layers.count; ++l) args.widest = std::max(args.widest, round_up_4(layers.widths[l]));
  const size_t limit = shared_memory_limit();
  const size_t wide = WideTile<T>::bytes(args.widest), narrow = NarrowTile<T>::bytes(args.widest);
  cudaError_t error = cudaErrorInvalidConfiguration;
  if (wide <= limit) {
    error = run<T, WideTile<T>>(args, wide, stream);
  } else if (narrow <= limit) {
    error = run<T, NarrowTile<T>>(args, narrow, stream);
  }
  if (error != cudaSuccess || !gradients.parameters) return error;
  int64_t tiles = 0;
  for (int l = 0; l < layers.count; ++l) {
    tiles += static_cast<int64_t>(tiles_down(layers.widths[l + 1])) * tiles_across(layers.widths[l]);
  }
  const auto grid = static_cast<unsigned>(tiles * layers.variables);
  return launch(str_tfm_weights_kernel<T>, grid, dim3(kTileThreads), 0, stream, args, tiles);
}

template cudaError_t str_tfm_backward<float>(const StrTfmLayers<float>&, const StrTfmGradients<float>&, cudaStream_t);
template cudaError_t str_tfm_backward<double>(const StrTfmLayers<double>&, const StrTfmGradients<double>&,
                                              cudaStream_t);

}  // namespace strucfast::cuda
