"""Retry policies of every kind, as hypothesis draws them."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import strategies as st

import pgsched
from pgsched.retry import MOST_WAIT, Policy

_ZERO = timedelta(0)
spans = st.one_of(
    st.timedeltas(_ZERO, timedelta(seconds=10)), st.timedeltas(_ZERO, timedelta(days=2)), st.timedeltas(_ZERO, MOST_WAIT), st.just(_ZERO),
    st.just(MOST_WAIT), st.integers(0, 100).map(lambda s: timedelta(seconds=s)),
)  # fmt: skip
jitters = st.sampled_from(["none", "full", "equal"])


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """A policy without a budget."""
    first, cap = sorted((draw(spans), draw(spans)))
    kind, jitter = draw(st.sampled_from(["fixed", "linear", "exponential"])), draw(jitters)
    if kind == "fixed":
        return pgsched.Fixed(after=first, jitter=jitter)
    if kind == "linear":
        return pgsched.Linear(first=first, step=draw(st.one_of(st.none(), spans)), cap=cap, jitter=jitter)
    factor = draw(st.one_of(st.just(2), st.floats(1.01, 1000), st.floats(1.01, 3)))
    return pgsched.Exponential(first=first, factor=factor, cap=cap, jitter=jitter)
