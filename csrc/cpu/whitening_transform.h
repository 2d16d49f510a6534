// Transform of whitening (interface/batch_whitening.h), a panel of positions of a group at a time:
//
//   y = matrix_u (u - mean_u) + matrix_v (v - mean_v) + shift
//
// The means are subtracted before any product is formed, sums are in the accumulator, y is rounded once. x is read
// once.
//
//   channels first   y[channel][positions] = matrix[channel, :] times panel[:][positions]     vectors along positions
//   channels last    y[position][channels] = panel[position, :] times matrix'[:][channels]    vectors along channels
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

  static PanelPlace place_at(const Call& call, int64_t item) {
    const WhiteningGeometry& g = call.geometry;
    const Visit at = visit(item, g.groups, call.panels.parts, g.width);
    return {at.group * g.width, g.width, call.panels.begin(at.part), call.panels.size_of(at.part)};
  }

  // y, the panel, from the terms. Their products are formed a part of the depth at a time, so that what a column of
  // tiles has in common stays in the first-level cache.
  template <class Meanwhile>
  static __attribute__((noinline)) void multiply(const Call& call, const Term* terms, int count, const A* shift,
                                                 int64_t positions, A* y, Meanwhile meanwhile) {
    const int64_t width = call.geometry.width, panel_row = step(call), row = matrix_row(call);
    const int64_t rows = kChannelsFirst ? width : positions, columns = kChannelsFirst ? positions : width;
    for (const Term* term = terms; term < terms + count; ++term)
      for (int64_t k = 0; k < width; k += kMostDepth) {
        const int64_t depth = width - k < kMostDepth ? width - k : kMostDepth;
        const bool first = term == terms && k == 0, last = term + 1 == terms + count && k + depth == width;
        const A *const matrix = term->matrix, *const panel = term->panel;
        for_tiles<A>(rows, columns, [=, &meanwhile](int64_t r, int64_t c, auto some, auto vectors) {
          meanwhile();
          Tile<A, some, vectors> tile;
          A* const to = y + r * panel_row + c;
          tile.begin(!first, to, panel_row);
          if constexpr (kChannelsFirst)
            tile.add_products({matrix + r * row + k, row, 1}, panel + k * panel_row + c, panel_row, depth);
          else
            tile.add_products({panel + r * panel_row + k, panel_row, 1}, matrix + k * row + c, row, depth);
          if (last && shift)
            tile.each([=](int64_t i, int64_t j, Vector<A>& sums) __attribute__((always_inline)) {
              if constexpr (kChannelsFirst)
                sums += splat(shift[r + i]);
              else if (c + j + kLanes<A> <= width)
                sums += load(shift + c + j, Whole{});
              else
                sums += load(shift + c + j, Part{width - c - j});
            });
          tile.end(to, panel_row);
        });
      }
  }
  static int64_t multiply_calls(const Call& call, int64_t positions) {
    const int64_t width = call.geometry.width;
    return tile_count<A>(kChannelsFirst ? width : positions, kChannelsFirst ? positions : width) *
           ((width + kMostDepth - 1) / kMostDepth) * (call.arguments->v ? 2 : 1);
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
      const PanelPlace place = place_at(call, item);
      const int64_t channel = place.channel, group = channel / g.width;
      const auto matrix = [&](const void* given, bool second) -> const A* {
        return kChannelsFirst ? of_group(given, group * g.width * g.width) : transposed(call, group, second);
      };
      const int count = a.v ? 2 : 1;
      const Term terms[2] = {{a.u, of_group(a.mean_u, channel), matrix(a.matrix_u, false), panel_u},
                             {a.v, of_group(a.mean_v, channel), a.v ? matrix(a.matrix_v, true) : nullptr, panel_v}};
      for (int term = 0; term < count; ++term)
        Panels::pack(g, place, static_cast<const T*>(terms[term].x), terms[term].mean, terms[term].panel, step(call));

      const bool more = item + 1 < end;
      const PanelPlace following = place_at(call, more ? item + 1 : item);
      const int64_t calls = multiply_calls(call, place.positions);
      Ahead<Panels, T> ahead_u(g, following, more ? a.u : nullptr, calls),
          ahead_v(g, following, more ? a.v : nullptr, calls);
      Ahead<Panels, T> ahead_y(g, place, a.y, calls);
      multiply(call, terms, count, of_group(a.shift, channel), place.positions, y, [&] {
        ahead_u.template fetch<false>();
        ahead_v.template fetch<false>();
        ahead_y.template fetch<true>();
      });
      Panels::unpack(g, place, y, step(call), static_cast<T*>(a.y));
    }
  }

 private:
  static constexpr int64_t kMostDepth = 128;
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
