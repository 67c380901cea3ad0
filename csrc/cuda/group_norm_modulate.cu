#include "cuda/group_norm_modulate.cuh"

#include <algorithm>

#include "cuda/activation.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vector_io.cuh"

// One block per group. The block copies the group into shared memory as far as it fits and reads the rest, if any, once
// more per pass, from the L2 cache. Two passes for the statistics, on x minus the group's first element: exact, and it
// takes a large common offset out of every sum.
namespace strucfast::cuda {
namespace {

// One channel's numbers, read from shared memory in one or two 16-byte loads.
template <typename A>
struct alignas(16) ChannelTerms {
  A slope, offset, scale, shift;
};

// A group as its kernel sees it: `vectors` vectors of V elements.
template <int V, bool ChannelsLast>
struct Group {
  int64_t sample, first_channel, base, vectors;
  const Shape& shape;
  const Divider& line;

  __device__ __forceinline__ Group(int64_t index, int64_t groups, int64_t channels, const Shape& shape_,
                                   const Divider& line_)
      : shape(shape_), line(line_) {
    sample = static_cast<unsigned>(index) / static_cast<unsigned>(groups);
    first_channel = (index - sample * groups) * channels;
    base = sample * shape.channels * shape.spatial + (ChannelsLast ? first_channel : first_channel * shape.spatial);
    vectors = channels * shape.spatial / V;
  }
  // The place in x of vector i, and the channel (within the group) of its first element.
  __device__ __forceinline__ int64_t at(int64_t i, int* channel) const {
    const int64_t row = line.quotient(i);
    if constexpr (ChannelsLast) {
      const int64_t inside = i - row * static_cast<int64_t>(line.divisor);
      *channel = static_cast<int>(inside * V);
      return base + row * shape.channels + inside * V;
    } else {
      *channel = static_cast<int>(row);
      return base + i * V;
    }
  }
};

// Vectors of a channel (contiguous) or of a pixel's share of the group (channels-last).
template <int V>
Divider group_line(const Shape& shape, int64_t groups) {
  const int64_t channels = shape.channels / groups;
  return Divider((shape.channels_last ? channels : shape.spatial) / V, channels * shape.spatial / V);
}

constexpr int kMaxThreads = 1024;
// Scratch of block_sum, padded so that what follows stays aligned for every type.
constexpr int kScratch = 64;

template <typename T>
struct ForwardArguments {
  const T* x;
  GroupNormParameters p;
  Compute<T> eps;
  T* y;
  Compute<T>* mean;
  Compute<T>* rstd;
  Divider line;
  // Channels of a group.
  int channels;
  // Vectors held in shared memory, and whether the channels' terms are.
  int64_t resident;
  bool terms_shared;
};

template <typename T>
__device__ __forceinline__ ChannelTerms<Compute<T>> channel_terms(const GroupNormParameters& p, int64_t sample,
                                                                  int64_t channel, Compute<T> centre, Compute<T> rstd) {
  using A = Compute<T>;
  const A weight = p.weight.data != nullptr ? load_operand<T>(p.weight, channel) : A(1);
  const A bias = p.bias.data != nullptr ? load_operand<T>(p.bias, channel) : A(0);
  ChannelTerms<A> terms;
  terms.slope = weight * rstd;
  terms.offset = bias - centre * terms.slope;
  terms.scale = A(1);
  terms.shift = A(0);
  if (p.scale.data != nullptr && !p.scale.per_pixel)
    terms.scale = load_operand<T>(p.scale, sample * p.scale.stride + channel);
  if (p.shift.data != nullptr && !p.shift.per_pixel)
    terms.shift = load_operand<T>(p.shift, sample * p.shift.stride + channel);
  return terms;
}

template <typename T, int V, bool ChannelsLast>
__global__ void __launch_bounds__(kMaxThreads) group_norm_modulate_forward_kernel(ForwardArguments<T> args) {
  using A = Compute<T>;
  const GroupNormParameters& p = args.p;
  const int threads = blockDim.x;
  const int channels = args.channels;
  const Group<V, ChannelsLast> group(blockIdx.x, p.groups, channels, p.shape, args.line);
  const int64_t resident = args.resident;

  A* scratch = dynamic_shared<A>();
  auto* terms = reinterpret_cast<ChannelTerms<A>*>(scratch + kScratch);
  auto* held = reinterpret_cast<Pack<T, V>*>(terms + (args.terms_shared ? channels : 0));

  int channel;
  for (int64_t i = threadIdx.x; i < resident; i += threads) {
    const T* from = args.x + group.at(i, &channel);
    if constexpr (sizeof(Pack<T, V>) == 16) {
      copy_16_to_shared(held + i, from);
    } else {
      held[i] = load_pack<V>(from);
    }
  }
  const A first = to_compute(args.x[group.base]);
  wait_for_copies();

  // Every thread meets only its own vectors, so the passes need no barrier but those of the sums.
  A sum = 0;
  const auto add = [&](const Pack<T, V>& pack) {
    A values[V];
    unpack<V>(pack, values);
#pragma unroll
    for (int j = 0; j < V; ++j) sum += values[j] - first;
  };
  int64_t start = threadIdx.x;
  for (; start < resident; start += threads) add(held[start]);
  for (int64_t i = start; i < group.vectors; i += threads) add(load_pack<V>(args.x + group.at(i, &channel)));
  const A count = static_cast<A>(group.vectors * V);
  const A centre = block_sum(sum, scratch) / count;

  A squares = 0;
  const auto add_square = [&](const Pack<T, V>& pack) {
    A values[V];
    unpack<V>(pack, values);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const A deviation = (values[j] - first) - centre;
      squares += deviation * deviation;
    }
  };
  for (int64_t i = threadIdx.x; i < resident; i += threads) add_square(held[i]);
  for (int64_t i = start; i < group.vectors; i += threads) add_square(load_pack<V>(args.x + group.at(i, &channel)));
  const A rstd = reciprocal_root(block_sum(squares, scratch) / count + args.eps);
  if (threadIdx.x == 0) {
    args.mean[blockIdx.x] = first + centre;
    args.rstd[blockIdx.x] = rstd;
  }

  if (args.terms_shared) {
    for (int c = threadIdx.x; c < channels; c += threads) {
      terms[c] = channel_terms<T>(p, group.sample, group.first_channel + c, centre, rstd);
    }
    __syncthreads();
  }
  const auto terms_of = [&](int c) {
    // Only the kernel of single elements serves groups whose terms do not fit.
    return V > 1 || args.terms_shared ? terms[c]
                                      : channel_terms<T>(p, group.sample, group.first_channel + c, centre, rstd);
  };
  dispatch_activation<V>(p.activation, [&](auto activation) {
    for (int64_t i = threadIdx.x; i < group.vectors; i += threads) {
      int c;
      const int64_t at = group.at(i, &c);
      A values[V], scale[V], shift[V];
      unpack<V>(i < resident ? held[i] : load_pack<V>(args.x + at), values);
      ChannelTerms<A> term = terms_of(c);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        if (ChannelsLast && j > 0) term = terms_of(c + j);
        values[j] = activation((values[j] - first) * term.slope + term.offset).value;
        scale[j] = term.scale;
        shift[j] = term.shift;
      }
      if (p.scale.per_pixel) load_operands<T, V>(p.scale, at, scale);
      if (p.shift.per_pixel) load_operands<T, V>(p.shift, at, shift);
#pragma unroll
      for (int j = 0; j < V; ++j) values[j] = values[j] * scale[j] + shift[j];
      store_values<V>(args.y + at, values);
    }
  });
}

// The terms may take half the shared memory; a wider group computes them as it goes.
template <typename A>
bool terms_fit(const GroupNormParameters& p, size_t limit) {
  return p.shape.channels / p.groups * sizeof(ChannelTerms<A>) <= limit / 2;
}

template <typename T, int V>
cudaError_t run(ForwardArguments<T> args, cudaStream_t stream) {
  using A = Compute<T>;
  const Shape& shape = args.p.shape;
  const int64_t channels = shape.channels / args.p.groups, vectors = channels * shape.spatial / V;
  args.line = group_line<V>(shape, args.p.groups);
  args.channels = static_cast<int>(channels);
  const size_t limit = shared_memory_limit(), vector_bytes = sizeof(Pack<T, V>);
  size_t bytes = kScratch * sizeof(A);
  args.terms_shared = terms_fit<A>(args.p, limit);
  if (args.terms_shared) bytes += channels * sizeof(ChannelTerms<A>);
  args.resident = std::min<int64_t>(vectors, (limit - bytes) / vector_bytes);
  int threads = 32;
  while (threads < kMaxThreads && threads * 4 < vectors) threads *= 2;
  // Each thread then holds its first vectors and reads its last ones anew.
  if (args.resident < vectors) args.resident -= args.resident % threads;
  bytes += args.resident * vector_bytes;
  const auto grid = static_cast<unsigned>(shape.batch * args.p.groups);
  const auto kernel = shape.channels_last ? group_norm_modulate_forward_kernel<T, V, true>
                                          : group_norm_modulate_forward_kernel<T, V, false>;
  return launch(kernel, grid, dim3(threads), bytes, stream, args);
}

}  // namespace

template <typename T>
cudaError_t group_norm_modulate_forward(const T* x, GroupNormParameters p, double eps, T* y, Compute<T>* mean,
                                        Compute<T>* rstd, cudaStream_t stream) {
  if (p.shape.size() == 0) return cudaSuccess;
  // With one pixel both layouts are the same, and channels-last reads whole vectors.
  if (p.shape.spatial == 1) p.shape.channels_last = true;
  constexpr int V = kFullVector<T>;
  bool vectors = (p.shape.channels_last ? p.shape.channels / p.groups : p.shape.spatial) % V == 0;
  vectors = vectors && aligned_16(x) && aligned_16(y);
  for (const Operand& operand : {p.scale, p.shift})
    vectors = vectors && (!operand.per_pixel || aligned_16(operand.data));
  vectors = vectors && terms_fit<Compute<T>>(p, shared_memory_limit());
  const ForwardArguments<T> args{x, p, static_cast<Compute<T>>(eps), y, mean, rstd, Divider(1, 1), 0, 0, false};
  return vectors ? run<T, V>(args, stream) : run<T, 1>(args, stream);
}

#define STRUCFAST_FORWARD(T)                                                                                  \
  template cudaError_t group_norm_modulate_forward<T>(const T*, GroupNormParameters, double, T*, Compute<T>*, \
                                                      Compute<T>*, cudaStream_t);
STRUCFAST_FORWARD(float)
STRUCFAST_FORWARD(double)
STRUCFAST_FORWARD(BFloat16)
STRUCFAST_FORWARD(Float16)
#undef STRUCFAST_FORWARD

}  // namespace strucfast::cuda
