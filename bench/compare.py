"""Two results side by side: what got faster or slower by more than the noise explains."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from .cells import Result
from .errors import BadInput
from .results import Document, cells_of
from .tables import Table, microseconds, percent, ratio

Key = tuple[str, str, str, str]
TIMED = ("run", "latency", "train", "roofline")
SPREADS = 2  # so many joint spreads are noise: three standard deviations of a difference of medians of nine rounds


@dataclass(frozen=True)
class Change:
    key: Key
    before: Result
    after: Result
    factor: float  # time after / time before, of the baseline as well where one is named
    noise: float
    verdict: str  # faster, slower, same, lost (no longer timed), new, or unclear: too few rounds


def _timings(found: Document, relative_to: str | None) -> dict[Key, tuple[Result, Result | None]]:
    """Ours, and what it is taken relative to."""
    if found["kind"] == "run":
        return {c.key: (c.ours, next((r for r in (c.roof, *c.results[1:]) if r.name == relative_to), None))
                for c in cells_of(found)}  # fmt: skip
    if found["kind"] == "latency":
        rows = [(c["candidate"], (c["op"], c["case"], "", ""), c) for c in found["calls"]]
    elif found["kind"] == "train":
        rows = [(s["library"], (s["model"], s["mode"], s["layout"], ""), s) for s in found["steps"]]
    else:
        rows = [("torchfastnorm", (s["mix"], str(s["bytes"]), f"{s['threads']} threads", ""), s)
                for s in found["streams"]]  # fmt: skip
    named: dict[Key, dict[str, Result]] = {}
    for name, key, row in rows:
        named.setdefault(key, {})[name] = Result(name, "", row["seconds"], row.get("failure", ""))
    return {k: (v["torchfastnorm"], v.get(relative_to or "")) for k, v in named.items() if "torchfastnorm" in v}


def _reject_unlike(before: Document, after: Document) -> None:
    for name, of in (("kinds", lambda d: d["kind"]), ("devices", lambda d: d["machine"]["device"]),
                     ("numbers of threads", lambda d: d["machine"]["threads"])):  # fmt: skip
        matters = name != "numbers of threads" or before["machine"]["device_type"] == "cpu"
        if matters and of(before) != of(after):
            raise BadInput(f"results of different {name} cannot be compared: {of(before)} and {of(after)}")
    if before["kind"] not in TIMED:
        raise BadInput(f"results of {before['kind']} hold no times to compare")


def changes(before: Document, after: Document, threshold: float = 0.05, relative_to: str | None = None) -> list[Change]:
    """Of ours, cell by cell. `threshold`: what counts at least, however small the spread."""
    _reject_unlike(before, after)
    old, new = _timings(before, relative_to), _timings(after, relative_to)
    if not set(old) & set(new):
        raise BadInput("the two results have no cell in common")
    if relative_to and not any(other is not None and other.seconds for _, other in old.values()):
        raise BadInput(f"no cell was measured with {relative_to}")
    nothing = (Result("torchfastnorm", ""), None)
    found = []
    for key in dict.fromkeys((*old, *new)):
        (ours_before, by_before), (ours_after, by_after) = old.get(key, nothing), new.get(key, nothing)
        factor = ours_after.median / ours_before.median
        measured = [ours_before, ours_after]
        if relative_to:
            measured += [by_before or Result("", ""), by_after or Result("", "")]
            factor *= measured[2].median / measured[3].median
        noise = SPREADS * math.hypot(*(result.spread for result in measured))  # not a number after a single round
        if key not in old:
            verdict = "new"
        elif ours_before.seconds and not ours_after.seconds:
            verdict = "lost"
        elif math.isnan(factor) or math.isnan(noise):
            verdict = "unclear"
        else:
            noise = max(threshold, noise)
            verdict = "slower" if factor > 1 + noise else "faster" if factor < 1 / (1 + noise) else "same"
        found.append(Change(key, ours_before, ours_after, factor, noise, verdict))
    return found


def change_table(found: list[Change]) -> Table:
    order = ["lost", "slower", "unclear", "faster", "same", "new"]
    rows = []
    for change in sorted(found, key=lambda c: (order.index(c.verdict), -c.factor)):
        row = [*change.key, microseconds(change.before.median), microseconds(change.after.median)]
        rows.append([*row, ratio(change.factor), percent(change.noise), change.verdict])
    headers = ["what", "case", "", "direction", "µs before", "µs after", "after / before", "noise", "verdict"]
    return Table("", headers, rows)


def summary(found: list[Change]) -> str:
    counts = {verdict: sum(c.verdict == verdict for c in found) for verdict in dict.fromkeys(c.verdict for c in found)}
    factors = [change.factor for change in found if not math.isnan(change.factor)]
    mean = f"; time after / before, geometric mean: {statistics.geometric_mean(factors):.3f}" if factors else ""
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + mean


def got_worse(found: list[Change]) -> bool:
    return any(change.verdict in ("slower", "lost") for change in found)
