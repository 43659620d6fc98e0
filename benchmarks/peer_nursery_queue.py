"""Adapter for a harness that measures job queues side by side.

The harness calls a script with `setup | enqueue_one N SECONDS | enqueue_bulk N | drain N |
lat_worker N OUT | lat_enqueue N OUT` and reads a JSON object from its last line; its module
`common` (on PYTHONPATH) does the measuring. BENCH_CONC is our concurrency. A drain counts only
once the database itself says that nothing is left and every task has its row in the log.
"""

from __future__ import annotations

import json
import time

import common  # type: ignore[import-not-found]  # the harness's
import trio

import nursery_queue as nq


app = nq.App()
watch: common.Drain | common.Lat


@app.task(name="fetch")
async def fetch(i: int) -> None:
    """Do nothing but be counted."""
    if isinstance(watch, common.Drain):
        watch.hit()
    else:
        watch.hit(i)


LEFT = """
select exists (select from nursery_queue.ready) or exists (select from nursery_queue.running)
    or (select count(*) from nursery_queue.attempt) <> (select count(*) from nursery_queue.task)
"""


async def work(client: nq.Client) -> None:
    """Run until the harness ends the process."""
    await nq.Worker(app, client, concurrency=common.CONC).run()


async def enqueue_slowly(client: nq.Client, count: int, out: str) -> None:
    """Enqueue one by one with pauses; note when each call began and returned."""
    stamps: dict[int, tuple[int, int]] = {}
    for i in range(count):
        began = time.monotonic_ns()
        await client.enqueue(fetch, i)
        stamps[i] = (began, time.monotonic_ns())
        await trio.sleep(max(0.0, common.GAP - (time.monotonic_ns() - began) / 1e9))
    await trio.Path(out).write_text(json.dumps(stamps))
    common.emit(n=count)


async def main() -> None:
    """Do what the command line says."""
    global watch  # noqa: PLW0603  # the handler finds it there
    command, rest = common.args()
    async with nq.connect(common.DSN) as client:
        count = int(rest[0])
        match command:
            case "enqueue_one":
                await common.aenqueue_one(count, float(rest[1]), lambda i: client.enqueue(fetch, i))
            case "enqueue_bulk":
                began = time.perf_counter()
                await client.enqueue_many([fetch.bind(i) for i in range(count)])
                common.timed(count, began)
            case "lat_enqueue":
                await enqueue_slowly(client, count, rest[1])
            case "drain":
                watch = common.Drain(count, LEFT, lambda: None)
                watch.begin()
                await work(client)
            case _:
                watch = common.Lat(count, rest[1])
                watch.begin()
                await work(client)


if __name__ == "__main__":
    if common.args()[0] == "setup":
        trio.run(nq.migrate, common.DSN)
        common.emit(ok=1)
    else:
        trio.run(main)
