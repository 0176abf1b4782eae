#include "trajectory.h"

namespace fastndsm {

FASTNDSM_RUN_TILES_BACK(float);
FASTNDSM_RUN_TILES_BACK(double);

}  // namespace fastndsm
