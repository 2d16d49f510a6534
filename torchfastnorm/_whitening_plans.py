"""Launch plans of whitening: csrc/interface/whitening_plan.h says what the words mean."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from ._extension import _C
from ._launch_plan import GPU, KernelPlan, occupancy

WHITENING_OPS = ("batch_whitening",)
FINISH = {
    "shared_bytes": 0,
    "static_bytes": 8192,
    "registers": 255,
}  # whitening_finish in csrc/cuda/whitening_moments.cuh


def _where(plan: dict[str, Any]) -> str:
    shared = f", {plan['bundle']} groups a tile" if plan["bundle"] > 1 else ""
    several = f", {plan['tiles']} tiles a group" if plan["tiles"] > 1 else ""
    return f"tiles of {plan['tile']} channels{shared}{several}, panels of {plan['positions']} positions"


def whitening_plans(
    shape: Sequence[int], dtype: torch.dtype, gpu: GPU, groups: int, channels_last: bool, training: bool
) -> list[KernelPlan]:
    """Every launch of forward and backward but those of the matrices between, which are torch's."""
    if len(shape) < 2:
        raise ValueError(f"explain: batch_whitening needs a shape (N, C, ...), not {tuple(shape)}")
    if groups < 1 or shape[1] % groups:
        raise ValueError(f"explain: num_groups={groups} does not divide {shape[1]} channels")

    def plans(direction: str, transform: bool, two_tensors: bool) -> list[KernelPlan]:
        plan = _C.whitening_plan(
            transform=transform,
            samples=shape[0],
            channels=shape[1],
            spatial=prod(shape[2:]),
            groups=groups,
            channels_last=channels_last,
            dtype=dtype,
            two_tensors=two_tensors,
            multiprocessors=gpu.multiprocessors,
            shared_bytes=gpu.shared_bytes,
            cluster_blocks=gpu.cluster_blocks,
        )

        once = prod(shape) * dtype.itemsize * (1 + two_tensors)

        def launch(kernel: str, figures: dict[str, Any], moved: int, again: int, reason: str) -> KernelPlan:
            return KernelPlan(
                direction=direction,
                kernel=kernel,
                regime="",
                grid=figures["blocks"],
                block=figures["threads"],
                cluster=1,
                shared_bytes=figures["shared_bytes"],
                cooperative=False,
                bytes=moved,
                reread_bytes=again,
                occupancy=occupancy(figures, gpu),
                reason=reason,
            )

        again = once * (plan["tiles"] - 1)
        if transform:
            matrices = "matrices stay on chip" if plan["tiles"] == 1 else "matrices are read for each panel"
            moved = plan["read_bytes"] + plan["written_bytes"]
            return [launch("whitening_transform", plan, moved, again, f"{_where(plan)}; {matrices}")]
        # What the slabs leave is written by the first launch and read by the second.
        finish = plan | FINISH | {"blocks": plan["finish_blocks"], "threads": plan["finish_threads"]}
        return [
            launch("whitening_moments", plan, plan["read_bytes"], again, f"{_where(plan)}, {plan['slabs']} slabs"),
            launch("whitening_finish", finish, plan["written_bytes"], 0, "the slabs' co-moments, in their order"),
        ]

    forward = (plans("forward", False, False) if training else []) + plans("forward", True, False)
    return forward + plans("backward", False, True) + plans("backward", True, training)
