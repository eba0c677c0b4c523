"""A worker that starts brings the schedules of its App's code to the database."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import psycopg

from pgsched.errors import PgschedError, primary
from pgsched.schedules import Declared
from pgsched.session import persist

if TYPE_CHECKING:
    from pgsched.app import App

log = logging.getLogger("pgsched.worker")


async def declare(app: App, stop: asyncio.Event, bound_s: float) -> None:
    """Declare them, and say what that has changed; what is wrong with them is logged, and the worker works on."""
    if not app.schedules.declared and app.deployment is None:
        return
    try:
        answer = await persist("the schedules", app.schedules.adeclare, stop, bound_s)
    except (psycopg.Error, PgschedError) as error:
        log.error('the schedules of "%s" stay as they are: %s', app.name, primary(error))
        return
    if answer is not None:
        _say(app, answer)


def _say(app: App, answer: Declared) -> None:
    if answer.older_than is not None:
        log.warning(
            'deployment %s of "%s" is older than %s: its schedules stay as that one has declared them',
            app.deployment,
            app.name,
            answer.older_than,
        )
    for what in ("added", "changed", "removed"):
        if names := getattr(answer, what):
            log.info('schedules of "%s" %s: %s', app.name, what, ", ".join(names))
    if answer.kept:
        log.warning(
            'schedules of "%s" are not as its code says: %s; `pgsched schedules apply` changes them, or App(deployment=N)',
            app.name,
            ", ".join(answer.kept),
        )
