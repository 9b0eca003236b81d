"""The local engine: supervised worker processes on this machine."""

import asyncio
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from parity_models.errors import ParityModelsError, ServingError
from parity_models.models.onnx_model import PinnedModel
from parity_models.serving.engine import Parts, Placement
from parity_models.serving.local.process import WorkerProcess
from parity_models.serving.metrics import Metrics
from parity_models.serving.worker.supervised import SupervisedEngine
from parity_models.serving.worker.wire import AssignedModel, Frame, Report

START_TIMEOUT = 60.0
"""Seconds a worker may take to load and warm its models."""

PROC = Path("/proc")
"""See proc(5). On systems other than Linux no core is ever known to be in use."""


class LocalEngine(SupervisedEngine[WorkerProcess]):
    """Runs `models`, by role, in supervised worker processes on this machine.

    It copies the models when it starts: whatever becomes of the files, workers run what they held
    when they were pinned. Worker i runs at the i-th of `placements`, or at Placement() if there are
    none. `worker` makes each life of one. See SupervisedEngine for the rest.
    """

    name = "local"
    takes_placements = True
    same_clock = True

    @classmethod
    def build(cls, options: Any, parts: Parts) -> "LocalEngine":
        return cls(
            parts.models,
            placements=parts.placements,
            unit_timeout=parts.unit_timeout,
            metrics=parts.metrics,
            allows_faults=parts.allows_faults,
            starts_at_once=parts.starts_at_once,
        )

    def __init__(
        self,
        models: Mapping[str, PinnedModel],
        *,
        placements: Sequence[Placement] = (),
        heartbeat_timeout: float = 2.0,
        unit_timeout: float = 10.0,
        metrics: Metrics | None = None,
        allows_faults: bool = False,
        starts_at_once: int | None = None,
        worker: Callable[..., WorkerProcess] = WorkerProcess,
    ) -> None:
        super().__init__(
            models,
            heartbeat_timeout=heartbeat_timeout,
            join_timeout=START_TIMEOUT,
            unit_timeout=unit_timeout,
            metrics=metrics,
            allows_faults=allows_faults,
            starts_at_once=starts_at_once,
        )
        self._worker = worker
        self._placements = placements
        self._copies: ModelCopies | None = None

    @property
    def tolerance(self) -> float:
        return 1e-5

    def pids(self) -> dict[str, int]:
        """Return the process ids of the workers that are up, by instance."""
        return {
            name: worker.pid for name, worker in self._instances.items() if worker.pid is not None
        }

    def crowded(self, instances: Collection[str]) -> bool:
        return all_cores_used(self.pids(), instances)

    async def _prepare(self, roles: Sequence[frozenset[str]]) -> None:
        self._placements = self._placements or (Placement(),) * len(roles)
        if len(self._placements) != len(roles):
            raise ServingError(f"{len(self._placements)} placements for {len(roles)} instances")
        used = {role: self._models[role] for role in sorted(frozenset[str]().union(*roles))}
        copying = asyncio.ensure_future(asyncio.to_thread(ModelCopies, used))
        try:
            self._copies = await asyncio.shield(copying)
        except asyncio.CancelledError:
            with suppress(ParityModelsError):
                (await copying).close()
            raise

    def _make(
        self,
        number: int,
        name: str,
        roles: frozenset[str],
        on_report: Callable[[Report, Frame | None], None],
    ) -> WorkerProcess:
        assert self._copies is not None
        models = {role: self._copies.assigned[role] for role in sorted(roles)}
        placement = self._placements[number]
        return self._worker(number, name, models, placement, on_report, self._metrics)

    async def _release(self) -> None:
        if self._copies is not None:
            self._copies.close()


class ModelCopies:
    """Private copies of `models`, by role, which workers inherit, until `close`.

    A copy is a file without a name: whatever becomes of the bundle's folder, or of the folder of
    temporary files, workers that are started later load what was checked at the start. Raises
    ModelError for a model that is not what it was when it was checked, and ServingError if it
    cannot be copied.
    """

    def __init__(self, models: Mapping[str, PinnedModel]) -> None:
        self._files: list[IO[bytes]] = []
        self.assigned: dict[str, AssignedModel] = {}
        """What a worker needs to load each of them, by role."""
        copied: dict[str, int] = {}
        try:
            for role, model in models.items():
                if model.sha256 not in copied:
                    copied[model.sha256] = self._copy(model)
                name = f"{role} ({model.path})"
                self.assigned[role] = AssignedModel(
                    copied[model.sha256], model.sha256, name, model.signature
                )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _copy(self, model: PinnedModel) -> int:
        try:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
            self._files.append(file)
            model.copy_to(file)
        except OSError as error:
            raise ServingError(
                f"cannot keep a copy of {model.path} among temporary files: "
                f"{error.strerror}; set TMPDIR to a folder with room for it"
            ) from error
        return file.fileno()


def all_cores_used(
    pids: Mapping[str, int],
    running: Collection[str],
    cores: int | None = None,
    proc: Path = PROC,
) -> bool:
    """Return whether as many of the `running` instances compute, or wait for a core, as there are
    `cores`; never where there are no more instances than cores.

    `pids` are the processes of all instances, whose main threads compute; by default they may use
    the cores that this one may.
    """
    cores = cores or _usable_cores()
    if not len(running) >= cores < len(pids):
        return False
    used = 0
    for instance in running:
        used += instance in pids and _uses_core(proc / f"{pids[instance]}/stat")
        if used >= cores:
            return True
    return False


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _uses_core(stat: Path) -> bool:
    """Return whether this process exists, and computes or waits for a core."""
    try:
        with open(stat, "rb") as file:
            return file.read(100).rpartition(b") ")[2].startswith(b"R")
    except OSError:
        return False
