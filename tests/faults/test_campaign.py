"""The campaign of `make faults`, in its short form."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from faults.campaign import Campaign
from harness.server import Server

pytestmark = [pytest.mark.one_server, pytest.mark.faults]


def test_no_job_is_lost_or_runs_twice_at_once_whatever_fails(server: Server, tmp_path: Path) -> None:
    seed = int(os.environ.get("PGSCHED_TEST_SEED") or random.randrange(2**32))
    print(f"PGSCHED_TEST_SEED={seed} draws the same faults again")
    report = Campaign(tmp_path, seconds=24.0, jobs=2_000, seed=seed, every_s=0.6).run()
    print(report)
    assert report.violations == [], f"seed {seed}"
    assert len(report.faults) >= 3 and report.jobs >= 2_000
    assert report.runs
