"""The command line: what it offers, what it exits with, and what it needs installed."""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import uvloop

from commands import Here, Outcome, assert_refused, succeeded
from own_policy import POLICY
from parity_models.bundle.bundle import open_bundle
from parity_models.cli.common import stop_on_signals
from present import some
from served import OUTPUTS, predictions, queries, write_linear_bundle


def parm(*arguments: object, before: str) -> Outcome:
    """Run `parm` in a process of its own, after the Python statements `before`."""
    script = f"{before}\nfrom parity_models.cli.main import main; main()"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("nonsense", "No such command 'nonsense'"),
        ("evaluate nowhere --colour red", "No such option"),
        ("calibrate nowhere --agreement 1.5", "'--agreement': must be"),
        ("serve nowhere", "there is no bundle at nowhere"),
        ("serve nowhere --repository x", "give one BUNDLE"),
        ("serve nowhere --deadline soon", "or a time with a unit, as 50ms"),
        ("plan nowhere --headroom x", "as 30% or 0.3"),
        ("protect --model nowhere", "Missing option '--out'"),
        ("parity --model nowhere --encoder som --inputs x --out x", "did you mean sum?"),
        ("parity --model nowhere --encoder stack@axle=1 --inputs x --out x", "not an option"),
    ],
)
def test_the_users_mistakes_exit_with_2_and_one_line(
    parm_here: Here, arguments: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(parm_here(*arguments.split()), reason)
    assert list(tmp_path.iterdir()) == []


def test_our_mistakes_exit_with_1(parm_here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parity_models.cli.evaluate.open_bundle", lambda *given, **more: 1 / 0)
    given = ("evaluate", "bundle", "--inputs", "x")
    plain = parm_here(*given)
    assert plain.returncode == 1
    assert plain.stderr.startswith("error: ZeroDivisionError: division by zero. This is a bug")
    assert len(plain.stderr.splitlines()) == 1
    monkeypatch.setenv("PARM_DEBUG", "1")
    asked = parm_here(*given)
    assert asked.returncode == 1
    assert "Traceback" in asked.stderr
    assert "error: ZeroDivisionError" in asked.stderr


def test_evaluate_prints_and_keeps(parm_here: Here, tmp_path: Path) -> None:
    bundle, report = write_linear_bundle(tmp_path), tmp_path / "new" / "report.json"
    rows = queries(400)
    labels = predictions(rows).argmax(axis=1)
    labels[::4] = (labels[::4] + 1) % OUTPUTS
    np.savez(tmp_path / "test.npz", inputs=rows, labels=labels)
    given = ("--inputs", tmp_path / "test.npz", "--labels", tmp_path / "test.npz")
    outcome = succeeded(parm_here("evaluate", bundle, *given, "--json", report))
    numbers = json.loads(report.read_text())
    assert numbers["available_accuracy"] == numbers["degraded_accuracy"] == 0.75
    assert numbers["agreement"] == 1
    assert numbers["overall"].keys() == {"0.01", "0.05", "0.1", "0.2"}
    assert numbers["queries"] == 400
    assert numbers["code"]["encoder"] == "sum"
    assert outcome.stdout.count("75.00") >= 4
    assert some(open_bundle(bundle).manifest.accuracy).available_accuracy == 0.75


NO_TORCH = """
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "torchvision", "onnx", "onnxscript", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

import sys
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.slow
def test_the_serving_path_runs_without_torch(tmp_path: Path) -> None:
    bundle = write_linear_bundle(tmp_path)
    np.save(tmp_path / "test.npy", queries(100))
    script = f"""{NO_TORCH}
import importlib, pkgutil
from parity_models.cli.main import main
for arguments in (["--help"], ["serve", "--help"], ["plan", "--help"], ["rehearse", "--help"],
    ["evaluate", {str(bundle)!r}, "--inputs", {str(tmp_path / "test.npy")!r}]):
    sys.argv = ["parm", *arguments]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, arguments
rooms = "codes evaluation load scheduling serving simulation tasks tensors trust"
for room in rooms.split():
    package = importlib.import_module(f"parity_models.{{room}}")
    for module in pkgutil.walk_packages(getattr(package, "__path__", ()), package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
importlib.import_module("parity_models.bundle.bundle")
importlib.import_module("parity_models.sizing.plan")
importlib.import_module("parity_models.cli.serve")
assert not any(name.startswith("torch.") for name in sys.modules)
"""
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.parametrize(
    ("module", "late"),
    [
        (
            "cli.serve",
            ("aiohttp", "grpc", "ngh2", "google.protobuf", "opentelemetry", "numpy.f2py"),
        ),
        ("serving.worker.worker", ("asyncio", "ssl", "numpy.random", "importlib.resources")),
    ],
)
def test_a_process_starts_without_what_it_may_never_use(module: str, late: tuple[str, ...]) -> None:
    """Imports are most of a start: of clients of a fleet, of gRPC, of certificates, of spans."""
    script = f"""
import sys
import parity_models.{module}
sys.exit(" ".join(each for each in {late!r} if each in sys.modules))
"""
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert outcome.stderr.strip() == ""


def test_a_command_whose_extra_is_not_installed_says_how_to_install_it() -> None:
    outcome = parm(
        "parity", "--model", "deployed", "--inputs", "x", "--out", "out", before=NO_TORCH
    )
    assert_refused(outcome, "in a clone of the repository, pip install '.[train]'")


def test_a_signal_stops_a_command_and_a_second_ends_it() -> None:
    stopped = False

    async def command() -> None:
        nonlocal stopped
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            await stop.wait()
            signal.raise_signal(signal.SIGHUP)  # a terminal that closes may say so twice
            for _ in range(3):
                await asyncio.sleep(0.01)
            stopped = True
            signal.raise_signal(signal.SIGTERM)
            await asyncio.Event().wait()

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises(asyncio.CancelledError):
            uvloop.run(command())
        assert stopped
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_simulate_compares_settings_and_writes_json(parm_here: Here, tmp_path: Path) -> None:
    succeeded(parm_here(
        "simulate", "--queries", "1000", "--service-time", "25ms", "--backup-time", "5ms",
        "--policy", "hedging", "--policy", "hedging@hedge-delay=5ms", "--policy", "adaptive",
        "--policy", f"{POLICY}@again-after=1ms", "--dispatch=latency-aware",
        "--json", tmp_path / "s.json",
    ))  # fmt: skip
    report = json.loads((tmp_path / "s.json").read_text())
    own = f"{POLICY}@again-after=1, latency-aware"
    assert {"hedging, latency-aware", "adaptive, latency-aware", own} < report["policies"].keys()
    asked = {"name": POLICY, "dispatch": "latency-aware", "again_after": 0.001}
    assert asked in report["options"]
    assert 0.005 in [each.get("hedge_delay") for each in report["options"]]
    for each in report["policies"].values():
        assert each["p999_ms"] > each["p50_ms"] > 0
