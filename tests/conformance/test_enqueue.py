"""One suite for every way to enqueue: the same rows, the same answers, the same errors.

A way makes jobs of the task `send` and answers their ids. `JOINED` ways do so in a transaction of the caller's, which they
then commit or roll back.
"""

from __future__ import annotations

import asyncio
import enum
import json
import math
import random
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from typing import Any

import psycopg
import pytest
import sqlalchemy
from harness.server import Server
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from pydantic import BaseModel, SecretStr
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from typer.testing import CliRunner

import pgsched
import pgsched.cli
from pgsched.errors import translate

Options = dict[str, Any]
ARGS = {"order": 17, "to": "ü@example.org"}


@dataclass
class Shop:
    """An application that enqueues `send`."""

    dsn: str
    app: pgsched.App = field(init=False)
    send: Any = field(init=False)

    def __post_init__(self) -> None:
        self.app = pgsched.App("shop", dsn=self.dsn)

        @self.app.task(name="send")
        def send(order: int, to: str) -> None: ...

        self.send = send

    def bind(self, jobs: list[Options]) -> list[pgsched.BoundTask[None]]:
        return [self.send.using(**options).bind(**ARGS) for options in jobs]

    def engine(self) -> sqlalchemy.Engine:
        connect = partial(psycopg.connect, self.dsn)
        return sqlalchemy.create_engine("postgresql+psycopg://", creator=connect, poolclass=sqlalchemy.NullPool)

    def async_engine(self) -> Any:
        connect = partial(psycopg.AsyncConnection.connect, self.dsn)
        return create_async_engine("postgresql+psycopg://", async_creator=connect, poolclass=sqlalchemy.NullPool)


@pytest.fixture
def shop(dsn: str) -> Iterator[Shop]:
    made = Shop(dsn)
    yield made
    made.app.close()


# ---- The ways with a transaction of their own


def python(shop: Shop, jobs: list[Options]) -> list[int]:
    return [shop.send.using(**options).enqueue(17, to=ARGS["to"]).id for options in jobs]


def python_async(shop: Shop, jobs: list[Options]) -> list[int]:
    async def main() -> list[int]:
        try:
            return [(await shop.send.using(**options).aenqueue(17, to=ARGS["to"])).id for options in jobs]
        finally:
            await shop.app.aclose()

    return asyncio.run(main())


def many(shop: Shop, jobs: list[Options]) -> list[int]:
    return [job.id for job in shop.app.enqueue_many(shop.bind(jobs))]


def many_async(shop: Shop, jobs: list[Options]) -> list[int]:
    async def main() -> list[int]:
        try:
            return [job.id for job in await shop.app.aenqueue_many(shop.bind(jobs))]
        finally:
            await shop.app.aclose()

    return asyncio.run(main())


def command_line(shop: Shop, jobs: list[Options]) -> list[int]:
    """(In this process; that it is a command of its own is tested elsewhere.)"""
    ids = []
    for options in jobs:
        words = ["enqueue", "send", "--dsn", shop.dsn, "--json", "--args", json.dumps(ARGS), "--queue", options.get("queue", "shop")]
        for name, value in options.items():
            for one in value if name == "tags" else [value] if name != "queue" else []:
                text = f"{one.total_seconds()} s" if isinstance(one, timedelta) else json.dumps(one) if name == "metadata" else str(one)
                words += [f"--{'tag' if name == 'tags' else name.replace('_', '-')}", text]
        result = CliRunner().invoke(pgsched.cli.app, words)
        if result.exception is not None:
            raise result.exception
        ids.append(json.loads(result.stdout)["id"])
    return ids


# ---- The ways that join the caller's transaction


def of_psycopg(shop: Shop, jobs: list[Options], commit: bool) -> list[int]:
    with psycopg.connect(shop.dsn) as connection:
        ids = [shop.send.using(connection=connection, **options).enqueue(**ARGS).id for options in jobs]
        connection.commit() if commit else connection.rollback()
    return ids


def of_psycopg_async(shop: Shop, jobs: list[Options], commit: bool) -> list[int]:
    async def main() -> list[int]:
        async with await psycopg.AsyncConnection.connect(shop.dsn) as connection:
            ids = [(await shop.send.using(connection=connection, **options).aenqueue(**ARGS)).id for options in jobs]
            await (connection.commit() if commit else connection.rollback())
            return ids

    return asyncio.run(main())


def of_session(shop: Shop, jobs: list[Options], commit: bool) -> list[int]:
    with Session(shop.engine()) as session:
        ids = [shop.send.using(connection=session, **options).enqueue(**ARGS).id for options in jobs]
        session.commit() if commit else session.rollback()
    return ids


def of_sqlalchemy(shop: Shop, jobs: list[Options], commit: bool) -> list[int]:
    with shop.engine().connect() as connection:
        ids = [job.id for job in shop.app.enqueue_many(shop.bind(jobs), connection=connection)]
        connection.commit() if commit else connection.rollback()
    return ids


def of_session_async(shop: Shop, jobs: list[Options], commit: bool) -> list[int]:
    async def main() -> list[int]:
        async with AsyncSession(shop.async_engine()) as session:
            ids = [(await shop.send.using(connection=session, **options).aenqueue(**ARGS)).id for options in jobs]
            await (session.commit() if commit else session.rollback())
            return ids

    return asyncio.run(main())


def of_sqlalchemy_async(shop: Shop, jobs: list[Options], commit: bool) -> list[int]:
    async def main() -> list[int]:
        async with shop.async_engine().connect() as connection:
            ids = [job.id for job in await shop.app.aenqueue_many(shop.bind(jobs), connection=connection)]
            await (connection.commit() if commit else connection.rollback())
            return ids

    return asyncio.run(main())


def plain_sql(shop: Shop, jobs: list[Options], commit: bool) -> list[int]:
    ids = []
    with psycopg.connect(shop.dsn) as connection:
        for options in jobs:
            given = {"task": "send", "args": Jsonb(ARGS), "queue": "shop"} | options
            given |= {"metadata": Jsonb(options["metadata"])} if "metadata" in options else {}
            query = f"select pgsched.enqueue({', '.join(f'{name} => %({name})s' for name in given)})"
            ids += _column(connection, query, given)
        connection.commit() if commit else connection.rollback()
    return ids


def plain_sql_many(shop: Shop, jobs: list[Options], commit: bool) -> list[int]:
    renamed = {"delay": "delay_s", "timeout": "timeout_s"}
    plain = [
        {renamed.get(name, name): value.total_seconds() if isinstance(value, timedelta) else value for name, value in options.items()}
        for options in jobs
    ]
    text = json.dumps([{"task": "send", "args": ARGS, "queue": "shop"} | options for options in plain], default=str)
    with psycopg.connect(shop.dsn) as connection:
        ids = _column(connection, "select pgsched.enqueue_many(%(jobs)s::jsonb)", {"jobs": text})
        connection.commit() if commit else connection.rollback()
    return ids


def _column(connection: psycopg.Connection[Any], query: str, parameters: dict[str, Any]) -> list[int]:
    """Of plain SQL: the errors as the class that Python maps their SQLSTATE to."""
    try:
        return [row[0] for row in connection.execute(query.encode(), parameters).fetchall()]
    except psycopg.Error as error:
        raise translate(error, "pgsched") or error from error


Joined = Callable[[Shop, list[Options], bool], list[int]]
Way = Callable[[Shop, list[Options]], list[int]]


def _committing(joined: Joined) -> Way:
    return lambda shop, jobs: joined(shop, jobs, True)


JOINED: list[Joined] = [of_psycopg, of_psycopg_async, of_session, of_sqlalchemy, of_session_async, of_sqlalchemy_async, plain_sql, plain_sql_many]
OWN: list[Way] = [python, python_async, many, many_async, command_line]
BATCHES = (many, many_async, of_sqlalchemy, of_sqlalchemy_async, plain_sql_many)
"""Those that make all jobs in one call."""
_WAYS: dict[str, Way] = {way.__name__: way for way in OWN} | {way.__name__: _committing(way) for way in JOINED}
every_way = pytest.mark.parametrize("way", _WAYS.values(), ids=_WAYS)
every_batch = pytest.mark.parametrize("way", [_WAYS[way.__name__] for way in BATCHES], ids=[way.__name__ for way in BATCHES])
every_joined = pytest.mark.parametrize("joined", JOINED, ids=[way.__name__ for way in JOINED])

LATER = datetime(2099, 1, 31, 9, 0, 0, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30)))
CASES: list[Options] = [
    {},
    {"queue": "mail", "priority": 0},
    {"priority": 9, "max_attempts": 25, "timeout": timedelta(seconds=90, milliseconds=5)},
    {"run_at": LATER},
    {"run_at": LATER, "expires_at": LATER + timedelta(seconds=1), "priority": 3},
    {"run_at": datetime(2001, 2, 3, tzinfo=UTC)},
    {"delay": timedelta(days=400, seconds=1, microseconds=1), "queue": "mail"},
    {"delay": timedelta(0), "expires_at": LATER},
    {"tags": ["a", 'ü "quoted", {x}', "a"], "unique_key": "order-17 ☃"},
    {"metadata": {"why": ["ü", None, 1.5, {"a": True}]}, "tags": ["a"]},
]


def expected(options: Options) -> dict[str, Any]:
    """The rows that a job with these options has."""
    state = (options.get("expires_at"), 0, 0)
    queue, priority = options.get("queue", "shop"), options.get("priority", 5)
    when = options["run_at"] if options.get("run_at", datetime.min.replace(tzinfo=UTC)) > datetime.now(UTC) else options.get("delay")
    names = ("max_attempts", "timeout", "expires_at", "tags", "metadata", "unique_key")
    return {
        "job": ("send", queue, priority, ARGS, None, *(options.get(name, 1 if name == "max_attempts" else None) for name in names)),
        "others": {"created_by": "postgres"},
        "ready": None if when else (queue, priority, *state),
        "waiting": (queue, "scheduled", when, *state) if when else None,
        "key": ("send", options["unique_key"]) if "unique_key" in options else None,
    }


def found(connection: psycopg.Connection[Any], job_id: int, options: Options) -> dict[str, Any]:
    """The rows that the job has."""

    def row(query: str) -> Any:
        return connection.execute(query.encode(), {"id": job_id}).fetchone()

    when = "w.run_at" if "run_at" in options else "justify_hours(w.run_at - j.created_at)"
    job = "task, queue, priority, args, secret, max_attempts, timeout, expires_at, tags, metadata, unique_key"
    same = "select count(*) from pgsched.job j join pgsched.waiting w on w.job_id = j.id where j.id = %(id)s and w.run_at is distinct from j.run_at"
    assert row(same) == (0,)
    return {
        "job": row(f"select {job} from pgsched.job where id = %(id)s"),
        "others": row(f"select jsonb_strip_nulls(to_jsonb(j) - '{{id, created_at, run_at, {job}}}'::text[]) from pgsched.job j where id = %(id)s")[0],
        "ready": row("select queue, priority, expires_at, attempt, lost_attempts from pgsched.ready where job_id = %(id)s"),
        "waiting": row(
            f"select w.queue, reason, {when}, w.expires_at, attempt, lost_attempts from pgsched.waiting w "
            "join pgsched.job j on j.id = w.job_id where job_id = %(id)s"
        ),
        "key": row("select task, unique_key from pgsched.job_key where job_id = %(id)s"),
    }


@every_way
def test_each_way_makes_the_same_rows(shop: Shop, connection: psycopg.Connection[Any], way: Way) -> None:
    ids = way(shop, CASES)
    assert len(set(ids)) == len(CASES)
    assert [found(connection, job_id, case) for job_id, case in zip(ids, CASES, strict=True)] == [expected(case) for case in CASES]


@every_way
def test_a_taken_key_answers_its_holder(shop: Shop, connection: psycopg.Connection[Any], way: Way) -> None:
    [holder] = plain_sql(shop, [{"unique_key": "k"}], commit=True)
    other = connection.execute("select pgsched.enqueue('other', queue => 'q', unique_key => 'k')").fetchone()
    first, second, third = way(shop, [{"unique_key": "k", "priority": 1}, {"unique_key": "new"}, {"unique_key": "new"}])
    assert first == holder
    assert second == third
    assert other is not None
    assert len({holder, second, other[0]}) == 3
    assert connection.execute("select count(*), max(priority) from pgsched.job").fetchone() == (3, 5)


@every_joined
def test_a_rolled_back_transaction_leaves_nothing_and_a_committed_one_all(
    shop: Shop, connection: psycopg.Connection[Any], joined: Joined
) -> None:
    jobs: list[Options] = [{}, {"delay": timedelta(hours=1)}, {"unique_key": "k"}]
    tables = "select count(*) from pgsched.{}"
    for commit, counts in ((False, [0, 0, 0, 0]), (True, [3, 2, 1, 1])):
        assert len(joined(shop, jobs, commit)) == 3
        at = [connection.execute(tables.format(name).encode()).fetchone() for name in ("job", "ready", "waiting", "job_key")]
        assert at == [(count,) for count in counts]


@pytest.mark.parametrize("kind", ["psycopg", "sqlalchemy"])
def test_of_a_thousand_transactions_exactly_the_committed_half_exists(
    shop: Shop, connection: psycopg.Connection[Any], kind: str
) -> None:
    connection.execute("create table orders (job_id bigint)")
    insert = "insert into orders values (%(id)s)"
    fate = [True, False] * 500
    random.Random(17).shuffle(fate)
    committed = []
    with shop.engine().connect() as of_engine, psycopg.connect(shop.dsn) as of_driver:
        for commit in fate:
            if kind == "psycopg":
                job = shop.send.using(connection=of_driver, unique_key="k" if not commit else None).enqueue(**ARGS)
                of_driver.execute(insert, {"id": job.id})
                of_driver.commit() if commit else of_driver.rollback()
            else:
                with Session(of_engine) as session:
                    job = shop.send.using(connection=session, unique_key="k" if not commit else None).enqueue(**ARGS)
                    session.connection().exec_driver_sql(insert, {"id": job.id})
                    session.commit() if commit else session.rollback()
            committed += [job.id] if commit else []
    for table, column in (("pgsched.job", "id"), ("pgsched.ready", "job_id"), ("orders", "job_id")):
        rows = connection.execute(f"select {column} from {table} order by 1".encode()).fetchall()
        assert [row[0] for row in rows] == committed
    assert len(committed) == 500


@every_batch
def test_a_batch_with_one_bad_job_writes_nothing(shop: Shop, connection: psycopg.Connection[Any], way: Way) -> None:
    with pytest.raises(pgsched.InvalidJob, match=r'job 3 \(task "send"\): priority is 10'):
        way(shop, [{}, {"unique_key": "k"}, {"priority": 10}, {"delay": timedelta(1)}])
    assert connection.execute("select (select count(*) from pgsched.job) + (select count(*) from pgsched.job_key)").fetchone() == (0,)


@pytest.mark.parametrize("chunk", [10_000, 32 * 2**20])
@pytest.mark.parametrize("joined", [False, True])
def test_ids_come_in_the_order_of_input(
    shop: Shop, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch, chunk: int, joined: bool
) -> None:
    monkeypatch.setattr("pgsched.app._CHUNK_BYTES", chunk)  # so that small jobs too are cut into several calls
    jobs = (shop.send.using(unique_key=str(i % 2000)).bind(order=i, to="x") for i in range(2500))
    with psycopg.connect(shop.dsn) as own:
        ids = [job.id for job in shop.app.enqueue_many(jobs, connection=own if joined else None)]
    orders = dict(connection.execute("select id, (args ->> 'order')::int from pgsched.job").fetchall())
    assert [orders[job_id] for job_id in ids] == [i % 2000 for i in range(2500)]


def test_a_batch_of_several_calls_is_all_or_nothing(shop: Shop, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgsched.app._CHUNK_BYTES", 10_000)
    with pytest.raises(pgsched.InvalidJob, match="priority is 10"):
        shop.app.enqueue_many(shop.send.using(priority=10 if i == 2499 else 5).bind(order=i, to="x") for i in range(2500))
    assert connection.execute("select count(*) from pgsched.job").fetchone() == (0,)


REFUSED: list[tuple[Options, str]] = [
    ({"priority": 10}, "priority is 10"),
    ({"priority": -1}, "priority is -1"),
    ({"queue": "q" * 101}, "a queue's name has 1 to 100 characters"),
    ({"queue": ""}, "a queue's name has 1 to 100 characters"),
    ({"max_attempts": 0}, "max_attempts is 0"),
    ({"timeout": timedelta(0)}, "timeout is 0"),
    ({"delay": timedelta(seconds=-1)}, "delay is -1"),
    ({"run_at": LATER, "delay": timedelta(1)}, "run_at and delay are both given"),
    ({"run_at": LATER, "expires_at": LATER}, "could never run"),
    ({"unique_key": ""}, "unique_key is"),
]


@every_way
def test_each_way_refuses_the_same_values_with_the_same_error(shop: Shop, connection: psycopg.Connection[Any], way: Way) -> None:
    for options, message in REFUSED:
        with pytest.raises(pgsched.InvalidJob, match=message):
            way(shop, [options])
    connection.execute("update pgsched.setting set value = '20' where name = 'max_args_bytes'")
    with pytest.raises(pgsched.ArgumentsTooLarge, match=r"its args takes \d+ bytes, the limit is 20"):
        way(shop, [{}])
    assert connection.execute("select count(*) from pgsched.job").fetchone() == (0,)


@every_way
def test_each_way_says_that_there_is_no_schema(server: Server, way: Way) -> None:
    dsn = server.database()
    shop = Shop(dsn)
    with pytest.raises(pgsched.SchemaError, match='run "pgsched migrate"'):
        way(shop, [{}])
    shop.app.close()
    server.drop(dsn)


def test_the_callers_settings_of_a_connection_do_not_matter(shop: Shop, connection: psycopg.Connection[Any]) -> None:
    with psycopg.connect(shop.dsn, autocommit=True, row_factory=dict_row) as own:
        first = shop.send.using(connection=own).enqueue(**ARGS)
    session = scoped_session(sessionmaker(shop.engine()))
    with session.begin_nested() as inner:
        shop.send.using(connection=session).enqueue(**ARGS)
        inner.rollback()
    second = shop.send.using(connection=session, notify=False).enqueue(**ARGS)
    session.commit()
    session.remove()
    assert connection.execute("select id from pgsched.job order by 1").fetchall() == [(first.id,), (second.id,)]


# ---- What Python refuses by itself: no database is asked, so none needs to be there

nowhere = pgsched.App("nowhere", dsn="host=127.0.0.1 port=1 dbname=none connect_timeout=2")


class Card(BaseModel):
    number: SecretStr


class Colour(enum.Enum):
    RED = "red"


@nowhere.task
def typed(count: int, ratio: float = 1.0, text: str = "", *, words: list[str] | None = None) -> None: ...


@nowhere.task
def untyped(value, other=None) -> None: ...  # type: ignore[no-untyped-def]


@nowhere.task(secret="token")
def secret(user: str, password: SecretStr, token: str, more: list[SecretStr] | None = None) -> None: ...


@nowhere.task
def model(card: Card) -> None: ...


@nowhere.task
def rich(numbers: set[int], pair: tuple[int, str], named: dict[int, str], at: datetime, colour: Colour, price: Decimal, key: uuid.UUID) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [
        ((), {}, "count is missing"),
        ((1,), {"nope": 2}, "nope is no parameter (they are: count, ratio, text, words)"),
        (("one",), {}, "count is 'one': input should be a valid integer"),
        ((1.5,), {}, "count is 1.5: input should be a valid integer"),
        ((1, "x"), {"words": [1]}, "ratio is 'x': input should be a valid number"),
        ((1,), {"words": ["a", 1]}, "words.1 is 1: input should be a valid string"),
        ((1, 2.0, "a", ["b"]), {}, "too many positional arguments"),
        ((1,), {"count": 2}, "multiple values for argument 'count'"),
        ((1, math.nan), {}, "ratio is nan: JSON would make 'null' of it"),
        ((1, math.inf), {}, "ratio is inf: JSON would make 'null' of it"),
        ((1,), {"text": "a\0b"}, r"text is 'a\x00b': it has a NUL character"),
        ((1,), {"text": "\ud800"}, r"text is '\ud800'"),
        ((1,), {"words": ["x" * 1000, "\0"]}, "it has a NUL character"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: tuple[Any, ...], named: dict[str, Any], message: str) -> None:
    for make in (typed.enqueue, typed.bind, typed.using(priority=1).enqueue):
        with pytest.raises(pgsched.ArgumentsError, match=re.escape(message)) as caught:
            make(*arguments, **named)
        assert str(caught.value).startswith('task "typed": ')
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "value",
    [{1, 2}, frozenset("a"), (1, 2), {1: 2}, {None: 1}, math.nan, [math.inf], {"a": [math.nan]}, "\0", ["a\0"], {"\0": 1}, "\udfff", {"\ud800": 1},
     object(), b"bytes", datetime(2030, 1, 1, tzinfo=UTC), Decimal("1.10"), Colour.RED, 1j, [(1,)], {"a": {1: 2}}],
    ids=lambda value: re.sub(' at 0x.*', '', repr(value)),
)  # fmt: skip
def test_without_a_type_only_what_json_gives_back_is_taken(value: Any) -> None:
    with pytest.raises(pgsched.ArgumentsError, match=r'^task "untyped": value is '):
        untyped.enqueue(value)
    with pytest.raises(pgsched.ArgumentsError, match=r'^task "untyped": other is '):
        untyped.bind(1, other=value)


def test_what_a_type_says_how_to_read_back_is_taken() -> None:
    text = rich.bind({1, 2}, (1, "a"), {1: "a"}, datetime(2030, 1, 1, tzinfo=UTC), Colour.RED, Decimal("1.10"), uuid.UUID(int=7)).text
    args = json.loads(text)["args"]
    assert args == {"numbers": [1, 2], "pair": [1, "a"], "named": {"1": "a"}, "at": "2030-01-01T00:00:00Z", "colour": "red",
                    "price": "1.10", "key": "00000000-0000-0000-0000-000000000007"}  # fmt: skip
    _, back = rich.arguments.load(json.dumps(args).encode())
    assert back["named"] == {1: "a"}
    assert back["price"] == Decimal("1.10")
    assert json.loads(untyped.bind({"a": [1, None, 1.5, True, "ü"]}).text)["args"] == {"value": {"a": [1, None, 1.5, True, "ü"]}}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"run_at": datetime(2030, 1, 1)}, pgsched.UsageError, "run_at is .* a naive datetime.* give it a time zone"),
        ({"expires_at": datetime(2030, 1, 1)}, pgsched.UsageError, "expires_at is .* a naive datetime"),
        ({"run_at": "2030-01-01"}, pgsched.UsageError, "run_at is '2030-01-01': it must be an aware datetime"),
        ({"tags": "mail"}, pgsched.UsageError, "tags is 'mail': it must be a list of texts"),
        ({"tags": [1]}, pgsched.UsageError, "tags is"),
        ({"tags": ["a\0"]}, pgsched.ArgumentsError, "NUL"),
        ({"metadata": {"a": math.nan}}, pgsched.ArgumentsError, "its options are no JSON"),
        ({"metadata": {"a": object()}}, pgsched.ArgumentsError, "its options are no JSON"),
        ({"metadata": {"a": "\0"}}, pgsched.ArgumentsError, "NUL"),
        ({"unique_key": "\ud800"}, pgsched.ArgumentsError, "its options are no JSON"),
        ({"metadata": {"\udfff": 1}}, pgsched.ArgumentsError, "its options are no JSON"),
        ({"connection": "dbname=shop"}, pgsched.UsageError, "connection= is a str: it must be a psycopg.Connection"),
    ],
)
def test_options_that_cannot_be_meant_are_named(options: Options, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        typed.using(**options).enqueue(1)


def test_a_text_that_only_looks_like_an_escaped_nul_is_taken() -> None:
    bound = json.loads(typed.using(metadata={"a": r"\u0000"}, tags=[r"\u0000"]).bind(1, text=r"\u0000").text)
    assert (bound["metadata"], bound["tags"], bound["args"]["text"]) == ({"a": r"\u0000"}, [r"\u0000"], r"\u0000")


def test_a_blocking_call_in_a_running_loop_names_its_twin() -> None:
    job: pgsched.Job[None] = pgsched.Job(1, nowhere.client)
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: typed.enqueue(1), "await aenqueue()"),
        (lambda: typed.using(priority=1).enqueue(1), "await aenqueue()"),
        (lambda: nowhere.enqueue_many([typed.bind(1)]), "await aenqueue_many()"),
        (job.info, "await ainfo()"),
    ]

    async def main() -> None:
        for call, twin in calls:
            with pytest.raises(pgsched.UsageError, match=re.escape(twin)):
                call()

    asyncio.run(main())


def test_a_connection_of_the_other_kind_is_refused(shop: Shop) -> None:
    async def main() -> None:
        with psycopg.connect(shop.dsn) as blocking, pytest.raises(pgsched.UsageError, match=r"the async twins take a psycopg\.AsyncConnection"):
            await shop.send.using(connection=blocking).aenqueue(**ARGS)
        async with await psycopg.AsyncConnection.connect(shop.dsn) as other:
            with pytest.raises(pgsched.UsageError, match="an asynchronous one goes to the async twin"):
                await asyncio.to_thread(shop.send.using(connection=other).enqueue, **ARGS)

    asyncio.run(main())
    with sqlalchemy.create_engine("sqlite://").connect() as sqlite, pytest.raises(pgsched.UsageError, match="uses the driver pysqlite"):
        shop.send.using(connection=sqlite).enqueue(**ARGS)


def test_a_server_that_does_not_answer_is_named() -> None:
    with pytest.raises(pgsched.ConnectError, match=r"the database at host=127\.0\.0\.1 port=1 dbname=none does not answer"):
        typed.enqueue(1)
    with pytest.raises(pgsched.ConnectError, match="does not answer"):
        asyncio.run(typed.aenqueue(1))


def test_what_cannot_be_a_task_is_refused_when_it_is_made() -> None:
    app = pgsched.App("shop")

    def send(to: str) -> None: ...
    def several(*to: str) -> None: ...
    def keywords(**to: str) -> None: ...
    def generator() -> Iterator[int]:
        yield 1

    app.task(name="send")(send)
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: app.task(several), r"its parameter \*to: .* takes any number of arguments"),
        (lambda: app.task(keywords), r"its parameter \*\*to: .* takes any number of arguments"),
        (lambda: app.task(generator), "is a generator: a task returns once"),
        (lambda: app.task(str), "stands above a type"),
        (lambda: app.task(name="send")(send), r'two tasks of App "shop" are named "send": .*test_enqueue\.py:\d+ and .*test_enqueue\.py:\d+'),
        (lambda: app.task(secret=["card"])(send), 'secret= names "card", and it has no such parameter'),
        (lambda: app.task(retry=3), "retry is 3; it must be a policy"),  # type: ignore[call-overload]
        (lambda: pgsched.Exponential(0), "max_attempts is 0"),
        (lambda: pgsched.Exponential(1, first=timedelta(2), cap=timedelta(1)), "cap must not be below first"),
    ]
    for make, message in refused:
        with pytest.raises(pgsched.TaskError, match=message):
            make()
    for name in ("", "x" * 101):
        with pytest.raises(pgsched.UsageError, match="1 to 100 characters"):
            pgsched.App(name)
    assert list(app.tasks) == ["send"]


def test_secrets_are_stored_in_the_clear_and_shown_masked(shop: Shop, connection: psycopg.Connection[Any]) -> None:
    with psycopg.connect(shop.dsn) as own:
        job = secret.using(connection=own).enqueue("ann", SecretStr("geheim"), token="geheim", more=[SecretStr("geheim")])
    clear = {"user": "ann", "password": "geheim", "token": "geheim", "more": ["geheim"]}
    masked = clear | dict.fromkeys(["password", "token", "more"], "***")
    for query, args in (
        ("select args from pgsched.job where id = %s", clear),
        ("select args from pgsched.jobs where id = %s", masked),
        ("select args from pgsched.list_jobs(queue => 'nowhere') where id = %s", masked),
    ):
        assert connection.execute(query.encode(), [job.id]).fetchall() == [(args,)]
    _, back = secret.arguments.load(json.dumps(clear).encode())
    assert (back["password"], back["more"]) == (SecretStr("geheim"), [SecretStr("geheim")])


wrong: Any = secret  # (for calls that a type checker refuses)


@pytest.mark.parametrize(
    "call",
    [
        lambda: wrong.enqueue("ann", 77001, token="t"),
        lambda: wrong.enqueue("ann", SecretStr("77001\0"), token="t"),
        lambda: wrong.enqueue("ann", SecretStr("s"), token="77001\0"),
        lambda: wrong.enqueue("ann", SecretStr("s"), token=77001),
        lambda: wrong.enqueue("ann", SecretStr("s"), token="t", more=[77001]),
        lambda: wrong.enqueue("ann", SecretStr("s"), token="t", more=[SecretStr("77001\ud800")]),
        lambda: wrong.enqueue("ann", SecretStr("s"), "77001", None, None),
        lambda: model.enqueue(Card(number=SecretStr("77001"))),
    ],
)
def test_no_error_shows_a_secret(call: Callable[[], object]) -> None:
    with pytest.raises(pgsched.ArgumentsError) as caught:
        call()
    assert "77001" not in str(caught.value)


def test_a_job_to_be_does_not_show_its_arguments() -> None:
    assert "geheim" not in repr(secret.bind("ann", SecretStr("geheim"), token="geheim"))
