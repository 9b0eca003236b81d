"""Models that nobody can run yet are tried again until they run, whatever is asked meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from late_engine import ENGINE, Late, nobody_there, not_ready
from parity_models.serving.engines import EngineChoice
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.options import ServeOptions
from parity_models.serving.repository.managed import Settings
from parity_models.serving.repository.repository import Repository
from parity_models.serving.repository.rollout_options import RolloutOptions
from repositories import write_version

PATIENCE = 60.0


@asynccontextmanager
async def late(folder: Path) -> AsyncIterator[Repository]:
    """A repository of a model with two versions that nobody can run yet."""
    for version in ("1", "2"):
        write_version(folder, "one", version)
    engine = EngineChoice(ENGINE)
    settings = Settings(lambda bundle: ServeOptions(engine=engine), RolloutOptions())
    repository = Repository(folder, settings)
    Late.trouble, Late.tries = nobody_there, 0
    try:
        await repository.start()
        yield repository
    finally:
        Late.trouble = None
        await repository.close()


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


async def test_a_load_that_nobody_waits_for_is_not_undone_by_a_retry(tmp_path: Path) -> None:
    async with late(tmp_path / "models") as repository:
        Late.trouble = None
        load = asyncio.create_task(repository.load("one", {"version": "1"}))
        await asyncio.sleep(0)
        load.cancel()
        await until(lambda: repository.versions("one") == ["1"])
        tries = Late.tries
        await asyncio.sleep(0.5)
        assert (repository.versions("one"), Late.tries) == (["1"], tries)


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

        def told() -> tuple[int, int, float | None]:
            events = [each for each in repository.history.after(0) if each.kind == "failed"]
            failed = {"model": "one", "outcome": "failed to load"}
            logged = [each for each in caplog.messages if "cannot be loaded" in each]
            return len(logged), len(events), rollouts(repository, failed)

        await tried_again()
        assert told() == (1, 1, 1)
        Late.trouble = not_ready
        await tried_again()
        assert told() == (2, 2, 2)
        with pytest.raises(InvalidRequestError):
            await repository.load("one", {})
        assert told() == (3, 3, 3)  # somebody asked


def rollouts(repository: Repository, labels: dict[str, str]) -> float | None:
    for metric in repository.metrics.collect():
        for sample in metric.samples:
            if sample.name == "parm_rollouts_total" and sample.labels == labels:
                return sample.value
    return None


async def test_an_error_that_nobody_expects_is_told_and_ends_no_retry(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with late(tmp_path / "models") as repository:
        Late.trouble = lambda: RuntimeError("a mistake")
        await tried_again()
        await tried_again()
        assert len([each for each in caplog.messages if "it is tried again" in each]) == 1
        Late.trouble = None
        await until(lambda: repository.versions("one") == ["2"])
