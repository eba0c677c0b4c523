"""What a leader does with a schedule that cannot be planned."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pgsched.planning import step

NOW = datetime(2026, 12, 1, tzinfo=UTC)


def row(**fields: Any) -> dict[str, Any]:
    whole = dict.fromkeys(
        ("anchor", "starts_at", "ends_at", "window_s", "next_tick_at", "next_nominal", "plan_after", "base_nominal", "zone_data")
    )
    return whole | {
        "id": 1, "app": "a", "name": "s", "version": 1, "cron": "0 9 * * *", "every_s": None, "timezone": "UTC", "jitter_s": 0,
        "catch_up": "none", "limit": 100, "base_at": "2026-11-30T00:00:00+00:00",
    } | fields  # fmt: skip


def test_a_row_that_cannot_be_read_has_that_as_its_problem_and_its_stored_tick_is_made() -> None:
    entry = step(row(starts_at="0001-01-01 04:00:00 BC", plan_after="2026-11-30T00:00:00+00:00"), NOW, "2025b")
    assert entry is not None
    assert entry["ticks"] == [] and "it cannot be planned: ValueError" in entry["problem"]
    entry = step(row(starts_at="0001-01-01 04:00:00 BC", next_tick_at="2026-11-30T09:00:00+00:00"), NOW, "2025b")
    assert entry is not None
    assert (entry["ticks"], entry["base_at"]) == (["2026-11-30T09:00:00+00:00"], "2026-11-30T09:00:00+00:00")
    assert "next_at" not in entry and "it cannot be planned" in entry["problem"]


def test_the_first_moment_there_is_can_be_a_start() -> None:
    entry = step(row(starts_at="0001-01-01T00:00:00+00:00", plan_after="2026-11-30T00:00:00+00:00"), NOW, "2025b")
    assert entry is not None and entry["next_at"] == "2026-11-30T09:00:00+00:00"
