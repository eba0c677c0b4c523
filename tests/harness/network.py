"""Real links that can be cut: a network namespace each, joined to this machine by a pair of virtual interfaces.

A cut is silent, as in a partition: what is sent goes out and nobody receives it, no error comes back, no interface goes down.
It is made by a permanent neighbour entry with a hardware address that nobody has, on the side that sends; so each direction
can be cut alone, and the kernel needs no packet filter. Only the links' own private addresses are used.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PREFIX = "pgsched-"
_NOBODY = "02:00:00:00:00:01"
_numbers = itertools.count()


class NoLinksError(Exception):
    """Links cannot be made here; the text says why."""


class Link:
    """A namespace `name` and its link to this machine: `here` is this machine's address on it, `there` the namespace's.

    A context manager. Raises `NoLinksError` where there can be none: not Linux, not root, no `ip`, not allowed.
    """

    def __init__(self) -> None:
        if shutil.which("ip") is None:
            raise NoLinksError("cut links need Linux's command ip (iproute2)")
        if os.geteuid() != 0:
            raise NoLinksError("cut links need root, to make network namespaces")
        _sweep()
        number = next(_numbers)
        self.name = f"{_PREFIX}{os.getpid()}-{number}"
        self._near, self._far = f"pgs{os.getpid()}n{number}", f"pgs{os.getpid()}f{number}"
        subnet = (os.getpid() * 4 + number) % 2**14 * 4  # a /30 of its own in 10.213.0.0/16
        self.here, self.there = (f"10.213.{subnet // 256}.{subnet % 256 + host}" for host in (1, 2))

    def __enter__(self) -> Link:
        try:
            _ip("netns", "add", self.name)
            _ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self.name)
            _ip("addr", "add", f"{self.here}/30", "dev", self._near)
            _ip("link", "set", self._near, "up")
            self._inside("addr", "add", f"{self.there}/30", "dev", self._far)
            self._inside("link", "set", self._far, "up")
            self._inside("link", "set", "lo", "up")
            # The real addresses are read once; from then on the kernel never asks for them.
            self._near_mac = _mac(_ip("link", "show", self._near))
            self._far_mac = _mac(self._inside("link", "show", self._far))
            self.restore()
        except subprocess.CalledProcessError as error:
            self.__exit__()
            raise NoLinksError(
                f"cut links cannot be made here: {' '.join(error.cmd)}: {error.stderr.strip()}"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", self._near)  # and its peer with it
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("netns", "del", self.name)

    def run(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command inside; its pid is the command's own."""
        return subprocess.Popen(["ip", "netns", "exec", self.name, *command], **options)

    def cut(self, *, outgoing: bool = True, incoming: bool = True) -> None:
        """Lose from now on what the namespace sends (`outgoing`), what is sent to it (`incoming`), or both."""
        if outgoing:
            self._sends_to(_NOBODY)
        if incoming:
            self._receives_at(_NOBODY)

    def restore(self) -> None:
        """Make the link good in both directions."""
        self._sends_to(self._near_mac)
        self._receives_at(self._far_mac)

    def flap(self, seconds: float) -> None:
        """Cut and restore the link again and again, for random times of up to a second; it is good at the end."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.cut()
            time.sleep(random.uniform(0.1, 1.0))
            self.restore()
            time.sleep(random.uniform(0.02, 0.5))

    def _sends_to(self, mac: str) -> None:
        self._inside("neigh", "replace", self.here, "lladdr", mac, "dev", self._far, "nud", "permanent")

    def _receives_at(self, mac: str) -> None:
        _ip("neigh", "replace", self.there, "lladdr", mac, "dev", self._near, "nud", "permanent")

    def _inside(self, *words: str) -> str:
        return _ip("-n", self.name, *words)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


def _mac(shown: str) -> str:
    match = re.search(r"link/ether (\S+)", shown)
    assert match is not None, shown
    return match[1]


def _sweep() -> None:
    """Remove the namespaces of test runs that were killed; their interfaces go with them."""
    for left in Path("/run/netns").glob(f"{_PREFIX}*-*"):
        with contextlib.suppress(ValueError, subprocess.CalledProcessError):
            if not Path("/proc", str(int(left.name.split("-")[1]))).exists():
                _ip("netns", "del", left.name)
