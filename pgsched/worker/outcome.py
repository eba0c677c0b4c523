"""How a claim ended, as `finish` takes it: the JSON text of one result."""

from __future__ import annotations

import json
import traceback
from datetime import timedelta
from typing import Any

from pgsched.retry import Exponential
from pgsched.returned import Returned

_TRACEBACK_CHARS = 20_000
_ERROR_CHARS = 10_000


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
    retry: Exponential | None,
    *,
    final: bool = False,
    conflict: bool = False,
) -> str:
    """The handler has raised `error`; `final`: once more would change nothing; `conflict`: its transaction met another's."""
    try:
        words, frames = str(error), "".join(traceback.format_exception(error))
    except BaseException:  # (an exception's own code may raise anything)
        words, frames = "its text cannot be made", ""
    fields: dict[str, Any] = {
        "job_id": job_id,
        "claim_id": claim_id,
        "outcome": "failed" if final else "conflict" if conflict else "retry",
        "error_type": type(error).__qualname__,
        "error": _clean(words, _ERROR_CHARS),
        "traceback": _clean(frames, _TRACEBACK_CHARS),
    }
    if retry is not None:
        fields |= {"first_s": _seconds(retry.first), "cap_s": _seconds(retry.cap)}
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


def _seconds(span: timedelta) -> float:
    return span.total_seconds()
