// A tensor of a type known at run time, at any alignment, between guards that show a write outside.
#pragma once
#include <cstdint>
#include <vector>

#include "cuda/common/vector_access.cuh"

namespace torchfastnorm {

struct Tensor {
  DType type;
  int64_t count, misaligned;
  std::vector<unsigned char> memory;
  static constexpr int64_t kGuard = 64;

  Tensor(DType type, int64_t count, int64_t misaligned = 0)
      : type(type),
        count(count),
        misaligned(misaligned),
        memory(size_t((count + misaligned) * size_of(type) + 2 * kGuard + 16), 0xA5) {}
  unsigned char* data() {
    const auto begin = reinterpret_cast<uintptr_t>(memory.data()) + kGuard;
    return reinterpret_cast<unsigned char*>((begin + 15) / 16 * 16) + misaligned * size_of(type);
  }
  double get(int64_t i) {
    double value = 0;
    cuda::with_type(type, [&](auto* t) { value = double(cuda::widen(reinterpret_cast<decltype(t)>(data())[i])); });
    return value;
  }
  void set(int64_t i, double value) {
    cuda::with_type(type, [&](auto* t) {
      using E = std::remove_pointer_t<decltype(t)>;
      reinterpret_cast<E*>(data())[i] = cuda::narrow<E>(cuda::Accumulator<E>(value));
    });
  }
  bool untouched_outside() {
    const unsigned char *const begin = data(), *const end = begin + count * size_of(type);
    for (const unsigned char* p = memory.data(); p < memory.data() + memory.size(); p++)
      if ((p < begin || p >= end) && *p != 0xA5) return false;
    return true;
  }
};

inline double epsilon(DType type) {
  return type == DType::Double ? 0x1p-52 : type == DType::Float ? 0x1p-23 : type == DType::Half ? 0x1p-10 : 0x1p-7;
}

}  // namespace torchfastnorm
