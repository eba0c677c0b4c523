"""pgsched: a Postgres-native work queue and scheduler.

The protocol, in prose. Postgres is the only server, and everything that must be right is decided there, in one
transaction; Python carries it out.

*State is location.* A job's definition is one row of `job` that never changes. Where the job stands is told by the one
small table that holds its row: `waiting`, `ready`, `running` or `finished`. Every transition is one statement that
deletes here and inserts there, so a job cannot be in two states, and cannot be in none.

*A claim has a number.* `claim` takes rows of `ready` by `FOR UPDATE SKIP LOCKED` and puts each into `running` under a
claim id that is new every time, never repeats, and only grows: the fence. Only the worker that claimed it, presenting
that number, can end the claim, so each claim ends exactly once; a report that comes too late changes nothing and is told
so (`stale`), and one whose answer was lost can be sent again (`already`).

*A worker's life is a session.* Each of its sessions holds an advisory lock of its own, the worker's id, in shared mode.
That the lock can be taken exclusively proves that Postgres has ended everything the worker had sent. Together with the
word of whoever reaped the process it is the ground on which a dead worker's jobs are put back.

*What nobody can promise.* A handler's effects outside its own transaction happen at least once: a worker can die after the effect
and before its report. `current_job().fence` is the token by which another system can refuse the older of two.
"""

from importlib.metadata import PackageNotFoundError, version

from pgsched.answers import JobInfo
from pgsched.app import App
from pgsched.context import JobContext, current_job
from pgsched.cron import Every, every, next_ticks
from pgsched.errors import (
    AccessError,
    ArgumentsError,
    ArgumentsTooLarge,
    ClaimCancelled,
    ConnectError,
    DatabaseError,
    EmbeddedPostgresError,
    InvalidCall,
    InvalidJob,
    InvalidSchedule,
    JobCancelled,
    JobFailed,
    JobSkipped,
    JobStopped,
    JobUnsuccessful,
    KeyContended,
    NoSession,
    NotAdopted,
    NotLeader,
    PgschedError,
    PoolerError,
    ProcessDied,
    ProtocolMismatch,
    ReadOnlyServer,
    RemoteError,
    ResultError,
    ResultTooLarge,
    ScheduleError,
    SchemaError,
    StaleClaim,
    TaskError,
    TransactionEnded,
    UsageError,
    WorkerAlive,
    WorkerRescued,
    WorkflowFailed,
)
from pgsched.failed import FailedGroup, FailedJob, FailedJobs, RetriedJobs
from pgsched.job import Job
from pgsched.retry import Exponential, Fixed, Linear, Never, never
from pgsched.task import BoundTask, Enqueuer, Task
from pgsched.verdicts import Cancel, Retry, Snooze
from pgsched.workflow import Group, Node, Subworkflow, Workflow
from pgsched.workflow_run import WorkflowRun

try:
    __version__ = version("pgsched")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "AccessError",
    "App",
    "ArgumentsError",
    "ArgumentsTooLarge",
    "BoundTask",
    "Cancel",
    "ClaimCancelled",
    "ConnectError",
    "DatabaseError",
    "EmbeddedPostgresError",
    "Enqueuer",
    "Every",
    "Exponential",
    "FailedGroup",
    "FailedJob",
    "FailedJobs",
    "Fixed",
    "Group",
    "InvalidCall",
    "InvalidJob",
    "InvalidSchedule",
    "Job",
    "JobCancelled",
    "JobContext",
    "JobFailed",
    "JobInfo",
    "JobSkipped",
    "JobStopped",
    "JobUnsuccessful",
    "KeyContended",
    "Linear",
    "Never",
    "NoSession",
    "Node",
    "NotAdopted",
    "NotLeader",
    "PgschedError",
    "PoolerError",
    "ProcessDied",
    "ProtocolMismatch",
    "ReadOnlyServer",
    "RemoteError",
    "ResultError",
    "ResultTooLarge",
    "RetriedJobs",
    "Retry",
    "ScheduleError",
    "SchemaError",
    "Snooze",
    "StaleClaim",
    "Subworkflow",
    "Task",
    "TaskError",
    "TransactionEnded",
    "UsageError",
    "WorkerAlive",
    "WorkerRescued",
    "Workflow",
    "WorkflowFailed",
    "WorkflowRun",
    "__version__",
    "current_job",
    "every",
    "never",
    "next_ticks",
]
