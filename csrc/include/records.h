// The records of one path: what it is to leave behind, and after how many steps.
#pragma once

#include "vec.h"

namespace fastndsm {

class PathRecords {
 public:
  PathRecords() = default;
  // steps ascend; places, of a row's records among its outputs, are 0, 1, ... if null.
  FASTNDSM_HD PathRecords(const int64_t* steps, const int64_t* places, int64_t count)
      : steps_(steps), places_(places), count_(count), due_(steps[0]) {}

  FASTNDSM_HD int last() const { return static_cast<int>(steps_[count_ - 1]); }

  // body(place) of each that is taken after n steps, n = 0, 1, ... in turn.
  template <typename Body>
  FASTNDSM_HD void take(int n, const Body& body) {
    while (due_ == n) {
      body(places_ ? places_[next_] : next_);
      due_ = ++next_ < count_ ? steps_[next_] : -1;
    }
  }

 private:
  const int64_t *steps_ = nullptr, *places_ = nullptr;
  int64_t count_ = 0, next_ = 0, due_ = -1;
};

}  // namespace fastndsm
