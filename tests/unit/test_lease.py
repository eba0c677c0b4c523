"""The lease's decisions, without a clock and without a server."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pgsched.errors import UsageError
from pgsched.lease import Lease, LeaseTimes, Order, Silence

TIMES = LeaseTimes(timedelta(seconds=20), timedelta(seconds=30))


def test_the_lease_counts_from_the_sending_of_the_last_answered_heartbeat() -> None:
    lease = Lease(TIMES, 100)
    assert lease.order(119.9) is Order.WORK
    assert lease.order(120) is Order.STOP
    lease.answered(110)
    assert (lease.order(129.9), lease.order(130), lease.order(140)) == (Order.WORK, Order.STOP, Order.DIE)


def test_an_answer_that_comes_late_to_an_old_heartbeat_does_not_shorten_the_lease() -> None:
    lease = Lease(TIMES, 100)
    lease.answered(110)
    lease.answered(105)
    assert lease.good_until() == 130


def test_a_jump_of_the_clock_counts_as_expiry() -> None:
    lease = Lease(TIMES, 100)
    assert lease.order(100 + 600) is Order.DIE, "after ten minutes asleep nothing may run"


def test_the_times_are_in_order_and_a_rescuer_waits_longer_than_the_worker_lives() -> None:
    assert TIMES.client < TIMES.kill < TIMES.rescue
    assert abs(TIMES.heartbeat * 3 - TIMES.client) < timedelta(milliseconds=1)
    for client, kill in ((20, 20), (30, 20), (0, 20)):
        with pytest.raises(UsageError, match="client must be at least 1 s, and less than kill"):
            LeaseTimes(timedelta(seconds=client), timedelta(seconds=kill))


def test_silence_must_be_unbroken() -> None:
    silence = Silence()
    assert silence.look(0, [(1, 0, 30.0)]) == []
    assert silence.look(29, [(1, 0, 30.0)]) == []
    assert silence.look(29.5, []) == [], "its lock was held: it lives"
    assert silence.look(31, [(1, 0, 30.0)]) == []
    assert silence.look(61, [(1, 0, 30.0)]) == [(1, 0, 30)]


def test_another_generation_begins_the_silence_anew() -> None:
    silence = Silence()
    silence.look(0, [(1, 0, 30.0), (2, None, 60.0)])
    assert silence.look(40, [(1, 1, 30.0), (2, None, 60.0)]) == []
    assert silence.look(70, [(1, 1, 30.0), (2, None, 60.0)]) == [(1, 1, 30), (2, None, 70)]
