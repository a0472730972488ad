"""Jobs of the node agent: when they run, how often, and what counts as drift."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from metalmesh.errors import NetworkError
from metalmesh.node.metrics import NodeMetrics
from metalmesh.node.reconciler import Reconciler

PATIENCE_SECONDS = 10.0
#: longer than any test, so that only what it tests makes jobs run
NEVER = 3600.0


class Job:
    """Counts its runs and answers what it is told."""

    def __init__(self) -> None:
        self.runs = 0
        self.changes: list[str] = []
        self.error = ""

    def __call__(self) -> list[str]:
        self.runs += 1
        if self.error:
            raise NetworkError(self.error)
        changes, self.changes = self.changes, []
        return changes


def play(story: Callable[[Reconciler, NodeMetrics], Awaitable[None]], interval: float = NEVER):
    """Run a story beside a running reconciler."""

    async def stage() -> None:
        metrics = NodeMetrics()
        reconciler = Reconciler(interval, metrics)
        task = asyncio.create_task(reconciler.run())
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await story(reconciler, metrics)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(stage())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def samples(metrics: NodeMetrics, name: str) -> list[str]:
    lines = metrics.registry.render().splitlines()
    return [line for line in lines if line.startswith(name)]


def test_new_job_runs_and_its_changes_are_no_drift():
    async def story(reconciler, metrics):
        job, done = Job(), []
        job.changes = ["table"]
        reconciler.on_done = done.append
        reconciler.set_job("a", job)
        await reconciler.wait_idle()
        assert (job.runs, done) == (1, ["a"])
        assert samples(metrics, "metalmesh_node_drift_repairs_total") == []

    play(story)


def test_change_found_by_looking_is_drift():
    async def story(reconciler, metrics):
        job = Job()
        reconciler.set_job("netns:a", job)
        await reconciler.wait_idle()
        job.changes = ["rule"]
        reconciler.look("netns")
        await until(lambda: job.runs == 2)
        await reconciler.wait_idle()
        assert samples(metrics, "metalmesh_node_drift_repairs_total") == [
            'metalmesh_node_drift_repairs_total{object="netns"} 1'
        ]

    play(story)


def test_many_events_are_few_looks():
    async def story(reconciler, metrics):
        job = Job()
        reconciler.set_job("netns:a", job)
        await reconciler.wait_idle()
        for _ in range(200):
            reconciler.look("netns:a")
            await asyncio.sleep(0.001)
        await until(lambda: job.runs == 2)
        await reconciler.wait_idle()
        assert job.runs == 2

    play(story)


def test_look_concerns_jobs_of_that_kind_or_name_only():
    async def story(reconciler, metrics):
        jobs = {name: Job() for name in ("netns:a", "netns:b", "routes")}
        for name, job in jobs.items():
            reconciler.set_job(name, job)
        await reconciler.wait_idle()
        reconciler.look("netns:a")
        await until(lambda: jobs["netns:a"].runs == 2)
        reconciler.look("netns")
        await until(lambda: jobs["netns:b"].runs == 2)
        assert jobs["routes"].runs == 1

    play(story)


def test_failed_job_is_tried_again_and_others_go_on():
    async def story(reconciler, metrics):
        bad, good = Job(), Job()
        bad.error = "link is gone"
        reconciler.set_job("bad", bad)
        reconciler.set_job("good", good)
        await reconciler.wait_idle()
        assert reconciler.failing == {"bad": "link is gone"}
        assert good.runs == 1
        bad.error = ""
        await until(lambda: not reconciler.failing)
        assert bad.runs == 2
        assert samples(metrics, "metalmesh_node_network_errors_total") == [
            'metalmesh_node_network_errors_total{object="bad"} 1'
        ]

    play(story)


def test_sweep_reaches_every_job_in_turn():
    async def story(reconciler, metrics):
        jobs = [Job() for _ in range(3)]
        for number, job in enumerate(jobs):
            reconciler.set_job(str(number), job)
        await until(lambda: all(job.runs >= 3 for job in jobs))
        assert max(job.runs for job in jobs) - min(job.runs for job in jobs) <= 1

    play(story, interval=0.01)


def test_dropped_job_runs_no_more():
    async def story(reconciler, metrics):
        job, other = Job(), Job()
        job.error = "x"
        reconciler.set_job("a", job)
        await reconciler.wait_idle()
        reconciler.drop_job("a")
        assert reconciler.failing == {}
        reconciler.set_job("b", other)
        await until(lambda: other.runs >= 5)
        assert job.runs == 1

    play(story, interval=0.01)


def test_unexpected_error_ends_the_reconciler_and_so_the_process():
    """systemd starts it anew; a job that silently never runs would be worse."""

    async def story() -> None:
        reconciler = Reconciler(NEVER, NodeMetrics())

        def broken() -> list[str]:
            raise ZeroDivisionError

        reconciler.set_job("a", broken)
        await asyncio.wait_for(reconciler.run(), PATIENCE_SECONDS)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(story())
