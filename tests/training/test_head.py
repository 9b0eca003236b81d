"""A head says where a backup's vectors agree with the model's, and its gate keeps its level."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from linear_bundles import FEATURES
from onnx_models import linear_model
from parity_models import PolicyChoice, ServeOptions, Source, serve
from parity_models.bundle.bundle import Bundle, NewModel, with_measured, write_bundle
from parity_models.errors import BundleError, UserError
from parity_models.evaluation.judging import calibrate_gates, measure_gates
from parity_models.evaluation.outputs import Outputs
from parity_models.tasks.metrics import METRICS, agreement_for, choose_metric
from parity_models.training.distillation import Served
from parity_models.training.export import export, floats
from parity_models.training.head import FEWEST, Head, choose_head, fit_head
from parity_models.trust.gate import HEAD, Calibration, StandIn, confidences
from present import some

Array = NDArray[Any]
WIDTH = 8
WEIGHTS = np.random.default_rng(1).normal(size=(FEATURES, WIDTH)).astype(np.float32)
METRIC = "cosine@0.95"


def inputs(rows: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, FEATURES)).astype(np.float32)


class Sloppy(torch.nn.Module):
    """Gives the model's vectors, turned by a quarter where the first feature is positive."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        right = rows @ torch.from_numpy(WEIGHTS)
        return torch.where(rows[:, :1] > 0.2, right.roll(1, 1), right)


def outputs_of(rows: Array) -> tuple[torch.Tensor, NDArray[np.bool_]]:
    """The outputs of Sloppy, and whether the model agrees with them."""
    given = Sloppy()(torch.from_numpy(rows))
    return given, agreement_for(METRIC, rows @ WEIGHTS)(given.numpy(), rows @ WEIGHTS)


@pytest.fixture(scope="module")
def head() -> Head:
    given, agreed = outputs_of(inputs(1000))
    return some(choose_head(given, agreed, None, [0.95], of_classes=False))


@pytest.fixture(scope="module")
def bundle(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose backup has a head, and a gate."""
    folder = tmp_path_factory.mktemp("head")
    linear_model(folder / "deployed.onnx", (FEATURES,), (WIDTH,), WEIGHTS)
    module = Served(Sloppy(), "numbers", np.dtype(np.float32), head)
    backup = export(module, [floats((FEATURES,))], "output", HEAD)
    written = write_bundle(
        folder / "bundle",
        deployed=NewModel(folder / "deployed.onnx", "linear"),
        backup=NewModel(backup, "sloppy"),
    )
    gates = calibrate_gates(Outputs(written, inputs(2000, 5)), metric=METRIC, named=[0.95])
    return with_measured(written, calibration=gates)


@pytest.mark.slow
def test_vectors_that_agree_may_answer_though_most_of_all_do_not(bundle: Bundle) -> None:
    queries = inputs(4000, seed=9)
    found = Outputs(bundle, queries)
    gates = bundle.manifest.calibration
    assert (gates["backup"].confidence, gates["backup"].kind) == ("head", "directions")
    results = measure_gates(found, gates, queries @ WEIGHTS, metric="cosine")
    shown = {each.level: each for each in results}
    assert some(shown[None].agreement) < 0.8
    assert shown[0.95].coverage > 0.3
    assert some(shown[0.95].agreement) >= 0.94
    assert some(found.backup).shape == (4000, WIDTH)


@pytest.mark.slow
def test_a_server_answers_by_a_head(bundle: Bundle) -> None:
    options = ServeOptions(
        policy=PolicyChoice("approximate-backup"),
        agreement=0.95,
        port=None,
        instances=2,
        deadline=60,
    )
    rows = inputs(40, seed=3)
    with serve(bundle, options) as server:
        result = server.predict(rows)
        sources = set(result.sources)
    assert result.output.shape == (40, WIDTH)
    assert sources <= {Source.MODEL, Source.BACKUP}
    own = np.array([each == Source.MODEL for each in result.sources])
    np.testing.assert_allclose(result.output[own], (rows @ WEIGHTS)[own], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_head_that_adds_nothing_is_left_out() -> None:
    given, agreed = outputs_of(inputs(800))
    perfect = np.where(agreed, 1.0, -1.0)
    assert choose_head(given, agreed, perfect, [0.95], of_classes=False) is None
    few = FEWEST - 1
    assert choose_head(given[:few], agreed[:few], None, [0.95], of_classes=False) is None
    always = np.ones(len(agreed), np.bool_)
    assert choose_head(given, always, None, [0.95], of_classes=False) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "of_classes"), [((5,), True), ((1, 12, 9), False), ((3, 4), False), ((1,), False)]
)
def test_heads_of_any_outputs_are_exported(shape: tuple[int, ...], of_classes: bool) -> None:
    examples = torch.from_numpy(np.random.default_rng(0).normal(size=(300, *shape))).float()
    agreed = (examples.flatten(1)[:, 0] > 0).numpy()
    head = fit_head(examples, agreed, of_classes=of_classes)
    with torch.no_grad():
        said = head(examples)
    assert said.shape == (300, 1)
    assert ((said[:, 0] > 0).numpy() == agreed).mean() > 0.7
    assert export(head, [floats(shape)], HEAD)


def test_bundles_whose_gate_asks_a_head_that_is_not_there_are_refused(tmp_path: Path) -> None:
    linear_model(tmp_path / "model.onnx", (FEATURES,), (WIDTH,), WEIGHTS)
    model = NewModel(tmp_path / "model.onnx", "linear")
    gates: dict[StandIn, Calibration] = {"backup": Calibration("values", 1.0, "head", 100, 0.05)}
    with pytest.raises(BundleError, match="needs a head of the backup, which is missing"):
        write_bundle(tmp_path / "bundle", deployed=model, backup=model, calibration=gates)
    rows = np.zeros((2, WIDTH), np.float32)
    assert np.isnan(confidences("head", rows)).all()


def test_a_metric_with_a_bound_says_what_agrees() -> None:
    assert choose_metric("cosine@0.9", (8,)) == "cosine@0.9"
    assert METRICS["iou@0.7"].kind == "boxes"
    one, near, far = np.array([[1.0, 0.0]]), np.array([[1.0, 0.4]]), np.array([[1.0, 1.0]])
    agree = agreement_for("cosine@0.9", one)
    assert agree(near, one).all()
    assert not agree(far, one).any()
    values = np.random.default_rng(0).normal(size=(1000, 3))
    assert agreement_for("r2@0.9", values) == agreement_for("r2", values)
    for wrong in ("cosine@", "cosine@1", "cosine@-1", "cosine@x", "top-1@0.9", "none@0.9"):
        with pytest.raises(UserError, match="no metric is called"):
            choose_metric(wrong, (8,))
