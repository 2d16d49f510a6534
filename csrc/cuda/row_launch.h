// From an op's arguments to a launch: the dtype combinations that have a kernel of their own, and the device.
#pragma once
#include <algorithm>

#include "../interface/row_plan.h"
#include "common/port.h"
#include "row_norm.cuh"

namespace torchfastnorm::cuda {

template <class T>
struct Tag {
  using type = T;
};

// Calls f(Tag<X>, Tag<H>, Tag<Y>) with the types of the kernel to run: everything alike; a half-precision stream with
// single-precision residual; or, for the rest, X and Y known at run time.
template <class F>
void with_row_types(DType x, DType h, DType y, F f) {
  const auto same_or_any = [&](auto tag) {
    if (x == h && y == h) return f(tag, tag, tag);
    f(Tag<AnyType>(), tag, Tag<AnyType>());
  };
  switch (h) {
    case DType::Double:
      return f(Tag<AnyType>(), Tag<double>(), Tag<AnyType>());
    case DType::Float:
      if (x == DType::BFloat16 && y == x) return f(Tag<__nv_bfloat16>(), Tag<float>(), Tag<__nv_bfloat16>());
#if !defined(TORCHFASTNORM_FEWER_TYPES)
      if (x == DType::Half && y == x) return f(Tag<__half>(), Tag<float>(), Tag<__half>());
#endif
      return same_or_any(Tag<float>());
    case DType::BFloat16:
      return same_or_any(Tag<__nv_bfloat16>());
    case DType::Half:
#if defined(TORCHFASTNORM_FEWER_TYPES)
      return f(Tag<AnyType>(), Tag<__half>(), Tag<AnyType>());
#else
      return same_or_any(Tag<__half>());
#endif
  }
}

// Calls f with std::integral_constant<int, value> for the one of the listed values that `value` is.
template <int... VALUES, class F>
void with_constant(int value, F f) {
  if (!((value == VALUES ? (f(std::integral_constant<int, VALUES>()), true) : false) || ...))
    throw std::logic_error("torchfastnorm: no kernel for this plan");
}
template <class F>
void with_flag(bool flag, F f) {
  flag ? f(std::true_type()) : f(std::false_type());
}

}  // namespace torchfastnorm::cuda
