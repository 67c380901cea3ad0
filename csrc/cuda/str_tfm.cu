#include "cuda/str_tfm.cuh"

#include <algorithm>

#include "cuda/activation.cuh"
#include "cuda/str_tfm_tile.cuh"

namespace strucfast::cuda {
namespace {

template <typename T>
struct ForwardArguments {
  StrTfmLayers<T> layers;
  const T* u;
  int64_t u_strides[3];
  T* scale;
  T* shift;
  T* saved;
  int64_t tiles, hidden_width;
  int widest;
};

template <typename T>
__device__ __forceinline__ T map_scale_any(ScaleMap map, T logit) {
  switch (map) {
    case ScaleMap::kExp: return map_scale<ScaleMap::kExp>(logit);
    case ScaleMap::kExpHalf: return map_scale<ScaleMap::kExpHalf>(logit);
    case ScaleMap::kSoftplusShift: return map_scale<ScaleMap::kSoftplusShift>(logit);
    case ScaleMap::kSigmoid2: return map_scale<ScaleMap::kSigmoid2>(logit);
    default: return map_scale<ScaleMap::kOnePlus>(logit);
  }
}

// One block: one variable's MLP on one tile of samples. The weights come through shared memory in pieces, the next
// piece under way while this one is used; the activations of two layers stay there, feature by feature.
template <typename T, typename Tile>
__global__ void __launch_bounds__(kTileThreads) str_tfm_forward_kernel(ForwardArguments<T> args) {
  const StrTfmLayers<T>& layers = args.layers;
  const int64_t variable = blockIdx.x / static_cast<unsigned>(args.tiles);
  const int64_t first_sample = (blockIdx.x - variable * args.tiles) * Tile::kSamples;
  const auto samples = static_cast<int>(min(layers.samples - first_sample, static_cast<int64_t>(Tile::kSamples)));

  T* pieces = dynamic_shared<T>();
  T* input = pieces + 2 * Tile::kPiece;
  T* output = input + args.widest * Tile::kSamples;

  const int inputs = layers.widths[0];
  for (int i = threadIdx.x; i < round_up_4(inputs) * Tile::kSamples; i += kTileThreads) {
    const int feature = i / Tile::kSamples, sample = i % Tile::kSamples;
    const bool inside = feature < inputs && sample < samples;
    // Zeros fill up the last four features: they meet weights that are zero, and must not be NaN.
    input[i] = inside ? args.u[(first_sample + sample) * args.u_strides[0] + variable * args.u_strides[1] +
                               feature * args.u_strides[2]]
                      : T(0);
  }

  int buffer = 0;
  const auto fetch = [&](int layer, int row, int column, int to) {
    const int rows = layers.widths[layer + 1], columns = layers.widths[layer];
    Tile::load_rows(layers.weights[layer] + variable * rows * columns, rows, columns, row, column,
                    pieces + to * Tile::kPiece);
  };
  fetch(0, 0, 0, 0);
  int64_t saved_offset = 0;
  for (int layer = 0; layer < layers.count; ++layer) {
    const int rows = layers.widths[layer + 1], columns = layers.widths[layer];
    const bool last = layer + 1 == layers.count;
    const T* bias = layers.biases[layer] + variable * rows;
    // At least one piece per layer, also of a layer without inputs or outputs: every piece has been sent for.
    for (int row = 0; row < max(rows, 1); row += Tile::kRows) {
      T sums[Tile::kPerThread][4] = {};
      for (int column = 0; column < max(columns, 1); column += Tile::kColumns) {
        wait_for_copies();
        __syncthreads();
        // This piece is there for all, and all are done with the other buffer.
        const bool more_columns = column + Tile::kColumns < columns, more_rows = row + Tile::kRows < rows;
        if (more_columns) {
          fetch(layer, row, column + Tile::kColumns, buffer ^ 1);
        } else if (more_rows) {
          fetch(layer, row + Tile::kRows, 0, buffer ^ 1);
        } else if (!last) {
          fetch(layer + 1, 0, 0, buffer ^ 1);
        }
        Tile::multiply(pieces + buffer * Tile::kPiece, input + column * Tile::kSamples,
                       min(columns - column, Tile::kColumns), sums);
        buffer ^= 1;
      }
#pragma unroll
      for (int r = 0; r < Tile::kPerThread; ++r) {
        const int feature = row + Tile::row_of(r);
        if (feature >= (last ? rows : round_up_4(rows))) continue;
        const T offset = feature < rows ? bias[feature] : T(0);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const int sample = Tile::sample_of() + n;
          const int64_t global_sample = first_sample + sample;
          const T value = feature < rows ? sums[r][n] + offset : T(0);
          if (last) {
            if (sample >= samples) continue;
            const int channels = rows / 2;
            const int64_t at = (global_sample * layers.variables + variable) * channels;
            if (feature < channels) {
              args.scale[at + feature] = map_scale_any(layers.scale_map, value);
            } else {
              args.shift[at + feature - channels] = value;
            }
          } else {
            if (args.saved != nullptr && feature < rows && sample < samples) {
              args.saved[(variable * layers.samples + global_sample) * args.hidden_width + saved_offset + feature] =
                  value;
            }
            output[feature * Tile::kSamples + sample] =
                feature < rows ? AnyActivation{layers.activation}(value).value : T(0);
          }
        }
      }
    }
    saved_offset += rows;
    T* swap = input;
    input = output;
    output = swap;
  }
}

template <typename T, typename Tile>
cudaError_t run(ForwardArguments<T> args, size_t bytes, cudaStream_t stream) {
  args.tiles = (args.layers.samples + Tile::kSamples - 1) / Tile::kSamples;
  const auto grid = static_cast<unsigned>(args.tiles * args.layers.variables);
  return launch(str_tfm_forward_kernel<T, Tile>, grid, dim3(kTileThreads), bytes, stream, args);
}

}  // namespace

template <typename T>
cudaError_t str_tfm_forward(const StrTfmLayers<T>& layers, const T* u, const int64_t (&u_strides)[3], T* scale,
                            T* shift, T* saved, cudaStream_t stream) {
  if (layers.samples == 0 || layers.variables == 0) return cudaSuccess;
  ForwardArguments<T> args{
      layers, u, {u_strides[0], u_strides[1], u_strides[2]}, scale, shift, saved, 0, layers.hidden_width(), 0};
  // The last layer's outputs go straight to memory.
  for (int l = 0; l < layers.count; ++l) args.widest = std::max(args.widest, round_up_4(layers.widths[l]));
  const size_t limit = shared_memory_limit();
  const size_t wide = WideTile<T>::bytes(args.widest), narrow = NarrowTile<T>::bytes(args.widest);
  if (wide <= limit) return run<T, WideTile<T>>(args, wide, stream);
  if (narrow <= limit) return run<T, NarrowTile<T>>(args, narrow, stream);
  return cudaErrorInvalidConfiguration;
}

template <typename T>
int64_t str_tfm_widest() {
  const size_t limit = shared_memory_limit();
  return static_cast<int64_t>((limit - NarrowTile<T>::bytes(0)) / (NarrowTile<T>::bytes(4) - NarrowTile<T>::bytes(0))) *
         4;
}

#define STRUCFAST_FORWARD(T)                                                                                  \
  template cudaError_t str_tfm_forward<T>(const StrTfmLayers<T>&, const T*, const int64_t (&)[3], T*, T*, T*, \
                                          cudaStream_t);                                                      \
  template int64_t str_tfm_widest<T>();
STRUCFAST_FORWARD(float)
STRUCFAST_FORWARD(double)
#undef STRUCFAST_FORWARD

}  // namespace strucfast::cuda
