"""How a claim ended, as `finish` takes it: the JSON text of one result."""

from __future__ import annotations

import json
import traceback
from typing import Any

from pgsched.retry import Policy, Ruling, ruling
from pgsched.returned import Returned
from pgsched.verdicts import Cancel, Retry, Snooze, span_of

_TRACEBACK_CHARS = 20_000
_ERROR_CHARS = 10_000
_TYPE_CHARS = 200
_REASON_CHARS = 1000


def succeeded(job_id: int, claim_id: int, returned: Returned, result: Any, lenient: bool = False) -> str:
    """The handler has returned `result`; `lenient`: also where its subtasks fail. Raises `ResultError`."""
    more = ',"lenient":true' if lenient else ""
    if result is None:
        return f'{{"job_id":{job_id},"claim_id":{claim_id},"outcome":"succeeded"{more}}}'
    return f'{{"job_id":{job_id},"claim_id":{claim_id},"outcome":"succeeded"{more},"result":{returned.dump(result)}}}'


def raised(
    job_id: int,
    claim_id: int,
    error: BaseException,
    retry: Policy | None,
    attempt: int,
    *,
    final: bool = False,
    conflict: bool = False,
) -> str:
    """The handler has raised `error` in attempt number `attempt`; `final`: once more would change nothing; `conflict`: its
    transaction met another's."""
    if isinstance(error, Cancel):
        return cancelled(job_id, claim_id, _reason(error))
    if isinstance(error, Snooze) and (wait := span_of(error)) is not None:
        return json.dumps(_of(job_id, claim_id, "snooze") | {"after_s": wait.total_seconds(), "reason": _reason(error)})
    asks = isinstance(error, Retry)
    own = None if retry is None else retry.as_data()
    said = Ruling(policy=own) if asks or conflict or final else ruling(retry, error, attempt)
    kind = "failed" if final or said.never else "conflict" if conflict else "retry"
    try:
        frames = "".join(traceback.format_exception(error))
    except BaseException:  # (an exception's own code may raise anything)
        frames = ""
    frames += f"\n({said.complaint})" if said.complaint else ""
    fields = _of(job_id, claim_id, kind) | {
        "error_type": _type_of(error),
        "error": _clean(_text(error), _ERROR_CHARS),
        "traceback": _clean(frames, _TRACEBACK_CHARS),
    }
    if kind != "failed" and said.policy is not None:
        fields["policy"] = said.policy
    if kind == "retry" and (after := span_of(error) if isinstance(error, Retry) else said.after) is not None:
        fields["after_s"] = after.total_seconds()
    return json.dumps(fields)


def failed(job_id: int, claim_id: int, reason: str) -> str:
    """The job ends here, for this reason."""
    return json.dumps(
        {"job_id": job_id, "claim_id": claim_id, "outcome": "failed", "reason": _clean(reason, _ERROR_CHARS)}
    )


def given_back(job_id: int, claim_id: int, reason: str, *, begun: bool = True) -> str:
    """The job goes back to ready, uncharged; where its handler had not begun, its expiry still holds."""
    return json.dumps(
        {"job_id": job_id, "claim_id": claim_id, "outcome": "give_back", "reason": reason, "begun": begun}
    )


def cancelled(job_id: int, claim_id: int, reason: str) -> str:
    """The handler of a cancelled job has ended."""
    return json.dumps({"job_id": job_id, "claim_id": claim_id, "outcome": "cancelled", "reason": reason})


def broken(job_id: int, claim_id: int, reason: str, last_session: int) -> str:
    """The connection of its transaction ended, when `last_session` was the number of the worker's newest work session."""
    return json.dumps(
        {
            "job_id": job_id,
            "claim_id": claim_id,
            "outcome": "broken",
            "reason": _clean(reason, _ERROR_CHARS),
            "last_session": last_session,
        }
    )


def storable(text: str) -> str:
    """What Postgres can store of a text: no NUL, no lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _clean(text: str, limit: int) -> str:
    """What can be stored of a text: its end where it is too long."""
    text = storable(text)
    return text if len(text) <= limit else f"[{len(text) - limit} characters left out] ...{text[-limit:]}"


def _of(job_id: int, claim_id: int, outcome: str) -> dict[str, Any]:
    return {"job_id": job_id, "claim_id": claim_id, "outcome": outcome}


def _reason(verdict: Cancel | Snooze) -> str:
    """What the handler said, its beginning where it is long."""
    return storable(_text(verdict))[:_REASON_CHARS]


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # (an exception's own code may raise anything)
        return "its text cannot be made"


def _type_of(error: BaseException) -> str:
    """The name of its class, as the class itself has it, whatever a class of classes says."""
    name: str = type.__dict__["__qualname__"].__get__(type(error))
    return _clean(name, _TYPE_CHARS)
