"""What the handlers of the task `runs_for` have noted: which claim ran when, by the clock that all processes of a machine share."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path


def runs(notes: Path) -> dict[int, dict[int, list[float]]]:
    """By job, by the fence of the claim: the times at which it ran, oldest first. Empty where nothing has run yet."""
    spans: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in notes.read_text().splitlines(keepends=True) if notes.exists() else ():
        if line.endswith("\n"):  # (the last one may be half written)
            job, fence, at = line.split()
            spans[int(job)][int(fence)].append(float(at))
    return spans


def overlap(notes: Path) -> float:
    """For how long two claims of one job ran at the same time; negative where there was always time between them."""
    worst = float("-inf")
    for claims in runs(notes).values():
        ordered = [claims[fence] for fence in sorted(claims)]
        for earlier, later in itertools.pairwise(ordered):
            worst = max(worst, max(earlier) - min(later))
    return worst
