"""What a supervisor says of its workers' health, over HTTP and by a file."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from harness import apps
from harness.running import Supervised, make_trace, supervised, wait_until

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.one_server


@dataclass
class Watched:
    """A supervisor, and both ways to ask for its health."""

    supervisor: Supervised
    file: Path
    port: int

    def ask(self, method: str = "GET") -> tuple[int, dict[str, Any]]:
        """Status and body; 0 where nobody answers."""
        asking = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            with contextlib.closing(asking):
                asking.request(method, "/healthz")
                answer = asking.getresponse()
                text = answer.read()
                return answer.status, json.loads(text) if text else {}
        except OSError:
            return 0, {}

    @property
    def healthy(self) -> bool:
        """What it says. Both ways must agree within a moment."""
        deadline = time.monotonic() + 5
        while True:
            if (says := self.ask()[0] == 200) == self.file.exists():
                return says
            assert time.monotonic() < deadline, "the port and the file contradict each other"
            time.sleep(0.02)


@pytest.fixture
def traced(dsn: str) -> Iterator[None]:
    make_trace(dsn)
    apps.app.use(dsn)
    yield
    apps.app.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextlib.contextmanager
def watched(dsn: str, folder: Path, *options: str) -> Iterator[Watched]:
    file, port = folder / "health", free_port()
    with supervised(dsn, "--health-file", str(file), "--health-port", str(port), *options) as supervisor:
        yield Watched(supervisor, file, port)


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_it_is_healthy_when_every_worker_is_open_and_no_sooner(dsn: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PGSCHED_TEST_OPENING", "3")
    file = tmp_path / "health"
    file.write_text("left by one that was killed")
    with watched(dsn, tmp_path, "--processes", "2") as it:
        until(lambda: it.ask()[0], "it must answer while it starts")
        status, body = it.ask()
        assert (status, body["healthy"]) == (503, False)
        assert not file.exists()
        wait_until(dsn, "(select count(*) from pgsched.worker where attached_at < clock_timestamp() - interval '1 s') = 2")
        assert not it.healthy, "the lifespans are still opening"
        assert it.ask()[1]["why"] == "0 of 2 workers are open for work"
        until(lambda: it.healthy, "it never was healthy")
        status, body = it.ask()
        assert (status, body["healthy"], body["why"], body["workers"], body["wanted"]) == (200, True, None, 2, 2)
        with psycopg.connect(dsn) as connection:
            ids = connection.execute("select array_agg(id order by id) from pgsched.workers").fetchone()
        assert ids is not None and sorted(lease["worker"] for lease in body["leases"]) == ids[0]
        assert all(lease["proved_s_ago"] < lease["client_s"] == 20 for lease in body["leases"])
        assert it.ask("HEAD") == (200, {})
        written = file.read_text()
        assert written.count("\n") == 1 and json.loads(written)["workers"] == 2
        until(lambda: file.exists() and file.read_text() != written, "the file is written again and again")
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["health"]


def test_a_drain_is_healthy_and_the_end_is_not(traced: None, dsn: str, tmp_path: Path) -> None:
    with watched(dsn, tmp_path) as it:
        until(lambda: it.healthy, "it never was healthy")
        apps.sleeps.enqueue(2.5)
        wait_until(dsn, "exists (select from trace)")
        it.supervisor.process.send_signal(signal.SIGTERM)
        wait_until(dsn, "exists (select from trace where clock_timestamp() > at + interval '1.5 s')")
        assert it.healthy, "a probe must not kill what ends its jobs"
        assert it.supervisor.process.wait(30) == 0
        assert not it.file.exists()
        assert it.ask()[0] == 0
        assert list(tmp_path.iterdir()) == []


def test_a_worker_that_was_killed_is_missing_until_another_is_open(dsn: str, tmp_path: Path, monkeypatch: Any) -> None:
    with watched(dsn, tmp_path, "--processes", "2") as it:
        until(lambda: it.healthy, "it never was healthy")
        os.kill(it.supervisor.worker(), signal.SIGKILL)
        until(lambda: not it.healthy, "one is missing")
        assert it.ask()[1]["workers"] == 1
        until(lambda: it.healthy, "another has taken its place")


@pytest.mark.faults
def test_a_worker_that_is_stopped_or_whose_loop_is_blocked_is_not_healthy(traced: None, dsn: str, tmp_path: Path) -> None:
    with watched(dsn, tmp_path, "--lease", "3", "--kill", "30") as it:
        until(lambda: it.healthy, "it never was healthy")
        victim = it.supervisor.worker()
        os.kill(victim, signal.SIGSTOP)
        until(lambda: not it.healthy, "it stands still")
        assert re.search(r"its event loop has not moved|its lease was proved", it.ask()[1]["why"])
        os.kill(victim, signal.SIGCONT)
        until(lambda: it.healthy, "it goes on")
        apps.blocks_the_loop.enqueue(2.5)
        until(lambda: not it.healthy, "its loop is blocked")
        assert "its event loop has not moved" in it.ask()[1]["why"]
        until(lambda: it.healthy, "it goes on")
        assert it.supervisor.worker() == victim


@pytest.mark.faults
def test_without_the_database_it_is_healthy_for_client_and_again_when_it_is_back(dsn: str, tmp_path: Path, server: Any) -> None:
    with watched(dsn, tmp_path, "--lease", "2", "--kill", "30") as it:
        until(lambda: it.healthy, "it never was healthy")
        server.crash()
        try:
            assert it.healthy, "the lease is still good"
            until(lambda: not it.healthy, "the lease is not good any more")
            assert "its lease was proved" in it.ask()[1]["why"]
        finally:
            server.restart()
        until(lambda: it.healthy, "the lease is good again")


def probe(file: Path, setting: str = "-mmin -1") -> int:
    """The documented probe, with another age where the test cannot wait for a minute."""
    text = re.search(r"test -n .*", (ROOT / "docs/embedding.md").read_text())
    assert text is not None
    line = text.group().replace("/run/pgsched/health", str(file))
    assert "-mmin -1" in line
    return subprocess.run(["sh", "-c", line.replace("-mmin -1", setting)], check=False, capture_output=True).returncode


@pytest.mark.faults
def test_what_a_killed_or_frozen_supervisor_leaves_behind_grows_old_and_the_documented_probe_says_so(dsn: str, tmp_path: Path) -> None:
    with watched(dsn, tmp_path) as it:
        assert probe(it.file) == 1
        until(lambda: it.healthy, "it never was healthy")
        assert probe(it.file) == 0
        it.supervisor.process.send_signal(signal.SIGSTOP)
        try:
            assert it.ask()[0] == 0, "a stopped process does not answer"
            time.sleep(3)
            assert probe(it.file, "-mmin -0.05") == 1
        finally:
            it.supervisor.process.send_signal(signal.SIGCONT)
        until(lambda: probe(it.file, "-mmin -0.05") == 0, "it goes on")
        it.supervisor.process.kill()
        it.supervisor.process.wait()
        assert it.file.exists(), "nobody was left to remove it"
        hour_ago = time.time() - 3600
        os.utime(it.file, (hour_ago, hour_ago))
        assert probe(it.file) == 1
        assert it.ask()[0] == 0


def refused(dsn: str, *options: str) -> str:
    """What `pgsched worker` says of these options before it starts anything."""
    ran = subprocess.run(
        [sys.executable, "-m", "pgsched", "worker", "harness.apps:app", *options],
        env=os.environ | {"PGSCHED_DSN": dsn, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ran.returncode == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    assert "serves" not in ran.stderr, "no worker may have started"
    return ran.stderr


def test_a_port_that_is_taken_and_a_file_that_cannot_be_are_said_at_the_start(dsn: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        assert f"127.0.0.1:{port} cannot be opened: Address already in use" in refused(dsn, "--health-port", str(port))
    for address in ("http", "70000", ":80", "-1", ""):
        said = refused(dsn, f"--health-port={address}")
        assert f'the health port is "{address}": write a number' in said
    for file in (tmp_path / "no" / "health", tmp_path, Path("/proc/health")):
        assert f'the health file "{file}" cannot be written' in refused(dsn, "--health-file", str(file))
    assert 'the health file "." cannot be written' in refused(dsn, "--health-file", "")


def test_another_address_may_be_named_and_one_that_says_nothing_keeps_nobody_waiting(dsn: str) -> None:
    port = free_port()
    with supervised(dsn, "--health-port", f"[::1]:{port}"):

        def connected() -> socket.socket | None:
            with contextlib.suppress(OSError):
                return socket.create_connection(("::1", port), timeout=15)
            return None

        until(lambda: (found := connected()) and not found.close(), "nobody listens")
        with connected() as silent, connected() as asking:  # type: ignore[union-attr]
            assert silent is not None and asking is not None
            asking.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert asking.recv(100).startswith(b"HTTP/1.0 ")
            assert silent.recv(100) == b"", "whoever says nothing is hung up on"
