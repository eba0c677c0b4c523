"""Retry policies: the waits, which policy holds for an error, and what is refused."""

from __future__ import annotations

import json
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from harness.policies import policies
from hypothesis import given, settings
from hypothesis import strategies as st

import pgsched
from pgsched.retry import MOST_ATTEMPTS, MOST_WAIT, Policy, for_task, ruling
from pgsched.verdicts import span_of
from pgsched.worker import outcome

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
FAR = 10**9
attempts = st.one_of(st.integers(1, 100), st.integers(1, FAR), st.integers(1, 2**200))


@settings(max_examples=2000, deadline=None, derandomize=True, database=None)
@given(policies(), attempts)
def test_a_wait_is_finite_never_negative_never_falls_and_ends_at_the_cap(policy: Policy, attempt: int) -> None:
    this, following, last = policy.wait(attempt), policy.wait(attempt + 1), policy.wait(2**300)
    cap = policy.after if isinstance(policy, pgsched.Fixed) else policy.cap
    assert timedelta(0) <= this <= following <= last <= cap <= MOST_WAIT


@settings(max_examples=2000, deadline=None, derandomize=True, database=None)
@given(policies(), attempts, st.floats(0, 1, exclude_max=True))
def test_jitter_stays_within_its_bounds(policy: Policy, attempt: int, drawn: float) -> None:
    whole, shaken = policy.wait(attempt), policy.wait(attempt, random=drawn)
    least = {"none": whole, "full": timedelta(0), "equal": whole / 2}[policy.jitter]
    assert least <= shaken <= whole


def test_the_waits_are_those_that_the_page_on_retries_shows() -> None:
    page = (Path(__file__).parents[2] / "docs/retries.md").read_text()
    header, _, *rows = page.partition("<!-- waits -->\n")[2].partition("\n\n")[0].splitlines()
    attempts = [int(cell) for cell in header.split("|")[2:-1]]
    assert len(rows) == 5 and attempts[-2:] == [51, FAR]
    for row in rows:
        code, *waits = (cell.strip() for cell in row.strip("|").split("|"))
        policy = eval(code.strip("`"), vars(pgsched) | {"timedelta": timedelta})
        assert [str(policy.wait(n)) for n in attempts] == waits, code


def test_the_incidents_attempts_wait_for_the_cap() -> None:
    plain = pgsched.Exponential(10, jitter="none")
    assert [plain.wait(n).total_seconds() for n in (1, 2, 3, 12, 13, 51, 64, 1024, FAR)] == [1, 2, 4, 2048, 3600, 3600, 3600, 3600, 3600]
    assert pgsched.Linear(3, first=SECOND, step=5 * SECOND).wait(3) == 11 * SECOND
    assert {pgsched.Fixed(3, after=SECOND).wait(n, random=0.3) for n in (1, 51, FAR)} == {SECOND}
    assert pgsched.Exponential(9, factor=10, first=SECOND, cap=MOST_WAIT).wait(FAR) == MOST_WAIT


def test_what_is_no_attempt_and_no_random_number_is_refused() -> None:
    for bad in (1.5, "1", True, None):
        with pytest.raises(pgsched.UsageError, match="whole number"):
            pgsched.Exponential(3).wait(bad)  # type: ignore[arg-type]
    for drawn in (-0.1, 1, float("nan"), float("inf")):
        with pytest.raises(pgsched.UsageError, match="random"):
            pgsched.Exponential(3).wait(1, random=drawn)
    assert pgsched.Exponential(3).wait(-5) == SECOND


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: pgsched.Exponential(0), "max_attempts is 0"),
        (lambda: pgsched.Exponential(MOST_ATTEMPTS + 1), "at most 2147483646"),
        (lambda: pgsched.Exponential(2.5), "whole number"),  # type: ignore[arg-type]
        (lambda: pgsched.Exponential(True), "whole number"),
        (lambda: pgsched.Exponential(3, first=-SECOND), "must not be negative"),
        (lambda: pgsched.Exponential(3, first=2 * SECOND, cap=SECOND), "cap must not be below first"),
        (lambda: pgsched.Exponential(3, cap=timedelta.max), "longer than 100 years"),
        (lambda: pgsched.Exponential(3, first=1), "must be a timedelta"),  # type: ignore[arg-type]
        (lambda: pgsched.Exponential(3, factor=float("nan")), "factor is nan"),
        (lambda: pgsched.Exponential(3, factor=float("inf")), "factor is inf"),
        (lambda: pgsched.Exponential(3, factor=-2), "factor is -2"),
        (lambda: pgsched.Exponential(3, factor=1), "pgsched.Fixed"),
        (lambda: pgsched.Exponential(3, factor=True), "factor is True"),
        (lambda: pgsched.Exponential(3, jitter="some"), "jitter is 'some'"),  # type: ignore[arg-type]
        (lambda: pgsched.Exponential(3, max_age=-SECOND), "max_age is"),
        (lambda: pgsched.Fixed(3, after=-SECOND), "after is"),
        (lambda: pgsched.Linear(3, step=-SECOND), "step is"),
        (lambda: pgsched.Exponential(3, on={"ValueError": pgsched.never}), "exception classes"),  # type: ignore[dict-item]
        (lambda: pgsched.Exponential(3, on={ValueError: None}), "None for ValueError"),  # type: ignore[dict-item]
        (lambda: pgsched.Exponential(3, on={ValueError: -SECOND}), "the wait for ValueError"),
        (lambda: pgsched.Exponential(3, on={ValueError: pgsched.Fixed(4, after=SECOND)}), "max_attempts is 4 for ValueError"),
        (lambda: pgsched.Exponential(3, on={ValueError: pgsched.Exponential(on={OSError: pgsched.never})}), "on= itself"),
        (lambda: pgsched.Exponential(3, on=5), "a function"),  # type: ignore[arg-type]
        (lambda: pgsched.Exponential(3, on=ValueError), "a function"),
        (lambda: pgsched.Exponential(3, on=_waits), "coroutine"),  # type: ignore[arg-type]
        (lambda: for_task(pgsched.Exponential()), "has no end"),
        (lambda: for_task(5), "retry is 5"),
        (lambda: for_task(pgsched.never), "must be a policy"),
        (lambda: for_task(lambda error, attempt: None), r"on=that"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused_by_name(make: Any, what: str) -> None:
    with pytest.raises(pgsched.TaskError, match=what):
        make()


async def _waits(error: Any, attempt: int) -> timedelta:
    return SECOND


def test_a_policy_without_a_number_of_attempts_is_bounded_by_its_age() -> None:
    policy = pgsched.Exponential(max_age=HOUR)
    assert for_task(policy) == (policy, MOST_ATTEMPTS)


def test_the_nearest_class_of_an_error_decides() -> None:
    policy = pgsched.Exponential(
        5, on={OSError: pgsched.never, ConnectionError: pgsched.Fixed(2, after=HOUR), TimeoutError: SECOND}
    )
    assert ruling(policy, PermissionError(), 1).never
    refused = ruling(policy, ConnectionRefusedError(), 1)
    assert refused.policy == {"kind": "fixed", "after_s": 3600.0, "jitter": "none", "max_attempts": 2}
    assert ruling(policy, TimeoutError(), 1).after == SECOND
    assert ruling(policy, ValueError(), 1).policy == policy.as_data()
    assert ruling(policy, ExceptionGroup("", [OSError()]), 1).policy == policy.as_data(), "a group is an error of its own"


def test_the_smaller_age_holds() -> None:
    policy = pgsched.Exponential(5, max_age=HOUR, on={OSError: pgsched.Fixed(after=SECOND, max_age=SECOND), KeyError: pgsched.Fixed(after=SECOND)})
    assert [(ruling(policy, error, 1).policy or {})["max_age_s"] for error in (OSError(), KeyError(), ValueError())] == [1, 3600, 3600]


@pytest.mark.parametrize(
    "answer",
    ["soon", 5, float("nan"), -SECOND, timedelta.max, pgsched.Exponential, object(), ZeroDivisionError(), SystemExit()],
    ids=lambda answer: repr(answer).partition(" at ")[0],
)
def test_a_function_that_raises_or_answers_nonsense_loses_nothing(answer: Any) -> None:
    """The policy itself stands in, and the attempt's log says why."""

    def decide(error: BaseException, attempt: int) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    policy = pgsched.Exponential(3, on=decide)
    said = ruling(policy, ValueError(), 1)
    assert (said.never, said.after, said.policy) == (False, None, policy.as_data())
    assert said.complaint is not None and "stands in" in said.complaint
    told = json.loads(outcome.raised(1, 2, ValueError("boom"), policy, 1))
    assert told["outcome"] == "retry" and "stands in" in told["traceback"] and told["policy"] == policy.as_data()


def test_a_function_is_asked_with_the_error_and_the_attempt() -> None:
    asked: list[tuple[BaseException, int]] = []

    def decide(error: BaseException, attempt: int) -> Any:
        asked.append((error, attempt))
        return {1: None, 2: HOUR, 3: pgsched.never, 4: pgsched.Fixed(after=SECOND)}[attempt]

    policy, error = pgsched.Linear(9, on=decide), ValueError()
    said = [ruling(policy, error, n) for n in (1, 2, 3, 4)]
    assert asked == [(error, n) for n in (1, 2, 3, 4)]
    assert (said[0].policy, said[1].after, said[2].never) == (policy.as_data(), HOUR, True)
    assert said[3].policy == {"kind": "fixed", "after_s": 1.0, "jitter": "none"}


def test_a_change_of_the_dict_afterwards_changes_no_policy() -> None:
    on: dict[type[BaseException], Any] = {ValueError: pgsched.never}
    policy = pgsched.Exponential(3, on=on)
    on.clear()
    assert ruling(policy, ValueError(), 1).never
    assert hash(policy) == hash(pgsched.Exponential(3))


@pytest.mark.parametrize("verdict", [pgsched.Retry, pgsched.Snooze])
@pytest.mark.parametrize("after", [-SECOND, timedelta.max, 5, "soon", float("nan")], ids=repr)
def test_a_verdict_with_a_wait_that_cannot_be_meant_is_refused_where_it_is_made(verdict: Any, after: Any) -> None:
    with pytest.raises(pgsched.UsageError, match=verdict.__name__):
        verdict(after)


def test_a_verdict_says_what_it_is() -> None:
    assert str(pgsched.Retry()) == "asked for another attempt"
    assert str(pgsched.Retry(SECOND)) == "asked for another attempt after 0:00:01"
    assert str(pgsched.Cancel("sold out")) == "cancelled by its handler: sold out"
    assert str(pgsched.Snooze(SECOND, "no stock")) == "not now, but in 0:00:01: no stock"
    with pytest.raises(pgsched.UsageError, match="reason is a int"):
        pgsched.Cancel(5)  # type: ignore[arg-type]


def test_a_verdict_that_a_handler_has_bent_does_no_harm() -> None:
    class Bent(pgsched.Retry):
        def __init__(self) -> None:
            """It leaves out its parent's."""

    bent = pgsched.Snooze(SECOND)
    bent.after = "never"  # type: ignore[assignment]
    assert span_of(Bent()) is None and span_of(bent) is None
    assert json.loads(outcome.raised(1, 2, Bent(), None, 1))["outcome"] == "retry"
    assert json.loads(outcome.raised(1, 2, bent, None, 1))["outcome"] == "retry"


class Metaclass(type):
    def __getattribute__(cls, name: str) -> Any:
        raise ZeroDivisionError


class Odd(Exception, metaclass=Metaclass):
    def __str__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "error",
    [
        Odd(), type("nul", (Exception,), {"__qualname__": "nul\0"})("a\0b\ud800"), type("x" * 9999, (BaseException,), {})(), KeyboardInterrupt(), SystemExit(3),
        GeneratorExit(), ExceptionGroup("all", [ValueError(random.random()), ExceptionGroup("in", [OSError()])]), pgsched.JobStopped(),
        pgsched.Cancel("a\0b"), pgsched.Snooze(SECOND, "a\0b\ud800"),
    ],
    ids=lambda error: type.__dict__["__qualname__"].__get__(type(error))[:20].replace("\0", "0"),
)  # fmt: skip
def test_any_error_makes_an_outcome_that_postgres_can_store(error: BaseException) -> None:
    told = json.loads(outcome.raised(1, 2, error, pgsched.Exponential(3), 1))
    assert told["outcome"] in ("retry", "cancelled", "snooze")
    assert "\0" not in "".join(map(str, told.values())) and len(told.get("error_type", "")) < 300
    json.dumps(told).encode()
    "".join(map(str, told.values())).encode()
