"""Workflows of five shapes, as lists of each job's dependencies.

flat: no edges; fan-out: one job, then all others; fan-in: all others, then one job; layers: 20 layers, each job with three
dependencies in the layer above; chain: one after the other.
"""

from __future__ import annotations

from collections.abc import Callable

Edges = list[list[int]]
"""The dependencies of each job, as positions."""

LAYERS = 20


def _layers(n: int) -> Edges:
    width = n // LAYERS
    above = [[] if i < width else [(i // width - 1) * width + (i * 7 + k * 131) % width for k in range(3)] for i in range(width * LAYERS)]
    return [sorted(set(on)) for on in above]


SHAPES: dict[str, Callable[[int], Edges]] = {
    "flat": lambda n: [[] for _ in range(n)],
    "fan-out": lambda n: [[], *([0] for _ in range(n - 1))],
    "fan-in": lambda n: [*([] for _ in range(n - 1)), list(range(n - 1))],
    "layers": _layers,
    "chain": lambda n: [[i - 1] if i else [] for i in range(n)],
}
"""Each shape of so many jobs."""
