// What the row kernels share: their arguments, and how a thread reaches its vectors of a row.
//
// Types of a kernel: H, of what is normalised and kept on the chip, sets the vector: N = 16 bytes / sizeof(H)
// elements. X (the input) and Y (the output) are element types or AnyType, known at run time: one slower kernel per H
// for all uncommon combinations. The residual, if there is one, has type H.
#pragma once
#include "../interface/row_norm.h"
#include "../math/normalize.h"
#include "../math/row_layout.h"
#include "common/reduce.cuh"
#include "common/vector_access.cuh"
#include "row_tiles.h"

namespace torchfastnorm::cuda {

struct AnyType {};

// A (rows, cols) tensor in global memory. aligned: every row begins on a 16-byte boundary.
struct Rows {
  void* data;
  RowLayout layout;
  DType type;
  bool aligned;
};

inline Rows rows_of(const void* data, const RowLayout& layout, DType type) {
  const int64_t size = size_of(type);
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && layout.outer_stride * size % 16 == 0 &&
                       layout.middle_stride * size % 16 == 0 && layout.inner_stride * size % 16 == 0;
  return {const_cast<void*>(data), layout, type, aligned};
}
inline Rows rows_of(void* data, int64_t cols, DType type) {
  return rows_of(data, RowLayout{.outer_stride = cols}, type);
}

// A row of T, read and written N elements at a time. `cols` bounds what may be touched.
template <class T, int N, class A>
struct Row {
  T* data = nullptr;
  bool aligned = true;
  using Raw = Packed<T, N>;

  Row() = default;
  __device__ __forceinline__ Row(const Rows& rows, int64_t row)
      : data(static_cast<T*>(rows.data) + row_offset(rows.layout, row)), aligned(rows.aligned) {}

  template <Access ACCESS, class Index>
  __device__ __forceinline__ Raw load(Index index, Index cols) const {
    if constexpr (sizeof(Raw) == 16) {
      return load_vector<ACCESS>(static_cast<const T*>(data), index, cols, aligned);
    } else {
      return load_elements<ACCESS, T, N>(data, index, cols);
    }
  }
  static __device__ __forceinline__ void values_of(const Raw& raw, A (&values)[N]) { unpack(raw, values); }
  template <class Index>
  __device__ __forceinline__ void store(Index index, Index cols, const A (&values)[N], unsigned lanes) const {
    if constexpr (sizeof(Raw) == 16) {
      store_vector(data, index, cols, pack<T>(values), aligned, lanes);
    } else {
      store_elements(data, index, cols, pack<T>(values));
    }
  }
};

template <int N, class A>
struct Row<AnyType, N, A> {
  char* data = nullptr;
  DType type = DType::Float;
  struct Raw {
    A values[N];
  };

  Row() = default;
  __device__ __forceinline__ Row(const Rows& rows, int64_t row)
      : data(static_cast<char*>(rows.data) + row_offset(rows.layout, row) * size_of(rows.type)), type(rows.type) {}

  template <Access ACCESS, class Index>
  __device__ __forceinline__ Raw load(Index index, Index cols) const {
    Raw raw;
    load_any<ACCESS>(data, type, index, cols, raw.values);
    return raw;
  }
  static __device__ __forceinline__ void values_of(const Raw& raw, A (&values)[N]) {
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] = raw.values[j];
  }
  template <class Index>
  __device__ __forceinline__ void store(Index index, Index cols, const A (&values)[N], unsigned) const {
    store_any(data, type, index, cols, values);
  }
};

// weight or bias: a vector of `cols` elements of a type known at run time; `missing` where there is none.
struct Parameter {
  const void* data;
  DType type;

  template <int N, class A, class Index>
  __device__ __forceinline__ void load(Index index, Index cols, A missing, A (&values)[N]) const {
    if (data == nullptr) {
#pragma unroll
      for (int j = 0; j < N; ++j) values[j] = missing;
    } else {
      load_any<Access::Cached>(data, type, index, cols, values);
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
template <class A, bool CLUSTER>
struct BlockReduce {
  std::conditional_t<CLUSTER, ClusterSum<A>, BlockSum<A>> sum;

  __device__ __forceinline__ BlockReduce(A (*scratch)[max_warps][max_sums], A (*inbox)[max_cluster_blocks][max_sums]) {
    if constexpr (CLUSTER) {
      sum = {{scratch}, inbox};
      Cluster::sync();
    } else {
      sum = {scratch};
    }
  }
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
};
template <class Index>
__device__ __forceinline__ Slice<Index> slice_of(int64_t cols, int elements, unsigned rank, unsigned blocks) {
  const int64_t vectors = (cols + elements - 1) / elements;
  const int64_t slice = (vectors + blocks - 1) / blocks;
  const int64_t end = (int64_t(rank) + 1) * slice * elements;
  return {Index(rank * slice), Index(slice), Index(end < cols ? end : cols)};
}

}  // namespace torchfastnorm::cuda
