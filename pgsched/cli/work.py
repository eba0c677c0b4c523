"""Commands that run something: a worker, a development set-up, the demo."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from pgsched.app import App
from pgsched.cli.options import Dsn, Schema, database, opened
from pgsched.errors import UsageError

Target = Annotated[str, typer.Argument(help="Where the App is: module:attribute, for example shop.jobs:app.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(worker)
    app.command()(scheduler)
    app.command()(dev)
    app.command()(demo)


def load(target: str) -> App:
    """The App at `module:attribute`. Raises `UsageError` that says what is not there."""
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise UsageError(f'"{target}" names no App: write module:attribute, for example shop.jobs:app')
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise UsageError(f'"{target}": {error} (looked in {Path.cwd()} and the installed packages)') from error
    except AttributeError as error:
        raise UsageError(f'"{target}": {error}') from error
    if not isinstance(found, App):
        raise UsageError(f'"{target}" is a {type(found).__name__}, no pgsched.App')
    return found


def worker(
    target: Target,
    processes: Annotated[int, typer.Option(help="How many worker processes.")] = 1,
    queues: Annotated[
        str | None, typer.Option(help="Queues to serve, by comma; else those of the App's tasks.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="How many jobs at once, in each process.")] = 100,
    name: Annotated[str | None, typer.Option(help="Its name in the view workers.")] = None,
    poll: Annotated[float, typer.Option(help="Seconds between looks without a notification.")] = 1.0,
    drain: Annotated[float, typer.Option(help="Seconds that running jobs may take after SIGTERM.")] = 30.0,
    lease: Annotated[
        float, typer.Option(help="Seconds without an answered heartbeat after which it stops what runs.")
    ] = 20.0,
    kill: Annotated[
        float, typer.Option(help="Seconds after which nothing of it may run any more; more than --lease.")
    ] = 30.0,
    lead: Annotated[bool, typer.Option("--leader/--no-leader", help="Also stand for leader.")] = True,
    recycle_jobs: Annotated[
        int | None, typer.Option(help="A process that has run so many jobs is followed by a fresh one.")
    ] = None,
    recycle_mb: Annotated[
        int | None, typer.Option(help="A process that holds so many megabytes is followed by a fresh one.")
    ] = None,
    executor: Annotated[
        str, typer.Option(help="Where def tasks run that do not say it themselves: thread or process.")
    ] = "thread",
    executors: Annotated[
        int | None,
        typer.Option(help="How many processes of their own for tasks, in each worker; else one a processor."),
    ] = None,
    executor_recycle_jobs: Annotated[int | None, typer.Option(help="As --recycle-jobs, for those.")] = None,
    executor_recycle_mb: Annotated[int | None, typer.Option(help="As --recycle-mb, for those.")] = None,
    grace: Annotated[
        float, typer.Option(help="Seconds that a task in a process may go on after it was told to stop.")
    ] = 5.0,
    job_sessions: Annotated[
        int, typer.Option(help="How many connections for transactional jobs, in each worker.")
    ] = 10,
    health_file: Annotated[
        Path | None, typer.Option(help="A file that is written every second while all is well, and removed when not.")
    ] = None,
    health_port: Annotated[
        str | None, typer.Option(help="Answers HTTP with 200 or 503: a port of 127.0.0.1, or HOST:PORT.")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    dsn: Dsn = None,
) -> None:
    """Run jobs until SIGTERM; a second SIGTERM cancels what runs.

    A small parent process starts the workers, starts again what dies, ends what outlives its lease, and puts back the jobs of
    the dead at once.

    Exit codes: 0 clean, 1 an error, 3 a handler still ran, 4 rescued, 5 the lease was lost and a handler did not end.
    """
    from pgsched.lease import LeaseTimes
    from pgsched.supervisor.child import Parent
    from pgsched.worker import Settings, run_worker

    parent = Parent.found()
    _log(log_level)
    if parent is None:
        from pgsched.supervisor.health import Health
        from pgsched.supervisor.supervisor import Plan, Supervisor

        command = [
            "worker",
            target,
            "--concurrency",
            concurrency,
            "--poll",
            poll,
            "--drain",
            drain,
            "--lease",
            lease,
            "--kill",
            kill,
        ]
        command += [
            "--log-level",
            log_level,
            *(["--queues", queues] if queues is not None else []),
            *(["--name", name] if name else []),
        ]
        command += ["--executor", executor, "--grace", grace, "--job-sessions", job_sessions]
        for option, value in (
            ("--executors", executors),
            ("--executor-recycle-jobs", executor_recycle_jobs),
            ("--executor-recycle-mb", executor_recycle_mb),
        ):
            command += [option, value] if value is not None else []
        plan = Plan(list(map(str, command)), dsn, processes, lead, recycle_jobs, recycle_mb)
        raise typer.Exit(Supervisor(plan, Health(health_file, health_port)).run())
    app = load(target)
    if (dsn := parent.dsn) is not None:
        app.use(dsn)
    settings = Settings(
        queues=[q.strip() for q in queues.split(",") if q.strip()] if queues is not None else None,
        concurrency=concurrency,
        name=name,
        poll=timedelta(seconds=poll),
        drain=timedelta(seconds=drain),
        lease=LeaseTimes(timedelta(seconds=lease), timedelta(seconds=kill)),
        lead=False,
        executor=executor,
        executors=executors,
        executor_recycle_jobs=executor_recycle_jobs,
        executor_recycle_mb=executor_recycle_mb,
        grace=timedelta(seconds=grace),
        job_sessions=job_sessions,
    )
    raise typer.Exit(run_worker(app, settings, parent=parent, restore_signals=False))


def scheduler(
    name: Annotated[str | None, typer.Option(help="Its name in the view leader.")] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    dsn: Dsn = None,
    schema: Schema = "pgsched",
) -> None:
    """Only stand for leader, until SIGTERM: where no worker runs all the time, or with workers that do not lead."""
    from pgsched.leader import Leader

    _log(log_level)
    target = database(dsn)
    with opened(dsn, schema):
        pass  # (a database without the schema is an error now, not a loop)

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await Leader(target, schema, name).run(stop)

    asyncio.run(main())


def dev(
    target: Annotated[
        str | None, typer.Argument(help="The App, module:attribute; without one only Postgres runs.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Where Postgres keeps its data; else the user's data directory.")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run an embedded Postgres with the schema, and a worker that is started again when it dies. For development."""
    from pgsched import embedded, migrate
    from pgsched.supervisor.supervisor import Plan, Supervisor

    _log(log_level)
    _end_on_sigterm()
    if target is not None:
        load(target)
    with embedded.start(data) as server:
        migrate.upgrade(server.dsn)
        print(f"Postgres {'was already running' if server.reused else 'runs'}: PGSCHED_DSN='{server.dsn}'", flush=True)
        if target is None:
            signal.pause()
        raise typer.Exit(Supervisor(Plan(["worker", str(target), "--log-level", log_level], server.dsn)).run())


def demo(
    data: Annotated[
        Path | None, typer.Option(help="Where Postgres keeps its data; else the user's data directory.")
    ] = None,
    dsn: Dsn = None,
) -> None:
    """Run a workflow over real data, the changes of the world's clocks in a decade; one job fails and is repaired."""
    from pgsched.demo.show import run

    _end_on_sigterm()
    raise typer.Exit(run(data, dsn or os.environ.get("PGSCHED_DSN") or None))


def _end_on_sigterm() -> None:
    """SIGTERM ends a command as Ctrl-C does, through every `with`."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


def _log(level: str) -> None:
    if level.lower() not in ("debug", "info", "warning", "error"):
        raise UsageError(f'--log-level is "{level}": it is one of debug, info, warning, error')
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("alembic").setLevel(logging.WARNING)
