"""Requests that come together run together, as one batch of a model."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from convzoo.serve.limits import Limits
from convzoo.serve.metrics import Metrics
from convzoo.types import Runner

T = TypeVar("T")


class Run(NamedTuple):
    """What came of one request's pictures.

    Attributes:
        outputs: of the model, [B, ...] each, for these pictures alone.
        waited_s, run_s: before its batch began, and in the model.
        pictures: in the whole batch.
    """

    outputs: tuple[Tensor, ...]
    waited_s: float
    run_s: float
    pictures: int


@dataclass(eq=False, repr=False)
class _Job:
    images: Tensor
    run: asyncio.Future[Run]
    arrived: float

    @property
    def kind(self) -> tuple[object, ...]:
        """Return what pictures of one batch have in common."""
        return self.images.dtype, *self.images.shape[1:]


class Batcher:
    """One model's queue, on one event loop; the model itself runs on a thread of its own.

    A picture that finds the model idle runs at once. While it runs others come, and are the next batch. After a batch
    of several requests their clients will ask again within moments: the next waits for as many as there were, but no
    longer than `limits.delay_s`, which an idle server never does.
    """

    def __init__(self, runner: Runner, limits: Limits, metrics: Metrics, name: str):
        self._runner, self._limits, self._metrics, self._name = runner, limits, metrics, name
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"run-{name}")
        self._waiting: dict[_Job, None] = {}  # in the order in which they came
        self._arrival = asyncio.Event()
        self._thread_free = asyncio.Lock()
        self._worker: asyncio.Task[None] | None = None
        self._expected, self._until = 0, 0.0

    def __len__(self) -> int:
        """Return how many requests wait for their batch to begin."""
        return len(self._waiting)

    async def __call__(self, images: Tensor) -> Run:
        """Return the outputs for pictures [B, 3, H, W]; who is cancelled leaves the queue. Raises as the model."""
        loop = asyncio.get_running_loop()
        job = _Job(images, loop.create_future(), time.perf_counter())
        self._waiting[job] = None
        self._arrival.set()
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        try:
            return await job.run
        finally:
            self._waiting.pop(job, None)

    async def alone(self, function: Callable[[], T]) -> T:
        """Run something else on the model's thread, between two batches."""
        async with self._thread_free:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def _work(self) -> None:
        """Run batches until nothing waits."""
        try:
            while self._waiting:
                async with self._thread_free:
                    await self._gather()
                    jobs = self._next_batch()
                    await self._run(jobs)
                self._expected = len(jobs)
                self._until = time.perf_counter() + (self._limits.delay_s if self._expected > 1 else 0)
        finally:
            self._worker = None

    async def _gather(self) -> None:
        """Wait for the requests that the last batch lets expect, while the delay lasts."""
        expected = min(self._expected, self._limits.batch)
        while len(self._waiting) < expected and (left := self._until - time.perf_counter()) > 0:
            self._arrival.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._arrival.wait()

    def _next_batch(self) -> list[_Job]:
        """Take the first request and those like it, in order, up to the limit of pictures."""
        jobs: list[_Job] = []
        pictures = 0
        for job in list(self._waiting):
            if not jobs or (job.kind == jobs[0].kind and pictures + len(job.images) <= self._limits.batch):
                jobs.append(job)
                pictures += len(job.images)
                del self._waiting[job]
        return jobs

    async def _run(self, jobs: list[_Job]) -> None:
        """Run a batch and hand out what came of it; where it fails, each request runs alone, and only the bad fail."""
        if not jobs:  # their clients have all gone
            return
        started, loop = time.perf_counter(), asyncio.get_running_loop()
        try:
            outputs = await loop.run_in_executor(self._thread, self._outputs, [job.images for job in jobs])
        except Exception as error:
            for job in jobs if len(jobs) > 1 else ():
                await self._run([job])
            if len(jobs) == 1 and not jobs[0].run.done():
                jobs[0].run.set_exception(error)
            return
        run_s, counts = time.perf_counter() - started, [len(job.images) for job in jobs]
        self._metrics.observe("convzoo_batch_pictures", sum(counts), model=self._name)
        self._metrics.observe("convzoo_run_seconds", run_s, model=self._name)
        shares = zip(*(output.split(counts) for output in outputs), strict=True)
        for job, share in zip(jobs, shares, strict=True):
            if not job.run.done():  # or its client has gone
                job.run.set_result(Run(share, started - job.arrived, run_s, sum(counts)))

    def _outputs(self, images: list[Tensor]) -> list[Tensor]:
        """Run pictures, in parts where one request has more than a batch takes; half precision becomes float32."""
        stacked = torch.cat(images) if len(images) > 1 else images[0]
        parts = [self._runner(part) for part in stacked.split(self._limits.batch)]
        columns = [torch.cat([torch.as_tensor(part).cpu() for part in column]) for column in zip(*parts, strict=True)]
        return [column.float() if column.dtype in (torch.bfloat16, torch.float16) else column for column in columns]
