// Element offset of a row in a strided matrix (interface/types.h).
#pragma once
#include "../interface/types.h"
#include "host_device.h"

namespace torchfastnorm {

TFN_HOST_DEVICE int64_t row_offset(const RowLayout& layout, int64_t row) {
  if (layout.middle == 1 && layout.inner == 1) return row * layout.outer_stride;
  const int64_t outer_middle = row / layout.inner;
  return outer_middle / layout.middle * layout.outer_stride + outer_middle % layout.middle * layout.middle_stride +
         row % layout.inner * layout.inner_stride;
}

}  // namespace torchfastnorm
