"""Launch plans of the norms of feature maps: csrc/interface/plane_plan.h says what the words mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, prod
from typing import Any

import torch

from ._extension import _C
from ._launch_plan import GPU, KernelPlan, occupancy
from ._plan_choice import Choice, forced
from .ops._plane_norm import RENORMED_VALUES, SIGNED, Sets

PLANE_OPS = {
    "batch_norm": Sets.BATCH,
    "batch_renorm": Sets.BATCH,
    "group_norm": Sets.GROUP,
    "instance_norm": Sets.INSTANCE,
    "switch_norm": Sets.INSTANCE,
}


def _reason(plan: dict[str, Any], sets: int, barriers: str) -> str:
    many = f"a cluster of {plan['cluster']} blocks" if plan["cluster"] > 1 else "a block"
    taken = "one set" if plan["sets_per_task"] == 1 else f"{min(plan['sets_per_task'], sets)} sets"
    if plan["channels_last"]:
        where = f"tiles of {plan['tile']} channels, {plan['lanes']} lanes a row"
    else:
        pieces = f", {plan['chunks']} pieces a plane" if plan["chunks"] > 1 else ""
        where = f"{plan['lanes']} lanes a piece{pieces}"
    if plan["team"] == "cluster":
        return f"{many} takes {taken} at a time and keeps all of it in shared memory: one read; {where}"
    if not plan["cooperative"]:
        return f"no statistics to wait for: one pass; {where}"
    rounds = ceil(plan["slabs"] / plan["blocks"]) * plan["rounds"]
    kept = min(plan["kept_rounds"], rounds)
    rest = "all stays in shared memory" if kept == rounds else f"{kept} of {rounds} rounds of a block stay on chip"
    return f"the whole grid at once, {barriers} grid barriers; {rest}; {where}"


def _share_read_again(plan: dict[str, Any]) -> float:
    """Of what apply needs, the part that no block had room to keep."""
    if plan["team"] == "cluster" or not plan["cooperative"] or plan["slabs"] == 0:
        return 0.0
    slabs, blocks, rounds = plan["slabs"], plan["blocks"], plan["rounds"]
    longer = slabs % blocks  # blocks that have one slab more than the others
    again = sum(
        count * max(0, (slabs // blocks + more) * rounds - plan["kept_rounds"])
        for more, count in ((1, longer), (0, blocks - longer))
    )
    return again / (slabs * rounds)


def plane_plans(
    op: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    param_dtype: torch.dtype,
    gpu: GPU,
    num_groups: int,
    channels_last: bool,
    training: bool,
    residual: bool,
    activation: str,
    choices: Mapping[str, Choice],
) -> list[KernelPlan]:
    """Forward and backward, as explain.launch_plans."""
    if len(shape) < 2:
        raise ValueError(f"explain: {op} needs a shape (N, C, ...), not {tuple(shape)}")
    samples, channels, spatial = shape[0], shape[1], prod(shape[2:])
    if op == "group_norm" and (num_groups < 1 or channels % num_groups):
        raise ValueError(f"explain: num_groups={num_groups} does not divide {channels} channels")
    of_batch = PLANE_OPS[op] == Sets.BATCH
    training = training or not of_batch
    groups = {Sets.BATCH: 1, Sets.GROUP: num_groups, Sets.INSTANCE: channels}[PLANE_OPS[op]]
    sets = channels if of_batch else samples * groups
    statistic = 8 if dtype == torch.float64 else 4
    switches = op == "switch_norm"
    of_set = 1 + RENORMED_VALUES if op == "batch_renorm" and training else 2
    statistics = of_set * (2 * sets + samples + channels if switches else sets) * statistic
    tensor, parameter = samples * channels * spatial * dtype.itemsize, channels * param_dtype.itemsize
    # For the activation's derivative backward needs the signs of a sum with the residual, or the residual itself.
    activated = residual and activation != "none"
    signs = tensor // 16 if activated and activation in SIGNED and (of_batch or spatial != 1) else 0
    third = activated and not signs
    plans = []
    for backward in (False, True):
        name = "plane_backward" if backward else "plane_forward"
        choice = choices.get(name, forced(name)) or Choice()
        plan = _C.plane_plan(
            samples=samples,
            channels=channels,
            spatial=spatial,
            groups=groups,
            sets=PLANE_OPS[op].value,
            channels_last=channels_last,
            dtype=dtype,
            batch_statistics=training,
            ordered=switches,
            kept=(3 if third else 2) if backward else 1,
            staged=0 if backward else int(residual),
            multiprocessors=gpu.multiprocessors,
            shared_bytes=gpu.shared_bytes,
            cluster_blocks=gpu.cluster_blocks,
            choice=choice.numbers(name),
        )
        again = _share_read_again(plan)
        table = 2 * plan["entries"] * 4 * statistic if plan["team"] == "grid" and training else 0
        small = statistics + 2 * parameter + table
        if backward:
            inputs = (3 if third else 2) * tensor
            moved = inputs + signs + (2 if activated else 1) * tensor + small + 2 * parameter
        else:
            inputs = tensor
            moved = inputs + signs + (1 if residual else 0) * tensor + tensor + small
        reread = int(again * inputs)
        plans.append(
            KernelPlan(
                direction="backward" if backward else "forward",
                kernel=name,
                regime=plan["team"],
                grid=plan["blocks"],
                block=plan["threads"],
                cluster=plan["cluster"],
                shared_bytes=plan["shared_bytes"],
                cooperative=plan["cooperative"],
                bytes=moved + reread,
                reread_bytes=reread,
                occupancy=occupancy(plan, gpu),
                reason=_reason(plan, sets, "four" if switches else "two"),
                chosen=str(choice),
            )
        )
    return plans
