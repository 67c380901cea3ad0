#include <algorithm>

#include "cuda/activation.cuh"
#include "cuda/group_norm_modulate.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vector_io.cuh"

// One block per group. First sweep: per channel the sums of g, g act(u), du and du xhat; du = scale g act'(u). Second
// sweep: dx = rstd (h - mean h - xhat mean(h xhat)) with h = weight du. Between the sweeps h and x stay in shared
// memory as far as they fit; what does not is read again from the L2 cache and recomputed.
namespace strucfast::cuda {
namespace {

// float64 arithmetic needs twice the registers.
template <typename T>
constexpr int kThreads = sizeof(T) == 8 ? 256 : 512;
// Four elements to a vector for half types too: eight of them, with four sums, would not fit the registers.
template <typename T>
constexpr int kVector = kFullVector<T> < 4 ? kFullVector<T> : 4;
// Scratch of block_sum, padded so that what follows stays aligned for every type.
constexpr int kScratch = 64;
// Channel vectors side by side in the channels-last sweep.
constexpr int kMaxLanes = 8;

template <typename A>
struct alignas(16) Terms {
  A slope, bias, scale, weight;
};

template <typename A>
struct Sums {
  A grad, value, bias, weight;
};

template <typename T>
struct Arguments {
  GroupNormBackward<T> t;
  GroupNormParameters p;
  // Vectors whose h and x are held, warps per channel (contiguous) or channel vectors side by side (channels-last).
  int64_t held_h, held_x;
  int team, channels;
  bool terms_shared;
};

template <typename T>
__device__ __forceinline__ Terms<Compute<T>> load_terms(const GroupNormParameters& p, int64_t sample, int64_t channel,
                                                        Compute<T> rstd) {
  using A = Compute<T>;
  Terms<A> terms;
  terms.weight = p.weight.data != nullptr ? load_operand<T>(p.weight, channel) : A(1);
  terms.bias = p.bias.data != nullptr ? load_operand<T>(p.bias, channel) : A(0);
  terms.slope = terms.weight * rstd;
  terms.scale = A(1);
  if (p.scale.data != nullptr && !p.scale.per_pixel)
    terms.scale = load_operand<T>(p.scale, sample * p.scale.stride + channel);
  return terms;
}

// How this thread walks its group: positions begin, begin + step, ... of each of its lines.
struct Walk {
  int line, line_step, lines;
  int64_t begin, step, end;
};

template <typename T, int V, bool ChannelsLast>
struct Block {
  using A = Compute<T>;
  const Arguments<T>& args;
  int64_t sample, first_channel, base, line_vectors;
  int channels, threads;
  A mean, rstd;
  A* scratch;
  A* part;
  Terms<A>* terms;
  A* held_h;
  Pack<T, V>* held_x;

  __device__ explicit Block(const Arguments<T>& a) : args(a) {
    const Shape& shape = a.p.shape;
    channels = a.channels;
    threads = blockDim.x;
    sample = blockIdx.x / static_cast<unsigned>(a.p.groups);
    first_channel = (blockIdx.x - sample * a.p.groups) * channels;
    base = sample * shape.channels * shape.spatial + (ChannelsLast ? first_channel : first_channel * shape.spatial);
    line_vectors = (ChannelsLast ? channels : shape.spatial) / V;
    mean = a.t.mean[blockIdx.x];
    rstd = a.t.rstd[blockIdx.x];
    scratch = dynamic_shared<A>();
    part = scratch + kScratch;
    terms = reinterpret_cast<Terms<A>*>(part + part_size(threads, a.team));
    held_h = reinterpret_cast<A*>(terms + (a.terms_shared ? channels : 0));
    held_x = reinterpret_cast<Pack<T, V>*>(held_h + a.held_h * V);
  }

  // Values of the warps' partial sums.
  __host__ __device__ static constexpr int part_size(int threads, int team) {
    return threads / 32 * 4 * (ChannelsLast ? team * V : 1);
  }

  __device__ Terms<A> terms_of(int c) const {
    // Only the kernel of single elements serves groups whose terms do not fit.
    return V > 1 || args.terms_shared ? terms[c] : load_terms<T>(args.p, sample, first_channel + c, rstd);
  }

  __device__ Walk walk() const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if constexpr (ChannelsLast) {
      // A line is a tile of `team` channel vectors; all threads take every tile.
      const int tiles = (channels / V + args.team - 1) / args.team;
      return {0, 1, tiles, static_cast<int>(threadIdx.x) / args.team, threads / args.team, args.p.shape.spatial};
    } else {
      // A line is a channel, taken by `team` warps.
      const int teams = threads / 32 / args.team, team = warp / args.team;
      const int64_t member = (warp - team * args.team) * 32 + lane;
      return {team < teams ? team : channels, teams, channels, member, args.team * 32, line_vectors};
    }
  }
  // The first channel of this thread's vectors in a line; past the group's end when it has none.
  __device__ int channel_of(int line) const {
    if constexpr (ChannelsLast) return (line * args.team + static_cast<int>(threadIdx.x) % args.team) * V;
    return line;
  }
  __device__ int64_t vector_index(int channel, int64_t position) const {
    return ChannelsLast ? position * line_vectors + channel / V : channel * line_vectors + position;
  }
  __device__ int64_t place(int channel, int64_t position) const {
    if constexpr (ChannelsLast) return base + position * args.p.shape.channels + channel;
    return base + (channel * line_vectors + position) * V;
  }

  // h and, with Sum, this vector's share of the sums and the per-pixel gradients. Per-pixel parameters are rare here
  // and go element by element: vectors of them would cost the registers that keep loads under way.
  template <bool Sum, typename Activate>
  __device__ void vector(Activate activation, int channel, int64_t at, const Pack<T, V>& grad_pack,
                         const Pack<T, V>& x_pack, A (&h)[V], Sums<A> (&sums)[ChannelsLast ? V : 1]) const {
    Terms<A> term = terms_of(channel);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if (ChannelsLast && j > 0) term = terms_of(channel + j);
      const A grad = to_compute(grad_pack.items[j]), centred = to_compute(x_pack.items[j]) - mean;
      const auto activated = activation(centred * term.slope + term.bias);
      const A scale = args.p.scale.per_pixel ? load_operand<T>(args.p.scale, at + j) : term.scale;
      const A du = grad * scale * activated.slope;
      h[j] = term.weight * du;
      if constexpr (Sum) {
        const A value = grad * activated.value;
        Sums<A>& sum = sums[ChannelsLast ? j : 0];
        sum.grad += grad;
        sum.value += value;
        sum.bias += du;
        sum.weight += du * (centred * rstd);
        if (args.t.dscale.per_pixel && args.t.dscale.data != nullptr) store_gradient<T>(args.t.dscale, at + j, value);
        if (args.t.dshift.per_pixel && args.t.dshift.data != nullptr) store_gradient<T>(args.t.dshift, at + j, grad);
      }
    }
  }

  __device__ Sums<A>* workspace(int channel) const {
    return reinterpret_cast<Sums<A>*>(args.t.workspace) + sample * args.p.shape.channels + first_channel + channel;
  }

  __device__ static void warp_add(Sums<A>& s, int stride) {
    s.grad = warp_sum_strided(s.grad, stride);
    s.value = warp_sum_strided(s.value, stride);
    s.bias = warp_sum_strided(s.bias, stride);
    s.weight = warp_sum_strided(s.weight, stride);
  }
  __device__ static Sums<A> add(const Sums<A>& a, const Sums<A>& b) {
    return {a.grad + b.grad, a.value + b.value, a.bias + b.bias, a.weight + b.weight};
  }

  // Loads of grad and of x that a thread has under way at once, as far as the registers go.
  static constexpr int kBatch = !ChannelsLast && sizeof(Pack<T, V>) < 16 ? 4 : 2;

  template <typename Activate>
  __device__ void first_sweep(Activate activation) const {
    const Walk w = walk();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    auto* parts = reinterpret_cast<Sums<A>*>(part);
    for (int line = w.line; line < w.lines; line += w.line_step) {
      const int channel = channel_of(line);
      Sums<A> sums[ChannelsLast ? V : 1] = {};
      const int64_t end = channel < channels ? w.end : 0;
      for (int64_t start = w.begin; start < end; start += kBatch * w.step) {
        Pack<T, V> grad[kBatch], x[kBatch];
#pragma unroll
        for (int k = 0; k < kBatch; ++k) {
          const int64_t position = start + k * w.step;
          if (position < end) grad[k] = load_pack<V>(args.t.grad + place(channel, position));
          if (position < end) x[k] = load_pack<V>(args.t.x + place(channel, position));
        }
#pragma unroll
        for (int k = 0; k < kBatch; ++k) {
          const int64_t position = start + k * w.step;
          if (position >= end) break;
          A h[V];
          vector<true>(activation, channel, place(channel, position), grad[k], x[k], h, sums);
          const int64_t i = vector_index(channel, position);
          if (i < args.held_h) {
            Pack<A, V> kept;
#pragma unroll
            for (int j = 0; j < V; ++j) kept.items[j] = h[j];
            *reinterpret_cast<Pack<A, V>*>(held_h + i * V) = kept;
          }
          if (i < args.held_x) held_x[i] = x[k];
        }
      }
      if constexpr (ChannelsLast) {
        const int width = args.team * V;
#pragma unroll
        for (int j = 0; j < V; ++j) {
          warp_add(sums[j], args.team);
          if (lane < args.team) parts[warp * width + lane * V + j] = sums[j];
        }
        __syncthreads();
        for (int c = threadIdx.x; c < width && line * width + c < channels; c += threads) {
          Sums<A> total = parts[c];
          for (int k = 1; k < threads / 32; ++k) total = add(total, parts[k * width + c]);
          *workspace(line * width + c) = total;
        }
        __syncthreads();
      } else {
        warp_add(sums[0], 1);
        if (lane == 0) {
          if (args.team == 1) {
            *workspace(channel) = sums[0];
          } else {
            parts[warp] = sums[0];
          }
        }
      }
    }
    __syncthreads();
    // With several warps to a channel every channel had its own team.
    if (!ChannelsLast && args.team > 1) {
      for (int c = threadIdx.x; c < channels; c += threads) {
        Sums<A> total = parts[c * args.team];
        for (int k = 1; k < args.team; ++k) total = add(total, parts[c * args.team + k]);
        *workspace(c) = total;
      }
      __syncthreads();
    }
  }

  template <typename Activate>
  __device__ void second_sweep(Activate activation, A mean_h, A mean_hx) const {
    const Walk w = walk();
    for (int line = w.line; line < w.lines; line += w.line_step) {
      const int channel = channel_of(line);
      const int64_t end = channel < channels ? w.end : 0;
      for (int64_t position = w.begin; position < end; position += w.step) {
        const int64_t i = vector_index(channel, position), at = place(channel, position);
        const Pack<T, V> pack = i < args.held_x ? held_x[i] : load_pack<V>(args.t.x + at);
        A h[V], x[V];
        if (i < args.held_h) {
          unpack<V>(load_pack<V>(held_h + i * V), h);
        } else {
          Sums<A> unused[ChannelsLast ? V : 1];
          vector<false>(activation, channel, at, load_pack<V>(args.t.grad + at), pack, h, unused);
        }
        unpack<V>(pack, x);
#pragma unroll
        for (int j = 0; j < V; ++j) h[j] = rstd * ((h[j] - mean_h) - (x[j] - mean) * rstd * mean_hx);
        store_values<V>(args.t.dx + at, h);
      }
    }
  }
};

template <typename T, int V, bool ChannelsLast>
__global__ void __launch_bounds__(kThreads<T>, 1) group_norm_modulate_backward_kernel(Arguments<T> args) {
  using A = Compute<T>;
  const Block<T, V, ChannelsLast> block(args);
  if (args.terms_shared) {
    for (int c = threadIdx.x; c < block.channels; c += block.threads) {
      block.terms[c] = load_terms<T>(args.p, block.sample, block.first_channel + c, block.rstd);
    }
    __syncthreads();
  }
  dispatch_activation<V>(args.p.activation, [&](auto activation) { block.first_sweep(activation); });
  A sum_h = 0, sum_hx = 0;
  for (int c = threadIdx.x; c < block.channels; c += block.threads) {
    const Sums<A> total = *block.workspace(c);
    const int64_t index = args.p.shape.channels * block.sample + block.first_channel + c;
    if (args.t.dscale.data != nullptr && !args.t.dscale.per_pixel) store_gradient<T>(args.t.dscale, index, total.value);
    if (args.t.dshift.data != nullptr && !args.t.dshift.per_pixel) store_gradient<T>(args.t.dshift, index, total.grad);
    const A weight = block.terms_of(c).weight;
    sum_h += weight * total.bias;
    sum_hx += weight * total.weight;
  }
  if (args.t.dx == nullptr) return;
  const A count = static_cast<A>(block.channels * args.p.shape.spatial);
  const A mean_h = block_sum(sum_h, block.scratch) / count, mean_hx = block_sum(sum_hx, block.scratch) / count;
  // Only what did not fit is activated again, so one copy of this sweep serves all activations.
  block.second_sweep(AnyActivation{args.p.activation}, mean_h, mean_hx);
}

// dweight and dbias: the sums over the batch, a warp per channel.
template <typename T>
__global__ void __launch_bounds__(kThreads<T>)
    group_norm_parameters_kernel(const Compute<T>* workspace, Gradient dweight, Gradient dbias, int64_t batch,
                                 int64_t channels) {
  using A = Compute<T>;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * (kThreads<T> / 32) + threadIdx.x / 32;
  A weight = 0, bias = 0;
  for (int64_t n = threadIdx.x % 32; channel < channels && n < batch; n += 32) {
    const Sums<A> sums = reinterpret_cast<const Sums<A>*>(workspace)[n * channels + channel];
    weight += sums.weight;
    bias += sums.bias;
  }
  weight = warp_sum(weight);
  bias = warp_sum(bias);
  if (channel >= channels || threadIdx.x % 32 != 0) return;
  if (dweight.data != nullptr) store_gradient<T>(dweight, channel, weight);
  if (dbias.data != nullptr) store_gradient<T>(dbias, channel, bias);
}

template <typename A>
bool terms_fit(const GroupNormParameters& p, size_t limit) {
  return p.shape.channels / p.groups * sizeof(Terms<A>) <= limit / 2;
}

template <typename T, int V, bool ChannelsLast>
cudaError_t run(Arguments<T> args, cudaStream_t stream) {
  using A = Compute<T>;
  const Shape& shape = args.p.shape;
  const int64_t channels = shape.channels / args.p.groups, vectors = channels * shape.spatial / V;
  // Four vectors to a thread: small groups share a multiprocessor.
  int threads = 32;
  while (threads < kThreads<T> && threads * 4 < vectors) threads *= 2;
  args.team = 1;
  if (ChannelsLast) {
    while (args.team < kMaxLanes && args.team * V < channels) args.team *= 2;
  } else {
    args.team = static_cast<int>(std::max<int64_t>(1, threads / 32 / channels));
  }
  const size_t limit = shared_memory_limit();
  args.terms_shared = terms_fit<A>(args.p, limit);
  size_t bytes = (kScratch + Block<T, V, ChannelsLast>::part_size(threads, args.team)) * sizeof(A);
  if (args.terms_shared) bytes += channels * sizeof(Terms<A>);
  if (args.t.dx != nullptr) {
    args.held_h = std::min<int64_t>(vectors, (limit - bytes) / (V * sizeof(A)));
    // In fours, so that the packs behind stay aligned.
    if (args.held_h < vectors) args.held_h -= args.held_h % 4;
    bytes += (args.held_h * V * sizeof(A) + 15) / 16 * 16;
    args.held_x = bytes < limit ? std::min<int64_t>(vectors, (limit - bytes) / sizeof(Pack<T, V>)) : 0;
    bytes += args.held_x * sizeof(Pack<T, V>);
  }
  const auto grid = static_cast<unsigned>(shape.batch * args.p.groups);
  return launch(group_norm_modulate_backward_kernel<T, V, ChannelsLast>, grid, dim3(threads), bytes, stream, args);
}

}  // namespace

template <typename T>
cudaError_t group_norm_modulate_backward(GroupNormBackward<T> t, GroupNormParameters p, cudaStream_t stream) {
  if (p.shape.size() == 0) return cudaSuccess;
  const Shape shape = p.shape;
  if (shape.spatial == 1) p.shape.channels_last = true;
  constexpr int V = kVector<T>;
  bool vectors = (p.shape.channels_last ? shape.channels / p.groups : shape.spatial) % V == 0;
  vectors = vectors && aligned_16(t.grad) && aligned_16(t.x) && aligned_16(t.dx);
  vectors = vectors && (!p.scale.per_pixel || aligned_16(p.scale.data));
  vectors = vectors && aligned_16(t.dscale.data) && aligned_16(t.dshift.data) &&
            terms_fit<Compute<T>>(p, shared_memory_limit());
  const Arguments<T> args{t, p, 0, 0, 1, static_cast<int>(shape.channels / p.groups), false};
  cudaError_t error;
  if (p.shape.channels_last) {
    error = vectors ? run<T, V, true>(args, stream) : run<T, 1, true>(args, stream);
  } else {
    error = vectors ? run<T, V, false>(args, stream) : run<T, 1, false>(args, stream);
  }
  if (error != cudaSuccess || (t.dweight.data == nullptr && t.dbias.data == nullptr)) return error;
  const auto grid = static_cast<unsigned>(divide_up(shape.channels, kThreads<T> / 32));
  return launch(group_norm_parameters_kernel<T>, grid, dim3(kThreads<T>), 0, stream,
                static_cast<const Compute<T>*>(t.workspace), t.dweight, t.dbias, shape.batch, shape.channels);
}

template cudaError_t group_norm_modulate_backward<float>(GroupNormBackward<float>, GroupNormParameters, cudaStream_t);
template cudaError_t group_norm_modulate_backward<double>(GroupNormBackward<double>, GroupNormParameters, cudaStream_t);
template cudaError_t group_norm_modulate_backward<BFloat16>(GroupNormBackward<BFloat16>, GroupNormParameters,
                                                            cudaStream_t);
template cudaError_t group_norm_modulate_backward<Float16>(GroupNormBackward<Float16>, GroupNormParameters,
                                                           cudaStream_t);

}  // namespace strucfast::cuda
