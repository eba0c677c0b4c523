"""A workflow as a part of another: its jobs, as enqueue_workflow takes them, under other names and after other jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pgsched.edges import Edge, Rule, as_json
from pgsched.errors import UsageError

Fields = dict[str, Any]
"""A job as enqueue_workflow takes it."""


def rule_fields(rule: Rule | None, at_least: int | None) -> Fields:
    """How edges decide together, as a job's fields say it."""
    return {"rule": "at_least", "rule_n": at_least} if at_least is not None else {"rule": rule or "all"}


def moved(job: Fields, prefix: str, edges: Sequence[Edge], rule: Rule | None, at_least: int | None) -> Fields:
    """A job of the inner workflow in the outer one. Where it waits for none of the inner one's, it waits for `edges`."""
    old = job.get("depends_on", [])
    inner = [edge for edge in old if "name" in edge]
    depends_on = [edge | {"name": prefix + edge["name"]} if "name" in edge else edge for edge in old]
    job = job | {"name": prefix + job["name"]}
    if edges and not inner:
        ours = rule_fields(rule, at_least)
        if old and ours != rule_fields(job.get("rule"), job.get("rule_n")):
            raise UsageError(f'a rule was given twice: "{job["name"]}" waits for other jobs already, by another rule')
        depends_on = _together(depends_on, as_json(edges, {}), job["name"])
        job |= ours
    return job | {"depends_on": depends_on} if depends_on else job


def _together(own: list[Fields], ours: list[Fields], name: str) -> list[Fields]:
    if doubled := [edge["job"] for edge in ours if edge.get("job") in {e.get("job") for e in own if "job" in e}]:
        raise UsageError(f'"{name}" waits for job {doubled[0]} twice')
    return own + ours


def ended_well(jobs: Sequence[Fields]) -> list[str]:
    """Whose success means that all has gone well: jobs that run where nothing fails, but for those that another such job needs.

    `jobs` are in an order in which each comes after what it waits for, unless that is waited for by its failure.
    """
    runs: dict[str, bool] = {}
    for job in jobs:
        runs[job["name"]] = _runs(job, runs)
    needed = {
        edge["name"]
        for job in jobs
        if runs[job["name"]] and job.get("rule", "all") == "all"
        for edge in job.get("depends_on", [])
        if "name" in edge and edge["on"] == "success"
    }
    return [job["name"] for job in jobs if runs[job["name"]] and job["name"] not in needed]


def _runs(job: Fields, runs: dict[str, bool]) -> bool:
    """Whether a job runs where nothing fails."""
    met = [
        edge["on"] == "done" or (edge["on"] == "success" and ("job" in edge or runs.get(edge["name"], False)))
        for edge in job.get("depends_on", [])
    ]
    rule = job.get("rule", "all")
    if not met or rule == "none_failed":
        return True
    return all(met) if rule == "all" else sum(met) >= job.get("rule_n", 1)
