"""A client's absurd inputs do not decide others' answers, computed as parm-lab attack does."""

from pathlib import Path

import numpy as np
import pytest

from parity_models.models.bundle import Bundle
from parity_models.tasks import find_task
from parity_models.training import TrainingOptions
from parity_models_lab.chaos.attack import CODE, HONEST, compute, partners, without_envelope
from parity_models_lab.deployed import train_deployed
from trainings import train_parity

pytestmark = pytest.mark.slow

TASK = find_task("digits")
DIGITS = TASK.load()
ROWS = DIGITS.test.inputs
PARTNERS = partners(ROWS, len(ROWS), np.random.default_rng(0))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose slots are not isolated, trained for a short time."""
    folder, settings = tmp_path_factory.mktemp("attack"), TrainingOptions(epochs=20)
    deployed = train_deployed(TASK, DIGITS, "mlp", folder / "f", settings)
    return train_parity(
        deployed, CODE, DIGITS.train.inputs, folder / "b", settings, validation=DIGITS.validation
    )


def test_beside_an_attacker_victims_fare_as_beside_honest_partners(bundle: Bundle) -> None:
    found = {name: compute(bundle, ROWS, rows) for name, rows in PARTNERS.items()}
    # Of so few victims some more agree beside one partner than beside another.
    honest = [found.pop(HONEST)[0]]
    honest += [compute(bundle, ROWS, np.roll(ROWS, by, axis=0))[0] for by in (1, 7, 50)]
    for name, (agreement, held) in found.items():
        assert held > 0.99, name
        assert agreement >= min(honest) - 0.01, name


def test_without_an_envelope_attackers_decide_victims_answers(
    bundle: Bundle, tmp_path: Path
) -> None:
    bare = without_envelope(bundle, tmp_path / "bare")
    honest, _ = compute(bare, ROWS, PARTNERS[HONEST])
    for name, rows in PARTNERS.items():
        if name.startswith("all"):
            assert compute(bare, ROWS, rows)[0] < honest / 2, name
