#include "str_tfm.h"

#include "small_gemm.h"
#include "str_tfm_rows.h"

namespace strucfast {

int64_t StrTfmShape::hidden_width() const {
  int64_t sum = 0;
  for (int64_t l = 1; l < num_layers; ++l) sum += widths[l];
  return sum;
}

int64_t StrTfmShape::num_parameters() const {
  int64_t sum = 0;
  for (int64_t l = 0; l < num_layers; ++l) sum += widths[l + 1] * (widths[l] + 1);
  return sum;
}

namespace {

// With so few latent dims the gradient of u is dot products instead of a matrix product.
constexpr int64_t kFewInputs = 2;

// Rows of scratch are padded to the widest level's panel, which the narrower ones divide.
template <typename T>
SF_INLINE int64_t padded(int64_t width) {
  return round_up(width, 256 / int64_t(sizeof(T)));
}

// Scratch is counted before the element type is known: the larger of the two paddings.
int64_t padded_any(int64_t width) { return padded<float>(width); }

int64_t widest(const StrTfmShape& shape) {
  int64_t width = 0;
  for (int64_t l = 0; l <= shape.num_layers; ++l) width = shape.widths[l] > width ? shape.widths[l] : width;
  return padded_any(width);
}

int64_t tile_rows(const StrTfmShape& shape, int64_t first) {
  return shape.num_samples - first < kStrTfmTile ? shape.num_samples - first : kStrTfmTile;
}

// The bias row of a layer, padded, then the transposed weight in panels.
template <class L, typename T = typename L::T>
SF_INLINE void pack_layer(const StrTfmForward<T>& op, int64_t variable, int64_t l, T* packed) {
  const int64_t in = op.shape.widths[l];
  const int64_t out = op.shape.widths[l + 1];
  const T* bias = op.biases[l] + variable * out;
  for (int64_t j = 0; j < padded<T>(out); ++j) packed[j] = j < out ? bias[j] : T(0);
  pack_transposed<L>(op.weights[l] + variable * out * in, in, out, packed + padded<T>(out));
}

template <class L, typename T = typename L::T>
SF_INLINE void forward_tile(const StrTfmForward<T>& op, int64_t variable, int64_t first, bool pack, T* packed,
                            T* current, T* next) {
  const StrTfmShape& shape = op.shape;
  const int64_t rows = tile_rows(shape, first);
  const int64_t hidden = shape.hidden_width();
  T* saved = op.saved == nullptr ? nullptr : op.saved + (variable * shape.num_samples + first) * hidden;
  int64_t in = shape.widths[0];
  int64_t ld = padded<T>(in);
  const T* u = op.u + first * op.u_strides[0] + variable * op.u_strides[1];
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < in; ++j) current[r * ld + j] = u[r * op.u_strides[0] + j * op.u_strides[2]];
  }
  for (int64_t l = 0; l < shape.num_layers; ++l) {
    const int64_t out = shape.widths[l + 1];
    const int64_t ld_out = padded<T>(out);
    const T* panels = packed + ld_out;
    const bool last = l + 1 == shape.num_layers;
    // Pre-activations go straight to where the backward finds them; a scratch row has room for whole vectors.
    T* pre = !last && saved != nullptr ? saved : next;
    const int64_t ld_pre = !last && saved != nullptr ? hidden : ld_out;
    const int64_t cols = pre == next ? round_up(out, L::kLanes) : out;
    Ahead ahead;
    if (pack) {
      pack_layer<L>(op, variable, l, packed);
      if (!last) {
        const int64_t size = out * shape.widths[l + 2];
        ahead = ahead_of<L>(rows, cols, op.weights[l + 1] + variable * size, size);
      }
    }
    gemm<L, Store::kBias, false>(rows, cols, in, current, ld, packed_panels<L>(panels, in), pre, ld_pre, packed, 0,
                                 ahead);
    if (!last) {
      T* activated = pre == next ? next : current;
      activate_rows(op.activation, rows, out, pre, ld_pre, activated, ld_out);
      if (pre == next) {
        next = current;
        current = activated;
      } else {
        saved += out;
      }
    }
    packed += ld_out * (in + 1);
    in = out;
    ld = ld_out;
  }
  const int64_t channels = in / 2;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = ((first + r) * shape.num_variables + variable) * channels;
    map_row(op.scale_map, channels, next + r * ld, op.scale + at);
    for (int64_t c = 0; c < channels; ++c) op.shift[at + c] = next[r * ld + channels + c];
  }
}

template <class L, typename T = typename L::T>
SF_INLINE void forward_range(const StrTfmForward<T>& op, int64_t begin, int64_t end, T* scratch) {
  const int64_t tiles = op.shape.num_tiles();
  T* current = scratch;
  T* next = current + kStrTfmTile * widest(op.shape);
  T* packed = next + kStrTfmTile * widest(op.shape);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t variable = unit / tiles;
    const int64_t tile = unit % tiles;
    forward_tile<L>(op, variable, tile * kStrTfmTile, unit == begin || tile == 0, packed, current, next);
  }
}

template <class L, typename T = typename L::T>
SF_INLINE void add_column_sums(int64_t rows, int64_t cols, const T* from, int64_t ld, T* sums, bool accumulate) {
  using Vec = typename L::Vec;
  for (int64_t first = 0; first < cols; first += L::kLanes) {
    Vec sum = Vec{};
    for (int64_t r = 0; r < rows; ++r) sum += *reinterpret_cast<const Vec*>(from + r * ld + first);
    T lanes[L::kLanes];
    *reinterpret_cast<Vec*>(lanes) = sum;
    const int64_t count = cols - first < L::kLanes ? cols - first : L::kLanes;
    for (int64_t j = 0; j < count; ++j) sums[first + j] = accumulate ? sums[first + j] + lanes[j] : lanes[j];
  }
}

// The weight gradient of the first layer (out, in), column by column: u has few features, often one, and a panel of
// them would be padding for the most part (53 + 28 us of 909 as panels, 12 MLPs at batch 128).
template <class L, typename T = typename L::T>
SF_INLINE void add_input_gradient(int64_t rows, int64_t out, int64_t in, const T* delta, int64_t ld, const T* u,
                                  const int64_t* u_strides, T* dweight, bool accumulate) {
  using Vec = typename L::Vec;
  for (int64_t first = 0; first < out; first += L::kPanel) {
    const int64_t count = out - first < L::kPanel ? out - first : L::kPanel;
    for (int64_t j = 0; j < in; ++j) {
      Vec acc[L::kVectors] = {};
      for (int64_t r = 0; r < rows; ++r) {
        const T value = u[r * u_strides[0] + j * u_strides[2]];
#pragma GCC unroll 4
        for (int v = 0; v < L::kVectors; ++v) {
          acc[v] += *reinterpret_cast<const Vec*>(delta + r * ld + first + v * L::kLanes) * value;
        }
      }
      T sums[L::kPanel];
#pragma GCC unroll 4
      for (int v = 0; v < L::kVectors; ++v) *reinterpret_cast<Vec*>(sums + v * L::kLanes) = acc[v];
      T* to = dweight + first * in + j;
      for (int64_t c = 0; c < count; ++c) to[c * in] = accumulate ? to[c * in] + sums[c] : sums[c];
    }
  }
}

// delta (rows, out) times the first layer's weight (out, in), a dot product for each element of du: as columns of a
// panel a few features would be padding for the most part (28 of 690 us, 12 MLPs at batch 128).
template <class L, typename T = typename L::T>
SF_INLINE void input_gradient(int64_t rows, int64_t out, int64_t in, const T* delta, int64_t ld, const T* weight,
                              T* du, int64_t ld_du, T* column) {
  using Vec = typename L::Vec;
  const int64_t whole = out / L::kLanes * L::kLanes;
  for (int64_t j = 0; j < in; ++j) {
    for (int64_t c = 0; c < out; ++c) column[c] = weight[c * in + j];
    for (int64_t r = 0; r < rows; ++r) {
      const T* from = delta + r * ld;
      Vec sum = Vec{};
      for (int64_t c = 0; c < whole; c += L::kLanes) {
        sum += *reinterpret_cast<const Vec*>(from + c) * *reinterpret_cast<const Vec*>(column + c);
      }
      T total = 0;
      for (int l = 0; l < L::kLanes; ++l) total += sum[l];
      for (int64_t c = whole; c < out; ++c) total += from[c] * column[c];
      du[r * ld_du + j] = total;
    }
  }
}

template <class L, typename T = typename L::T>
struct BackwardScratch {
  T* delta;
  T* previous;
  T* slope;
  T* hidden;  // panels of depth kStrTfmTile
  T* packed;  // the weights of one variable that cannot be read in place, layer after layer, in panels
};

// Parameter gradients of one chunk: the outputs themselves, or a row of `partials` (weights and biases by layer).
template <typename T>
struct ParameterGradients {
  const StrTfmBackward<T>& op;
  int64_t variable;
  T* partial;  // null: the outputs

  SF_INLINE T* weight(int64_t l) const {
    if (partial == nullptr) return op.dweights[l] + variable * op.shape.widths[l + 1] * op.shape.widths[l];
    return partial + offset(l);
  }
  SF_INLINE T* bias(int64_t l) const {
    if (partial == nullptr) return op.dbiases[l] + variable * op.shape.widths[l + 1];
    return partial + offset(l) + op.shape.widths[l + 1] * op.shape.widths[l];
  }
  SF_INLINE int64_t offset(int64_t l) const {
    int64_t sum = 0;
    for (int64_t i = 0; i < l; ++i) sum += op.shape.widths[i + 1] * (op.shape.widths[i] + 1);
    return sum;
  }
};

template <class L, typename T = typename L::T>
SF_INLINE void backward_tile(const StrTfmBackward<T>& op, int64_t first, bool accumulate,
                             const ParameterGradients<T>& gradients, BackwardScratch<L> scratch) {
  const StrTfmShape& shape = op.shape;
  const int64_t variable = gradients.variable;
  const int64_t rows = tile_rows(shape, first);
  const int64_t hidden = shape.hidden_width();
  int64_t out = shape.widths[shape.num_layers];
  int64_t ld = padded<T>(out);
  const int64_t channels = out / 2;
  for (int64_t r = 0; r < rows; ++r) {
    T* delta = scratch.delta + r * ld;
    const T* grad_scale = op.grad_scale + (first + r) * op.grad_scale_strides[0] + variable * op.grad_scale_strides[1];
    const T* grad_shift = op.grad_shift + (first + r) * op.grad_shift_strides[0] + variable * op.grad_shift_strides[1];
    const T* scale = op.scale + ((first + r) * shape.num_variables + variable) * channels;
    unmap_row(op.scale_map, channels, grad_scale, scale, delta);
    for (int64_t c = 0; c < channels; ++c) delta[channels + c] = grad_shift[c];
  }
  const T* saved = op.saved + (variable * shape.num_samples + first) * hidden + hidden;
  const T* packed = scratch.packed;
  for (int64_t l = shape.num_layers - 1; l >= 0; --l) {
    const int64_t in = shape.widths[l];
    const int64_t ld_in = padded<T>(in);
    if (l > 0) {
      saved -= in;
      activate_panels<L>(op.activation, rows, in, saved, hidden, scratch.hidden, scratch.slope, ld_in);
    }
    if (op.dweights != nullptr) {
      T* dweight = gradients.weight(l);
      // The product after this one reads the weights, as many as this one writes gradients.
      const Ahead ahead = ahead_of<L>(out, in, op.weights[l] + variable * out * in, out * in);
      const Panels<T> values = packed_panels<L>(scratch.hidden, kStrTfmTile);
      if (l == 0) {
        const T* u = op.u + first * op.u_strides[0] + variable * op.u_strides[1];
        add_input_gradient<L>(rows, out, in, scratch.delta, ld, u, op.u_strides, dweight, accumulate);
      } else if (accumulate) {
        gemm<L, Store::kAdd, true>(out, in, rows, scratch.delta, ld, values, dweight, in, dweight, in, ahead);
      } else {
        gemm<L, Store::kPlain, true>(out, in, rows, scratch.delta, ld, values, dweight, in, dweight, in, ahead);
      }
      add_column_sums<L>(rows, out, scratch.delta, ld, gradients.bias(l), accumulate);
    }
    const Panels<T> weight = in_place<L>(in) ? Panels<T>{op.weights[l] + variable * out * in, in, L::kPanel}
                                             : packed_panels<L>(packed, out);
    if (l > 0) {
      gemm<L, Store::kMultiply, false>(rows, round_up(in, L::kLanes), out, scratch.delta, ld, weight,
                                       scratch.previous, ld_in, scratch.slope, ld_in);
    } else if (op.du != nullptr) {
      const int64_t row = shape.num_variables * in;
      T* du = op.du + first * row + variable * in;
      if (in <= kFewInputs) {
        input_gradient<L>(rows, out, in, scratch.delta, ld, op.weights[0] + variable * out * in, du, row,
                          scratch.previous);
      } else {
        gemm<L, Store::kPlain, false>(rows, in, out, scratch.delta, ld, weight, du, row, du, row);
      }
    }
    packed += round_up(in, L::kPanel) * out;
    T* const consumed = scratch.delta;
    scratch.delta = scratch.previous;
    scratch.previous = consumed;
    out = in;
    ld = ld_in;
  }
}

template <class L, typename T = typename L::T>
SF_INLINE void backward_range(const StrTfmBackward<T>& op, int64_t begin, int64_t end, T* memory) {
  const StrTfmShape& shape = op.shape;
  const int64_t tiles = shape.num_tiles();
  const int64_t chunks = str_tfm_num_chunks(shape);
  const int64_t block = kStrTfmTile * widest(shape);
  const BackwardScratch<L> scratch{memory, memory + block, memory + 2 * block, memory + 3 * block, memory + 4 * block};
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t variable = unit / chunks;
    const int64_t chunk = unit % chunks;
    if (unit == begin || chunk == 0) {
      T* packed = scratch.packed;
      for (int64_t l = shape.num_layers - 1; l >= 0; --l) {
        const int64_t in = shape.widths[l];
        const int64_t out = shape.widths[l + 1];
        const bool wanted = l > 0 || (op.du != nullptr && in > kFewInputs);
        if (wanted && !in_place<L>(in)) pack_panels<L>(op.weights[l] + variable * out * in, in, out, in, packed);
        packed += round_up(in, L::kPanel) * out;
      }
    }
    const int64_t first = tiles * chunk / chunks;
    const int64_t last = tiles * (chunk + 1) / chunks;
    T* partial = chunk == 0 || op.dweights == nullptr
                     ? nullptr
                     : op.partials + ((chunk - 1) * shape.num_variables + variable) * shape.num_parameters();
    const ParameterGradients<T> gradients{op, variable, partial};
    for (int64_t tile = first; tile < last; ++tile) {
      backward_tile<L>(op, tile * kStrTfmTile, tile > first, gradients, scratch);
    }
  }
}

template <typename T>
void reduce_range(const StrTfmBackward<T>& op, int64_t begin, int64_t end) {
  const StrTfmShape& shape = op.shape;
  const int64_t chunks = str_tfm_num_chunks(shape);
  for (int64_t variable = begin; variable < end; ++variable) {
    const ParameterGradients<T> total{op, variable, nullptr};
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
      T* row = op.partials + ((chunk - 1) * shape.num_variables + variable) * shape.num_parameters();
      const ParameterGradients<T> part{op, variable, row};
      for (int64_t l = 0; l < shape.num_layers; ++l) {
        T* SF_RESTRICT weight = total.weight(l);
        T* SF_RESTRICT bias = total.bias(l);
        const T* SF_RESTRICT more_weight = part.weight(l);
        const T* SF_RESTRICT more_bias = part.bias(l);
#pragma omp simd
        for (int64_t i = 0; i < shape.widths[l + 1] * shape.widths[l]; ++i) weight[i] += more_weight[i];
#pragma omp simd
        for (int64_t i = 0; i < shape.widths[l + 1]; ++i) bias[i] += more_bias[i];
      }
    }
  }
}

// Register blocks differ by instruction level, so each level is a function of its own instead of a clone: with one
// block for all, AVX2 would spill half of its accumulators.
#define STR_TFM_LEVEL(TARGET, BYTES, ROWS, VECTORS)                                                           \
  TARGET void forward_level(const StrTfmForward<float>& op, int64_t begin, int64_t end, float* scratch) {     \
    forward_range<Level<float, BYTES, ROWS, VECTORS>>(op, begin, end, scratch);                               \
  }                                                                                                           \
  TARGET void forward_level(const StrTfmForward<double>& op, int64_t begin, int64_t end, double* scratch) {   \
    forward_range<Level<double, BYTES, ROWS, VECTORS>>(op, begin, end, scratch);                              \
  }                                                                                                           \
  TARGET void backward_level(const StrTfmBackward<float>& op, int64_t begin, int64_t end, float* scratch) {   \
    backward_range<Level<float, BYTES, ROWS, VECTORS>>(op, begin, end, scratch);                              \
  }                                                                                                           \
  TARGET void backward_level(const StrTfmBackward<double>& op, int64_t begin, int64_t end, double* scratch) { \
    backward_range<Level<double, BYTES, ROWS, VECTORS>>(op, begin, end, scratch);                             \
  }

#if defined(SF_HAS_CLONES)
STR_TFM_LEVEL(__attribute__((target("default"))), 16, 4, 2)
STR_TFM_LEVEL(__attribute__((target("arch=x86-64-v3"))), 32, 6, 2)
STR_TFM_LEVEL(__attribute__((target("arch=x86-64-v4"))), 64, 6, 4)
#elif defined(__AVX512F__)
STR_TFM_LEVEL(, 64, 6, 4)
#elif defined(__AVX2__)
STR_TFM_LEVEL(, 32, 6, 2)
#else
STR_TFM_LEVEL(, 16, 4, 2)
#endif
#undef STR_TFM_LEVEL

}  // namespace

int64_t str_tfm_forward_scratch(const StrTfmShape& shape) {
  int64_t packed = 0;
  for (int64_t l = 0; l < shape.num_layers; ++l) packed += padded_any(shape.widths[l + 1]) * (shape.widths[l] + 1);
  return 2 * kStrTfmTile * widest(shape) + packed;
}

int64_t str_tfm_backward_scratch(const StrTfmShape& shape) {
  int64_t packed = 0;
  for (int64_t l = 0; l < shape.num_layers; ++l) packed += padded_any(shape.widths[l]) * shape.widths[l + 1];
  return 4 * kStrTfmTile * widest(shape) + packed;
}

int64_t str_tfm_num_chunks(const StrTfmShape& shape) {
  // Eight units keep a few cores busy; partial sums cost memory traffic, so many variables stay whole.
  const int64_t wanted = (8 + shape.num_variables - 1) / (shape.num_variables > 0 ? shape.num_variables : 1);
  const int64_t tiles = shape.num_tiles();
  return wanted < tiles ? wanted : (tiles > 0 ? tiles : 1);
}

void str_tfm_forward(const StrTfmForward<float>& op, int64_t begin, int64_t end, float* scratch) {
  forward_level(op, begin, end, scratch);
}
void str_tfm_forward(const StrTfmForward<double>& op, int64_t begin, int64_t end, double* scratch) {
  forward_level(op, begin, end, scratch);
}
void str_tfm_backward(const StrTfmBackward<float>& op, int64_t begin, int64_t end, float* scratch) {
  backward_level(op, begin, end, scratch);
}
void str_tfm_backward(const StrTfmBackward<double>& op, int64_t begin, int64_t end, double* scratch) {
  backward_level(op, begin, end, scratch);
}
void str_tfm_reduce(const StrTfmBackward<float>& op, int64_t begin, int64_t end) { reduce_range(op, begin, end); }
void str_tfm_reduce(const StrTfmBackward<double>& op, int64_t begin, int64_t end) { reduce_range(op, begin, end); }

}  // namespace strucfast
