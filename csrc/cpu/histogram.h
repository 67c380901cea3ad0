#pragma once
#include <cstdint>

// Histograms of continuous codes against integer factors of variation, and what binning them needs.
//
// A code's bins are given by float64 edges, edges[0] = its minimum and edges[bins] = its maximum; the label of a value
// is #{edges[0..bins-1] <= x} - 1, so the maximum falls into the last bin. Codes are compared as float64.
namespace strucfast {

// Rows that share one pass through the cache.
constexpr int64_t kHistogramBlock = 1024;
// Largest number of joint values of a group of factors that is counted in one table.
constexpr int64_t kHistogramGroup = 256;

// Minimum and maximum of each of `columns` columns over rows [begin, end), row-major; at least one row.
// Returns false if a value is NaN or infinite (low and high are then of no use).
// scratch: column_range_scratch(columns) elements.
bool column_range(const float* values, int64_t begin, int64_t end, int64_t columns, float* low, float* high,
                  float* scratch);
bool column_range(const double* values, int64_t begin, int64_t end, int64_t columns, double* low, double* high,
                  double* scratch);
bool column_range(const int64_t* values, int64_t begin, int64_t end, int64_t columns, int64_t* low, int64_t* high,
                  int64_t* scratch);
constexpr int64_t column_range_scratch(int64_t columns) { return 3 * 16 * columns; }

// Labels of rows [begin, end): labels (rows, columns) int32.
void bin_labels(const float* codes, int64_t begin, int64_t end, int64_t columns, const double* edges, int64_t bins,
                int32_t* labels);
void bin_labels(const double* codes, int64_t begin, int64_t end, int64_t columns, const double* edges, int64_t bins,
                int32_t* labels);

// Factors first .. last-1 are counted together as one joint value in [0, size), the last one running fastest.
struct FactorGroup {
  int64_t first, last, size;
  // Where this group's tables start: code d's table lies at (offset + d * size) * bins.
  int64_t offset;
};

// Binned codes (N, columns) against factors (N, num_factors); factor k has sizes[k] values from low[k] upwards.
struct JointHistogram {
  int64_t columns, num_factors, bins, num_groups;
  const int64_t* factors;
  const int64_t* low;
  const int64_t* sizes;
  // (columns, bins + 1)
  const double* edges;
  const FactorGroup* groups;
};

// Adds rows [begin, end) to `tables`: for each group and code a (bins, group size) table, zeroed by the caller.
// Returns false, with tables of no use, if a factor lies outside its range. scratch: num_groups * kHistogramBlock.
bool joint_histogram(const float* codes, int64_t begin, int64_t end, const JointHistogram& job, uint32_t* tables,
                     int32_t* scratch);
bool joint_histogram(const double* codes, int64_t begin, int64_t end, const JointHistogram& job, uint32_t* tables,
                     int32_t* scratch);

}  // namespace strucfast
