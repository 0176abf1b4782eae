#include "trajectory.h"

namespace fastndsm {

FASTNDSM_RUN_TILES(float, false);

}  // namespace fastndsm
