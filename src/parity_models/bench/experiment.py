"""Latency experiments: what one figure compares, read from a file that people can edit."""

from importlib import resources
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from parity_models.codes import CodeSpec
from parity_models.errors import UserError
from parity_models.faults import (
    Constant,
    Distribution,
    Exponential,
    FaultPlan,
    LogNormal,
    Shuffles,
    Slowdowns,
    Uniform,
)
from parity_models.scheduling import BACKUP
from parity_models.scheduling.spec import PolicySpec

FILES = resources.files("parity_models.bench") / "experiments"
MAX_BYTES = 1 << 20
"""A longer file is not read."""

Count = Annotated[int, Meta(ge=1, le=100_000)]
Rate = Annotated[float, Meta(gt=0, le=1e6)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Setting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one run meets, whatever the policy. Times in seconds.

    `instances` run the deployed model; k, r and these give the extra instances that every
    policy has: instances * r / k, rounded up. The offered load is `rate` in queries per second,
    or, where that is None, `load` as a share of what `instances` alone can carry. `service` is
    the emulated service time of a batch of up to `max_batch` queries, `backup_service` that of
    an approximate backup. `shuffles` background transfers run at all times; each lasts for a
    drawn `transfer` and delays a unit of the two instances it runs between by a drawn `delay`.
    On a share `tenants` of the instances another tenant's work slows units by `tenant_delay`,
    in spells of `tenant_spell` on average, `tenant_gap` apart.
    """

    instances: Count = 12
    k: Annotated[int, Meta(ge=2, le=9)] = 2
    r: Annotated[int, Meta(ge=1, le=3)] = 1
    decoder: str = "separate"
    rate: Rate | None = None
    load: Annotated[float, Meta(gt=0, le=3)] = 0.5
    max_batch: Annotated[int, Meta(ge=1, le=64)] = 1
    service: Distribution = LogNormal(0.025, 0.05)
    backup_service: Distribution = LogNormal(0.0125, 0.05)
    shuffles: Annotated[int, Meta(ge=0, le=100_000)] = 4
    transfer: Distribution = Uniform(0.7, 1.4)
    delay: Distribution = Exponential(0.02)
    tenants: Share = 0.0
    tenant_delay: Distribution = Uniform(0.005, 0.03)
    tenant_spell: Annotated[float, Meta(ge=0.01, le=3600)] = 1.0
    tenant_gap: Annotated[float, Meta(ge=0, le=3600)] = 2.0

    @property
    def parity_instances(self) -> int:
        return ceil(self.instances * self.r / self.k)

    @property
    def all_instances(self) -> int:
        return self.instances + self.parity_instances

    @property
    def code(self) -> CodeSpec:
        encoder = "stack" if self.decoder == "separate" else "sum"
        return CodeSpec(encoder, self.decoder, self.k, self.r)

    @property
    def queries_per_second(self) -> float:
        if self.rate is not None:
            return self.rate
        return self.load * self.instances * self.max_batch / _typical(self.service)

    def faults(self, seed: int, *, emulate_shuffles: bool) -> FaultPlan:
        """The emulated service times and disturbances, for workers and simulator alike."""
        shuffles = tenants = None
        if emulate_shuffles and self.shuffles:
            shuffles = Shuffles(self.shuffles, self.all_instances, self.transfer, self.delay)
        if self.tenants:
            slowed = tuple(range(round(self.tenants * self.all_instances)))
            tenants = Slowdowns(self.tenant_gap, self.tenant_spell, self.tenant_delay, slowed)
        return FaultPlan(
            seed=seed,
            service_time=self.service,
            service_times={BACKUP: self.backup_service},
            shuffles=shuffles,
            slowdowns=tenants,
        )


class Series(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a figure: a policy, and what of the setting is its own (such as a decoder).

    `real`: whether the quick preset runs it for real, too.
    """

    label: str
    policy: PolicySpec
    setting: dict[str, Any] = {}
    real: bool = True


class Experiment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A figure: the policies of `series` over the `points` of `axis`, a field of Setting.

    A point names what it changes in `setting`, the axis at least. `real` are the points that
    the quick preset runs for real, by position; it simulates all of them.
    """

    title: str
    axis: str
    points: tuple[dict[str, Any], ...]
    series: tuple[Series, ...]
    setting: dict[str, Any] = {}
    real: tuple[int, ...] = (0,)

    def at(self, point: int, series: Series) -> Setting:
        """The setting of a series at a point."""
        return msgspec.convert(self.setting | self.points[point] | series.setting, Setting)

    def check(self) -> None:
        """Raise msgspec.ValidationError or UserError for a setting that cannot be."""
        if self.axis not in Setting.__struct_fields__:
            known = ", ".join(Setting.__struct_fields__)
            raise UserError(f"there is no setting {self.axis!r} to vary; there are {known}")
        if not self.points or not self.series:
            raise UserError("an experiment needs a point and a series at least")
        for index in self.real:
            if not 0 <= index < len(self.points):
                raise UserError(f"real names point {index}; there are {len(self.points)}, from 0")
        for index, point in enumerate(self.points):
            if self.axis not in point:
                raise UserError(f"point {index} does not say what {self.axis} is there")
            for series in self.series:
                self.at(index, series)


def experiment_names() -> list[str]:
    """The experiments that come with the package."""
    return sorted(file.name.removesuffix(".toml") for file in FILES.iterdir() if _is_toml(file))


def load_experiment(name: str) -> Experiment:
    """Read an experiment: one that comes with the package, by name, or any file.

    Raises UserError if there is none or it is not an experiment.
    """
    file = FILES / f"{name}.toml" if name in experiment_names() else Path(name)
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES)
        experiment = msgspec.toml.decode(content, type=Experiment)
        experiment.check()
    except OSError as error:
        known = ", ".join(experiment_names())
        raise UserError(
            f"cannot read the experiment {name}: {error.strerror}; give a file, or one of {known}"
        ) from error
    except (ValueError, RecursionError, UserError) as error:
        raise UserError(f"{name} is not an experiment: {error}; see docs/latency.md") from error
    return experiment


def _is_toml(file: Any) -> bool:
    return str(file.name).endswith(".toml")


def _typical(distribution: Distribution) -> float:
    match distribution:
        case Constant(seconds):
            return seconds
        case Uniform(low, high):
            return (low + high) / 2
        case Exponential(mean):
            return mean
        case LogNormal(median):
            return median
