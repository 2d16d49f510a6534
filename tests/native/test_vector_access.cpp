// csrc/cuda/common/vector_access.cuh against plain loops: every type, every misalignment of input and output, every
// number of lanes to a row, lengths around the multiples of a vector and of a warp. Nothing beside the row may be
// touched, no byte stored twice, and aligned rows must move in 16-byte pieces.
//   test_vector_access [few]      few: a thinned set, for ThreadSanitizer
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/common/vector_access.cuh"

using namespace torchfastnorm;
using namespace torchfastnorm::cuda;

namespace {

// Each group of `lanes` threads copies one row, vector by vector; all 32 lanes take the same number of steps.
template <class T>
__global__ void copy_rows(const T* in, T* out, int rows, int64_t stride_in, int64_t stride_out, int cols, bool aligned,
                          int lanes) {
  const int groups = int(blockDim.x) / lanes;
  const int row = int(threadIdx.x) / lanes;
  for (int first = 0; first * Packed<T>::size < cols; first += lanes) {
    const int index = first + int(threadIdx.x) % lanes;
    const int own = row < rows ? cols : 0;  // a group without a row takes part and touches nothing
    const Packed<T> packed = load_vector<Access::Once, T>(in + (row % rows) * stride_in, index, own, aligned);
    store_vector<T>(out + (row % rows) * stride_out, index, own, packed, aligned, unsigned(lanes));
  }
  (void)groups;
}

template <class T, int N>
__global__ void convert_row(const void* in, void* out, DType in_type, DType out_type, int cols) {
  Accumulator<T> values[N];
  const int index = int(threadIdx.x);
  load_any<Access::Cached, N>(in, in_type, index, cols, values);
  store_any<N>(out, out_type, index, cols, values);
}

// `bytes` of memory whose address is `misaligned` (mod 16), between guards.
struct Guarded {
  static constexpr size_t kGuard = 64;
  static constexpr unsigned char kMark = 0xA5;
  std::vector<unsigned char> memory;
  unsigned char* data;
  size_t bytes;

  Guarded(size_t bytes, size_t misaligned) : memory(2 * kGuard + bytes + 32, kMark), bytes(bytes) {
    const auto begin = reinterpret_cast<uintptr_t>(memory.data()) + kGuard;
    data = reinterpret_cast<unsigned char*>((begin + 15) / 16 * 16 + misaligned);
  }
  bool untouched_outside() const {
    for (const unsigned char* p = memory.data(); p < memory.data() + memory.size(); p++)
      if ((p < data || p >= data + bytes) && *p != kMark) return false;
    return true;
  }
};

// A row that ends where its heap block ends, so that AddressSanitizer sees a read beyond it; what precedes it is
// poisoned as far as AddressSanitizer's 8-byte granules allow.
struct Fenced {
  unsigned char* raw;
  unsigned char* data;
  size_t misaligned;
  Fenced(size_t bytes, size_t misaligned) : misaligned(misaligned) {
    raw = static_cast<unsigned char*>(std::aligned_alloc(16, (misaligned + bytes + 15) / 16 * 16 + 16));
    data = raw + misaligned;
#if CUDASIM_ASAN
    __asan_poison_memory_region(raw, misaligned);
    __asan_poison_memory_region(data + bytes, (misaligned + bytes + 15) / 16 * 16 + 16 - misaligned - bytes);
#endif
  }
  Fenced(const Fenced&) = delete;
  ~Fenced() {
#if CUDASIM_ASAN
    __asan_unpoison_memory_region(raw, misaligned);
#endif
    std::free(raw);
  }
};

std::mt19937 random_bits(1);

const cudasim::KernelCounters& counted() { return cudasim::counters_now.kernels.at("copy_rows"); }

template <class T>
void test_copy(int cols, int lanes, size_t in_misaligned, size_t out_misaligned, bool aligned) {
  constexpr int size = Packed<T>::size;
  const int rows = 64 / lanes > 3 ? 3 : 64 / lanes;
  // One row apart: the row itself where rows are packed, rounded up to a vector where all rows are to be aligned.
  const int64_t stride = aligned ? (cols + size - 1) / size * size : cols;
  const size_t row_bytes = size_t(cols) * sizeof(T);
  const size_t bytes = rows == 0 ? 0 : size_t((rows - 1) * stride) * sizeof(T) + row_bytes;
  Fenced in(bytes, in_misaligned);
  Guarded out(bytes, out_misaligned);
  for (size_t i = 0; i < bytes; i++) in.data[i] = (unsigned char)random_bits();
  cudasim::reset_counters();
  launch(copy_rows<T>, {.grid = 1, .block = 64, .name = "copy_rows"}, nullptr, reinterpret_cast<const T*>(in.data),
         reinterpret_cast<T*>(out.data), rows, stride, stride, cols, aligned, lanes);
  const auto describe = [&](Check&& check) {
    check << "size " << sizeof(T) << ", cols " << cols << ", lanes " << lanes << ", input at " << in_misaligned
          << ", output at " << out_misaligned << (aligned ? ", aligned" : "");
  };
  for (int row = 0; row < rows; row++) {
    const size_t offset = size_t(row * stride) * sizeof(T);
    describe(CHECK(std::memcmp(in.data + offset, out.data + offset, row_bytes) == 0));
    if (row + 1 < rows)
      for (size_t i = offset + row_bytes; i < offset + size_t(stride) * sizeof(T); i++)
        describe(CHECK(out.data[i] == Guarded::kMark));
  }
  describe(CHECK(out.untouched_outside()));
  describe(CHECK(counted().stores.bytes == size_t(rows) * row_bytes));  // each byte once
  if (aligned) {
    const uint64_t whole = uint64_t(rows) * uint64_t(cols / size), rest = uint64_t(rows) * uint64_t(cols % size);
    const int element = std::countr_zero(sizeof(T));
    for (const cudasim::Traffic* traffic : {&counted().loads, &counted().stores}) {
      describe(CHECK(traffic->by_width[4] == whole));
      describe(CHECK(traffic->by_width[element] == rest));
      describe(CHECK(traffic->bytes == size_t(rows) * row_bytes));
    }
  } else {
    describe(CHECK(counted().loads.bytes <= 2 * size_t(rows) * row_bytes));  // two granules a vector, at most
  }
}

template <class T>
void test_copies(bool few) {
  constexpr int size = Packed<T>::size;
  const std::vector<int> lengths = few ? std::vector<int>{1, 2 * size + 1, 33 * size - 1}
                                       : std::vector<int>{0,
                                                          1,
                                                          2,
                                                          3,
                                                          size - 1,
                                                          size,
                                                          size + 1,
                                                          2 * size - 1,
                                                          2 * size,
                                                          2 * size + 1,
                                                          3 * size + 2,
                                                          8 * size - 1,
                                                          8 * size + 1,
                                                          31 * size + 1,
                                                          32 * size - 1,
                                                          32 * size,
                                                          32 * size + 1,
                                                          33 * size - 1,
                                                          64 * size + 3};
  for (int cols : lengths)
    for (int lanes : few ? std::vector<int>{4, 32} : std::vector<int>{1, 2, 4, 8, 16, 32}) {
      test_copy<T>(cols, lanes, 0, 0, true);
      for (size_t in = 0; in < 16; in += few ? 8 : sizeof(T))
        for (size_t out = 0; out < 16; out += few ? 8 : sizeof(T)) test_copy<T>(cols, lanes, in, out, false);
    }
}

// Values that every type holds exactly, so that a conversion must reproduce them.
template <class T, int N>
void test_convert(DType in_type, DType out_type, int cols, size_t in_misaligned, size_t out_misaligned) {
  const size_t in_size = size_of(in_type), out_size = size_of(out_type);
  Fenced in(size_t(cols) * in_size, in_misaligned * in_size % 16);
  Guarded out(size_t(cols) * out_size, out_misaligned * out_size % 16);
  for (int j = 0; j < cols; j++)
    with_type(in_type, [&](auto* t) {
      using In = std::remove_pointer_t<decltype(t)>;
      reinterpret_cast<In*>(in.data)[j] = narrow<In>(float(j % 128 - 64) / 4);
    });
  launch(convert_row<T, N>, {.grid = 1, .block = 64, .name = "convert_row"}, nullptr, in.data, out.data, in_type,
         out_type, cols);
  bool same = true;
  for (int j = 0; j < cols; j++)
    with_type(out_type, [&](auto* t) {
      same &= double(widen(reinterpret_cast<decltype(t)>(out.data)[j])) == double(j % 128 - 64) / 4;
    });
  CHECK(same && out.untouched_outside()) << "types " << int(in_type) << " to " << int(out_type) << ", N " << N
                                         << ", cols " << cols << ", input at element " << in_misaligned
                                         << ", output at element " << out_misaligned;
}

template <class T>
void test_conversions(bool few) {
  constexpr int size = Packed<T>::size;
  constexpr DType types[] = {DType::Float, DType::Double, DType::Half, DType::BFloat16};
  for (DType in_type : types)
    for (DType out_type : types)
      for (int cols :
           few ? std::vector<int>{size * 3 + 1} : std::vector<int>{1, size - 1, size, size + 1, 5 * size + 3})
        for (size_t in = 0; in < (few ? 2 : 8); in++)
          for (size_t out = 0; out < (few ? 2 : 8); out++) {
            test_convert<T, size>(in_type, out_type, cols, in, out);
            if (!few) test_convert<T, 2 * size>(in_type, out_type, cols, in, out);
          }
}

}  // namespace

int main(int count, char** arguments) {
  const bool few = count > 1 && std::string(arguments[1]) == "few";
  test_copies<float>(few);
  test_copies<double>(few);
  test_copies<__half>(few);
  test_copies<__nv_bfloat16>(few);
  test_conversions<float>(few);
  test_conversions<double>(few);
  test_conversions<__nv_bfloat16>(few);
  return Check::report();
}
