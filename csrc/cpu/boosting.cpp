#include "boosting.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <limits>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../common/simd.h"
#include "../common/vec_math.h"

namespace strucfast {
namespace {

constexpr int64_t L = kBoostLanes;
constexpr int32_t kNoSplit = std::numeric_limits<int32_t>::max();
// Rows that one task takes where rows are split up; fixed, so that sums do not depend on the threads.
constexpr int64_t kBlock = 2048;

// Sums and counts of the nodes of one level, for one group of outputs.
struct Level {
  alignas(64) float mean[4][L], count[4][L];
};

// One tree of each of sixteen outputs: heap of inner nodes, then leaves.
struct Trees {
  alignas(64) int32_t feature[kBoostInner][L];
  // Greatest rank that goes left.
  alignas(64) int32_t rank[kBoostInner][L];
  // Greatest value that goes left, for rows that have no rank.
  alignas(64) float value[kBoostInner][L];
  alignas(64) float leaf[kBoostLeaves][L];
};

// Sums over the rows of a node; for leaves also the curvature.
struct Sums {
  alignas(64) float sum[kBoostLeaves][L], count[kBoostLeaves][L], curvature[kBoostLeaves][L];
  // Least rank that went right, by parent.
  alignas(64) int32_t right[4][L];
};

// The loops over rows, compiled for one instruction set.
struct Loops {
  void (*scan)(const BoostingJob& job, int64_t f, int depth, const float* residual, const uint8_t* node,
               const Level& level, float* gains, int32_t* splits);
  void (*residuals)(const BoostingJob& job, const BoostingState& state, int64_t begin, int64_t end, float* scratch);
  void (*partition)(const BoostingJob& job, int depth, const float* residual, uint8_t* node, const Trees& trees,
                    int64_t begin, int64_t end, Sums* out);
  void (*add_leaves)(const uint8_t* node, const Trees& trees, int64_t begin, int64_t end, float* raw);
  void (*add_leaves_of_unseen)(const float* values, int64_t features, const Trees& trees, int64_t begin, int64_t end,
                               float* raw);
  void (*add_up)(const float* residual, int64_t rows, float* out);
};

// The compiler sets no macro of its own inside a target region; outside, a build for one level has them.
#if defined(SF_NO_CLONES) && defined(__AVX512F__)
#define SF_LEVEL 4
#else
#define SF_LEVEL 1
#endif
namespace base {
#include "boosting_lanes.h"
}

#if defined(SF_HAS_CLONES) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#undef SF_LEVEL
#define SF_LEVEL 3
namespace v3 {
#include "boosting_lanes.h"
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#undef SF_LEVEL
#define SF_LEVEL 4
namespace v4 {
#include "boosting_lanes.h"
}
#pragma GCC pop_options

const Loops& best_loops() {
  if (__builtin_cpu_supports("x86-64-v4")) return v4::kLoops;
  if (__builtin_cpu_supports("x86-64-v3")) return v3::kLoops;
  return base::kLoops;
}
#else
const Loops& best_loops() { return base::kLoops; }
#endif

// The greatest float that is <= the midpoint: x <= it exactly where the float64 comparison says x <= midpoint.
float threshold(float left, float right) {
  const double middle = static_cast<double>(left) / 2 + static_cast<double>(right) / 2;
  const float rounded = static_cast<float>(middle);
  return static_cast<double>(rounded) > middle ? std::nextafterf(rounded, -INFINITY) : rounded;
}

Level level_of(const Sums& sums, int nodes) {
  Level level{};
  for (int a = 0; a < nodes; ++a)
    for (int64_t l = 0; l < L; ++l) {
      // Not a choice between the quotient and 0: gcc 12 at -O3 -march=x86-64-v3 leaves three lanes of that at 0.
      level.count[a][l] = sums.count[a][l];
      level.mean[a][l] = sums.sum[a][l] / std::max(sums.count[a][l], 1.0f);
    }
  return level;
}

// Everything of one group of outputs between two parallel steps.
struct Group {
  Trees trees;
  Sums sums;
  Level level;
};

// splitmix64: the next of a stream of well mixed numbers.
uint64_t next_random(uint64_t* state) {
  uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// In small nodes several features often make the same split. Each node asks them in an order of its own, as in
// scikit-learn: the lowest index always winning would move importance to it (2e-3 of a noisy code's disentanglement).
void choose_splits(const BoostingJob& job, const BoostingState& state, int64_t round, int64_t g, int depth,
                   Group* group) {
  const int nodes = 1 << depth, base = nodes - 1;
  std::vector<int32_t> asked(job.features);
  for (int a = 0; a < nodes; ++a)
    for (int64_t l = 0; l < L; ++l) {
      uint64_t stream = job.seed + 0x632be59bd9b4e019ull * (((round * job.groups + g) * L + l) * kBoostInner + base + a);
      for (int64_t f = 0; f < job.features; ++f) asked[f] = static_cast<int32_t>(f);
      float best = 0.0f;
      int32_t feature = 0, rank = kNoSplit;
      for (int64_t f = job.features; f > 0; --f) {
        std::swap(asked[f - 1], asked[next_random(&stream) % f]);
        const int64_t at = (((g * job.features + asked[f - 1]) * 4) + a) * L + l;
        // The same split of the same rows, summed in another order, differs by rounding.
        if (state.splits[at] != kNoSplit && state.gains[at] > best * (1.0f + 1e-5f)) {
          best = state.gains[at];
          feature = asked[f - 1];
          rank = state.splits[at];
        }
      }
      group->trees.feature[base + a][l] = feature;
      group->trees.rank[base + a][l] = rank;
      group->trees.value[base + a][l] = INFINITY;
      if (rank != kNoSplit)
        state.importance[feature * job.groups * L + g * L + l] += static_cast<double>(best) / job.rows;
    }
}

void add_sums(const Sums& part, int children, Sums* total) {
  for (int a = 0; a < children; ++a)
    for (int64_t l = 0; l < L; ++l) {
      total->sum[a][l] += part.sum[a][l];
      total->count[a][l] += part.count[a][l];
      total->curvature[a][l] += part.curvature[a][l];
    }
  for (int a = 0; a < children / 2; ++a)
    for (int64_t l = 0; l < L; ++l) total->right[a][l] = std::min(total->right[a][l], part.right[a][l]);
}

void clear(Sums* sums) {
  std::memset(sums, 0, sizeof *sums);
  for (auto& ranks : sums->right) std::fill(ranks, ranks + L, kNoSplit);
}

void finish_values(const BoostingJob& job, int depth, Group* group) {
  const int nodes = 1 << depth, base = nodes - 1;
  for (int a = 0; a < nodes; ++a)
    for (int64_t l = 0; l < L; ++l) {
      const int32_t left = group->trees.rank[base + a][l], right = group->sums.right[a][l];
      if (left == kNoSplit || right == kNoSplit) continue;
      const int64_t f = group->trees.feature[base + a][l];
      group->trees.value[base + a][l] =
          threshold(job.high_values[f * job.most_bins + left], job.low_values[f * job.most_bins + right]);
    }
}

bool finish_leaves(const std::vector<float>& factor, int64_t g, Group* group) {
  bool finite = true;
  for (int64_t a = 0; a < kBoostLeaves; ++a)
    for (int64_t l = 0; l < L; ++l) {
      const float bend = group->sums.curvature[a][l];
      // An empty or perfectly predicted leaf changes nothing.
      const float leaf = bend > 1e-30f ? factor[g * L + l] * group->sums.sum[a][l] / bend : 0.0f;
      finite = finite && std::isfinite(leaf);
      group->trees.leaf[a][l] = leaf;
    }
  return finite;
}

}  // namespace

bool boost(const BoostingJob& job, const BoostingState& state, const TaskRunner& run) {
  const Loops& loops = best_loops();
  const int64_t blocks = (job.rows + kBlock - 1) / kBlock, test_blocks = (job.test_rows + kBlock - 1) / kBlock;
  const auto block_end = [](int64_t block, int64_t rows) { return std::min(rows, (block + 1) * kBlock); };
  std::vector<Group> groups(job.groups);
  std::vector<Sums> parts(job.groups * blocks);
  // Friedman's (K - 1) / K of the multinomial leaf; the learning rate rides along.
  std::vector<float> factor(job.groups * L, job.learning_rate);
  for (int64_t q = 0; job.labels != nullptr && q < job.targets; ++q) {
    const float classes = static_cast<float>(job.first[q + 1] - job.first[q]);
    for (int64_t w = job.first[q]; w < job.first[q + 1]; ++w) factor[w] *= (classes - 1.0f) / classes;
  }
  for (int64_t g = 0; g < job.groups; ++g)
    for (int64_t l = 0; l < L; ++l) {
      const int64_t w = g * L + l;
      const float start = w < job.outputs ? job.initial[w] : 0.0f;
      for (int64_t row = 0; row < job.rows; ++row) state.raw[(g * job.rows + row) * L + l] = start;
      for (int64_t row = 0; row < job.test_rows; ++row) state.test_raw[(g * job.test_rows + row) * L + l] = start;
    }
  bool finite = true;
  for (int64_t round = 0; round < job.rounds && finite; ++round) {
    run(blocks, [&](int64_t block) {
      std::vector<float> scratch(job.groups * L);
      loops.residuals(job, state, block * kBlock, block_end(block, job.rows), scratch.data());
    });
    run(job.groups, [&](int64_t g) {
      clear(&groups[g].sums);
      loops.add_up(state.residual + g * job.rows * L, job.rows, groups[g].sums.sum[0]);
      std::fill_n(groups[g].sums.count[0], L, static_cast<float>(job.rows));
      groups[g].level = level_of(groups[g].sums, 1);
    });
    for (int depth = 0; depth < 3; ++depth) {
      run(job.groups * job.features, [&](int64_t task) {
        const int64_t g = task / job.features, f = task % job.features;
        loops.scan(job, f, depth, state.residual + g * job.rows * L, state.node + g * job.rows * L, groups[g].level,
             state.gains + task * 4 * L, state.splits + task * 4 * L);
      });
      for (int64_t g = 0; g < job.groups; ++g) choose_splits(job, state, round, g, depth, &groups[g]);
      run(job.groups * blocks, [&](int64_t task) {
        const int64_t g = task / blocks, block = task % blocks;
        loops.partition(job, depth, state.residual + g * job.rows * L, state.node + g * job.rows * L, groups[g].trees,
                  block * kBlock, block_end(block, job.rows), &parts[task]);
      });
      for (int64_t g = 0; g < job.groups; ++g) {
        clear(&groups[g].sums);
        for (int64_t block = 0; block < blocks; ++block)
          add_sums(parts[g * blocks + block], 2 << depth, &groups[g].sums);
        finish_values(job, depth, &groups[g]);
        if (depth < 2) groups[g].level = level_of(groups[g].sums, 2 << depth);
      }
    }
    for (int64_t g = 0; g < job.groups; ++g) finite = finish_leaves(factor, g, &groups[g]) && finite;
    run(job.groups * (blocks + test_blocks), [&](int64_t task) {
      const int64_t g = task / (blocks + test_blocks), block = task % (blocks + test_blocks);
      if (block < blocks)
        loops.add_leaves(state.node + g * job.rows * L, groups[g].trees, block * kBlock, block_end(block, job.rows),
                   state.raw + g * job.rows * L);
      else
        loops.add_leaves_of_unseen(job.test_values, job.features, groups[g].trees, (block - blocks) * kBlock,
                             block_end(block - blocks, job.test_rows), state.test_raw + g * job.test_rows * L);
    });
  }
  return finite;
}

}  // namespace strucfast
