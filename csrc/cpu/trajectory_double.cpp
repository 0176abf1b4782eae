#include "trajectory.h"

namespace fastndsm {

template <>
void run_tiles(const ProcessView<double>& process, const Batch<double>& batch, const Schedule& schedule, int64_t begin,
               int64_t end) {
  if (batch.target) {
    dispatch_tiles<double, true>(process, batch, schedule, begin, end);
  } else {
    dispatch_tiles<double, false>(process, batch, schedule, begin, end);
  }
}

}  // namespace fastndsm
