"""Versions are loaded, replaced, unloaded and tried again, in whatever order that is asked for."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from late_engine import ENGINE, Late, nobody_there, not_ready
from parity_models.serving.errors import InvalidRequestError, UnavailableError
from parity_models.serving.options import EngineChoice, ServeOptions
from parity_models.serving.repository import Repository
from repositories import INPUTS, WEIGHTS, write_version

PATIENCE = 60.0


@asynccontextmanager
async def late(folder: Path) -> AsyncIterator[Repository]:
    """A repository of a model with two versions that nobody can run yet."""
    for version in ("1", "2"):
        write_version(folder, "one", version)
    engine = EngineChoice(ENGINE)
    repository = Repository(folder, ServeOptions(engine=engine))
    Late.trouble, Late.tries = nobody_there, 0
    try:
        await repository.start()
        yield repository
    finally:
        Late.trouble = None
        await repository.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def tried_again() -> None:
    """Wait for two more tries, the first of which may have begun."""
    tries = Late.tries
    await until(lambda: Late.tries >= tries + 2)


@pytest.mark.parametrize("version", ["1", "2", "3"])
async def test_a_load_that_fails_ends_no_retry(tmp_path: Path, version: str) -> None:
    async with late(tmp_path / "models") as repository:
        for _ in range(2):
            with pytest.raises(InvalidRequestError):
                await repository.load("one", {"version": version})
        Late.trouble = None
        await until(lambda: repository.versions("one") == ["2"])


async def test_what_is_unloaded_is_not_tried_again(tmp_path: Path) -> None:
    async with late(tmp_path / "models") as repository:
        with pytest.raises(InvalidRequestError):
            await repository.load("one", {})
        await repository.unload("one")
        Late.trouble = None
        tries = Late.tries
        await asyncio.sleep(0.5)
        assert Late.tries == tries


async def test_why_it_waits_is_told_once_and_when_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with late(tmp_path / "models") as repository:

        def logged() -> int:
            return len([each for each in caplog.messages if "cannot be loaded" in each])

        await tried_again()
        assert logged() == 1
        Late.trouble = not_ready
        await tried_again()
        assert logged() == 2
        with pytest.raises(InvalidRequestError):
            await repository.load("one", {})
        assert logged() == 3  # somebody asked


async def test_an_error_that_nobody_expects_is_told_and_ends_no_retry(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with late(tmp_path / "models") as repository:
        Late.trouble = lambda: RuntimeError("a mistake")
        await tried_again()
        await tried_again()
        assert len([each for each in caplog.messages if "trying again" in each]) == 1
        Late.trouble = None
        await until(lambda: repository.versions("one") == ["2"])


@pytest.mark.parametrize("seed", range(8))
async def test_no_request_is_lost_while_versions_replace_each_other(
    tmp_path: Path, seed: int
) -> None:
    random_ = random.Random(seed)
    times = {"1": 1, "2": 2, "3": 3}
    for version in times:
        write_version(tmp_path / "models", "one", version, times=times[version])
    (tmp_path / "models" / "one" / "3" / "deployed.onnx").write_bytes(b"broken")
    Late.trouble = None
    repository = Repository(tmp_path / "models", ServeOptions(engine=EngineChoice(ENGINE)))
    await repository.start()
    assert repository.versions("one") == ["2"], "the newest that is not broken"
    rows = np.random.default_rng(seed).normal(size=(1, INPUTS)).astype(np.float32)

    async def ask() -> None:
        found = repository.find("one", None)
        result = await found.frontend.infer(rows, None, tenant=None, exact=False)
        expected = times[found.model.version] * rows @ WEIGHTS
        np.testing.assert_allclose(result.outputs, expected, rtol=1e-5)

    async def load(version: str) -> None:
        if version == "3":
            with pytest.raises(InvalidRequestError, match="cannot be loaded"):
                await repository.load("one", {"version": version})
        else:
            await repository.load("one", {"version": version})

    async with asyncio.TaskGroup() as tasks:
        for _ in range(60):
            if random_.random() < 0.2:
                tasks.create_task(load(random_.choice("123")))
            else:
                tasks.create_task(ask())
            await asyncio.sleep(random_.choice((0, 0, 0.002, 0.02)))
    await repository.unload("one")
    assert {each.state for each in repository.index()} == {"UNAVAILABLE"}
    with pytest.raises(UnavailableError, match="is not served"):
        repository.find("one", None)
    await repository.stop()
