"""A task and a network of one's own are small classes, named on the command line."""

import re
from pathlib import Path

import numpy as np
import pytest

from commands import Here
from parity_models.errors import DataError, UserError
from parity_models.models.bundle import open_bundle
from parity_models_lab.tasks import find_task, load_dataset

DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "extend-learning.md"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the module of the documentation's example in it."""
    text = DOCS.read_text()
    example = "".join(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    # Modules are imported once in a process, so every test has its own.
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / name


def write(here: Path, source: str) -> str:
    """Write a module of one's own; return its name."""
    here.with_suffix(".py").write_text(source)
    return here.name


@pytest.mark.slow
def test_the_documented_task_and_networks_lead_to_a_bundle(
    here: Path, parm_here: Here, lab_here: Here
) -> None:
    """Options after the names are theirs, and are kept."""

    def run(*arguments: str) -> str:
        done = (lab_here if arguments[0] == "train" else parm_here)(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    task, network = f"{here.name}:Waves@noise=0.5", f"{here.name}:Sized@units=7"
    once = ("--inputs", "inputs.npy", "--epochs", "1")
    run("train", "--task", task, "--network", network, "--epochs", "1", "--out", "f")
    deployed = open_bundle(Path("f")).manifest
    assert (deployed.deployed.network, deployed.deployed.signature.output.shape) == (network, (1,))
    assert deployed.accuracy is not None
    assert deployed.accuracy.metric == "r2"
    assert deployed.deployed_training is not None
    assert deployed.deployed_training.task == task
    assert deployed.deployed_training.recipe["batch"] == 256
    np.save("inputs.npy", find_task(task).load(None).train.inputs)
    run("parity", "--model", "f", *once, "--network", f"{here.name}:Narrow", "--out", "p")
    run("backup", "--model", "p", *once, "--network", network, "--out", "p")
    backup = open_bundle(Path("p")).manifest.backup
    assert backup is not None
    assert backup.network == network
    assert "agree" in run("evaluate", "p", "--inputs", "inputs.npy")
    for wrong, reason in [
        (("--task", f"{here.name}:Waves@noise=-1"), "noise of .* must be 0 or more"),
        (("--task", f"{here.name}:Waves@nois=1"), "did you mean noise"),
        (
            ("--task", task, "--network", f"{here.name}:Sized@units=few"),
            "units of .* must be a whole number",
        ),
    ]:
        refused = lab_here("train", *wrong, "--out", "g")
        assert refused.returncode == 2
        assert re.search(reason, " ".join(refused.stderr.split()))


OWN = """
import numpy as np
from parity_models_lab.tasks import Dataset, Split
from parity_models_lab.tasks import Task as T

class Task(T):
    metric = "top-1"
    def load(self, folder=None):
        def split(rows, labels=(0, 1), width=3):
            return Split(np.random.rand(rows, width).astype("f"), np.resize(labels, rows))
        {body}
"""


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise FileNotFoundError('no birds')", "load failed: FileNotFoundError: no birds"),
        ("raise SystemExit(3)", "load failed: SystemExit: 3"),
        ("return 3", "it is int, not a Dataset"),
        ("return Dataset(split(9), split(5), split(5))", "the Dataset names none"),
        ("return Dataset(split(9), split(5), split(5, (0, 2)), ('a', 'b'))", "are 0 to 2; there"),
        ("return Dataset(split(9), split(5), split(5, 'ab'), ('a', 'b'))", "no array of numbers"),
        ("return Dataset(split(9), split(5, width=4), split(5), ('a', 'b'))", "validation inputs"),
    ],
)
def test_what_a_task_loads_is_checked(here: Path, body: str, reason: str) -> None:
    name = write(here, OWN.format(body=body))
    with pytest.raises(DataError, match=reason):
        load_dataset(find_task(f"{name}:Task"))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("class Task: pass", "must be a subclass of"),
        ("Task = 7", "must be a subclass of"),
        (
            "from parity_models_lab.tasks import Task as T\n"
            "class Task(T):\n    metric = 'beauty'\n    def load(self, folder=None): ...",
            "has the metric 'beauty'",
        ),
        ("from parity_models_lab.tasks import Task", "cannot be made"),
    ],
)
def test_what_is_no_task_is_refused(here: Path, source: str, reason: str) -> None:
    name = write(here, source)
    with pytest.raises(UserError, match=reason):
        find_task(f"{name}:Task")
