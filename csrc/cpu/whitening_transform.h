// Transform of whitening (interface/batch_whitening.h), a panel of positions of a group at a time:
//
//   y = matrix_u (u - mean_u) + matrix_v (v - mean_v) + shift
//
// The means are subtracted before any product is formed, sums are in the accumulator, y is rounded once. x is read
// once.
//
//   channels first   y[channel][positions] = matrix[channel, :] times panel[:][positions]         vectors along
//   positions channels last    y[position][channels] = panel[position, :] times matrix'[:][channels]        vectors
//   along channels
//
// which is one product of a left with a right, for u and for v. Every result is the sum of its width products in their
// order, whatever its panel.
#pragma once
#include "whitening_products.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

template <class ROWS>
struct TransformPanels;
template <template <class> class ROWS, class T>
struct TransformPanels<ROWS<T>> {
  using Panels = ROWS<T>;
  using A = Accumulator<T>;
  using Call = WhiteningTransformCall;

  static constexpr bool kChannelsFirst = Panels::channels_first;

  struct Term {
    const void* x;
    const A* mean;    // of the group
    const A* matrix;  // of the group, as the product wants it
    A* panel;
  };

  static int64_t step(const Call& call) { return Panels::stride(call.geometry.width, call.panels.size); }
  static int64_t panel_bytes(const Call& call) {
    return rounded_up(Panels::size(call.geometry.width, call.panels.size) * int64_t(sizeof(A)), 64);
  }
  static int64_t scratch(const Call& call) { return 64 + (call.arguments->v ? 3 : 2) * panel_bytes(call); }

  static int64_t matrix_row(const Call& call) {
    return kChannelsFirst ? call.geometry.width : rounded_up(call.geometry.width, kPanelStep);
  }
  static A* transposed(const Call& call, int64_t group, bool second) {
    const int64_t terms = call.arguments->v ? 2 : 1, index = terms * group + second;
    return static_cast<A*>(call.matrices) + index * call.geometry.width * matrix_row(call);
  }
  static void matrices(const Call& call, int64_t begin, int64_t end) {
    const int64_t width = call.geometry.width, row = matrix_row(call);
    for (int64_t group = begin; group < end; ++group)
      for (int second = 0; second < (call.arguments->v ? 2 : 1); ++second) {
        const void* const matrix = second ? call.arguments->matrix_v : call.arguments->matrix_u;
        const A* const from = static_cast<const A*>(matrix) + group * width * width;
        A* const to = transposed(call, group, second);
        for (int64_t i = 0; i < width; ++i) {
          for (int64_t j = 0; j < width; ++j) to[i * row + j] = from[j * width + i];
          for (int64_t j = width; j < row; ++j) to[i * row + j] = A(0);
        }
      }
  }

  static __attribute__((noinline)) void multiply(const Call& call, const Term* terms, int count, const A* shift,
                                                 int64_t positions, A* y) {
    const int64_t width = call.geometry.width, panel_row = step(call), row = matrix_row(call);
    const int64_t rows = kChannelsFirst ? width : positions, columns = kChannelsFirst ? positions : width;
    for_tiles<A>(rows, columns, [=](int64_t r, int64_t c, auto some, auto vectors) {
      Tile<A, some, vectors> tile;
      for (const Term* term = terms; term < terms + count; ++term) {
        if constexpr (kChannelsFirst)
          tile.add_products({term->matrix + r * row, row, 1}, term->panel + c, panel_row, width);
        else
          tile.add_products({term->panel + r * panel_row, panel_row, 1}, term->matrix + c, row, width);
      }
      tile.each([=](int64_t i, int64_t j, Vector<A> sums) __attribute__((always_inline)) {
        if (shift) {
          if constexpr (kChannelsFirst)
            sums += splat(shift[r + i]);
          else
            sums +=
                c + j + kLanes<A> <= width ? load(shift + c + j, Whole{}) : load(shift + c + j, Part{width - c - j});
        }
        store(y + (r + i) * panel_row + c + j, sums, Whole{});
      });
    });
  }

  static void panels(const Call& call, int64_t begin, int64_t end, void* memory) {
    const WhiteningTransform& a = *call.arguments;
    const WhiteningGeometry& g = call.geometry;
    char* const free = reinterpret_cast<char*>(rounded_up(reinterpret_cast<int64_t>(memory), 64));
    const auto of_group = [](const void* parameter, int64_t offset) {
      return parameter ? static_cast<const A*>(parameter) + offset : nullptr;
    };
    A* const y = reinterpret_cast<A*>(free);
    A* const panel_u = reinterpret_cast<A*>(free + panel_bytes(call));
    A* const panel_v = reinterpret_cast<A*>(free + 2 * panel_bytes(call));
    for (int64_t item = begin; item < end; ++item) {
      const int64_t group = item / call.panels.parts, panel = item % call.panels.parts, channel = group * g.width;
      const auto matrix = [&](const void* given, bool second) -> const A* {
        return kChannelsFirst ? of_group(given, group * g.width * g.width) : transposed(call, group, second);
      };
      const PanelPlace place{channel, g.width, call.panels.begin(panel), call.panels.size_of(panel)};
      const int count = a.v ? 2 : 1;
      const Term terms[2] = {{a.u, of_group(a.mean_u, channel), matrix(a.matrix_u, false), panel_u},
                             {a.v, of_group(a.mean_v, channel), a.v ? matrix(a.matrix_v, true) : nullptr, panel_v}};
      for (int term = 0; term < count; ++term)
        Panels::pack(g, place, static_cast<const T*>(terms[term].x), terms[term].mean, terms[term].panel, step(call));
      multiply(call, terms, count, of_group(a.shift, channel), place.positions, y);
      Panels::unpack(g, place, y, step(call), static_cast<T*>(a.y));
    }
  }
};

inline WhiteningTransformKernels whitening_transform_kernels(const WhiteningTransformCall& call) {
  return by_type(call.arguments->type, [&](auto element) -> WhiteningTransformKernels {
    using T = decltype(element);
    using First = TransformPanels<ChannelRows<T>>;
    using Last = TransformPanels<PositionRows<T>>;
    if (call.geometry.channels_first) return {First::scratch, First::matrices, First::panels};
    return {Last::scratch, Last::matrices, Last::panels};
  });
}

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
