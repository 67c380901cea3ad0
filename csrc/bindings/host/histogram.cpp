#include "../../cpu/histogram.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "arrays.h"
#include "bind.h"
#include "threads.h"

namespace strucfast {
namespace {

// Smallest numbers of values whose range, labels or counts are worth a thread of its own, which takes 30 to 100 us to
// start: at 0.1 ns a value of a range and 5 ns a value that is counted.
constexpr int64_t kRangeValues = int64_t{1} << 20;
constexpr int64_t kLabelValues = int64_t{1} << 16;

// That many values of `columns` columns in rows.
inline int64_t grain_rows(int64_t values, int64_t columns) {
  return std::max<int64_t>(1, values / std::max<int64_t>(1, columns));
}

template <class T>
py::tuple column_range_py(const Array<T>& values, int64_t threads) {
  check_shape("values", values, {-1, -1});
  const int64_t rows = values.shape(0), columns = values.shape(1);
  if (rows == 0 || columns == 0)
    throw py::value_error("values: expected at least one value, got " + shape_text(values));
  py::array_t<T> low(columns), high(columns);
  const T* data = values.data();
  T *low_data = low.mutable_data(), *high_data = high.mutable_data();
  bool finite = true;
  {
    py::gil_scoped_release release;
    const int64_t grain = grain_rows(kRangeValues, columns), parts = range_parts(rows, threads, grain);
    const int64_t each = 2 * columns + column_range_scratch(columns);
    std::vector<T> workspace(parts * each);
    std::vector<char> good(parts);
    parallel_ranges(rows, threads, grain, [&](int64_t part, int64_t begin, int64_t end) {
      T* own = workspace.data() + part * each;
      good[part] = column_range(data, begin, end, columns, own, own + columns, own + 2 * columns);
    });
    for (int64_t part = 0; part < parts; ++part) {
      const T* own = workspace.data() + part * each;
      finite = finite && good[part];
      for (int64_t j = 0; j < columns; ++j) {
        low_data[j] = part == 0 ? own[j] : std::min(low_data[j], own[j]);
        high_data[j] = part == 0 ? own[columns + j] : std::max(high_data[j], own[columns + j]);
      }
    }
  }
  return py::make_tuple(low, high, finite);
}

int64_t check_edges(const py::array& codes, const Array<double>& edges) {
  check_shape("codes", codes, {-1, -1});
  check_shape("edges", edges, {codes.shape(1), -1});
  const int64_t bins = edges.shape(1) - 1;
  if (bins < 1 || bins > std::numeric_limits<int32_t>::max())
    throw py::value_error("edges: expected at least two a code, got " + shape_text(edges));
  return bins;
}

template <class T>
py::array_t<int32_t> bin_labels_py(const Array<T>& codes, const Array<double>& edges, int64_t threads) {
  const int64_t bins = check_edges(codes, edges), rows = codes.shape(0), columns = codes.shape(1);
  py::array_t<int32_t> labels({rows, columns});
  const T* data = codes.data();
  const double* edge_data = edges.data();
  int32_t* out = labels.mutable_data();
  py::gil_scoped_release release;
  parallel_ranges(rows, threads, grain_rows(kLabelValues, columns), [&](int64_t, int64_t begin, int64_t end) {
    bin_labels(data, begin, end, columns, edge_data, bins, out);
  });
  return labels;
}

// Neighbouring factors share a table while their joint values are few: one increment instead of several.
std::vector<FactorGroup> group_factors(const int64_t* sizes, int64_t num_factors, int64_t columns) {
  std::vector<FactorGroup> groups;
  int64_t offset = 0;
  for (int64_t k = 0; k < num_factors;) {
    FactorGroup group{k, k + 1, sizes[k], offset};
    while (group.last < num_factors && group.size * sizes[group.last] <= kHistogramGroup)
      group.size *= sizes[group.last++];
    groups.push_back(group);
    offset += columns * group.size;
    k = group.last;
  }
  return groups;
}

// Sums the parts' tables of one group and adds each factor's margin to counts (columns, bins, sum of sizes).
void add_margins(const FactorGroup& group, const JointHistogram& job, const std::vector<const uint32_t*>& tables,
                 const std::vector<int64_t>& starts, int64_t* counts) {
  const int64_t values = starts.back();
  std::vector<int64_t> total(group.size);
  for (int64_t cell = 0; cell < job.columns * job.bins; ++cell) {
    const int64_t at = group.offset * job.bins + cell * group.size;
    std::fill(total.begin(), total.end(), 0);
    for (const uint32_t* table : tables)
      for (int64_t v = 0; v < group.size; ++v) total[v] += table[at + v];
    int64_t inner = group.size;
    for (int64_t k = group.first; k < group.last; ++k) {
      inner /= job.sizes[k];
      int64_t* margin = counts + cell * values + starts[k];
      for (int64_t v = 0; v < group.size;)
        for (int64_t value = 0; value < job.sizes[k]; ++value)
          for (int64_t i = 0; i < inner; ++i) margin[value] += total[v++];
    }
  }
}

template <class T>
py::array_t<int64_t> joint_histogram_py(const Array<T>& codes, const Array<double>& edges,
                                        const Array<int64_t>& factors, const Array<int64_t>& low,
                                        const Array<int64_t>& sizes, int64_t threads) {
  const int64_t bins = check_edges(codes, edges), rows = codes.shape(0), columns = codes.shape(1);
  check_shape("factors", factors, {rows, -1});
  const int64_t num_factors = factors.shape(1);
  check_shape("low", low, {num_factors});
  check_shape("sizes", sizes, {num_factors});
  std::vector<int64_t> starts{0};
  for (int64_t k = 0; k < num_factors; ++k) {
    if (sizes.data()[k] < 1 || sizes.data()[k] > std::numeric_limits<int32_t>::max())
      throw py::value_error("sizes: expected positive numbers below 2^31, got " + std::to_string(sizes.data()[k]));
    starts.push_back(starts.back() + sizes.data()[k]);
  }
  if (rows > std::numeric_limits<uint32_t>::max()) throw py::value_error("codes: expected fewer than 2^32 rows");
  py::array_t<int64_t> counts({columns, bins, starts.back()});
  const T* data = codes.data();
  int64_t* out = counts.mutable_data();
  const std::vector<FactorGroup> groups = group_factors(sizes.data(), num_factors, columns);
  const JointHistogram job{columns,    num_factors,  bins,         static_cast<int64_t>(groups.size()), factors.data(),
                           low.data(), sizes.data(), edges.data(), groups.data()};
  py::gil_scoped_release release;
  std::fill(out, out + columns * bins * starts.back(), 0);
  if (groups.empty()) return counts;
  const int64_t cells = (groups.back().offset + columns * groups.back().size) * bins;
  // A thread of its own costs a table of its own, which somebody must add up.
  const int64_t grain = std::max(grain_rows(kLabelValues, columns), cells / (columns * job.num_groups + 1));
  const int64_t parts = range_parts(rows, threads, grain);
  std::vector<std::vector<uint32_t>> tables(parts);
  std::vector<char> inside(parts, 1);
  parallel_ranges(rows, threads, grain, [&](int64_t part, int64_t begin, int64_t end) {
    tables[part].assign(cells, 0);
    std::vector<int32_t> scratch(job.num_groups * kHistogramBlock);
    inside[part] = joint_histogram(data, begin, end, job, tables[part].data(), scratch.data());
  });
  // py::value_error is a plain C++ exception; it needs no GIL until pybind11 translates it.
  if (std::find(inside.begin(), inside.end(), 0) != inside.end())
    throw py::value_error("factors: a value lies outside [low, low + size)");
  std::vector<const uint32_t*> each;
  for (const std::vector<uint32_t>& table : tables)
    if (!table.empty()) each.push_back(table.data());
  parallel_ranges(job.num_groups, cells < 100000 ? 1 : threads, 1, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end; ++q) add_margins(groups[q], job, each, starts, out);
  });
  return counts;
}

template <class T>
void bind_codes(py::module_& m) {
  m.def("bin_labels", &bin_labels_py<T>, py::arg("codes").noconvert(), py::arg("edges").noconvert(), py::arg("threads"),
        "Labels (N, D) int32 of codes (N, D) for edges (D, bins + 1).");
  m.def("joint_histogram", &joint_histogram_py<T>, py::arg("codes").noconvert(), py::arg("edges").noconvert(),
        py::arg("factors").noconvert(), py::arg("low").noconvert(), py::arg("sizes").noconvert(), py::arg("threads"),
        "Counts (D, bins, sum of sizes) int64 of binned codes (N, D) against factors (N, K).");
}

}  // namespace

void bind_histogram(py::module_& m) {
  m.def("column_range", &column_range_py<float>, py::arg("values").noconvert(), py::arg("threads"),
        "Minimum and maximum of each column, and whether all values are finite.");
  m.def("column_range", &column_range_py<double>, py::arg("values").noconvert(), py::arg("threads"));
  m.def("column_range", &column_range_py<int64_t>, py::arg("values").noconvert(), py::arg("threads"));
  bind_codes<float>(m);
  bind_codes<double>(m);
}

}  // namespace strucfast
