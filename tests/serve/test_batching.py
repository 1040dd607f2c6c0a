"""Batches of requests: each gets its own outputs, pictures unlike each other stay apart, a bad one fails alone."""

import asyncio
import threading

import pytest
import torch

from convzoo.serve.batching import Batcher
from convzoo.serve.limits import Limits
from convzoo.serve.metrics import Metrics


class Sums:
    """A runner that adds up each picture's values, and fails on negative ones; `sizes` are of its batches."""

    name, device, input, stage = "sums", "cpu", "float_nchw", "raw"

    def __init__(self):
        self.sizes: list[int] = []

    def __call__(self, images):
        if (torch.as_tensor(images) < 0).any():
            raise RuntimeError("negative")
        self.sizes.append(len(images))
        return images.sum((1, 2, 3)), images.flatten(1).amax(1)


def picture(value: float, count: int = 1, side: int = 2) -> torch.Tensor:
    return torch.full((count, 3, side, side), float(value))


def together(runner: Sums, images: list[torch.Tensor], **limits) -> list:
    """Ask for all while the model is busy, and return outputs or errors in order."""

    async def ask():
        batcher, go = Batcher(runner, Limits(**limits), Metrics(), "sums"), threading.Event()
        busy = asyncio.create_task(batcher.alone(go.wait))
        await asyncio.sleep(0)
        asked = [asyncio.create_task(batcher(image)) for image in images]
        while len(batcher) < len(images):
            await asyncio.sleep(0)
        go.set()
        await busy
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(ask())


def test_each_request_gets_its_own_outputs():
    runner = Sums()
    counts = [1, 3, 2, 4]
    runs = together(runner, [picture(i, count) for i, count in enumerate(counts)])
    assert runner.sizes == [10] and [run.pictures for run in runs] == [10] * 4
    for i, (run, count) in enumerate(zip(runs, counts, strict=True)):
        assert torch.equal(run.outputs[0], torch.full((count,), 12.0 * i))
        assert torch.equal(run.outputs[1], torch.full((count,), float(i)))


def test_a_batch_has_its_limit_and_a_larger_request_runs_in_parts():
    runner = Sums()
    together(runner, [picture(1, count) for count in (3, 2, 1, 1, 9)], batch=4)
    assert runner.sizes == [4, 3, 4, 4, 1]  # the last of one picture fitted into the first batch
    assert sum(runner.sizes) == 16


def test_pictures_of_other_sizes_and_types_stay_apart():
    runner = Sums()
    runs = together(runner, [picture(1), picture(1, side=4), picture(2).byte(), picture(3)])
    assert runner.sizes == [2, 1, 1] and [float(run.outputs[0][0]) for run in runs] == [12, 48, 24, 36]


def test_what_fails_fails_alone():
    runner = Sums()
    runs = together(runner, [picture(1), picture(-1), picture(2)])
    assert isinstance(runs[1], RuntimeError) and runner.sizes == [1, 1]
    assert [float(run.outputs[0][0]) for run in (runs[0], runs[2])] == [12, 24]


def test_no_picture_is_ever_printed(monkeypatch):
    """To print a tensor takes longer than many a network; a queue's error message once did for every request."""

    def fail(*_):
        raise AssertionError("a tensor was printed")

    monkeypatch.setattr(torch.Tensor, "__repr__", fail)
    runs = together(Sums(), [picture(1), picture(2)])
    assert [run.pictures for run in runs] == [2, 2]


def test_half_precision_comes_as_float32():
    class Halves(Sums):
        def __call__(self, images):
            return (images.bfloat16(), images.half())

    (run,) = together(Halves(), [picture(1)])
    assert {output.dtype for output in run.outputs} == {torch.float32}


@pytest.mark.parametrize("clients", [1, 8])
def test_clients_that_ask_again_and_again_share_batches(clients):
    """After a batch of several the next waits for as many, for a moment; one client never waits."""
    runner = Sums()

    async def ask() -> float:
        batcher = Batcher(runner, Limits(delay_s=0.2), Metrics(), "sums")

        async def client() -> None:
            for _ in range(20):
                await batcher(picture(1))
                await asyncio.sleep(0.001)

        started = asyncio.get_running_loop().time()
        await asyncio.gather(*(client() for _ in range(clients)))
        return asyncio.get_running_loop().time() - started

    seconds = asyncio.run(ask())
    if clients == 1:
        assert runner.sizes == [1] * 20 and seconds < 20 * 0.2
    else:
        assert sum(runner.sizes) == 160 and sum(runner.sizes) / len(runner.sizes) > 4
