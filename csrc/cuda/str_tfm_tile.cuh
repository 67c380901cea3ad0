#pragma once
#include "cuda/vector_io.cuh"

// A block's small matrix product: rows of a weight times a tile of samples, both in shared memory.
namespace strucfast::cuda {

constexpr int kTileThreads = 128;

__host__ __device__ constexpr int round_up_4(int value) { return (value + 3) / 4 * 4; }

// A thread takes kPerThread rows and 4 samples; SampleGroups threads stand side by side over the samples.
template <typename T, int SampleGroups, int Columns>
struct ProductTile {
  static constexpr int kSamples = 4 * SampleGroups;
  static constexpr int kPerThread = 2;
  static constexpr int kRows = kTileThreads / SampleGroups * kPerThread;
  static constexpr int kColumns = Columns;
  // Four more elements to a row keep 16-byte reads of eight rows off each other's banks.
  static constexpr int kStride = kColumns + 4;
  static constexpr int kTransposedStride = kRows + 4;
  static constexpr int kPiece =
      kRows * kStride > kColumns* kTransposedStride ? kRows * kStride : kColumns * kTransposedStride;

  // Two pieces of weights and two layers of `widest` features.
  static size_t bytes(int64_t widest) { return (2 * kPiece + 2 * widest * kSamples) * sizeof(T); }

  __device__ static int sample_of() { return static_cast<int>(threadIdx.x) % SampleGroups * 4; }
  __device__ static int row_of(int r) {
    return static_cast<int>(threadIdx.x) / SampleGroups + r * (kRows / kPerThread);
  }

  // weight[row.., column..] of a (rows, columns) matrix to shared memory, with zeros up to four columns past the end.
  // Rows past the end are left as they are: their products are dropped.
  __device__ static void load_rows(const T* weight, int rows, int columns, int row, int column, T* to) {
    const int height = min(rows - row, kRows), width = round_up_4(min(columns - column, kColumns));
    constexpr int kPer16 = 16 / sizeof(T);
    if (columns % 4 == 0 && reinterpret_cast<uintptr_t>(weight) % 16 == 0) {
      const int vectors = width / kPer16;
      for (int i = threadIdx.x; i < height * vectors; i += kTileThreads) {
        const int r = i / vectors, c = (i - r * vectors) * kPer16;
        copy_16_to_shared(to + r * kStride + c, weight + static_cast<int64_t>(row + r) * columns + column + c);
      }
    } else {
      for (int i = threadIdx.x; i < height * width; i += kTileThreads) {
        const int r = i / width, c = i - r * width;
        const bool inside = column + c < columns;
        to[r * kStride + c] = inside ? weight[static_cast<int64_t>(row + r) * columns + column + c] : T(0);
      }
    }
  }

  // The transpose: weight[row.., column..] with kColumns rows and kRows columns, for products over the rows.
  __device__ static void load_columns(const T* weight, int rows, int columns, int row, int column, T* to) {
    const int height = min(rows - row, kColumns), width = min(columns - column, kRows);
    for (int i = threadIdx.x; i < height * width; i += kTileThreads) {
      const int r = i / width, c = i - r * width;
      to[r * kTransposedStride + c] = weight[static_cast<int64_t>(row + r) * columns + column + c];
    }
  }

  // sums[r][n] += sum over c < count of piece[row r][c] input[c][sample n]; count is filled up to a multiple of 4.
  __device__ static void multiply(const T* piece, const T* input, int count, T (&sums)[kPerThread][4]) {
    for (int c = 0; c < count; c += 4) {
      Pack<T, 4> weights[kPerThread], samples[4];
#pragma unroll
      for (int r = 0; r < kPerThread; ++r) weights[r] = load_pack<4>(piece + row_of(r) * kStride + c);
#pragma unroll
      for (int q = 0; q < 4; ++q) samples[q] = load_pack<4>(input + (c + q) * kSamples + sample_of());
#pragma unroll
      for (int q = 0; q < 4; ++q) {
#pragma unroll
        for (int r = 0; r < kPerThread; ++r) {
#pragma unroll
          for (int n = 0; n < 4; ++n) sums[r][n] += weights[r].items[q] * samples[q].items[n];
        }
      }
    }
  }

  // The same with a piece from load_columns.
  __device__ static void multiply_transposed(const T* piece, const T* input, int count, T (&sums)[kPerThread][4]) {
#pragma unroll 4
    for (int c = 0; c < count; ++c) {
      const Pack<T, 4> samples = load_pack<4>(input + c * kSamples + sample_of());
#pragma unroll
      for (int r = 0; r < kPerThread; ++r) {
        const T weight = piece[c * kTransposedStride + row_of(r)];
#pragma unroll
        for (int n = 0; n < 4; ++n) sums[r][n] += weight * samples.items[n];
      }
    }
  }
};

// 16 samples and 64 rows; for layers too wide for that 4 samples and 256 rows.
template <typename T>
using WideTile = ProductTile<T, 4, 64>;
template <typename T>
using NarrowTile = ProductTile<T, 1, 16>;

}  // namespace strucfast::cuda
