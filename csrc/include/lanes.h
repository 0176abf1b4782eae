// The samples of a tile of trajectories.
#pragma once

#include "philox.h"

namespace fastndsm {

// The W samples of a tile, lane by lane.
template <typename V>
struct Lanes {
  PathCounters<words_of<V>> paths;
  int64_t first, last;  // the fewest and the most steps after which a lane has a record; all take the most
};

}  // namespace fastndsm
