// Launches of the tiled kernels: how many samples a warp, and how many warps a block.
#include "simulate_tiled.cuh"

#include "launch.h"

namespace fastndsm::cuda {
namespace {

size_t most_shared_bytes() {
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return size_t(bytes);
}

// Shared bytes of a warp of N samples.
size_t warp_bytes(Kind kind, int n_components, int padded, bool target, int samples) {
  const bool diag = kind == Kind::diag;
  const size_t n = size_t(n_components + 3) / 4 * 4;
  const size_t arrays = target ? (diag ? 5 : 3) : 1;
  return sizeof(float) * samples * (arrays * size_t(padded) + (target ? 2 : 1) * n + 4);
}

struct Shape {
  int samples, warps;  // samples a warp; warps 0: there is no room
};

// Four samples a warp, where two blocks' worth of four warps have room, else one; then as many warps as have.
Shape shape_for(const MixtureBlock& m, bool target) {
  const size_t most = most_shared_bytes();
  const size_t four = warp_bytes(m.kind, m.n_components, m.padded, target, 4);
  const int samples = 4 * four <= most ? 4 : 1;
  const size_t each = samples == 4 ? four : warp_bytes(m.kind, m.n_components, m.padded, target, 1);
  int warps = kMostWarps;
  while (warps > 0 && warps * each > most) --warps;
  return {samples, warps};
}

template <typename Kernel, typename Arguments>
cudaError_t launch(Kernel kernel, const Arguments& a, int64_t samples, Shape shape, bool target, cudaStream_t stream) {
  const MixtureBlock& m = a.mixture;
  const size_t bytes = shape.warps * warp_bytes(m.kind, m.n_components, m.padded, target, shape.samples);
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (error != cudaSuccess) return error;
  const int64_t each = int64_t(shape.samples) * shape.warps;
  kernel<<<dim3(unsigned((samples + each - 1) / each)), shape.warps * kWarp, bytes, stream>>>(a);
  return cudaGetLastError();
}

// body(kind, samples a warp).
template <typename Body>
cudaError_t dispatch(const MixtureBlock& m, Shape shape, const Body& body) {
  using std::integral_constant;
  constexpr integral_constant<Covariance, Covariance::spherical> spherical;
  constexpr integral_constant<Covariance, Covariance::diag> diag;
  if (shape.warps == 0) return cudaErrorInvalidConfiguration;
  if (m.kind == Kind::spherical) {
    return shape.samples == 4 ? body(spherical, integral_constant<int, 4>{}) : body(spherical, integral_constant<int, 1>{});
  }
  if (m.kind == Kind::diag) {
    return shape.samples == 4 ? body(diag, integral_constant<int, 4>{}) : body(diag, integral_constant<int, 1>{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace

bool tiled_fits(Kind kind, int dim, int n_components, bool target) {
  if ((kind != Kind::spherical && kind != Kind::diag) || dim > 3072) return false;
  return shape_for({kind, n_components, dim, (dim + 3) / 4 * 4, nullptr, 0}, target).warps > 0;
}

cudaError_t simulate_tiled(const Noising& a, cudaStream_t stream) {
  const bool target = a.target != nullptr;
  const Shape shape = shape_for(a.mixture, target);
  return dispatch(a.mixture, shape, [&](auto kind, auto n) {
    constexpr Covariance K = decltype(kind)::value;
    constexpr int N = decltype(n)::value;
    const int64_t samples = a.rows * (a.mirrored ? 2 : 1);
    return target ? launch(simulate_tiled_kernel<K, true, N>, a, samples, shape, target, stream)
                  : launch(simulate_tiled_kernel<K, false, N>, a, samples, shape, target, stream);
  });
}

cudaError_t reverse_steps_tiled(const Reverse& a, cudaStream_t stream) {
  const Shape shape = shape_for(a.mixture, false);
  return dispatch(a.mixture, shape, [&](auto kind, auto n) {
    return launch(reverse_tiled_kernel<decltype(kind)::value, decltype(n)::value>, a, a.rows, shape, false, stream);
  });
}

}  // namespace fastndsm::cuda
