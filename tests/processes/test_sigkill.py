"""What becomes of the tasks of a worker that is killed."""

from __future__ import annotations

import contextlib
import datetime as dt

from pathlib import Path

from tests.processes import drill, evidence
from tests.processes.workers import Fleet, enqueue
from tests.support.command_line import rows, until


OPTIONS = ("--lease", "2", "--heartbeat", "0.3")


def test_tasks_of_a_killed_worker_wait_for_its_lease(
    migrated: str, trace: Path, tmp_path: Path
) -> None:
    """Another worker takes them when the lease is over, soon after that and not before it.

    What a handler had written in its open transaction is gone with the process.
    """
    go = str(tmp_path / "go")
    rows(migrated, "create table booked (task_id bigint, epoch int)")
    enqueue(migrated, [drill.gate.bind(go), drill.gate.bind(go), drill.booked_gate.bind(go)])
    with contextlib.ExitStack() as stack:
        fleet = Fleet(migrated, trace, OPTIONS, stack)
        fleet.add_ready(1)
        until(lambda: trace.read_text().count("written") == 1, "the row")
        until(lambda: trace.read_text().count("+") == 3, "the start of all")
        fleet.add_ready(1)
        fleet.kill(fleet.alive[0])
        fleet.dead[0].code()
        ((until_then, killed),) = rows(
            migrated,
            "select heartbeat_at + make_interval(secs => lease), id from nursery_queue.worker"
            " where pid = %s",
            [fleet.dead[0].pid],
        )
        until(lambda: trace.read_text().count("+") == 6, "the start of all, elsewhere")
        seen = rows(migrated, "select * from booked")
        (tmp_path / "go").touch()
        until(lambda: rows(migrated, "select * from nursery_queue.running") == [], "the end")
        fleet.dismiss()

    log = evidence.read_log(migrated)
    assert evidence.contradictions(log, evidence.read_trace(trace, fleet.killed)) == []
    lost = [entry for entry in log if entry.outcome == "lost"]
    assert ({entry.task_id for entry in lost}, len(log)) == ({1, 2, 3}, 6)
    for entry in lost:
        assert entry.worker_id == killed
        assert until_then <= entry.finished_at < until_then + dt.timedelta(seconds=10)
    assert (seen, rows(migrated, "select * from booked")) == ([], [(3, 2)])
