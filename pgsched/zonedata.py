"""Which version of the time zone database this process reads."""

from __future__ import annotations

import contextlib
import importlib
import re
import zoneinfo
from pathlib import Path


def zone_data() -> str | None:
    """The version, such as "2026a"; None where it cannot be told. Versions compare as texts.

    Read from the first folder that has a zone database, as `zoneinfo` does; else from the package tzdata.
    """
    for folder in map(Path, zoneinfo.TZPATH):
        if (folder / "Etc").exists():
            for name, pattern in (("tzdata.zi", r"# version (\w+)"), ("+VERSION", r"(\w+)"), ("version", r"(\w+)")):
                with contextlib.suppress(OSError, UnicodeDecodeError), (folder / name).open() as file:
                    if found := re.match(pattern, file.readline()):
                        return found[1]
            return None
    with contextlib.suppress(ImportError):
        return str(importlib.import_module("tzdata").IANA_VERSION)
    return None
