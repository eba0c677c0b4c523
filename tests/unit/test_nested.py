"""What a workflow within another stands for: that all went well in there, judged by what random graphs really do."""

from __future__ import annotations

import random

from harness.graphs import Node, as_jobs, random_graph, verdict

from pgsched.nested import ended_well


def end(nodes: list[Node], failing: set[int]) -> list[str]:
    """How each job ends where these fail (if they run), and all others succeed."""
    states: list[str | None] = []
    for i, node in enumerate(nodes):
        said = verdict(node, [states[on] for on, _ in node.edges])
        states.append(("failed" if i in failing else "succeeded") if said == "met" else said)
    return [str(state) for state in states]


def test_all_went_well_exactly_where_nothing_that_runs_has_failed() -> None:
    spoilt = 0
    for seed in range(300):
        rng = random.Random(seed)
        nodes = random_graph(rng, 30)
        well = [int(name) for name in ended_well(as_jobs(nodes))]
        calm = end(nodes, set())
        assert [calm[i] for i in well] == ["succeeded"] * len(well) and well, f"seed {seed}"
        for i in [i for i, state in enumerate(calm) if state == "succeeded"]:
            after = end(nodes, {i})
            assert any(after[one] != "succeeded" for one in well), f"seed {seed}: job {i} fails, and nobody notices"
            spoilt += 1
    assert spoilt > 1000


def test_no_more_is_waited_for_than_is_needed() -> None:
    jobs = [
        {"name": "a"},
        {"name": "b", "depends_on": [{"name": "a", "on": "success"}], "rule": "all"},
        {"name": "c", "depends_on": [{"name": "b", "on": "success"}]},
        {"name": "hook", "depends_on": [{"name": "c", "on": "failure"}], "rule": "any"},
        {"name": "after the hook", "depends_on": [{"name": "hook", "on": "success"}], "rule": "all"},
        {"name": "tidy", "depends_on": [{"name": "a", "on": "done"}], "rule": "all"},
    ]
    assert ended_well(jobs) == ["c", "tidy"]
