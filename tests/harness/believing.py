"""A leader in a process of its own, which writes down every 5 ms what it believes: `Node`; a `Pair` of them, and `together` to compare.

A line is "before after term": the times before and after it was asked, by the clock of the whole machine (`pgsched.lease.now`),
and the term, only while the process believes that it leads. So the lines of several processes can be laid side by side.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from harness.network import Link, NoLinksError
from harness.server import Server
from pgsched.leader import Leader
from pgsched.lease import now
from pgsched.migrate import upgrade

EVERY_S = 0.005


@dataclass(frozen=True, slots=True)
class Belief:
    """That the process `name` believed to lead: from the first to the last time that it was seen to, in one term.

    `asked` is when it began to be asked for the last time: earlier than `last` where the process was stopped amid the answer.
    """

    name: str
    term: int
    first: float
    last: float
    asked: float


class Node:
    """A process that stands for leader behind a link."""

    def __init__(self, name: str, link: Link, process: subprocess.Popen[bytes], lines: IO[str]) -> None:
        self.name = name
        self.link = link
        self.process = process
        self._lines = lines
        self._rest = ""
        self._found: list[Belief] = []
        self._goes_on = False

    def beliefs(self) -> list[Belief]:
        """Its beliefs so far, in order. One that broke off and came back in the same term counts as several."""
        *lines, self._rest = (self._rest + self._lines.read()).split("\n")
        for line in lines:
            before, after, *term = line.split()
            if term and self._goes_on and self._found[-1].term == int(term[0]):
                self._found[-1] = replace(self._found[-1], last=float(after), asked=float(before))
            elif term:
                self._found.append(Belief(self.name, int(term[0]), float(before), float(after), float(before)))
            self._goes_on = bool(term)
        return self._found

    def began_after(self, at: float) -> float | None:
        """Since when it believes that it leads, in a belief that began after `at`; None where there is none (yet)."""
        return next((belief.first for belief in self.beliefs() if belief.first > at), None)

    def believed_before(self, at: float) -> float:
        """When it believed for the last time, in a belief that began before `at`."""
        return max(belief.last for belief in self.beliefs() if belief.first < at)

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process.poll() is None


@contextlib.contextmanager
def node(name: str, link: Link, dsn: str, folder: Path) -> Iterator[Node]:
    """A process that stands for leader behind `link`; its log is in `folder` too. It must have lived to the end."""
    file = folder / f"{name}.beliefs"
    file.touch()
    here = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    with (folder / f"{name}.log").open("ab") as log:
        command = [sys.executable, "-m", "harness.believing", dsn, name, str(file)]
        process = link.run(command, env=environment, stderr=log)
    try:
        with file.open() as lines:
            made = Node(name, link, process, lines)
            yield made
        assert made.alive, f"{name} ended by itself:\n{(folder / f'{name}.log').read_text()}"
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True, slots=True)
class Pair:
    """Two nodes behind a link each, and a session of the server's own that sees who leads."""

    nodes: list[Node]
    watch: psycopg.Connection[Any]

    def leader(self) -> str | None:
        """The name of who leads by the server's word."""
        row = self.watch.execute("select name from pgsched.leader").fetchone()
        return None if row is None else row[0]

    def standing(self) -> set[str]:
        """The nodes with a session that is good as far as the server knows, and has stood for leader."""
        rows = self.watch.execute(
            "select substr(application_name, 16) from pg_stat_activity "
            "where application_name like 'pgsched leader %' and query ~ 'lead\\(|leader_beat|stage|rescue|release|schedules' and state = 'idle'"
        )
        return {row[0] for row in rows.fetchall()}

    def split(self) -> tuple[Node, Node]:
        """The leader and the standby, once there are both."""
        self.wait("a leader and a standby", lambda: self.leader() is not None and len(self.standing()) == 2)
        one, other = self.nodes
        return (one, other) if one.name == self.leader() else (other, one)

    def wait(self, what: str, condition: Callable[[], bool], patience_s: float = 20) -> None:
        """Wait until the condition holds; fails after `patience_s`."""
        deadline = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < deadline, f"never: {what}; {self.leader()} leads, {self.standing()} stand"
            time.sleep(0.01)


@contextlib.contextmanager
def pair(server: Server, folder: Path) -> Iterator[Pair]:
    """prod-1, which leads, and prod-2, on a new server like `server`. Skips the test where no links can be made."""
    with contextlib.ExitStack() as stack:
        try:
            two = [stack.enter_context(Link()) for _ in range(2)]
        except NoLinksError as error:
            print(f"skipped: {error}")
            pytest.skip(str(error))
        linked = stack.enter_context(Server(server.binaries, links=tuple(link.here for link in two)))
        upgrade(linked.conninfo())
        watch = stack.enter_context(psycopg.connect(linked.conninfo(), autocommit=True))
        made = Pair([], watch)
        for number, link in enumerate(two, 1):
            dsn = make_conninfo(linked.conninfo(), host=link.here)
            made.nodes.append(stack.enter_context(node(f"prod-{number}", link, dsn, folder)))
            made.wait("prod-1 leads", lambda: made.leader() == "prod-1")
        made.wait("prod-2 stands by", lambda: made.standing() == {"prod-1", "prod-2"})
        yield made


def together(nodes: list[Node]) -> list[tuple[Belief, Belief]]:
    """The pairs of beliefs of different nodes that were held at one time: there must be none."""
    beliefs = sorted((belief for node in nodes for belief in node.beliefs()), key=lambda belief: belief.first)
    return [
        (one, other)
        for i, one in enumerate(beliefs)
        for other in beliefs[i + 1 :]
        if one.name != other.name and other.first <= one.last
    ]


def _write(leader: Leader, file: Path) -> None:
    with file.open("a", buffering=1) as lines:
        while True:
            # The term first: it may end between the two, and a belief without a term is none.
            before, term, leads = now(), leader.term, leader.leads
            lines.write(f"{before:.6f} {now():.6f} {term if leads and term is not None else ''}\n")
            time.sleep(EVERY_S)


async def _main(dsn: str, name: str, file: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    leader, stop = Leader(dsn, name=name), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    threading.Thread(target=_write, args=(leader, Path(file)), daemon=True).start()
    await leader.run(stop)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:4]))
