"""A load in processes of its own: several, stopped, failing, or in vain."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from aiohttp import web

from load_served import answer, ignore, say_it_back, serving
from parity_models.errors import LoadError, UserError
from parity_models.load import LoadSpec, offer_load, offer_load_from_own_process
from parity_models.load.report import report_of
from parity_models.load.result import LoadResult

pytestmark = pytest.mark.slow


async def test_several_processes_send_one_schedule(data: str) -> None:
    seen: list[int] = []

    async def handle(request: web.Request, row: np.ndarray[Any, Any]) -> web.Response:
        seen.append(int(row.argmax()))
        return answer(row, "reconstruction" if row.argmax() == 0 else "model")

    starts = []
    async with serving(handle) as url:
        spec = LoadSpec(url=url, data=data, rate=300, count=100, warm_up=11)
        alone = await offer_load(spec, ignore)
        expected, seen = seen, []
        together = await offer_load_from_own_process(
            msgspec.structs.replace(spec, processes=3), lambda: starts.append(len(seen))
        )
    assert len(starts) == 1
    assert sorted(seen) == sorted(expected)
    np.testing.assert_allclose(together.scheduled, alone.scheduled)
    np.testing.assert_array_equal(together.outcome, alone.outcome)
    np.testing.assert_array_equal(together.score, alone.score)


async def test_what_a_generator_says_before_it_fails_is_told(data: str) -> None:
    script = "print('ready', flush=True); input(); print('3 1'); print('no space'); exit(1)"
    spec = LoadSpec(url="http://127.0.0.1:1", data=data, rate=10, count=5, processes=2)
    with pytest.raises(LoadError, match="no space"):
        await offer_load_from_own_process(spec, ignore, prefix=(sys.executable, "-c", script))


async def test_a_load_that_is_stopped_keeps_what_there_is(data: str) -> None:
    stop = asyncio.Event()
    seen = 0

    async def handle(request: web.Request, row: np.ndarray[Any, Any]) -> web.Response:
        nonlocal seen
        seen += 1
        if seen == 30:
            stop.set()
            await asyncio.Event().wait()
        return answer(row)

    async with serving(handle) as url:
        spec = LoadSpec(url=url, data=data, rate=100, count=100_000, timeout=600, processes=2)
        result = await offer_load_from_own_process(spec, ignore, stop=stop)
    assert 29 <= result.answered.sum() < 100_000
    (interrupted,) = result.errors().items()  # others may have been on their way, too
    assert interrupted == ("interrupted", len(result) - result.answered.sum())
    assert len(result) >= seen


async def test_a_load_in_its_own_process_says_when_it_starts(data: str, tmp_path: Path) -> None:
    seen_at_start = []
    seen = 0
    started = asyncio.Event()

    async def handle(request: web.Request, row: np.ndarray[Any, Any]) -> web.Response:
        nonlocal seen
        if seen == 99:
            await started.wait()  # which it could not if that were told at the end
        seen += 1
        return answer(row)

    def start() -> None:
        seen_at_start.append(seen)
        started.set()

    async with serving(handle) as url:
        spec = LoadSpec(url=url, data=data, rate=200, count=50, warm_up=50)
        result = await offer_load_from_own_process(spec, start)
    assert len(seen_at_start) == 1
    assert 0 < seen_at_start[0] < 100
    assert seen == 100
    assert result.answered.all()
    result.save(tmp_path / "result.npz")
    again = LoadResult.load(tmp_path / "result.npz")
    assert report_of(spec, again) == report_of(spec, result)


async def test_a_load_that_cannot_be_offered_says_why(data: str, tmp_path: Path) -> None:
    labels = str(tmp_path / "labels.npy")
    np.save(labels, np.zeros(2, int))
    wrong_shape, pickled = str(tmp_path / "shape.npz"), str(tmp_path / "pickled.npz")
    np.savez(wrong_shape, inputs=np.zeros((3, 7), np.float32), labels=np.zeros(3))
    np.savez(pickled, inputs=np.array([{}], dtype=object), labels=np.zeros(1))
    async with serving(say_it_back) as url:
        for change, reason in [
            ({"model": "other"}, "has no model 'other'"),
            ({"data": wrong_shape}, "the model takes rows of"),
            ({"data": pickled}, "neither an .npy file nor an .npz file with inputs"),
            ({"data": str(tmp_path / "missing.npz")}, "cannot read"),
            ({"url": "http://127.0.0.1:1"}, "no server answers"),
            ({"url": "127.0.0.1:8000"}, "is no server's address"),
            ({"url": "http://[::1"}, "is no server's address"),
            ({"url": "http://localhost:99999"}, "is no server's address"),
            ({"labels": labels}, "4 inputs, but 2 labels"),
            ({"metric": "iou"}, "the labels do not fit the model"),
            ({"metric": "best"}, "no metric is called 'best'"),
        ]:
            arguments: dict[str, Any] = {"url": url, "data": data, "rate": 10, "count": 1}
            spec = LoadSpec(**arguments | change)
            with pytest.raises(UserError, match=reason):
                await offer_load(spec, ignore)
        with pytest.raises(LoadError, match="has no model 'other'"):
            await offer_load_from_own_process(
                LoadSpec(url=url, data=data, rate=10, count=1, model="other"), ignore
            )
    with pytest.raises(LoadError, match="not a load's result"):
        LoadResult.load(Path(data))
