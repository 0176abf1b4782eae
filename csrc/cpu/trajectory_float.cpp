#include "trajectory.h"

namespace fastndsm {

template <>
void run_tiles(const ProcessView<float>& process, const Batch<float>& batch, const Schedule& schedule, int64_t begin,
               int64_t end) {
  if (batch.target) {
    dispatch_tiles<float, true>(process, batch, schedule, begin, end);
  } else {
    dispatch_tiles<float, false>(process, batch, schedule, begin, end);
  }
}

}  // namespace fastndsm
