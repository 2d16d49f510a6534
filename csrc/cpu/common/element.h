// The element types of a tensor, as C++ types, without torch: 16-bit floats are bits until vector.h widens them.
#pragma once
#include <cstdint>
#include <type_traits>

#include "../../interface/types.h"

// Functions of the headers that instruction-set files include are inlined always: a copy that stood alone might be
// the one the linker keeps for all files, compiled for an instruction set that the machine lacks.
#define TFN_INLINE inline __attribute__((always_inline))

namespace torchfastnorm::cpu {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T>
constexpr DType dtype_of = std::is_same_v<T, double>  ? DType::Double
                           : std::is_same_v<T, float> ? DType::Float
                           : std::is_same_v<T, Half>  ? DType::Half
                                                      : DType::BFloat16;

// Statistics and sums over T are kept in this type, as accumulator_of says for a DType.
template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace torchfastnorm::cpu
