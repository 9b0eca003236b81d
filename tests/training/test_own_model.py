"""A model that this package did not make: opened, imitated without labels, or refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from commands import invoke
from onnx_models import linear_model
from parity_models.cli.main import main
from parity_models.codes import Code, CodeSpec
from parity_models.errors import (
    DataError,
    ModelError,
    ParityModelsError,
    TrainingError,
    UserError,
)
from parity_models.evaluation import evaluate
from parity_models.evaluation.inference_table import slowdown
from parity_models.models.bundle import InferenceTimes, NewModel, open_bundle, write_bundle
from parity_models.models.networks import build_network
from parity_models.models.onnx_model import OnnxModel
from parity_models.own_code import load_own
from parity_models.tasks import find_task
from parity_models.training import Settings, open_deployed, train_backup, train_parity
from parity_models.training import parity_network as networks
from served import ServerProcess

STACK = CodeSpec("stack", "separate", 2)
DIGITS = find_task("digits").load(None)
ROWS = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
ONCE = Settings(epochs=1)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a least-squares model of the digits, inputs, and a labelled test set."""
    folder = tmp_path_factory.mktemp("digits")
    train, test = DIGITS.train, DIGITS.test
    features = train.inputs.reshape(len(train), -1)
    weights = np.linalg.lstsq(features, np.eye(10, dtype=np.float32)[train.labels], rcond=None)[0]
    linear_model(folder / "model.onnx", (1, 8, 8), (10,), 5 * weights.astype(np.float32))
    np.save(folder / "inputs.npy", train.inputs)
    np.save(folder / "test.npy", test.inputs)
    np.save(folder / "labels.npy", test.labels)
    return folder


Parm = Callable[..., str]


@pytest.fixture
def parm(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Parm:
    """Runs `parm` in this process, in a new folder: gives stdout, or the error of code 2."""
    monkeypatch.chdir(tmp_path)

    def run(arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["parm", *arguments.format(digits=digits).split()])
        with pytest.raises(SystemExit) as exit:
            main()
        said = capsys.readouterr()
        assert exit.value.code in (code, None if code == 0 else code), said.err
        return said.out if code == 0 else said.err.splitlines()[-1]

    return run


def test_one_command_leads_from_a_model_and_inputs_to_a_measured_bundle(
    parm: Parm, digits: Path, tmp_path: Path
) -> None:
    said = parm(
        "parity --model {digits}/model.onnx --inputs {digits}/inputs.npy --out bundle --k 2 "
        "--parity-network mlp --epochs 20"
    )
    assert "top-1 agreement, 120 queries" in said
    assert "ratio" in said
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest.deployed.network == "own"
    assert manifest.deployed_training is None
    assert manifest.accuracy is not None
    assert manifest.accuracy.available_accuracy == 1
    assert manifest.accuracy.degraded_accuracy == manifest.accuracy.agreement
    assert manifest.accuracy.metric == "top-1 agreement"
    assert manifest.inference_times is not None
    assert manifest.inference_times.parity is not None
    assert manifest.parity_training is not None
    assert manifest.parity_training.inputs == 1080  # a tenth is kept for the report
    assert (digits / "model.onnx").read_bytes() == (tmp_path / "bundle/deployed.onnx").read_bytes()

    parm(
        "evaluate bundle --inputs {digits}/test.npy --labels {digits}/labels.npy --json right.json"
    )
    right = json.loads((tmp_path / "right.json").read_text())
    assert right["metric"] == "top-1"
    assert right["queries"] == 400
    assert right["available_accuracy"] < 1
    assert right["degraded_accuracy"] > 0.75
    parm("evaluate bundle --inputs {digits}/test.npy --json alike.json")
    alike = json.loads((tmp_path / "alike.json").read_text())
    assert alike["degraded_accuracy"] == right["agreement"]
    assert (alike["task"], alike["available_accuracy"]) == (None, 1)

    parm(
        "backup --from bundle --network linear --inputs {digits}/inputs.npy --out bundle "
        "--epochs 20"
    )
    backed = open_bundle(tmp_path / "bundle").manifest
    assert backed.accuracy is not None
    assert backed.accuracy.backup_accuracy is not None
    assert backed.accuracy.backup_accuracy > 0.9
    assert backed.inference_times is not None
    assert backed.inference_times.backup is not None


def test_a_bundle_may_be_given_inputs_of_ones_own_for_another_code(
    parm: Parm, digits: Path, tmp_path: Path
) -> None:
    write_bundle("plain", deployed=NewModel(digits / "model.onnx", "mine"))
    parm(
        "parity --from plain --inputs {digits}/inputs.npy --out other --k 3 --encoder sum "
        "--decoder subtraction --parity-network linear --epochs 20"
    )
    accuracy = open_bundle(tmp_path / "other").manifest.accuracy
    assert accuracy is not None
    assert accuracy.agreement is not None
    assert accuracy.agreement > 0.7


class Nearest(nn.Module):
    """Two numbers per row: no classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layer(rows)
        return outputs


def test_a_torch_module_is_imitated_and_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Nearest().train()
    rows = np.random.default_rng(1).normal(size=(800, 6)).astype(np.float32)
    outcome = train_parity(
        module, STACK, rows, tmp_path / "b", Settings(epochs=40), network="mlp", metric="r2"
    )
    assert module.training
    deployed = OnnxModel(outcome.bundle.deployed_path)
    expected = module(torch.from_numpy(rows[:50])).detach().numpy()
    np.testing.assert_allclose(deployed(rows[:50]), expected, rtol=1e-4, atol=1e-5)
    accuracy = evaluate(outcome.bundle, rows[:50], expected, metric="r2")
    assert accuracy.degraded_accuracy is not None
    assert accuracy.degraded_accuracy > 0.8


def test_a_path_in_python_is_an_onnx_file_or_a_bundle(digits: Path, tmp_path: Path) -> None:
    inputs = DIGITS.train.inputs
    predicted: list[int] = []
    settings = Settings(epochs=1, predicted=predicted.append)
    once = train_parity(
        digits / "model.onnx", STACK, inputs, tmp_path / "a", settings, network="linear"
    )
    assert sum(predicted) >= len(inputs)
    again = train_parity(
        once.bundle.path, STACK, inputs, tmp_path / "b", settings, network="linear"
    )
    parities = [one.bundle.manifest.parity[0].sha256 for one in (once, again)]
    assert parities[0] == parities[1]
    backed = train_backup(again.bundle, "linear", inputs, tmp_path / "c", settings)
    assert backed.bundle.backup_path is not None


# The parity model's network


@pytest.mark.parametrize(
    ("shape", "slower", "expected"),
    [
        ((1, 8, 8), (), "resnet-small"),
        ((1, 8, 8), ("resnet-small",), "mlp"),
        ((1, 8, 8), ("resnet-small", "mlp"), "linear"),
        ((6,), (), "mlp"),
        ((3, 40), (), "resnet-1d"),
        ((3, 40), ("resnet-1d",), "mlp"),
        ((5, 6), (), "mlp"),  # too few steps to convolve over
    ],
)
def test_the_network_chosen_is_the_most_capable_that_is_not_slower(
    shape: tuple[int, ...],
    slower: tuple[str, ...],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    linear_model(tmp_path / "model.onnx", shape, (10,))
    built: list[str] = []

    def build(name: str, *shapes: Any) -> nn.Module:
        built.append(name)
        return build_network(name, *shapes)

    monkeypatch.setattr(networks, "build_network", build)
    monkeypatch.setattr(networks, "export_onnx", lambda *_: (tmp_path / "model.onnx").read_bytes())
    monkeypatch.setattr(
        networks, "inference_times", lambda models: (9.0 if built[-1] in slower else 1.0, 1.0)
    )
    with open_deployed(tmp_path / "model.onnx", shape) as bundle:
        code = Code(STACK, shape, (10,))
        assert networks.choose_network(bundle, code) == expected


def test_a_parity_model_slower_than_the_deployed_model_is_told(
    digits: Path, tmp_path: Path
) -> None:
    for parity, expected in [(1.0, None), (3.0, 3.0), (None, None)]:
        bundle = write_bundle(
            tmp_path / "bundle",
            deployed=NewModel(digits / "model.onnx", "own"),
            inference_times=InferenceTimes(1.0, parity, None),
        )
        assert slowdown(open_bundle(bundle.path)) == expected


FACTORIES = """
from torch import nn

def good(input_shape, output_shape, grid=(1, 1)):
    assert grid == (2, 1) or grid == (1, 2) or grid == (1, 1)
    return Own(input_shape, output_shape)

class Own(nn.Module):
    def __init__(self, input_shape, output_shape):
        super().__init__()
        self.shape = output_shape
        self.layer = nn.LazyLinear(output_shape[0] * output_shape[1])

    def forward(self, queries):
        return self.layer(queries.flatten(1)).reshape(-1, *self.shape)

def fails(input_shape, output_shape):
    raise ZeroDivisionError("no")

def nothing(input_shape, output_shape):
    return None

def few(input_shape):
    return nn.Identity()

def wrong(input_shape, output_shape):
    return nn.Flatten()

def picky(input_shape, output_shape):
    return nn.Linear(3, 4)

number = 4
"""


def test_a_network_may_come_from_a_function_in_the_current_folder(
    parm: Parm, tmp_path: Path
) -> None:
    (tmp_path / "mine_good.py").write_text(FACTORIES)
    parm(
        "parity --model {digits}/model.onnx --inputs {digits}/inputs.npy --out bundle "
        "--encoder concatenation --parity-network mine_good:good --epochs 2"
    )
    (parity,) = open_bundle(tmp_path / "bundle").manifest.parity
    assert parity.network == "mine_good:good"


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("absent_package.module:f", "there is no module 'absent_package' here or installed"),
        ("mine:absent", "mine.py) has no 'absent'"),
        ("mine:", "is not of the form package.module:name"),
        (":f", "is not of the form package.module:name"),
        ("broken:f", "importing broken failed: SyntaxError"),
        ("mine:number", "mine:number is 4, not a function"),
        ("mine:fails", "mine:fails((2, 8, 8), (2, 10)) failed: ZeroDivisionError: no"),
        ("mine:few", "failed: TypeError"),
        ("mine:nothing", "mine:nothing made NoneType, not a torch.nn.Module"),
        ("mine:wrong", "gives (2, 128) for 2 inputs, where (2, 2, 10) is needed"),
        ("mine:picky", "cannot take inputs of shape (2, 8, 8): RuntimeError"),
        ("nobody", "no network is called 'nobody'; there are"),
    ],
)
def test_networks_that_cannot_be_are_refused(
    parm: Parm, tmp_path: Path, reference: str, reason: str
) -> None:
    sys.modules.pop("mine", None)
    (tmp_path / "mine.py").write_text(FACTORIES)
    (tmp_path / "broken.py").write_text("def f(:")
    said = parm(
        "parity --model {digits}/model.onnx --inputs {digits}/inputs.npy --out bundle "
        f"--parity-network {reference}",
        code=2,
    )
    assert reason in said
    assert not (tmp_path / "bundle").exists()


def test_code_is_loaded_only_by_a_name_of_the_right_form() -> None:
    assert load_own("math:pi") == pytest.approx(3.14159, abs=1e-5)
    for reference in ["math", "math:", ":pi", "math:pi:e", "math:__import__('os')"]:
        with pytest.raises(UserError, match="is not of the form"):
            load_own(reference)


# Inputs


@pytest.mark.parametrize(
    ("inputs", "arguments", "reason"),
    [
        (ROWS[:0], "", "there are 0 inputs in rows.npy, too few: give 6 or more"),
        (ROWS[:5], "", "there are 5 inputs in rows.npy, too few: give 6 or more"),
        (ROWS, "--k 32", "there are 60 inputs in rows.npy, too few: give 96 or more"),
        (ROWS[:, :5], "", "the model takes float32 of shape (n, 6)"),
        (np.where(ROWS > 2, np.nan, ROWS), "", "hold NaN or infinite values"),
        (np.ones_like(ROWS), "", "all training inputs are the same"),
        (ROWS, "--encoder concatenation", "concatenation needs images"),
        (ROWS, "--encoder sum", "could not tell the slots apart"),
        (ROWS, "--k 1", "k must be 2 or more"),
        (ROWS, "--metric magic", "no metric is called 'magic'"),
        (ROWS, "--metric iou", "iou judges boxes"),
        (1e36 * np.abs(ROWS), "", "predicts NaN or infinite values"),
        (ROWS, "--out /proc/bundle", "nothing can be written to /proc"),
        (ROWS, "--out model.onnx/bundle", "nothing can be written to"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    parm: Parm, tmp_path: Path, inputs: NDArray[np.float32], arguments: str, reason: str
) -> None:
    linear_model(tmp_path / "model.onnx", (6,), (3,), np.full((6, 3), 1e3, np.float32))
    np.save("rows.npy", inputs)
    said = parm(
        "parity --model model.onnx --inputs rows.npy --out bundle --parity-network mlp "
        + arguments,
        code=2,
    )
    assert reason in said
    assert not (tmp_path / "bundle").exists()


class Aside(nn.Module):
    """What it predicts for a row depends on the rows beside it."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows - rows.mean(dim=0)


def test_models_that_nothing_can_be_learned_from_are_refused(tmp_path: Path) -> None:
    constant = nn.Linear(6, 3)
    nn.init.zeros_(constant.weight)
    with pytest.raises(DataError, match="predicts the same for all inputs"):
        train_parity(constant, STACK, ROWS, tmp_path / "b", ONCE, network="linear")
    with pytest.raises(ModelError, match="depends on the others in its batch"):
        train_parity(Aside(), STACK, ROWS, tmp_path / "b", ONCE, network="linear")


def diverged(input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> nn.Module:
    layer = nn.Linear(input_shape[0], output_shape[0] * output_shape[1])
    nn.init.constant_(layer.weight, float("nan"))
    return nn.Sequential(layer, nn.Unflatten(1, output_shape))


def test_a_training_that_diverged_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the training diverged"):
        train_parity(nn.Linear(6, 3), STACK, ROWS, tmp_path / "b", ONCE, network=diverged)
    assert not (tmp_path / "b").exists()


def test_predictions_that_are_no_numbers_are_not_judged(tmp_path: Path) -> None:
    bundle = train_parity(nn.Linear(6, 3), STACK, ROWS, tmp_path / "b", ONCE).bundle
    with np.errstate(over="ignore"), pytest.raises(DataError, match="gives NaN or infinite values"):
        evaluate(bundle, ROWS * np.float32(3e38), np.zeros(len(ROWS), np.int64))


def test_labels_of_values_may_be_whole_numbers(parm: Parm, tmp_path: Path) -> None:
    weights = np.arange(6, dtype=np.float32)[:, None]
    linear_model(tmp_path / "model.onnx", (6,), (1,), weights)
    rows = np.random.default_rng(1).integers(0, 9, (90, 6)).astype(np.float32)
    np.save("rows.npy", rows)
    parm("parity --model model.onnx --inputs rows.npy --out b --epochs 2 --parity-network linear")
    for labels in (rows @ weights, (rows @ weights)[:, 0]):
        for kind in (np.uint8, np.int64, np.float64):
            np.save("labels.npy", labels.astype(kind))
            parm("evaluate b --inputs rows.npy --labels labels.npy --json out.json")
            told = json.loads(Path("out.json").read_text())
            assert told["available_accuracy"] == pytest.approx(1, abs=1e-3)


def test_reconstructions_worth_nothing_are_warned_about(
    digits: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("few.npy", DIGITS.train.inputs[:40])
    command = ["parity", "--model", str(digits / "model.onnx"), "--inputs", "few.npy"]
    command += ["--out", "b", "--seconds", "1e-6", "--parity-network", "mynet:zeros"]
    Path("mynet.py").write_text(
        "from torch import nn\n"
        "def zeros(takes, gives):\n"
        "    layer = nn.Linear(128, 20)\n"
        "    nn.init.zeros_(layer.weight)\n"
        "    return nn.Sequential(nn.Flatten(), layer, nn.Unflatten(1, gives))\n"
    )
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    assert "no better than one prediction for all queries" in result.stderr


def test_options_that_do_not_go_together_are_refused(parm: Parm, digits: Path) -> None:
    write_bundle("plain", deployed=NewModel(digits / "model.onnx", "own"))
    np.save("alike.npy", np.ones((4, *DIGITS.train.inputs.shape[1:]), np.float32))
    for arguments, reason in [
        ("parity --out b", "either --from DIR or --model FILE"),
        ("parity --from plain --model {digits}/model.onnx --out b", "either --from DIR or --model"),
        ("parity --model {digits}/model.onnx --out b", "give some with --inputs"),
        ("parity --from plain --out b", "give some with --inputs"),
        ("backup --from plain --network linear --out b", "give some with --inputs"),
        ("evaluate plain", "or give queries with --inputs"),
        ("evaluate plain --labels {digits}/labels.npy", "name the inputs, too"),
        ("evaluate plain --inputs {digits}/test.npy --task digits", "not both"),
        (
            "evaluate plain --inputs {digits}/inputs.npy --labels {digits}/labels.npy",
            "holds 400 labels for 1200 inputs",
        ),
        ("evaluate plain --inputs {digits}/labels.npy", "save floating point"),
        ("evaluate plain --inputs alike.npy", "all inputs in alike.npy are the same"),
    ]:
        assert reason in parm(arguments, code=2)


def test_inputs_in_python_are_checked_as_well(digits: Path, tmp_path: Path) -> None:
    inputs = DIGITS.train.inputs.copy()
    inputs[5, 0, 1, 2] = np.nan
    for wrong in (inputs, inputs[:3], np.zeros_like(inputs), inputs.astype(float)):
        with pytest.raises(DataError):
            train_parity(digits / "model.onnx", STACK, wrong, tmp_path / "b", ONCE)
    with pytest.raises(TrainingError):
        train_parity(
            digits / "model.onnx", STACK, DIGITS.train.inputs, tmp_path / "b", ONCE, network="x"
        )
    assert issubclass(TrainingError, ParityModelsError)


# The example


def test_the_example_leads_to_a_served_bundle(
    parm: Parm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = Path(__file__).parents[2] / "examples" / "own_model.py"
    commands = [line.strip() for line in example.read_text().splitlines()[2:6]]
    assert commands[0] == "python examples/own_model.py own"
    program: dict[str, Any] = {"__name__": "example"}
    exec(compile(example.read_text(), example, "exec"), program)
    program["main"](Path("own"))
    assert commands[1].endswith(" --seconds 30")
    parm(commands[1].removeprefix("parm ").removesuffix("--seconds 30") + "--epochs 1")
    parm(commands[2].removeprefix("parm "))
    accuracy = open_bundle("own/bundle").manifest.accuracy
    assert accuracy is not None
    assert accuracy.available_accuracy > 0.9
    assert commands[3] == "parm serve own/bundle --instances 4"
    with ServerProcess("own/bundle", "--instances", "1") as server:
        test = np.load("own/test.npy")[:2]
        answer = httpx.post(
            f"{server.url}/v2/models/model/infer",
            json={
                "inputs": [
                    {
                        "name": "image",
                        "shape": list(test.shape),
                        "datatype": "FP32",
                        "data": test.ravel().tolist(),
                    }
                ]
            },
            timeout=30,
        ).json()
    assert answer["outputs"][0]["shape"] == [2, 10]
