"""Engines by name: built-in ones and users' own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parity_models.options import Value
from parity_models.registry import Registry
from parity_models.serving.engine import Engine
from parity_models.serving.local.local_engine import LocalEngine
from parity_models.serving.ray.ray_engine import RayEngine
from parity_models.serving.remote.remote_engine import RemoteEngine

ENGINES = Registry[Engine]("engine", Engine, LocalEngine, RemoteEngine, RayEngine)
"""All engines."""


@dataclass(frozen=True)
class EngineChoice:
    """An engine by name, and the options that are given; plain values, as in a file.

    Raises UserError for unknown names and options, and values out of range.
    """

    name: str = "local"
    options: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _ = self.settings

    def __str__(self) -> str:
        options = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}@{options}" if options else self.name

    @property
    def kind(self) -> type[Engine]:
        """The engine's class."""
        return ENGINES.find(self.name)

    @property
    def settings(self) -> Any:
        """The engine's `Options`."""
        return ENGINES.options(self.name, self.options)
