// How plans take a choice made by hand (PlanChoice in interface/types.h): a number replaces the plan's own, if a kernel
// can run with it.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../interface/types.h"

namespace torchfastnorm::cuda {

inline void require(bool possible, const std::string& why) {
  if (!possible) throw std::invalid_argument("torchfastnorm: this plan cannot run: " + why);
}

// Whole warps, from `least` to `most` threads.
inline int chosen_threads(const PlanChoice& choice, int64_t least, int64_t most, int64_t otherwise) {
  if (choice.threads == 0) return int(otherwise);
  require(choice.threads % 32 == 0 && choice.threads >= least && choice.threads <= most,
          "threads=" + std::to_string(choice.threads) + " is no multiple of 32 between " + std::to_string(least) +
              " and " + std::to_string(most));
  return choice.threads;
}

inline int chosen_cluster(const PlanChoice& choice, int64_t most, int64_t otherwise) {
  if (choice.cluster == 0) return int(otherwise);
  const int cluster = choice.cluster;
  require(cluster > 0 && (cluster & (cluster - 1)) == 0 && cluster <= most,
          "cluster=" + std::to_string(cluster) + " is no power of two up to " + std::to_string(most));
  return cluster;
}

// A multiple of `unit` blocks.
inline int64_t chosen_blocks(const PlanChoice& choice, int64_t unit, int64_t most, int64_t otherwise) {
  if (choice.blocks == 0) return otherwise;
  if (choice.tuned)
    return most < unit            ? otherwise
           : choice.blocks < unit ? unit
           : choice.blocks < most ? choice.blocks / unit * unit
                                  : most;
  require(choice.blocks > 0 && choice.blocks % unit == 0 && choice.blocks <= most,
          "blocks=" + std::to_string(choice.blocks) + " is no multiple of " + std::to_string(unit) + " up to " +
              std::to_string(most));
  return choice.blocks;
}

template <class Plan, class Problem, class Device>
Plan with_choice(Plan (*plan)(const Problem&, const Device&), Problem problem, const Device& device) {
  if (!problem.choice.tuned) return plan(problem, device);
  try {
    return plan(problem, device);
  } catch (const std::invalid_argument&) {
    problem.choice = {};
    return plan(problem, device);
  }
}

template <class Regime>
bool chosen(const PlanChoice& choice, Regime regime) {
  return choice.regime == static_cast<int8_t>(regime);
}
template <class Regime>
bool allowed(const PlanChoice& choice, Regime regime) {
  return choice.regime < 0 || chosen(choice, regime);
}

}  // namespace torchfastnorm::cuda
