#include "trajectory.h"

namespace fastndsm {

FASTNDSM_RUN_TILES(double, false);
FASTNDSM_RUN_TILES(double, true);

}  // namespace fastndsm
