"""The real figure: courses follow from seeds, quantiles have intervals, slowness is taken back."""

import asyncio
import os
import subprocess
from contextlib import AsyncExitStack, suppress
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from parity_models import serve
from parity_models.roles import Source
from parity_models.serving.client import Client
from parity_models.serving.protocol import write_request
from parity_models_lab.real import (
    DELAYS,
    INSTANCES,
    LIBRARIES,
    MODEL,
    Fleet,
    Run,
    Spell,
    asks_of,
    course,
    interval,
    plot_tails,
    pooled,
    quantile,
    resampled,
    slow,
)
from served import gated_bundle, predictions, queries


def test_a_course_follows_from_its_seed_and_one_in_four_has_an_outage() -> None:
    assert course(1) == course(1) != course(2)
    assert sum(each.kind == "outage" for seed in range(8) for each in course(seed)) == 2
    for before, after in zip(course(0), course(0)[1:], strict=False):
        assert before.ends < after.begins
        assert after.victim < INSTANCES


def run_of(latencies: list[float], spells: list[int]) -> Run:
    count = len(latencies)
    return Run((0,) * count, tuple(latencies), (1,) * count, ("model",) * count, tuple(spells), 1.0)


def test_quantiles_are_order_statistics_and_intervals_know_how_few_spells_there_were() -> None:
    assert quantile(np.array([3.0, 1.0, 2.0, inf]), 0.5) == 2
    assert quantile(np.array([3.0, 1.0, 2.0, inf]), 0.99) == inf
    calm = [0.01] * 99
    one = pooled([run_of([*calm, 9.0], [0] * 50 + [1] * 50)])
    low, high = interval(resampled(one, 0.99))
    assert (low, high) == (0.01, 9.0), "with one spell, there may have been none"
    many = pooled([run_of([*calm[:48], 9.0, 9.0], [0] * 50) for _ in range(40)])
    assert interval(resampled(many, 0.99)) == (9.0, 9.0)
    slower = many._replace(latencies=2 * many.latencies)
    assert interval(resampled(slower, 0.5) / resampled(many, 0.5)) == (2.0, 2.0), "in pairs"
    failed = pooled([run_of([-1.0, 0.5], [0, 0])])
    assert failed.latencies.tolist() == [inf, 0.5]


@pytest.mark.parametrize("kind", ["stopped", "neighbour", "disk"])
async def test_slowness_begins_and_is_taken_back(kind: str, tmp_path: Path) -> None:
    children = psutil.Process().children()
    with subprocess.Popen(["sleep", "60"]) as victim:
        try:
            async with slow(Spell(kind, 0.0, 1.0, 0), [[victim.pid]], tmp_path):
                if kind == "stopped":
                    assert os.WIFSTOPPED(os.waitpid(victim.pid, os.WUNTRACED)[1])
            if kind == "stopped":
                assert os.WIFCONTINUED(os.waitpid(victim.pid, os.WCONTINUED)[1])
        finally:
            os.kill(victim.pid, 9)
    assert psutil.Process().children() == children


def test_tails_are_drawn(tmp_path: Path) -> None:
    run = run_of([0.01, 0.02, 0.5, -1.0], [0, 0, 1, 1])
    panel = {"no help": pooled([run, run]), Source.BACKUP: pooled([run])}
    plot_tails(tmp_path / "real.png", {"round robin": panel, "the better of two": panel}, "")
    assert (tmp_path / "real.png").stat().st_size > 10_000


async def test_each_way_to_call_servers_gets_the_model_s_class(tmp_path: Path) -> None:
    bundle, rows = gated_bundle(tmp_path, threshold=1e9), queries(3)
    texts: Any = SimpleNamespace(rows=list(rows[:, None]), requests=[])
    texts.requests = [write_request({"input": row}) for row in texts.rows]
    async with AsyncExitStack() as stack:
        server = stack.enter_context(serve(bundle, name=MODEL, port=0, policy="none"))
        assert server.url is not None
        clients = [await stack.enter_async_context(Client(server.url)) for _ in range(INSTANCES)]
        asks = await asks_of(stack, clients, texts, bundle.path)
        assert len(asks) == 3 * (2 + len(DELAYS) + len(LIBRARIES)) + 1
        for name, (ask, fleet) in asks.items():
            for text, right in enumerate(predictions(rows).argmax(axis=1)):
                assert await ask(text) == (right, Source.MODEL), name
            await fleet.drained()


async def test_a_call_that_is_given_up_still_counts_for_the_balancer() -> None:
    chosen, released = list[int](), asyncio.Event()

    class Slow:
        def __init__(self, number: int) -> None:
            self.number = number

        async def ask(self, *_: object) -> tuple[bytes, int | None]:
            chosen.append(self.number)
            await released.wait()
            raise ConnectionError("gone")

    texts: Any = SimpleNamespace(requests=[(b"", {})])
    slow: Any = [Slow(0), Slow(1)]
    fleet = Fleet(slow, texts)
    for _ in range(4):
        with suppress(TimeoutError):
            await asyncio.wait_for(fleet.plain(0), 0.01)
    released.set()
    assert sorted(chosen) == [0, 0, 1, 1]
