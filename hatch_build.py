"""Compile the scheduler and the simulator into the wheel, if PARM_COMPILE=1 asks for it (mypyc).

The wheel is then of one Python and one platform, and has the sources beside what was compiled of
them. What users extend (policies, dispatch rules) and what they hand in stays Python.
"""

import os
import shutil
from contextlib import chdir
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "parity_models"

COMPILED = (
    "scheduling/admission.py",
    "scheduling/patience.py",
    "scheduling/queries.py",
    "scheduling/recent.py",
    "scheduling/run_times.py",
    "scheduling/samples.py",
    "scheduling/scheduler.py",
    "scheduling/scheduler_port.py",
    "scheduling/timers.py",
    "scheduling/units.py",
    "scheduling/work.py",
    "scheduling/health/failing.py",
    "scheduling/health/hanging.py",
    "scheduling/health/health.py",
    "scheduling/health/members.py",
    "scheduling/health/outliers.py",
    "scheduling/health/poison.py",
    "scheduling/health/run_limits.py",
    "scheduling/policies/groups.py",
    "scheduling/policies/interference.py",
    "scheduling/policies/stand_in.py",
    "simulation/link.py",
    "simulation/network.py",
    "simulation/simulator.py",
    "faults/shuffles.py",
    "faults/spells.py",
    "faults/worker.py",
)
"""What a query passes through, but for classes that hold `Options`, or that users derive from."""


class CompiledWheel(BuildHookInterface[Any]):
    """Hatch calls it for every wheel."""

    PLUGIN_NAME = "custom"

    @property
    def _asked_for(self) -> bool:
        return os.environ.get("PARM_COMPILE") == "1"

    def dependencies(self) -> list[str]:
        return ["msgspec", "mypy[mypyc]", "setuptools"] if self._asked_for else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not self._asked_for or version == "editable":
            return
        self._work = Path(mkdtemp())
        sources = self._work / "sources"
        # Without its .pyi the package's front door is not followed to everything behind it.
        shutil.copytree(
            Path(self.root, "src", PACKAGE),
            sources / PACKAGE,
            ignore=shutil.ignore_patterns("__init__.pyi", "__pycache__"),
        )
        for built in _compile(sources, self._work / "built"):
            name = built.relative_to(self._work / "built").as_posix()
            build_data["force_include"][str(built)] = name
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_work"):
            shutil.rmtree(self._work)


def _compile(sources: Path, out: Path) -> list[Path]:
    """The extension modules under `out`, for the packages in `sources`."""
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    with chdir(sources):
        Path("mypy.ini").write_text(
            "[mypy]\nexplicit_package_bases = true\nignore_missing_imports = true\n"
        )
        files = [f"{PACKAGE}/{name}" for name in COMPILED]
        extensions = mypycify(
            ["--config-file", "mypy.ini", *files], group_name=PACKAGE, debug_level="0"
        )
        command = build_ext(Distribution({"name": PACKAGE, "ext_modules": extensions}))
        command.build_lib, command.build_temp = str(out), str(sources / "temporary")
        command.ensure_finalized()
        command.run()
    return sorted(out.rglob("*.so"))
