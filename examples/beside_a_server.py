"""A server and its worker in one process and one event loop: requests enqueue jobs, the worker runs them in between.

Run it with PGSCHED_DSN set to a database that has the schema (`pgsched migrate`). It serves a few requests of its own, and ends.
"""

import asyncio

import pgsched
from pgsched.worker import EmbeddedWorker

app = pgsched.App("shop")
sent: asyncio.Queue[str] = asyncio.Queue()


@app.task
async def send_receipt(to: str) -> None:
    """Send it."""
    await sent.put(to)


async def answer(worker: EmbeddedWorker, request: str) -> str:
    """One line in, one line out."""
    match request.split():
        case ["health"]:
            return "200 healthy" if worker.healthy else "503 no worker"
        case ["order", email]:
            job = await send_receipt.aenqueue(email)
            return f"202 job {job.id}"
        case _:
            return "404 nothing of that kind"


async def main() -> None:
    """Serve, with a worker beside."""
    async with app.worker(concurrency=10) as worker:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            request = (await reader.readline()).decode()
            writer.write((await answer(worker, request)).encode() + b"\n")
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            for request in ("health", "order ann@example.org", "order bob@example.org", "coffee"):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request.encode() + b"\n")
                print(f"{request}: {(await reader.readline()).decode().strip()}")
                writer.close()
            print("sent to", *sorted([await sent.get(), await sent.get()]))
    # The worker has ended its jobs and detached.
    await app.aclose()


asyncio.run(main())
