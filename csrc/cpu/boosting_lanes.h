// Loops over rows with sixteen outputs in a vector: included by boosting.cpp once per instruction set, inside a namespace.
// The compiler takes its vector types apart before it clones a function, so the clones that the other kernels use would
// be scalar code here (9.0 s instead of 0.4 s a fit).

// Values of the compiler's vector type stay in registers across a loop's iterations, as small arrays do not.
typedef float Floats __attribute__((vector_size(4 * L)));
typedef int32_t Ints __attribute__((vector_size(4 * L)));
typedef uint8_t Bytes __attribute__((vector_size(L)));

template <class V, class T>
static SF_INLINE V load(const T* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class T, class V>
static SF_INLINE void store(T* to, V value) {
  std::memcpy(to, &value, sizeof value);
}

static SF_INLINE Ints node_of(const uint8_t* node) {
  // As a loop it becomes one widening load; the compiler's own conversion of vector types goes lane by lane.
  alignas(64) int32_t wide[L];
  for (int64_t l = 0; l < L; ++l) wide[l] = node[l];
  return load<Ints>(wide);
}

// Masks: the compiler turns a comparison of its vector types that outlives a branch into one scalar step per lane, so
// where there are mask registers they are used by name.
#if SF_LEVEL == 4
typedef __mmask16 Mask;
static SF_INLINE Mask equal(Ints a, int32_t b) {
  return _mm512_cmpeq_epi32_mask(reinterpret_cast<__m512i>(a), _mm512_set1_epi32(b));
}
static SF_INLINE Mask greater(Ints a, Ints b) {
  return _mm512_cmpgt_epi32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
}
static SF_INLINE Mask greater(Floats a, Floats b) {
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_GT_OQ);
}
static SF_INLINE Floats pick(Mask mask, Floats yes, Floats no) {
  return reinterpret_cast<Floats>(
      _mm512_mask_mov_ps(reinterpret_cast<__m512>(no), mask, reinterpret_cast<__m512>(yes)));
}
static SF_INLINE Ints pick(Mask mask, Ints yes, Ints no) {
  return reinterpret_cast<Ints>(
      _mm512_mask_mov_epi32(reinterpret_cast<__m512i>(no), mask, reinterpret_cast<__m512i>(yes)));
}
static SF_INLINE Floats add_where(Mask mask, Floats sum, Floats value) {
  const __m512 from = reinterpret_cast<__m512>(sum);
  return reinterpret_cast<Floats>(_mm512_mask_add_ps(from, mask, from, reinterpret_cast<__m512>(value)));
}
static SF_INLINE bool any(Mask mask) { return mask != 0; }
#else
typedef Ints Mask;
static SF_INLINE Mask equal(Ints a, int32_t b) { return a == b; }
static SF_INLINE Mask greater(Ints a, Ints b) { return a > b; }
static SF_INLINE Mask greater(Floats a, Floats b) { return a > b; }
static SF_INLINE Floats pick(Mask mask, Floats yes, Floats no) { return mask ? yes : no; }
static SF_INLINE Ints pick(Mask mask, Ints yes, Ints no) { return mask ? yes : no; }
static SF_INLINE Floats add_where(Mask mask, Floats sum, Floats value) { return mask ? sum + value : sum; }
static SF_INLINE bool any(Mask mask) {
  int32_t bits = 0;
  for (int64_t l = 0; l < L; ++l) bits |= mask[l];
  return bits != 0;
}
#endif

static SF_INLINE Floats broadcast(float value) { return value - Floats{}; }

// The lanes' nodes as masks.
template <int Nodes>
struct NodeMasks {
  Mask is[Nodes], odd, high;
};

template <int Nodes>
static SF_INLINE NodeMasks<Nodes> nodes_of(Ints node) {
  NodeMasks<Nodes> at;
  for (int a = 0; a < Nodes; ++a) at.is[a] = equal(node, a);
  if constexpr (Nodes > 1) at.odd = Nodes == 2 ? at.is[1] : Mask(at.is[1] | at.is[3]);
  if constexpr (Nodes > 2) at.high = Mask(at.is[2] | at.is[3]);
  return at;
}

// values[node] in each lane: one blend a bit and pair instead of a gather.
template <int Nodes, class V>
static SF_INLINE V own(const V* values, const NodeMasks<Nodes>& at) {
  if constexpr (Nodes == 1) {
    return values[0];
  } else if constexpr (Nodes == 2) {
    return pick(at.odd, values[1], values[0]);
  } else {
    return pick(at.high, pick(at.odd, values[3], values[2]), pick(at.odd, values[1], values[0]));
  }
}

// Best split of each of Nodes nodes on one feature: the decrease of squared error, and the last rank on the left.
template <int Nodes>
static SF_INLINE void scan_feature(const BoostingJob& job, int64_t f, const float* residual, const uint8_t* node,
                            const Level& level, float* gains, int32_t* splits) {
  const int32_t* order = job.order + f * job.rows;
  const int32_t* starts = job.starts + f * (job.most_bins + 1);
  Floats sum[Nodes], count[Nodes], mean[Nodes], total[Nodes], best[Nodes];
  Ints place[Nodes];
  const Floats one = broadcast(1.0f), none = {};
  for (int a = 0; a < Nodes; ++a) {
    sum[a] = count[a] = Floats{};
    mean[a] = load<Floats>(level.mean[a]);
    total[a] = load<Floats>(level.count[a]);
    // What rounding alone can leave of a node without any gain.
    best[a] = broadcast(1e-10f);
    place[a] = Ints{} + kNoSplit;
  }
  // The last bin ends at the node's end: nothing is right of it.
  for (int64_t bin = 0; bin + 1 < job.bins[f]; ++bin) {
    const int32_t begin = starts[bin], end = starts[bin + 1];
    NodeMasks<Nodes> at{};
    for (int32_t j = begin; j < end; ++j) {
      const int64_t row = order[j];
      const Floats x = load<Floats>(residual + row * L);
      if constexpr (Nodes == 1) {
        sum[0] += x;
      } else {
        at = nodes_of<Nodes>(node_of(node + row * L));
        for (int a = 0; a < Nodes; ++a) {
          sum[a] = add_where(at.is[a], sum[a], x);
          count[a] = add_where(at.is[a], count[a], one);
        }
      }
    }
    if constexpr (Nodes == 1) {
      // All outputs count the same rows at the root, so the factor is one number.
      const float left = static_cast<float>(end), all = static_cast<float>(job.rows);
      const Floats d = sum[0] - left * mean[0];
      const Floats gain = d * d * (all / (left * (all - left)));
      const Mask better = greater(gain, best[0]);
      best[0] = pick(better, gain, best[0]);
      place[0] = pick(better, Ints{} + static_cast<int32_t>(bin), place[0]);
    } else if (end - begin == 1) {
      // One row lies in one node of each output; a split behind it concerns no other.
      const Floats c = own<Nodes>(count, at), n = own<Nodes>(total, at);
      const Floats d = own<Nodes>(sum, at) - c * own<Nodes>(mean, at);
      const Floats span = c * (n - c), square = d * d * n;
      const Mask better = greater(square, own<Nodes>(best, at) * span) & greater(span, none);
      // Rare on most features: the division and the blends wait for it.
      if (any(better)) {
        const Floats gain = square / span;
        for (int a = 0; a < Nodes; ++a) {
          const Mask here = better & at.is[a];
          best[a] = pick(here, gain, best[a]);
          place[a] = pick(here, Ints{} + static_cast<int32_t>(bin), place[a]);
        }
      }
    } else {
      for (int a = 0; a < Nodes; ++a) {
        const Floats d = sum[a] - count[a] * mean[a];
        const Floats span = count[a] * (total[a] - count[a]);
        const Floats gain = d * d * total[a] / span;
        const Mask better = greater(gain, best[a]) & greater(span, none);
        best[a] = pick(better, gain, best[a]);
        place[a] = pick(better, Ints{} + static_cast<int32_t>(bin), place[a]);
      }
    }
  }
  for (int a = 0; a < Nodes; ++a) {
    store(gains + a * L, best[a]);
    store(splits + a * L, place[a]);
  }
}

static void scan(const BoostingJob& job, int64_t f, int depth, const float* residual, const uint8_t* node,
                    const Level& level, float* gains, int32_t* splits) {
  if (depth == 0) scan_feature<1>(job, f, residual, node, level, gains, splits);
  if (depth == 1) scan_feature<2>(job, f, residual, node, level, gains, splits);
  if (depth == 2) scan_feature<4>(job, f, residual, node, level, gains, splits);
}

// Residuals of rows [begin, end): labels minus softmax of the raw predictions, target by target.
static void residuals(const BoostingJob& job, const BoostingState& state, int64_t begin, int64_t end,
                         float* scratch) {
  const int64_t width = job.groups * L;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t g = 0; g < job.groups; ++g)
      std::memcpy(scratch + g * L, state.raw + (g * job.rows + row) * L, sizeof(float) * L);
    if (job.labels == nullptr) {
      for (int64_t w = 0; w < job.outputs; ++w) scratch[w] = job.wanted[row * job.outputs + w] - scratch[w];
    } else {
      for (int64_t q = 0; q < job.targets; ++q) {
        float greatest = scratch[job.first[q]];
        for (int64_t w = job.first[q] + 1; w < job.first[q + 1]; ++w)
          greatest = scratch[w] > greatest ? scratch[w] : greatest;
        for (int64_t w = job.first[q]; w < job.first[q + 1]; ++w) scratch[w] -= greatest;
      }
#pragma omp simd
      for (int64_t w = 0; w < width; ++w) scratch[w] = vexp(scratch[w]);
      for (int64_t q = 0; q < job.targets; ++q) {
        float sum = 0.0f;
        for (int64_t w = job.first[q]; w < job.first[q + 1]; ++w) sum += scratch[w];
        const float scale = -1.0f / sum;
        for (int64_t w = job.first[q]; w < job.first[q + 1]; ++w) scratch[w] *= scale;
        scratch[job.first[q] + job.labels[row * job.targets + q]] += 1.0f;
      }
    }
    for (int64_t w = job.outputs; w < width; ++w) scratch[w] = 0.0f;
    for (int64_t g = 0; g < job.groups; ++g)
      std::memcpy(state.residual + (g * job.rows + row) * L, scratch + g * L, sizeof(float) * L);
  }
}

static SF_INLINE Ints gather(const int32_t* from, Ints at) {
  Ints value;
  for (int64_t l = 0; l < L; ++l) value[l] = from[at[l]];
  return value;
}

// Sends rows [begin, end) to the children of their nodes and sums the children up. Nodes: of the parents' level.
template <int Nodes>
static SF_INLINE void partition_rows(const BoostingJob& job, const float* residual, uint8_t* node, const Trees& trees,
                              int64_t begin, int64_t end, Sums* out) {
  constexpr int base = Nodes - 1, children = 2 * Nodes;
  Ints feature[Nodes], rank[Nodes], right[Nodes];
  Floats sum[children], count[children], curvature[children];
  const Floats one = broadcast(1.0f), none = {};
  for (int a = 0; a < Nodes; ++a) {
    feature[a] = load<Ints>(trees.feature[base + a]);
    rank[a] = load<Ints>(trees.rank[base + a]);
    right[a] = Ints{} + kNoSplit;
  }
  for (int a = 0; a < children; ++a) sum[a] = count[a] = curvature[a] = Floats{};
  for (int64_t row = begin; row < end; ++row) {
    const Ints parent = Nodes == 1 ? Ints{} : node_of(node + row * L);
    const NodeMasks<Nodes> at = nodes_of<Nodes>(parent);
    const Ints mine = gather(job.ranks + row * job.features, own<Nodes>(feature, at));
    const Mask goes = greater(mine, own<Nodes>(rank, at));
    const Ints child = 2 * parent + pick(goes, Ints{} + 1, Ints{});
    store(node + row * L, __builtin_convertvector(child, Bytes));
    const Floats x = load<Floats>(residual + row * L);
    for (int a = 0; a < Nodes; ++a) right[a] = pick(goes & at.is[a] & greater(right[a], mine), mine, right[a]);
    if constexpr (Nodes == 4) {
      const Floats size = pick(greater(none, x), -x, x);
      // For the multinomial deviance |r| (1 - |r|) is p (1 - p); squared error counts rows instead.
      const Floats bend = job.labels == nullptr ? one : size * (1.0f - size);
      for (int a = 0; a < children; ++a) {
        const Mask here = equal(child, a);
        sum[a] = add_where(here, sum[a], x);
        curvature[a] = add_where(here, curvature[a], bend);
      }
    } else {
      for (int a = 0; a < children; ++a) {
        const Mask here = equal(child, a);
        sum[a] = add_where(here, sum[a], x);
        count[a] = add_where(here, count[a], one);
      }
    }
  }
  for (int a = 0; a < children; ++a) {
    store(out->sum[a], sum[a]);
    store(out->count[a], count[a]);
    store(out->curvature[a], curvature[a]);
  }
  for (int a = 0; a < Nodes; ++a) store(out->right[a], right[a]);
}

static void partition(const BoostingJob& job, int depth, const float* residual, uint8_t* node, const Trees& trees,
                         int64_t begin, int64_t end, Sums* out) {
  if (depth == 0) partition_rows<1>(job, residual, node, trees, begin, end, out);
  if (depth == 1) partition_rows<2>(job, residual, node, trees, begin, end, out);
  if (depth == 2) partition_rows<4>(job, residual, node, trees, begin, end, out);
}

static SF_INLINE Floats leaf_of(const Floats* leaves, Ints node) {
  const NodeMasks<4> at = nodes_of<4>(node & 3);
  return pick(greater(node, Ints{} + 3), own<4>(leaves + 4, at), own<4>(leaves, at));
}

static void add_leaves(const uint8_t* node, const Trees& trees, int64_t begin, int64_t end, float* raw) {
  Floats leaves[kBoostLeaves];
  for (int a = 0; a < kBoostLeaves; ++a) leaves[a] = load<Floats>(trees.leaf[a]);
  for (int64_t row = begin; row < end; ++row)
    store(raw + row * L, load<Floats>(raw + row * L) + leaf_of(leaves, node_of(node + row * L)));
}

static void add_leaves_of_unseen(const float* values, int64_t features, const Trees& trees, int64_t begin,
                                    int64_t end, float* raw) {
  for (int64_t row = begin; row < end; ++row) {
    const float* own_values = values + row * features;
    for (int64_t l = 0; l < L; ++l) {
      int32_t at = 0;
      for (int depth = 0; depth < 3; ++depth) {
        const int32_t heap = (1 << depth) - 1 + at;
        at = 2 * at + (own_values[trees.feature[heap][l]] > trees.value[heap][l]);
      }
      raw[row * L + l] += trees.leaf[at][l];
    }
  }
}

// Sums over all rows: what the root starts from.
static void add_up(const float* residual, int64_t rows, float* out) {
  Floats sum = {};
  for (int64_t row = 0; row < rows; ++row) sum += load<Floats>(residual + row * L);
  store(out, sum);
}

static const Loops kLoops = {scan, residuals, partition, add_leaves, add_leaves_of_unseen, add_up};
