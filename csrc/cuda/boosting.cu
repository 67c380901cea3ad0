#include "cuda/boosting.cuh"

#include <climits>

#include "cuda/reduce.cuh"

// The outputs of a round need each other only in the softmax, so one launch computes all residuals and one grows all
// trees, a block a tree, without a barrier between blocks. A block keeps its output's residuals and nodes in shared
// memory (5 bytes a row) and gives each feature to a warp, which walks the rows in the feature's order with one scan for
// 128 rows. 12 features, 10,000 rows: 79 steps of some 200, 320 and 520 instructions on the three levels (counted in the
// machine code), three warps to a scheduler, are 0.25 million issue slots: 0.14 ms a round at 1.75 GHz if none is lost,
// so that 20 to 40 ms are expected of 100 rounds for any number of outputs up to that of the multiprocessors. No GPU has
// run it.
namespace strucfast::cuda {
namespace {

constexpr int kResidualThreads = 256;
constexpr int kTreeThreads = 512, kTreeWarps = kTreeThreads / 32;
// Neighbouring rows of a feature's order that one lane takes at a step.
constexpr int kPerLane = 4;
constexpr int kNoSplit = INT_MAX;

// Labels minus softmax of the raw predictions, or what is missing to the wanted values.
__global__ void __launch_bounds__(kResidualThreads, 1) boosting_residual_kernel(BoostingJob job, unsigned row_blocks) {
  const unsigned target = blockIdx.x / row_blocks;
  const int row = static_cast<int>((blockIdx.x - target * row_blocks) * kResidualThreads + threadIdx.x);
  if (row >= job.rows) return;
  const int64_t rows = job.rows;
  if (job.labels == nullptr) {
    const int64_t at = target * rows + row;
    job.residual[at] = job.wanted[at] - job.raw[at];
    return;
  }
  const int begin = job.first[target], end = job.first[target + 1];
  const float* raw = job.raw + row;
  float* residual = job.residual + row;
  float greatest = raw[begin * rows];
  for (int w = begin + 1; w < end; ++w) greatest = max(greatest, raw[w * rows]);
  float sum = 0.0f;
  for (int w = begin; w < end; ++w) {
    const float weight = expf(raw[w * rows] - greatest);
    residual[w * rows] = weight;
    sum += weight;
  }
  const float scale = -1.0f / sum;
  const int label = begin + job.labels[target * rows + row];
  for (int w = begin; w < end; ++w) residual[w * rows] = residual[w * rows] * scale + (w == label ? 1.0f : 0.0f);
}

// The tree under construction and the sums of the level that is split.
struct Tree {
  int feature[kBoostInner], rank[kBoostInner], right[4];
  float value[kBoostInner], leaf[kBoostLeaves];
  float mean[4], count[4];
  // By warp.
  float sums[kTreeWarps][kBoostLeaves], weights[kTreeWarps][kBoostLeaves];
};

// The best split of each node on one feature, by one warp: gains and splits are the feature's, `stride` a node apart.
template <int Nodes>
__device__ __forceinline__ void scan_feature(const int32_t* order, const int32_t* ranks, int rows,
                                             const float* residual, const uint8_t* node, const Tree& tree, float* gains,
                                             int* splits, int stride) {
  const int lane = threadIdx.x % 32;
  float sum[Nodes], best[Nodes];
  int count[Nodes], place[Nodes];
#pragma unroll
  for (int n = 0; n < Nodes; ++n) {
    sum[n] = 0.0f;
    count[n] = 0;
    // What rounding alone can leave of a node without any gain.
    best[n] = 1e-10f;
    place[n] = kNoSplit;
  }
  // Fetched a step ahead.
  int32_t next[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) next[i] = lane * kPerLane + i < rows ? order[lane * kPerLane + i] : 0;
  for (int step = 0; step < rows; step += 32 * kPerLane) {
    const int first = step + lane * kPerLane;
    bool last_of_bin[kPerLane];
    float x[kPerLane], inclusive[Nodes], running[Nodes];
    int own[kPerLane], left[Nodes];
    // A byte a node: at most 128 rows.
    unsigned counts = 0;
#pragma unroll
    for (int n = 0; n < Nodes; ++n) inclusive[n] = 0.0f;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const bool inside = first + i < rows;
      const int row = next[i] & INT_MAX;
      last_of_bin[i] = next[i] < 0;
      x[i] = inside ? residual[row] : 0.0f;
      own[i] = !inside ? -1 : Nodes == 1 ? 0 : node[row];
      const int ahead = first + 32 * kPerLane + i;
      next[i] = ahead < rows ? order[ahead] : 0;
      if (inside) counts += 1u << (8 * own[i]);
#pragma unroll
      for (int n = 0; n < Nodes; ++n) inclusive[n] += own[i] == n ? x[i] : 0.0f;
    }
    const unsigned own_counts = counts;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const unsigned before = __shfl_up_sync(kAllLanes, counts, static_cast<unsigned>(offset));
      if (lane >= offset) counts += before;
#pragma unroll
      for (int n = 0; n < Nodes; ++n) {
        const float lower = __shfl_up_sync(kAllLanes, inclusive[n], static_cast<unsigned>(offset));
        if (lane >= offset) inclusive[n] += lower;
      }
    }
    const unsigned counts_before = counts - own_counts, all_counts = __shfl_sync(kAllLanes, counts, 31);
#pragma unroll
    for (int n = 0; n < Nodes; ++n) {
      const float before = __shfl_up_sync(kAllLanes, inclusive[n], 1u);
      running[n] = lane == 0 ? sum[n] : sum[n] + before;
      left[n] = count[n] + static_cast<int>(counts_before >> (8 * n) & 255);
      sum[n] += __shfl_sync(kAllLanes, inclusive[n], 31);
      count[n] += static_cast<int>(all_counts >> (8 * n) & 255);
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
#pragma unroll
      for (int n = 0; n < Nodes; ++n) {
        running[n] += own[i] == n ? x[i] : 0.0f;
        left[n] += own[i] == n;
        if (!last_of_bin[i]) continue;
        const auto members = static_cast<float>(left[n]);
        const float total = tree.count[n], d = running[n] - members * tree.mean[n], span = members * (total - members);
        const float square = d * d * total;
        // Few places are better than all before them: the division waits for one.
        if (span > 0.0f && square > best[n] * span) {
          best[n] = square / span;
          place[n] = first + i;
        }
      }
    }
  }
#pragma unroll
  for (int n = 0; n < Nodes; ++n) {
    // Of equal gains the first place.
    for (int offset = 16; offset > 0; offset /= 2) {
      const float gain = __shfl_xor_sync(kAllLanes, best[n], offset);
      const int at = __shfl_xor_sync(kAllLanes, place[n], offset);
      if (gain > best[n] || (gain == best[n] && at < place[n])) {
        best[n] = gain;
        place[n] = at;
      }
    }
    if (lane == 0) {
      gains[n * stride] = best[n];
      splits[n * stride] = place[n] == kNoSplit ? kNoSplit : ranks[order[place[n]] & INT_MAX];
    }
  }
}

// splitmix64, as on the host.
__device__ __forceinline__ uint64_t next_random(uint64_t* state) {
  uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// value % divisor for a divisor below 2^16, by 32-bit remainders: a 64-bit one would be a call with a stack of its own.
__device__ __forceinline__ unsigned remainder_of(uint64_t value, unsigned divisor) {
  const unsigned high = static_cast<unsigned>(value >> 32) % divisor, wrap = (0xffffffffu % divisor + 1) % divisor;
  return (high * wrap + static_cast<unsigned>(value) % divisor) % divisor;
}

// One node asks the features in an order of its own, and takes the best of their splits (see the host's comment).
__device__ __forceinline__ void choose_split(const BoostingJob& job, int64_t round, int output, int heap,
                                             const float* gains, const int* splits, uint16_t* asked, Tree* tree) {
  // The host counts outputs in groups of sixteen.
  const int64_t padded = (job.outputs + 15) / 16 * 16;
  uint64_t stream =
      job.seed + 0x632be59bd9b4e019ull * static_cast<uint64_t>((round * padded + output) * kBoostInner + heap);
  for (int f = 0; f < job.features; ++f) asked[f] = static_cast<uint16_t>(f);
  float best = 0.0f;
  int feature = -1, rank = kNoSplit;
  for (int left = job.features; left > 0; --left) {
    const unsigned pick = remainder_of(next_random(&stream), static_cast<unsigned>(left));
    const uint16_t f = asked[pick];
    asked[pick] = asked[left - 1];
    // The same split of the same rows, summed in another order, differs by rounding.
    if (splits[f] != kNoSplit && gains[f] > best * (1.0f + 1e-5f)) {
      best = gains[f];
      feature = f;
      rank = splits[f];
    }
  }
  tree->feature[heap] = max(feature, 0);
  tree->rank[heap] = rank;
  tree->value[heap] = INFINITY;
  const int64_t at = (round * job.outputs + output) * kBoostInner + heap;
  job.gains[at] = best;
  job.chosen[at] = feature;
}

// One level: find each node's split, send the rows to the children, sum the children up.
template <int Nodes>
__device__ __forceinline__ void grow_level(const BoostingJob& job, int64_t round, int output, const float* residual,
                                           uint8_t* node, Tree* tree, float* gains, int* splits, uint16_t* asked) {
  constexpr int kBase = Nodes - 1, kChildren = 2 * Nodes;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, thread = threadIdx.x;
  const int64_t rows = job.rows;
  for (int f = warp; f < job.features; f += kTreeWarps)
    scan_feature<Nodes>(job.order + f * rows, job.ranks + f * rows, job.rows, residual, node, *tree, gains + f,
                        splits + f, job.features);
  __syncthreads();
  if (thread < Nodes) {
    const int offset = thread * job.features;
    tree->right[thread] = kNoSplit;
    choose_split(job, round, output, kBase + thread, gains + offset, splits + offset, asked + offset, tree);
  }
  __syncthreads();

  float sum[kChildren], weight[kChildren];
  int right[Nodes];
#pragma unroll
  for (int c = 0; c < kChildren; ++c) sum[c] = weight[c] = 0.0f;
#pragma unroll
  for (int n = 0; n < Nodes; ++n) right[n] = kNoSplit;
  for (int row = thread; row < job.rows; row += kTreeThreads) {
    const int parent = Nodes == 1 ? 0 : node[row];
    const int rank = job.ranks[tree->feature[kBase + parent] * rows + row];
    const bool goes = rank > tree->rank[kBase + parent];
    const int child = 2 * parent + goes;
    node[row] = static_cast<uint8_t>(child);
    const float x = residual[row], size = fabsf(x);
    // Counts of rows on the way; in the leaves the curvature, |r| (1 - |r|) = p (1 - p) of the multinomial deviance.
    const float bend = Nodes < 4 || job.labels == nullptr ? 1.0f : size * (1.0f - size);
#pragma unroll
    for (int c = 0; c < kChildren; ++c) {
      sum[c] += child == c ? x : 0.0f;
      weight[c] += child == c ? bend : 0.0f;
    }
#pragma unroll
    for (int n = 0; n < Nodes; ++n) right[n] = goes && parent == n ? min(right[n], rank) : right[n];
  }
#pragma unroll
  for (int c = 0; c < kChildren; ++c) {
    const float warp_total = warp_sum(sum[c]), warp_weight = warp_sum(weight[c]);
    if (lane == 0) {
      tree->sums[warp][c] = warp_total;
      tree->weights[warp][c] = warp_weight;
    }
  }
#pragma unroll
  for (int n = 0; n < Nodes; ++n) {
    if (right[n] != kNoSplit) atomicMin(&tree->right[n], right[n]);
  }
  __syncthreads();
  if (thread < kChildren) {
    float total = 0.0f, count = 0.0f;
    for (int w = 0; w < kTreeWarps; ++w) {
      total += tree->sums[w][thread];
      count += tree->weights[w][thread];
    }
    if (Nodes < 4) {
      tree->count[thread % 4] = count;
      tree->mean[thread % 4] = count > 0.0f ? total / count : 0.0f;
    } else {
      // An empty or perfectly predicted leaf changes nothing.
      tree->leaf[thread] = count > 1e-30f ? job.factor[output] * total / count : 0.0f;
    }
  }
  if (thread < Nodes) {
    const int at = kBase + thread, left = tree->rank[at], next = tree->right[thread];
    // The greatest float that is not above the midpoint of the values on both sides.
    if (left != kNoSplit && next != kNoSplit)
      tree->value[at] = add_down(job.high[tree->feature[at] * rows + left] * 0.5f,
                                 job.low[tree->feature[at] * rows + next] * 0.5f);
  }
  __syncthreads();
}

// One block: one tree of one output, and what it adds to the predictions.
template <bool Shared>
__global__ void __launch_bounds__(kTreeThreads, 1) boosting_tree_kernel(BoostingJob job, int64_t round) {
  __shared__ Tree tree;
  __shared__ float scratch[33];
  const int output = blockIdx.x;
  const int64_t rows = job.rows;
  float* gains = dynamic_shared<float>();
  int* splits = reinterpret_cast<int*>(gains + 4 * job.features);
  float* block_residual = reinterpret_cast<float*>(splits + 4 * job.features);
  auto* asked = reinterpret_cast<uint16_t*>(block_residual + (Shared ? rows : 0));
  uint8_t* node = Shared ? reinterpret_cast<uint8_t*>(asked + 4 * job.features) : job.node + output * rows;

  const float* residual = job.residual + output * rows;
  float sum = 0.0f;
  for (int row = threadIdx.x; row < job.rows; row += kTreeThreads) {
    const float x = residual[row];
    if (Shared) block_residual[row] = x;
    sum += x;
  }
  if (Shared) residual = block_residual;
  // Its barriers are also what the others' shared residuals need.
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) {
    tree.count[0] = static_cast<float>(job.rows);
    tree.mean[0] = sum / static_cast<float>(job.rows);
  }
  __syncthreads();
  grow_level<1>(job, round, output, residual, node, &tree, gains, splits, asked);
  grow_level<2>(job, round, output, residual, node, &tree, gains, splits, asked);
  grow_level<4>(job, round, output, residual, node, &tree, gains, splits, asked);

  float* raw = job.raw + output * rows;
  for (int row = threadIdx.x; row < job.rows; row += kTreeThreads) raw[row] += tree.leaf[node[row]];
  float* test_raw = job.test_raw + output * job.test_rows;
  for (int64_t row = threadIdx.x; row < job.test_rows; row += kTreeThreads) {
    int at = 0;
#pragma unroll
    for (int depth = 0; depth < 3; ++depth) {
      const int heap = (1 << depth) - 1 + at;
      at = 2 * at + (job.test_values[tree.feature[heap] * job.test_rows + row] > tree.value[heap]);
    }
    test_raw[row] += tree.leaf[at];
  }
}

}  // namespace

cudaError_t boost(const BoostingJob& job, int64_t rounds, cudaStream_t stream) {
  if (job.rows == 0 || job.outputs == 0 || job.features == 0) return cudaSuccess;
  if (job.features > kMostFeatures) return cudaErrorInvalidValue;
  const auto row_blocks = static_cast<unsigned>(divide_up(job.rows, kResidualThreads));
  const size_t level = static_cast<size_t>(job.features) * 4 * (sizeof(float) + sizeof(int) + sizeof(uint16_t));
  const size_t all = level + static_cast<size_t>(job.rows) * (sizeof(float) + 1);
  // Static shared memory counts as well.
  const bool fits = all + sizeof(Tree) + 256 <= shared_memory_limit();
  for (int64_t round = 0; round < rounds; ++round) {
    cudaError_t error = launch(boosting_residual_kernel, row_blocks * static_cast<unsigned>(job.targets),
                               dim3(kResidualThreads), 0, stream, job, row_blocks);
    if (error != cudaSuccess) return error;
    const auto trees = static_cast<unsigned>(job.outputs);
    error = fits ? launch(boosting_tree_kernel<true>, trees, dim3(kTreeThreads), all, stream, job, round)
                 : launch(boosting_tree_kernel<false>, trees, dim3(kTreeThreads), level, stream, job, round);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace strucfast::cuda
