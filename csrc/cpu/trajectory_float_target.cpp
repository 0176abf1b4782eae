#include "trajectory.h"

namespace fastndsm {

FASTNDSM_RUN_TILES(float, true);

}  // namespace fastndsm
