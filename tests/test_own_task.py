"""A task and a network of one's own are small classes, named on the command line."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from parity_models.cli.main import command
from parity_models.errors import UserError
from parity_models.models.bundle import open_bundle
from parity_models.tasks import choose_task, find_task

DOCS = Path(__file__).parent.parent / "docs" / "tasks.md"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the module of the documentation's example in it."""
    text = DOCS.read_text()
    example = text.split("```python\n# mine.py\n")[1].split("```")[0]
    # Modules are imported once in a process, so every test has its own.
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / name


def run(*arguments: str) -> str:
    result = CliRunner().invoke(command(), arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_documented_task_and_network_lead_to_a_bundle(here: Path) -> None:
    task, network = f"{here.name}:Waves", f"{here.name}:Narrow"
    run("train", "--task", task, "--network", network, "--epochs", "3", "--out", "f")
    deployed = open_bundle(Path("f")).manifest
    assert (deployed.deployed.network, deployed.deployed.output.shape) == (network, (1,))
    assert deployed.accuracy is not None
    assert deployed.accuracy.metric == "r2"
    run("parity", "--from", "f", "--task", task, "--network", "mlp", "--epochs", "3", "--out", "p")
    assert "agree" in run("evaluate", "p", "--task", task)
    assert open_bundle(Path("p")).manifest.accuracy is not None
    assert "Waves" in run("data", "info", task)


def test_a_name_out_of_a_bundle_is_never_imported(here: Path) -> None:
    run("train", "--task", f"{here.name}:Waves", "--epochs", "1", "--out", "f")
    with pytest.raises(UserError, match="a task of your own; name it with --task"):
        run("evaluate", "f")
    with pytest.raises(UserError, match="a task of your own; name it with --task"):
        find_task("os:system")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("class Task: pass", "no subclass of"),
        ("Task = 7", "no subclass of"),
        (
            "from parity_models.tasks import Task as T\n"
            "class Task(T):\n    metric = 'beauty'\n    def load(self, folder=None): ...",
            "has the metric 'beauty'",
        ),
        ("from parity_models.tasks import Task", "cannot be made"),
    ],
)
def test_what_is_no_task_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, reason: str
) -> None:
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=reason):
        choose_task(f"{name}:Task")
