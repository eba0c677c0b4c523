"""What happens after a failed attempt: policies as data, and which one holds for an error.

The wait itself is computed in Postgres (function `backoff`, which decides); `policy.wait` is the same computation, to look at.
It is the same number to the microsecond on every machine: spans are whole microseconds, and nothing but multiplications and
additions of IEEE doubles is done with them, bounded before anything could overflow.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Literal

from pgsched.errors import TaskError, UsageError

MOST_ATTEMPTS = 2_147_483_646
MOST_WAIT = timedelta(days=36525)
"""The longest span that a wait can have: 100 years."""

Jitter = Literal["none", "full", "equal"]

_MICROSECOND = timedelta(microseconds=1)
_FACTORS = 1.01, 1000.0
_MOST_POWER = 1e100


@dataclass(frozen=True, slots=True)
class Never:
    """No further attempt, whatever is left of the budget: `pgsched.never`."""

    def __repr__(self) -> str:
        return "pgsched.never"


never = Never()
"""For `on=`: an error after which there is no further attempt."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Wait `after` after each failed attempt. (No jitter unless it is asked for: the number is what was asked for.)

    The other values, and what is raised, as in `Exponential`.
    """

    max_attempts: int | None = None
    _: KW_ONLY
    after: timedelta
    jitter: Jitter = "none"
    max_age: timedelta | None = None
    on: On = field(default=None, hash=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        _check_span(self, "after", self.after)
        _check_rest(self)

    def wait(self, attempt: int, *, random: float | None = None) -> timedelta:
        """As `Exponential.wait`."""
        return _wait(self.as_data(), attempt, random)

    def as_data(self) -> dict[str, Any]:
        """As the SQL function backoff takes it."""
        return {"kind": "fixed", "after_s": self.after.total_seconds()} | _rest(self)


@dataclass(frozen=True, slots=True)
class Linear:
    """Wait `first` after the first failed attempt, `step` longer after each further one (None: as much as `first`), never longer
    than `cap`.

    The other values, and what is raised, as in `Exponential`.
    """

    max_attempts: int | None = None
    _: KW_ONLY
    first: timedelta = timedelta(seconds=1)
    step: timedelta | None = None
    cap: timedelta = timedelta(hours=1)
    jitter: Jitter = "equal"
    max_age: timedelta | None = None
    on: On = field(default=None, hash=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.step is not None:
            _check_span(self, "step", self.step)
        _check_cap(self)
        _check_rest(self)

    def wait(self, attempt: int, *, random: float | None = None) -> timedelta:
        """As `Exponential.wait`."""
        return _wait(self.as_data(), attempt, random)

    def as_data(self) -> dict[str, Any]:
        """As the SQL function backoff takes it."""
        step = self.first if self.step is None else self.step
        spans = {"first_s": self.first, "step_s": step, "cap_s": self.cap}
        return {"kind": "linear"} | {name: span.total_seconds() for name, span in spans.items()} | _rest(self)


@dataclass(frozen=True, slots=True)
class Exponential:
    """Wait `first` after the first failed attempt, `factor` times as long after each further one, never longer than `cap`.

    max_attempts  counts all attempts, the first one too; None: as many as `max_age` allows
    factor        1.01 to 1000
    jitter        what becomes of a wait w: "equal" takes one between w/2 and w, so that jobs that failed together do not come
                  back together, and none at once; "full" one between 0 and w; "none" w itself
    max_age       no further attempt is due later than so long after the job was enqueued, or after its `run_at`: where the
                  next one would be, the job ends as failed and says so
    on            by error: `{ConnectionError: pgsched.Fixed(after=...), ValueError: pgsched.never}` (the nearest class of the
                  error counts), or a function `(error, attempt)` that answers a policy, a timedelta, `pgsched.never`, or None for
                  this policy itself. A `max_attempts` or `max_age` of theirs can only be less than this policy's

    A span is at most 100 years. Raises `TaskError` for a value that cannot be meant.
    """

    max_attempts: int | None = None
    _: KW_ONLY
    first: timedelta = timedelta(seconds=1)
    factor: float = 2
    cap: timedelta = timedelta(hours=1)
    jitter: Jitter = "equal"
    max_age: timedelta | None = None
    on: On = field(default=None, hash=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        low, high = _FACTORS
        if isinstance(self.factor, bool) or not isinstance(self.factor, (int, float)) or not low <= self.factor <= high:
            raise TaskError(
                f"retry: factor is {self.factor!r}: it is a number from {low} to {high:g} (for waits all alike: pgsched.Fixed)"
            )
        _check_cap(self)
        _check_rest(self)

    def wait(self, attempt: int, *, random: float | None = None) -> timedelta:
        """How long the wait after failed attempt number `attempt` (from 1) is.

        Before jitter; with `random`, a number from 0 to below 1, after it. Any attempt number will do: the wait is finite, never
        negative, and does not fall as the number grows. Raises `UsageError` for what is no such number.
        """
        return _wait(self.as_data(), attempt, random)

    def as_data(self) -> dict[str, Any]:
        """As the SQL function backoff takes it."""
        spans = {"first_s": self.first.total_seconds(), "factor": float(self.factor), "cap_s": self.cap.total_seconds()}
        return {"kind": "exponential"} | spans | _rest(self)


Policy = Fixed | Linear | Exponential
Answer = Policy | Never | timedelta
On = Mapping[type[BaseException], Answer] | Callable[[Any, int], Answer | None] | None


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a policy says to one error: never again; or `policy` (the default where it is None), with a wait of `after` instead of
    its own where that is set. `complaint`: what was wrong with its function, for which its own wait stands in."""

    never: bool = False
    policy: Mapping[str, Any] | None = None
    after: timedelta | None = None
    complaint: str | None = None


def ruling(policy: Policy | None, error: BaseException, attempt: int) -> Ruling:
    """What holds after this error of attempt number `attempt`. It raises nothing, whatever the user's function does."""
    if policy is None:
        return Ruling()
    own = policy.as_data()
    complaint = None
    try:
        answer = _asked(policy.on, error, attempt)
    except BaseException as raised:  # (a user's code; its job shall not be lost by it)
        answer, complaint = None, f"its function for retries raised {type(raised).__name__}"
    if isinstance(answer, timedelta) and timedelta(0) <= answer <= MOST_WAIT:
        return Ruling(policy=own, after=answer)
    if isinstance(answer, Never):
        return Ruling(never=True, policy=own)
    if isinstance(answer, (Fixed, Linear, Exponential)):
        theirs = answer.as_data()
        if answer.max_attempts is not None:
            theirs["max_attempts"] = answer.max_attempts
        ages = [age.total_seconds() for age in (answer.max_age, policy.max_age) if age is not None]
        return Ruling(policy=theirs | ({"max_age_s": min(ages)} if ages else {}))
    if answer is not None:
        complaint = f"its function for retries answered what is no wait and no policy ({type(answer).__name__})"
    return Ruling(policy=own, complaint=complaint and f"{complaint}: the policy's own wait stands in")


def for_task(policy: object) -> tuple[Policy | None, int | None]:
    """The policy of a task, and the budget of its jobs. Raises `TaskError` where it is none, or has no end."""
    if policy is None:
        return None, None
    if not isinstance(policy, (Fixed, Linear, Exponential)):
        how = (
            "pgsched.Exponential(max_attempts=5, on=that)"
            if callable(policy)
            else "pgsched.Exponential(max_attempts=5)"
        )
        raise TaskError(f"@task: retry is {policy!r:.100}; it must be a policy such as {how}")
    if policy.max_attempts is None and policy.max_age is None:
        raise TaskError(f"@task: its retry policy {policy!r:.200} has no end: give it max_attempts, or max_age")
    return policy, MOST_ATTEMPTS if policy.max_attempts is None else policy.max_attempts


def _asked(on: On, error: BaseException, attempt: int) -> object:
    if on is None:
        return None
    if isinstance(on, Mapping):
        return next((on[cls] for cls in type(error).__mro__ if cls in on), None)
    return on(error, attempt)


# ---- What cannot be meant.


def _check_span(policy: Policy, name: str, span: object) -> None:
    if not isinstance(span, timedelta):
        raise TaskError(f"retry: {name} is {span!r}; it must be a timedelta")
    if not timedelta(0) <= span <= MOST_WAIT:
        raise TaskError(f"retry: {name} is {span}; it must not be negative, nor longer than 100 years")


def _check_cap(policy: Linear | Exponential) -> None:
    _check_span(policy, "first", policy.first)
    _check_span(policy, "cap", policy.cap)
    if policy.cap < policy.first:
        raise TaskError(f"retry: first is {policy.first} and cap is {policy.cap}; cap must not be below first")


def _check_rest(policy: Policy) -> None:
    most = policy.max_attempts
    if most is not None and (isinstance(most, bool) or not isinstance(most, int)):
        raise TaskError(f"retry: max_attempts is {most!r}; it must be a whole number")
    if most is not None and not 1 <= most <= MOST_ATTEMPTS:
        raise TaskError(f"retry: max_attempts is {most}, it must be at least 1, and at most {MOST_ATTEMPTS}")
    if policy.jitter not in ("none", "full", "equal"):
        raise TaskError(f'retry: jitter is {policy.jitter!r}: it is "none", "full" or "equal"')
    if policy.max_age is not None:
        _check_span(policy, "max_age", policy.max_age)
    if isinstance(policy.on, Mapping):
        for kind, answer in policy.on.items():
            _check_answer(policy, kind, answer)
        object.__setattr__(policy, "on", MappingProxyType(dict(policy.on)))  # (as it was when it was checked)
    elif policy.on is not None and (not callable(policy.on) or isinstance(policy.on, type)):
        raise TaskError(
            f"retry: on is {policy.on!r:.80}; it must be a dict of exception classes, or a function (error, attempt)"
        )
    elif inspect.iscoroutinefunction(policy.on):
        raise TaskError("retry: on is a coroutine function; nothing waits there: it must be a plain one")


def _check_answer(policy: Policy, kind: object, answer: object) -> None:
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        raise TaskError(f"retry: on has {kind!r:.80}; its keys must be exception classes")
    if isinstance(answer, timedelta):
        _check_span(policy, f"the wait for {kind.__name__}", answer)
    elif isinstance(answer, (Fixed, Linear, Exponential)):
        most = policy.max_attempts
        if answer.on is not None:
            raise TaskError(f"retry: the policy for {kind.__name__} has an on= itself: name all errors in one")
        if most is not None and answer.max_attempts is not None and answer.max_attempts > most:
            raise TaskError(
                f"retry: max_attempts is {answer.max_attempts} for {kind.__name__}, and {most} for all: the job has no more"
            )
    elif not isinstance(answer, Never):
        raise TaskError(
            f"retry: on has {answer!r:.80} for {kind.__name__}: it is a policy, a timedelta, or pgsched.never"
        )


# ---- The computation, as in sql/functions/backoff.sql.


def _rest(policy: Policy) -> dict[str, Any]:
    age = policy.max_age
    return {"jitter": policy.jitter} | ({} if age is None else {"max_age_s": age.total_seconds()})


def _wait(data: Mapping[str, Any], attempt: int, random: float | None) -> timedelta:
    if isinstance(attempt, bool) or not isinstance(attempt, int):
        raise UsageError(f"wait(): the attempt is {attempt!r}; it must be a whole number")
    if random is not None and not 0 <= random < 1:
        raise UsageError(f"wait(): random is {random!r}; it must be a number from 0 to below 1")
    spans = {name: float(timedelta(seconds=data[name]) // _MICROSECOND) for name in data if name in _SPANS}
    before = max(attempt, 1) - 1
    if data["kind"] == "fixed":
        span = spans["after_s"]
    elif data["kind"] == "linear":
        span = min(spans["cap_s"], spans["first_s"] + spans["step_s"] * float(min(before, 2**62)))
    else:
        span = min(spans["cap_s"], spans["first_s"] * _power(data["factor"], before))
    if random is not None and data["jitter"] == "full":
        span *= random
    elif random is not None and data["jitter"] == "equal":
        span = span / 2 + span / 2 * random
    return timedelta(microseconds=round(span))  # (half to even, as Postgres does)


_SPANS = "after_s", "first_s", "step_s", "cap_s"


def _power(factor: float, n: int) -> float:
    """`factor` to the power of n, at most 1e100, by multiplications alone, whose results no two machines see differently."""
    result = 1.0
    while n > 0 and result < _MOST_POWER:
        if n & 1:
            result = min(result * factor, _MOST_POWER)
        factor = min(factor * factor, _MOST_POWER)
        n >>= 1
    return result
