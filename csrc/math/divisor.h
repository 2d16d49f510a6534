// Division of a non-negative int32 by a number fixed for a whole launch: one multiply-high and one shift on a GPU,
// where a 64-bit division costs a hundred instructions (Granlund and Montgomery 1994, "Division by invariant
// integers").
#pragma once
#include <cstdint>

#include "host_device.h"

namespace torchfastnorm {

struct Divisor {
  uint32_t value = 1, multiplier = 0, shift = 0;

  Divisor() = default;
  explicit Divisor(uint32_t divisor) : value(divisor) {  // 1 <= divisor < 2^31
    while ((uint64_t(1) << shift) < divisor) ++shift;
    multiplier = uint32_t(((uint64_t(1) << 32) * ((uint64_t(1) << shift) - divisor)) / divisor + 1);
  }
  TFN_HOST_DEVICE uint32_t quotient(uint32_t n) const {  // n < 2^31
    return uint32_t((uint64_t(n) * multiplier >> 32) + n) >> shift;
  }
};

}  // namespace torchfastnorm
