// What the row kernels share: their arguments, and how a thread reaches its vectors of a row.
//
// Types of a kernel: H, in which a row is kept on the chip, sets the vector: N = 16 bytes / sizeof(H) elements. X (the
// input), S (the residual, the sum, what is normalised) and Y (the output) are element types, S = H; or all three are
// AnyType, known at run time: the general kernel (interface/row_plan.h).
#pragma once
#include "../interface/row_norm.h"
#include "../math/divisor.h"
#include "../math/normalize.h"
#include "common/reduce.cuh"
#include "common/vector_access.cuh"
#include "row_tiles.h"

namespace torchfastnorm::cuda {

struct AnyType {};
template <class X, class H>
using StoredType = std::conditional_t<std::is_same_v<X, AnyType>, AnyType, H>;

// A (rows, cols) tensor in global memory, its rows placed by a RowLayout.
struct Rows {
  char* data;
  int64_t outer_stride, middle_stride, inner_stride;  // bytes
  Divisor middle, inner;
  DType type;
  bool flat;     // one level: row r begins at r * outer_stride
  bool aligned;  // every row begins on a 16-byte boundary

  __device__ __forceinline__ char* row(int64_t r) const {
    if (flat) return data + r * outer_stride;
    const uint32_t outer_middle = inner.quotient(uint32_t(r));
    const uint32_t outer = middle.quotient(outer_middle);
    return data + outer * outer_stride + (outer_middle - outer * middle.value) * middle_stride +
           (uint32_t(r) - outer_middle * inner.value) * inner_stride;
  }
};

inline Rows rows_of(const void* data, const RowLayout& layout, DType type) {
  const int64_t size = size_of(type);
  Rows rows;
  rows.data = static_cast<char*>(const_cast<void*>(data));
  rows.outer_stride = layout.outer_stride * size;
  rows.middle_stride = layout.middle_stride * size;
  rows.inner_stride = layout.inner_stride * size;
  rows.middle = Divisor(uint32_t(layout.middle));
  rows.inner = Divisor(uint32_t(layout.inner));
  rows.type = type;
  rows.flat = layout.middle == 1 && layout.inner == 1;
  rows.aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && rows.outer_stride % 16 == 0 &&
                 rows.middle_stride % 16 == 0 && rows.inner_stride % 16 == 0;
  return rows;
}

// A contiguous output.
struct OutputRows {
  char* data;
  int64_t stride;  // bytes
  DType type;
  bool aligned;

  __device__ __forceinline__ char* row(int64_t r) const { return data + r * stride; }
};
inline OutputRows output_rows_of(void* data, int64_t cols, DType type) {
  const int64_t stride = cols * size_of(type);
  return {static_cast<char*>(data), stride, type, reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 16 == 0};
}

// A row of T, read and written N elements at a time. `cols` bounds what may be touched.
template <class T, int N, class A>
struct Row {
  using Raw = Packed<T, N>;
  T* data = nullptr;
  bool aligned = true;

  Row() = default;
  template <class Tensor>
  __device__ __forceinline__ Row(const Tensor& tensor, int64_t row)
      : data(reinterpret_cast<T*>(tensor.row(row))), aligned(tensor.aligned) {}

  template <Access ACCESS, class Index>
  __device__ __forceinline__ Raw load(Index index, Index cols) const {
    if constexpr (sizeof(Raw) == 16) {
      return load_vector<ACCESS>(static_cast<const T*>(data), index, cols, aligned);
    } else {
      return load_elements<ACCESS, T, N>(data, index, cols);
    }
  }
  __device__ __forceinline__ void values_of(const Raw& raw, A (&values)[N]) const { unpack(raw, values); }
  template <class Index>
  __device__ __forceinline__ void store(Index index, Index cols, const Raw& raw, unsigned lanes) const {
    if constexpr (sizeof(Raw) == 16) {
      store_vector(data, index, cols, raw, aligned, lanes);
    } else {
      store_elements(data, index, cols, raw);
    }
  }
  template <class Index>
  __device__ __forceinline__ void store(Index index, Index cols, const A (&values)[N], unsigned lanes) const {
    store(index, cols, pack<T>(values), lanes);
  }
};

template <int N, class A>
struct Row<AnyType, N, A> {
  struct Raw {
    A values[N];
  };
  char* data = nullptr;
  DType type = DType::Float;

  Row() = default;
  template <class Tensor>
  __device__ __forceinline__ Row(const Tensor& tensor, int64_t row) : data(tensor.row(row)), type(tensor.type) {}

  template <Access ACCESS, class Index>
  __device__ __forceinline__ Raw load(Index index, Index cols) const {
    Raw raw;
    load_any<ACCESS>(data, type, index, cols, raw.values);
    return raw;
  }
  __device__ __forceinline__ void values_of(const Raw& raw, A (&values)[N]) const {
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] = raw.values[j];
  }
  __device__ __forceinline__ void round(A (&values)[N]) const {
    with_type(type, [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
#pragma unroll
      for (int j = 0; j < N; ++j) values[j] = A(widen(narrow<T>(values[j])));
    });
  }
  template <class Index>
  __device__ __forceinline__ void store(Index index, Index cols, const A (&values)[N], unsigned) const {
    store_any(data, type, index, cols, values);
  }
};

// weight or bias: `cols` elements of type X, or float, or (general kernel) any; `missing` where there is none.
struct Parameter {
  const void* data;
  DType type;

  template <class X, int N, class A, class Index>
  __device__ __forceinline__ void load(Index index, Index cols, A missing, A (&values)[N]) const {
    if (data == nullptr) {
#pragma unroll
      for (int j = 0; j < N; ++j) values[j] = missing;
    } else if constexpr (std::is_same_v<X, AnyType>) {
      load_any<Access::Cached>(data, type, index, cols, values);
    } else {
      if (std::is_same_v<X, float> || type == DType::Float) {
        unpack(load_elements<Access::Cached, float, N>(static_cast<const float*>(data), index, cols), values);
      } else {
        unpack(load_elements<Access::Cached, X, N>(static_cast<const X*>(data), index, cols), values);
      }
    }
  }
};

// The sum over a row, by whatever shares it. any(): some row of this warp (block, cluster) asks for it.
struct GroupReduce {
  unsigned lanes;
  template <int K, class A>
  __device__ __forceinline__ void operator()(A (&values)[K]) const {
    group_sum(values, lanes);
  }
  __device__ __forceinline__ bool any(bool wanted) const { return __any_sync(0xffffffffu, wanted); }
};
template <class A>
struct BlockReduce {  // of a block, or of a cluster of them
  ClusterSum<A> sum;
  template <int K>
  __device__ __forceinline__ void operator()(A (&values)[K]) {
    sum(values);
  }
  // Every thread holds the same totals, so all decide alike.
  __device__ __forceinline__ bool any(bool wanted) const { return wanted; }
};

// The part of a row that one block of a cluster works on.
template <class Index>
struct Slice {
  Index first;    // vector of the row
  Index vectors;  // how many, counting those beyond the row's end that round the last slices up
  Index limit;    // columns of the row at or beyond this belong to others

  __device__ __forceinline__ Slice(int64_t cols, int64_t slice_vectors, int elements) {
    const int64_t begin = Cluster::rank() * slice_vectors, end = (begin + slice_vectors) * elements;
    first = Index(begin), vectors = Index(slice_vectors), limit = Index(end < cols ? end : cols);
  }
};

}  // namespace torchfastnorm::cuda
