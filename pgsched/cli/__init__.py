"""The command line. Each module here is a group of commands; what they do is done elsewhere.

Exit codes: 0 done, 1 an error (one sentence on standard error, no traceback), 2 a wrong use of the command line,
130 interrupted; those of `worker` are in `pgsched.worker.ExitCode`.
"""

from __future__ import annotations

import sys

import psycopg
import typer

from pgsched.cli import admin, failed, jobs, schedules, work, workflows
from pgsched.errors import PgschedError

app = typer.Typer(
    help="A Postgres-native work queue and scheduler.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (work, jobs, failed, workflows, schedules, admin):
    group.register(app)


def main() -> None:
    """Run the command line; ends the process."""
    try:
        app()
    except PgschedError as error:
        _fail(str(error))
    except psycopg.Error as error:
        hint = f" ({error.diag.message_hint})" if error.diag.message_hint else ""
        _fail((error.diag.message_primary or str(error)).strip() + hint)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str) -> None:
    print(f"pgsched: {message}", file=sys.stderr)
    sys.exit(1)
