// The kernels of BatchNorm, GroupNorm and InstanceNorm that each instruction set provides (plane_forward_*.h,
// plane_backward_*.h), and how the planes are cut.
//
//   slab    what is normalised apart from the rest: all samples (Sets::Batch) or one sample. Its sets are `groups` runs
//           of `per_set` channels:   set = slab * groups + channel / per_set
//
//   channels first   a set is a list of planes, contiguous runs of `spatial` elements. It is cut into blocks of at most
//                    kBlock elements: pieces of a plane, or several whole planes.
//   channels last    a slab is a matrix of slab_samples * spatial rows and `channels` columns. Its rows are cut into
//                    chunks, every column of a chunk is summed by itself.
//
// Every sum is formed block by block (chunk by chunk) and merged in their order in double. The cuts depend on the shape
// of one slab alone, so results depend neither on the number of threads nor, of groups and instances, on the batch.
#pragma once
#include "../interface/plane_norm.h"
#include "../math/renorm.h"
#include "row_kernels.h"

namespace torchfastnorm::cpu {

struct PlaneGeometry {
  int64_t slabs, slab_samples, channels, spatial, groups, per_set;
  bool batch;
  int64_t sets() const { return slabs * groups; }
  int64_t rows() const { return slab_samples * spatial; }
};

inline PlaneGeometry geometry_of(Sets sets, const PlaneShape& shape) {
  const bool batch = sets == Sets::Batch;
  return {batch ? 1 : shape.samples,
          batch ? shape.samples : 1,
          shape.channels,
          shape.spatial,
          sets == Sets::Group ? shape.groups : shape.channels,
          channels_per_set(sets, shape),
          batch};
}

// ---- channels first

// The planes of `channels` channels of a slab, every step-th from the first: of a batch one channel, of a sample any
// number. Of the mask in elements.
struct Planes {
  int64_t first, step, count, mask_begin, mask_stride;
};
inline Planes planes_of(const PlaneGeometry& g, int64_t slab, int64_t channel, int64_t channels) {
  const int64_t sample = slab * g.slab_samples, first = sample * g.channels + channel;
  if (g.batch) return {first, g.channels, g.slab_samples, sample * g.spatial, g.spatial};
  return {first, 1, channels, sample * g.spatial, 0};
}

struct Cut {
  int64_t pieces;  // of a plane
  int64_t planes;  // in a block; 1 if a plane has several pieces
  int64_t blocks;
};
inline Cut cut_of(int64_t planes, int64_t spatial) {
  if (planes == 0 || spatial == 0) return {1, 1, 0};
  if (spatial > kBlock) return {block_count(spatial), 1, planes * block_count(spatial)};
  const int64_t per_block = kBlock / spatial;
  return {1, per_block, (planes + per_block - 1) / per_block};
}

// `segments` runs of `count` elements: each a plane from element `skipped` on, the first of the plane `first`.
struct PlaneBlock {
  int64_t begin, stride, segments, count, mask_begin, mask_stride;
  int64_t first, step, skipped;
};
inline PlaneBlock block_of(const Planes& planes, const Cut& cut, int64_t spatial, int64_t block) {
  const int64_t plane = cut.pieces > 1 ? block / cut.pieces : block * cut.planes;
  const Span span = cut.pieces > 1 ? block_span(block % cut.pieces, spatial) : Span{0, spatial};
  const int64_t left = planes.count - plane, first = planes.first + plane * planes.step;
  return {first * spatial + span.begin,
          planes.step * spatial,
          left < cut.planes ? left : cut.planes,
          span.count,
          planes.mask_begin + plane * planes.mask_stride + span.begin,
          planes.mask_stride,
          first,
          planes.step,
          span.begin};
}

// Planes of a batch this short are taken by tiles of channels (plane_short.h), never in phases.
inline bool short_planes(const PlaneGeometry& g, const uint8_t* mask) {
  return g.batch && !mask && g.spatial <= 256 && g.channels >= 32;
}

// ---- channels last

constexpr int64_t kTile = 512;          // columns: what is kept of a column stays in the first-level cache
constexpr int64_t kRowBlock = 128;      // rows summed around one shift
constexpr int64_t kMostChunks = 64;     // of rows
constexpr int64_t kMostSlabParts = 64;  // chunks of slabs, whose sums of grad_weight and grad_bias are merged

inline int64_t chunk_rows(const PlaneGeometry& g) {
  const int64_t even = (g.rows() + kMostChunks - 1) / kMostChunks;
  return even <= kRowBlock ? kRowBlock : (even + kRowBlock - 1) / kRowBlock * kRowBlock;
}
inline int64_t chunk_count(const PlaneGeometry& g) { return (g.rows() + chunk_rows(g) - 1) / chunk_rows(g); }
inline int64_t tile_count(const PlaneGeometry& g) { return (g.channels + kTile - 1) / kTile; }

struct Columns {
  int64_t begin, end;
  int64_t width() const { return end - begin; }
};
inline Columns tile_of(const PlaneGeometry& g, int64_t tile) {
  return {tile * kTile, g.channels < (tile + 1) * kTile ? g.channels : (tile + 1) * kTile};
}

// Sets are finished this many columns at a time, if each is one: what comes between two passes should not take one
// thread.
constexpr int64_t kFinished = 128;
inline int64_t finish_count(const PlaneGeometry& g) {
  return g.per_set > 1 ? 1 : (g.channels + kFinished - 1) / kFinished;
}
inline Columns finish_of(const PlaneGeometry& g, int64_t i) {
  if (g.per_set > 1) return {0, g.channels};
  return {i * kFinished, g.channels < (i + 1) * kFinished ? g.channels : (i + 1) * kFinished};
}

struct Rows {
  int64_t begin, end;
};
inline Rows rows_of(const PlaneGeometry& g, int64_t chunk) {
  const int64_t begin = chunk * chunk_rows(g), end = begin + chunk_rows(g);
  return {begin, end < g.rows() ? end : g.rows()};
}

// Slabs whose sums of grad_weight and grad_bias are added up by one thread, in order.
inline int64_t slabs_per_part(const PlaneGeometry& g) { return (g.slabs + kMostSlabParts - 1) / kMostSlabParts; }
inline int64_t slab_parts(const PlaneGeometry& g) {
  return g.slabs == 0 ? 0 : (g.slabs + slabs_per_part(g) - 1) / slabs_per_part(g);
}

// ---- calls

// An exp or an erf: g is kept between the two passes of a backward where there is room, rather than formed twice.
inline bool takes_long(Activation activation) { return activation >= Activation::Elu; }

struct PlaneForwardCall {
  const PlaneNormForward* arguments;
  PlaneGeometry geometry;
  const void* weight;           // (channels) stat
  void* bias;                   // (channels) stat; with renorm it receives what the shift adds
  void *mean, *rstd;            // (sets) stat; with renorm rstd is (6, sets)
  RenormLimits<double> limits;  // with renorm, of this batch
  Moments* of_sets;             // (sets), or null: nobody needs them
  Moments* of_blocks;           // channels first, in phases: (sets, blocks)
  double* of_chunks;            // channels last, in phases: (slabs, chunks, 2, channels): mean, squares
  double* counts;               // channels last, in phases: (slabs, chunks)
  bool past;                    // y goes past the caches (goes_past_caches)
};

// Switchable normalization, of samples, channels, samples; the first two in any order.
template <class CALL>
struct SwitchSteps {
  void (*samples)(const CALL&, int64_t begin, int64_t end);
  void (*channels)(const CALL&, int64_t begin, int64_t end);
  void (*planes)(const CALL&, int64_t begin, int64_t end);
};

// [begin, end) counts sets, blocks, ... of the whole call, the last in the name fastest.
struct PlaneForwardKernels {
  void (*running_statistics)(const PlaneForwardCall&);  // mean, rstd from running_mean, running_var
  void (*update_running)(const PlaneForwardCall&, double momentum, int64_t begin, int64_t end);  // channels
  void (*first_sets)(const PlaneForwardCall&, int64_t begin, int64_t end);                       // complete
  void (*first_moments)(const PlaneForwardCall&, int64_t begin, int64_t end);                    // blocks
  void (*first_finish)(const PlaneForwardCall&, int64_t begin, int64_t end);                     // sets
  void (*first_apply)(const PlaneForwardCall&, int64_t begin, int64_t end);                      // pieces of planes
  int64_t (*last_scratch)(const PlaneGeometry&);                                                 // bytes, of one thread
  void (*last_slabs)(const PlaneForwardCall&, int64_t begin, int64_t end, void* scratch);        // complete
  void (*last_moments)(const PlaneForwardCall&, int64_t begin, int64_t end);                     // tiles of chunks
  void (*last_finish)(const PlaneForwardCall&, int64_t slab, Columns, void* scratch);            // whole sets
  void (*last_apply)(const PlaneForwardCall&, int64_t begin, int64_t end);                       // tiles of chunks
  SwitchSteps<PlaneForwardCall> mix;  // from of_sets to mean and rstd
};

struct PlaneBackwardCall {
  const PlaneNormBackward* arguments;
  PlaneGeometry geometry;
  const void *weight, *bias;  // (channels) stat
  void* coefficients;         // (sets, 2) stat: grad_x = rstd * weight * g + [0] * (x - mean) + [1]; zeros at first for
                              // constant statistics
  double* counts;             // (slabs) elements of a channel that count
  double* of_parts;           // (slab parts, 2, channels): sums of g * x_hat and of g
  GradientSums* of_blocks;    // channels first, in phases: (slabs, channels, blocks)
  double* of_chunks;          // channels last, in phases: (slabs, chunks, 2, channels): sums of g * (x - mean), g
  GradientSums* of_planes;    // switchable: (sets) sums of g * weight, else null
  double* of_groups;          // switchable: see plane_switch.h
  bool sums, apply;           // are the sums needed; is grad_x or grad_residual
  bool past;                  // these go past the caches (goes_past_caches)
  bool keeps_g;  // channels first, complete: a thread keeps g of a set between the two passes, and forms it once
};

struct PlaneBackwardKernels {
  int64_t (*first_scratch)(const PlaneGeometry&);  // bytes, of one thread, with keeps_g
  void (*first_sets)(const PlaneBackwardCall&, int64_t begin, int64_t end, void* scratch);  // groups of slab parts,
                                                                                            // complete
  void (*first_sums)(const PlaneBackwardCall&, int64_t begin, int64_t end);                 // blocks of channels
  void (*first_finish)(const PlaneBackwardCall&, int64_t begin, int64_t end);               // groups
  void (*first_apply)(const PlaneBackwardCall&, int64_t begin, int64_t end);                // pieces of planes
  int64_t (*last_scratch)(const PlaneGeometry&);                                            // bytes, of one thread
  void (*last_parts)(const PlaneBackwardCall&, int64_t begin, int64_t end, void* scratch);  // of slabs, complete
  void (*last_sums)(const PlaneBackwardCall&, int64_t begin, int64_t end);                  // tiles of chunks
  void (*last_finish)(const PlaneBackwardCall&, int64_t slab, Columns, void* scratch);      // whole sets
  void (*last_apply)(const PlaneBackwardCall&, int64_t begin, int64_t end);                 // tiles of chunks
  void (*parameters)(const PlaneBackwardCall&);  // grad_weight, grad_bias from of_parts
  void (*shift_bias)(const PlaneBackwardCall&);  // with renorm: as forward did
  SwitchSteps<PlaneBackwardCall> mix;            // from of_planes to coefficients
  void (*logits)(const PlaneBackwardCall&);      // grad_mean_logits, grad_var_logits
};

struct PlaneKernels {
  // to[0, count) of type `stat` = from, or `fill` where from is null
  void (*widen)(void* to, DType stat, const void* from, DType type, int64_t count, double fill);
  PlaneForwardKernels (*forward)(const PlaneForwardCall&);
  PlaneBackwardKernels (*backward)(const PlaneBackwardCall&);
};

// The best that this machine runs (backend.cpp).
const PlaneKernels& plane_kernels();

}  // namespace torchfastnorm::cpu
