"""Leaders behind real links that are cut: never do two of them believe that they lead, and the standby takes over in time.

Short form every day, one round of each kind of cut; PGSCHED_CAMPAIGN=1 runs five of each. Skipped, with the reason, where no
network namespaces can be made.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.believing import Pair, pair, together
from harness.network import Link
from harness.server import Server

from pgsched.lease import now

ROUNDS = 5 if os.environ.get("PGSCHED_CAMPAIGN") else 1
IN_TIME_S = 2 + 2 + 1 + 1
"""A statement (2 s), the silence after it (2 s), the standby's next try (1 s), and a second for a busy machine."""

CUTS = ("both directions", "what the leader sends", "what the leader is sent", "flapping, then both")

pytestmark = [pytest.mark.one_server, pytest.mark.faults]


@pytest.fixture
def nodes(server: Server, tmp_path: Path) -> Iterator[Pair]:
    with pair(server, tmp_path) as made:
        yield made


@pytest.mark.campaign
def test_a_leader_that_is_cut_off_stops_believing_before_the_standby_leads(nodes: Pair) -> None:
    figures: dict[str, list[float]] = {what: [] for what in (*CUTS, "between the two beliefs")}
    for what in CUTS * ROUNDS:
        took, between = cut_off(nodes, what)
        figures[what].append(took)
        figures["between the two beliefs"].append(between)
    time.sleep(1.5)  # what they believe after the last link is good again counts too
    assert together(nodes.nodes) == []
    for name, times in figures.items():
        least, median, most = min(times), statistics.median(times), max(times)
        print(f"{name}: {least:.2f} / {median:.2f} / {most:.2f} s (least, median, most of {len(times)})")


def test_a_leader_that_hangs_is_ended_by_the_server_and_stands_by_when_it_goes_on(nodes: Pair) -> None:
    old, standby = nodes.split()
    began = now()
    old.process.send_signal(signal.SIGSTOP)  # its kernel still answers for it: only the silence shows
    try:
        nodes.wait("the standby leads", lambda: standby.began_after(began) is not None)
    finally:
        old.process.send_signal(signal.SIGCONT)
    led_at = standby.began_after(began)
    assert led_at is not None and led_at - began <= IN_TIME_S, f"the standby led {(led_at or 0) - began:.2f} s after"
    nodes.wait(
        "the old one stands by", lambda: nodes.standing() == {"prod-1", "prod-2"} and nodes.leader() == standby.name
    )
    assert [belief.asked < led_at for belief in old.beliefs()] == [True]


def cut_off(nodes: Pair, what: str) -> tuple[float, float]:
    """One round: how long after the cut the standby led, and how long before that the old leader had stopped believing."""
    nodes.split()
    time.sleep(random.uniform(0, 1.2))  # so that the cut comes anywhere in a round of theirs
    old, standby = nodes.split()
    began = now()
    cut(old.link, what)
    cut_at = now()
    nodes.wait(f"{standby.name} leads ({what})", lambda: standby.began_after(began) is not None)
    led_at = standby.began_after(began)
    assert led_at is not None
    between = led_at - old.believed_before(led_at)
    assert together(nodes.nodes) == [] and between > 0, f"{what}: two believed for {-between:.2f} s"
    assert led_at - cut_at <= IN_TIME_S, f"{what}: the standby led {led_at - cut_at:.2f} s after the cut"
    old.link.restore()
    nodes.wait(f"{old.name} stands by", lambda: old.name in nodes.standing() and nodes.leader() == standby.name)
    return max(0.0, led_at - cut_at), between  # (a link that flaps may have cost it the leadership before)


def cut(link: Link, what: str) -> None:
    if what == "what the leader sends":
        link.cut(incoming=False)
    elif what == "what the leader is sent":
        link.cut(outgoing=False)
    else:
        if what.startswith("flapping"):
            link.flap(4)
        link.cut()
