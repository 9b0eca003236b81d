"""All approaches to unavailable predictions of one deployed model, on the same queries."""

from collections.abc import Iterator
from typing import Literal

from parity_models.codes import BerrutCode, LagrangeCode, LinearCode
from parity_models.evaluation.accuracy import evaluate
from parity_models.evaluation.approaches import (
    Approach,
    evaluate_default,
    evaluate_training_free,
    fit_nested_regression,
    parity_approach,
    plain_approach,
)
from parity_models.evaluation.coding_times import coding_times
from parity_models.evaluation.predictor import Array, predictor
from parity_models.models.bundle import Bundle
from parity_models.roles import BACKUPS, Backup
from parity_models.tasks.task import Split


def compare_approaches(
    bundle: Bundle,
    test: Split,
    reference: Split,
    *,
    k: int = 2,
    r: int = 1,
    degree: int = 2,
    metric: str = "top-1",
    seed: int = 0,
) -> Iterator[Approach]:
    """Judge, one after the other, what can answer for the bundle's deployed model F.

    The bundle's own code and backup, where it has them; a copy of every query; a default
    prediction; and, for groups of k with up to r unavailable, the codes without parity models:
    linear, Lagrange as if F were a polynomial of `degree`, Berrut, nested regression.
    `reference` holds typical queries, to fit the latter and the default to. Raises CodeError
    for k and r that cannot be, DataError for arrays that do not fit.
    """
    fixed = (LinearCode(k, r), LagrangeCode(k, r, degree), BerrutCode(k, r))
    deployed, name = (
        predictor(bundle.deployed_path),
        bundle.manifest.deployed.signature.inputs[0].name,
    )

    def run(rows: Array) -> Array:
        return deployed({name: rows})

    own = evaluate(bundle, test.inputs, test.labels, metric=metric, seed=seed)
    code, available = bundle.code(), own.available_accuracy
    if code is not None:
        overhead = code.r / code.k * relative_time(bundle, "parity")
        yield parity_approach(str(code.spec), overhead, own, *coding_times(code, test.inputs))
    for role, accuracy in zip(BACKUPS, own.backup_accuracies, strict=False):
        yield plain_approach(
            f"approximate {role}", relative_time(bundle, role), available, accuracy
        )
    yield plain_approach("replication", 1.0, available, available)
    yield evaluate_default(run(test.inputs), test.labels, run(reference.inputs), metric)
    nested = fit_nested_regression(
        run, k, r, reference.inputs, reference.labels, metric=metric, seed=seed
    )
    for free in (*fixed, nested):
        yield evaluate_training_free(run, free, test.inputs, test.labels, metric=metric, seed=seed)


def group_of(bundle: Bundle, k: int | None = None, r: int | None = None) -> tuple[int, int]:
    """The k and r to compare approaches with: those given, else the bundle's own code's, else 2
    and 1."""
    code = bundle.manifest.code
    return (
        k if k is not None else code.k if code else 2,
        r if r is not None else code.r if code else 1,
    )


def relative_time(bundle: Bundle, role: Literal["parity", Backup]) -> float:
    """The inference time of the bundle's parity models or of a backup over the deployed model's.

    1 where it was not measured.
    """
    times = bundle.manifest.inference_times
    if times is None:
        return 1.0
    taken = times.parity if role == "parity" else times.of_backups.get(role)
    return 1.0 if taken is None else taken / times.deployed
