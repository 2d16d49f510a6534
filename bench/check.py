"""Whether a candidate is right: every one is compared with fp64 before it is timed."""

from __future__ import annotations

import torch
from torch import Tensor

from .cells import Candidate, Op
from .inputs import Inputs, as_tuple, backward

# Largest error, relative to the largest expected value, at which a candidate still counts as right: some rounding
# steps of the dtype, far below any mistake in a formula. Accuracy itself is judged by the tests, not here.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
CHECKED_ELEMENTS = 1 << 25
AT_KINKS = 0.01  # share of a gradient's elements that rounding may put on the other side of an activation's kink


def check(op: Op, candidate: Candidate, inputs: Inputs) -> tuple[str, str]:
    """(why the candidate is wrong, or ""; a remark on its parameter gradients, or "")."""
    x, dtype = inputs.inputs[0], inputs.upstream[0].dtype
    along = op.independent or 0
    whole = x.shape[along]
    checked = whole if op.independent is None else max(1, min(whole, CHECKED_ELEMENTS * whole // x.numel()))

    def part(t: Tensor) -> Tensor:
        if t.dim() == 1:
            return t.detach()[: checked if along == 1 else None]
        return t.detach().narrow(along, 0, checked)

    names = list(op.outputs)
    # What a call changes (running statistics) may be what another begins with.
    got = list(as_tuple(candidate.function(*(t if t.requires_grad else t.clone() for t in inputs.inputs))))
    exact = Inputs(
        [part(t).to(torch.float64, copy=True).requires_grad_(t.requires_grad) for t in inputs.inputs],
        [part(t).double() for t in inputs.upstream],
    )
    expected = list(as_tuple(op.reference(*exact.inputs)))
    if candidate.has_backward:
        names += [f"gradient of {name}" for name in op.inputs if not name.startswith("running")]
        got += backward(tuple(got), inputs, False)
        expected += backward(tuple(expected), exact, False)
    notes = []
    for name, ours, truth in zip(names, got, expected, strict=True):
        parameter = truth.dim() == 1
        if parameter and along == 0 and checked < whole:
            continue  # a sum over all, of which only some were computed
        error = (part(ours).double() - truth.detach()).abs_() / truth.detach().abs().max()
        right = (error <= TOLERANCES[dtype]).double().mean()  # a NaN is an error, too
        if right < (1 - AT_KINKS if op.has_kink and name.startswith("gradient") else 1):
            text = f"{name} off by {100 * error.max().item():.2g} % of the largest value"
            if not parameter:
                return f"wrong: {text}", ""
            notes.append(text)
    return "", "; ".join(notes)
