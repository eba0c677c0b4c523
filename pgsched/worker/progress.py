"""What running jobs say of how far they are: the newest of each is kept until it is sent."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import psycopg

from pgsched.errors import primary
from pgsched.session import BROKEN, TRY_AGAIN
from pgsched.worker import outcome

if TYPE_CHECKING:
    from pgsched.session import Identity
    from pgsched.worker.exchange import Exchange

log = logging.getLogger("pgsched.worker")

_EVERY_S = 1.0
Report = tuple[int, float | None, str | None]


class Progress:
    """The newest report of each claim. `report` may be called from any thread, as often as anybody likes."""

    def __init__(self) -> None:
        self._newest: dict[int, Report] = {}

    def report(self, job_id: int, claim_id: int, fraction: float | None, message: str | None) -> None:
        """Keep this as the newest of its claim."""
        self._newest[claim_id] = job_id, fraction, message

    def take(self) -> dict[int, Report]:
        """What is new. (Each is popped by itself: a report that comes meanwhile, without a lock, is in this or in the next.)"""
        return {claim_id: self._newest.pop(claim_id) for claim_id in list(self._newest)}

    def give_back(self, taken: dict[int, Report]) -> None:
        """It could not be sent: it is still new, where nothing newer has come."""
        for claim_id, report in taken.items():
            self._newest.setdefault(claim_id, report)

    async def send(self, identity: Identity, exchanges: Sequence[Exchange]) -> None:
        """Send what is new, all of it in one call, about once a second: in turn through the sessions of these exchanges."""
        for exchange in itertools.cycle(exchanges):
            await asyncio.sleep(_EVERY_S)
            if not (taken := self.take()):
                continue
            try:
                await exchange.ask(identity.calls.report_progress(identity.id, as_json(taken)))
            except (*BROKEN, *TRY_AGAIN) as error:
                self.give_back(taken)
                log.warning("progress will be reported again: %s", primary(error))
            except psycopg.DataError as error:
                log.error("progress could not be stored: %s", primary(error))


def as_json(reports: dict[int, Report]) -> str:
    """The reports as report_progress takes them."""
    return json.dumps(
        [
            {
                "job_id": job_id,
                "claim_id": claim_id,
                "fraction": None if fraction is None else float(fraction),
                "message": None if message is None else outcome.storable(message),
            }
            for claim_id, (job_id, fraction, message) in reports.items()
        ]
    )
