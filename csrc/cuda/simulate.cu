// Launches of the register kernels: which instantiation serves kind and dimension.
#include "simulate.cuh"

#include "launch.h"

namespace fastndsm::cuda {
namespace {

template <typename Kernel, typename Arguments>
cudaError_t launch(Kernel kernel, const Arguments& a, int64_t samples, int own_floats, cudaStream_t stream) {
  const size_t bytes = (size_t(a.mixture.floats) + size_t(own_floats) * kThreads) * sizeof(float);
  if (bytes > 48 * 1024) {  // more than that is to be asked for
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
    if (error != cudaSuccess) return error;
  }
  const int64_t blocks = (samples + kThreads - 1) / kThreads;
  kernel<<<dim3(unsigned(blocks)), kThreads, bytes, stream>>>(a);
  return cudaGetLastError();
}

// body(kind, D) of the kernel that serves the block.
template <typename Body>
cudaError_t dispatch(const MixtureBlock& m, const Body& body) {
  using std::integral_constant;
  constexpr integral_constant<Covariance, Covariance::spherical> spherical;
  constexpr integral_constant<Covariance, Covariance::diag> diag;
  constexpr integral_constant<Covariance, Covariance::full> full;
  switch (m.padded + 100 * (m.kind == Kind::tied ? int(Kind::full) : int(m.kind))) {
    case 2: return body(spherical, integral_constant<int, 2>{});
    case 4: return body(spherical, integral_constant<int, 4>{});
    case 8: return body(spherical, integral_constant<int, 8>{});
    case 16: return body(spherical, integral_constant<int, 16>{});
    case 32: return body(spherical, integral_constant<int, 32>{});
    case 102: return body(diag, integral_constant<int, 2>{});
    case 104: return body(diag, integral_constant<int, 4>{});
    case 108: return body(diag, integral_constant<int, 8>{});
    case 116: return body(diag, integral_constant<int, 16>{});
    case 302: return body(full, integral_constant<int, 2>{});
    case 304: return body(full, integral_constant<int, 4>{});
    case 308: return body(full, integral_constant<int, 8>{});
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

int register_dimension(Kind kind, int dim) {
  const int largest = kind == Kind::spherical ? 32 : kind == Kind::diag ? 16 : 8;
  for (int padded = 2; padded <= largest; padded *= 2) {
    if (dim <= padded) return padded;
  }
  return 0;
}

cudaError_t simulate(const Noising& a, cudaStream_t stream) {
  return dispatch(a.mixture, [&](auto kind, auto dim) {
    constexpr Covariance K = decltype(kind)::value;
    constexpr int D = decltype(dim)::value;
    const int64_t samples = a.rows * (a.mirrored ? 2 : 1);
    return a.target ? launch(simulate_kernel<K, D, true>, a, samples, kInShared<D> ? D : 0, stream)
                    : launch(simulate_kernel<K, D, false>, a, samples, 0, stream);
  });
}

cudaError_t reverse_steps(const Reverse& a, cudaStream_t stream) {
  return dispatch(a.mixture, [&](auto kind, auto dim) {
    constexpr int D = decltype(dim)::value;
    return launch(reverse_kernel<decltype(kind)::value, D>, a, a.rows, 2 * D, stream);
  });
}

}  // namespace fastndsm::cuda
