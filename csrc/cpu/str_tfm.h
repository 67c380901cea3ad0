#pragma once
#include <cstdint>

// All d per-variable MLPs of the Str-Tfm and their scale map. Torch-free; nothing here allocates or starts
// threads: the caller hands out ranges and one scratch buffer per range that runs at the same time.
namespace strucfast {

// Samples that travel through all layers together: their activations stay in the first two cache levels.
constexpr int64_t kStrTfmTile = 64;

struct StrTfmShape {
  int64_t num_samples;
  int64_t num_variables;
  int64_t num_layers;
  const int64_t* widths;  // num_layers + 1 numbers: k, hidden widths..., 2C

  int64_t num_tiles() const { return (num_samples + kStrTfmTile - 1) / kStrTfmTile; }
  int64_t hidden_width() const;   // the row length of `saved`
  int64_t num_parameters() const;  // of one variable
  int64_t multiplications() const { return num_samples * num_variables * num_parameters(); }
};

template <typename T>
struct StrTfmForward {
  StrTfmShape shape;
  int activation;
  int scale_map;
  const T* u;            // (N, d, k), any strides
  int64_t u_strides[3];
  const T* const* weights;  // per layer (d, out, in), contiguous
  const T* const* biases;   // per layer (d, out), contiguous
  T* scale;              // (N, d, C), contiguous
  T* shift;              // (N, d, C), contiguous
  T* saved;              // (d, N, hidden_width) pre-activations, or null
};

template <typename T>
struct StrTfmBackward {
  StrTfmShape shape;
  int activation;
  int scale_map;
  const T* grad_scale;  // (N, d, C), unit stride along C
  int64_t grad_scale_strides[2];
  const T* grad_shift;  // (N, d, C), unit stride along C
  int64_t grad_shift_strides[2];
  const T* u;  // (N, d, k), any strides
  int64_t u_strides[3];
  const T* const* weights;
  const T* scale;  // (N, d, C), contiguous
  const T* saved;  // (d, N, hidden_width), contiguous
  T* du;               // (N, d, k), contiguous, or null
  T* const* dweights;  // per layer (d, out, in), contiguous, or null
  T* const* dbiases;   // per layer (d, out), contiguous, or null
  T* partials;         // (num_chunks - 1, d, num_parameters): parameter gradients of the chunks after the first
};

// Elements of the scratch buffer of one range.
int64_t str_tfm_forward_scratch(const StrTfmShape& shape);
int64_t str_tfm_backward_scratch(const StrTfmShape& shape);

// Unit of the range: (variable, tile of samples), variable by variable; num_variables * num_tiles of them.
void str_tfm_forward(const StrTfmForward<float>& op, int64_t begin, int64_t end, float* scratch);
void str_tfm_forward(const StrTfmForward<double>& op, int64_t begin, int64_t end, double* scratch);

// The backward cuts the samples into chunks (a function of the shape alone, so that sums do not depend on the thread
// count). Unit of the range: (variable, chunk); num_variables * num_chunks of them.
int64_t str_tfm_num_chunks(const StrTfmShape& shape);
void str_tfm_backward(const StrTfmBackward<float>& op, int64_t begin, int64_t end, float* scratch);
void str_tfm_backward(const StrTfmBackward<double>& op, int64_t begin, int64_t end, double* scratch);

// Adds the partial parameter gradients up, in the order of the chunks; the range runs over the variables.
void str_tfm_reduce(const StrTfmBackward<float>& op, int64_t begin, int64_t end);
void str_tfm_reduce(const StrTfmBackward<double>& op, int64_t begin, int64_t end);

}  // namespace strucfast
