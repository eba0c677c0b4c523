"""What really ran, by the handlers' own notes (`harness.faulty`), laid beside what pgsched's tables say of it.

The notes are the witness and the tables are the accused: where they differ, it is a violation.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg


@dataclass(slots=True)
class Execution:
    """One run of a handler: `how` it ended is done, stopped, or cut short (its process ended, or it still runs).

    `ended` is its last note; where it was cut short, the last sign of life of its process if that is later.
    """

    job: int
    fence: int
    process: str
    began: float
    ended: float
    how: str = "cut short"


def executions(folder: Path) -> dict[int, list[Execution]]:
    """Every execution that was noted, by job, in the order of their fences."""
    found: dict[tuple[int, int, str], Execution] = {}
    for file in folder.glob("*.notes"):
        lives = file.with_suffix(".lives").read_bytes()
        lived = struct.unpack("d", lives)[0] if lives else 0.0
        mine: list[Execution] = []
        for line in file.read_text().split("\n")[:-1]:  # (behind the last end of line is what is being written)
            job, fence, what, at = line.split()
            key = int(job), int(fence), file.stem
            if key not in found:
                found[key] = Execution(*key, began=float(at), ended=float(at))
                mine.append(found[key])
            found[key].ended = float(at)
            if what in ("done", "stopped"):
                found[key].how = what
        for each in mine:
            if each.how == "cut short":
                each.ended = max(each.ended, lived)
    by_job: dict[int, list[Execution]] = defaultdict(list)
    for each in sorted(found.values(), key=lambda each: (each.job, each.fence, each.began)):
        by_job[each.job].append(each)
    return dict(by_job)


def overlap(runs: Iterable[Execution]) -> float:
    """For how long an earlier claim of a job was still running when a later one had begun: negative, there was a gap."""
    ordered = list(runs)
    pairs = [(one, two) for i, one in enumerate(ordered) for two in ordered[i + 1 :]]
    return max((one.ended - two.began for one, two in pairs), default=float("-inf"))


def worst_overlap(by_job: dict[int, list[Execution]]) -> float:
    """The worst of all jobs."""
    return max(map(overlap, by_job.values()), default=float("-inf"))


def violations(connection: psycopg.Connection[Any], folder: Path, promised: Iterable[int]) -> list[str]:
    """All that must not be: by the notes in `folder`, and by the tables' word on the jobs whose enqueuing was acknowledged.

    Each job ended once, as succeeded; no two executions of one job overlap; the claim that ended it is the newest that ever
    began, and its handler has noted that it came to its end.
    """
    runs = executions(folder)
    found = []
    rows = connection.execute(
        "select j.id, f.state, f.claim_id, (select count(*) from pgsched.attempt_log a where (a.job_id, a.claim_id) = (f.job_id, f.claim_id)) "
        "from pgsched.job j left join pgsched.finished f on f.job_id = j.id where j.task = 'noted'"
    ).fetchall()
    found += [f"job {job} was promised and is not there" for job in sorted(set(promised) - {row[0] for row in rows})]
    for job, state, claim, ended_otherwise in rows:
        if state != "succeeded":
            found.append(f"job {job} ended as {state}")
            continue
        if ended_otherwise:
            found.append(f"job {job}: its claim {claim} ended twice")
        mine = runs.get(job, [])
        newest = max((each.fence for each in mine), default=None)
        if newest != claim:
            found.append(f"job {job}: claim {claim} was accepted as its end, and the newest that began is {newest}")
        if not any(each.fence == claim and each.how == "done" for each in mine):
            found.append(f"job {job}: claim {claim} counts as succeeded, and its handler never came to its end")
    for job, mine in runs.items():
        if (seconds := overlap(mine)) >= 0:
            found.append(f"job {job}: two executions ran at one time for {seconds:.3f} s: {mine}")
        if len({each.fence for each in mine}) < len(mine):
            found.append(f"job {job}: one claim began twice: {mine}")
    return found
