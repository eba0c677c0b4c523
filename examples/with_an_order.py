"""A job that is made with an order, or not at all: it joins the transaction of a SQLAlchemy session.

Run it with PGSCHED_DSN set to a database that has the schema (`pgsched migrate`).
"""

import os

import psycopg
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import pgsched

app = pgsched.App("shop")


@app.task
async def send_receipt(order_id: int, to: str) -> None:
    """Send it."""


class Base(DeclarativeBase):
    """The application's tables."""


class Order(Base):
    """An order."""

    __tablename__ = "example_order"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]


engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(os.environ["PGSCHED_DSN"]))
Base.metadata.create_all(engine)

with Session(engine) as session, session.begin():
    order = Order(email="ann@example.org")
    session.add(order)
    session.flush()
    job = send_receipt.using(connection=session).enqueue(order.id, to=order.email)
print("committed with its order:", job.info().state)

with Session(engine) as session:
    order = Order(email="bob@example.org")
    session.add(order)
    session.flush()
    lost = send_receipt.using(connection=session).enqueue(order.id, to=order.email)
    session.rollback()
try:
    lost.info()
except pgsched.UsageError as error:
    print("rolled back with its order:", error)

app.close()
Base.metadata.drop_all(engine)
engine.dispose()
