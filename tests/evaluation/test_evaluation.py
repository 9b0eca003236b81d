"""Accuracy under unavailability is what its definition says, query by query."""

from io import StringIO
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from linear_bundles import CLASSES, FEATURES, Array, linear_bundle
from parity_models.codes import CodeSpec
from parity_models.codes.weights import MOST_SETS, some_sets
from parity_models.errors import DataError
from parity_models.evaluation import (
    FRACTIONS,
    GateResult,
    accuracy_table,
    evaluate,
    gate_table,
)
from parity_models.evaluation.accuracy import worthless


def draw_data(rows: int) -> tuple[Array, Array, Array]:
    """Queries, labels that F gets right three times out of four, and F's weights."""
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    weights = rng.normal(size=(FEATURES, CLASSES)).astype(np.float32)
    labels = (inputs @ weights).argmax(axis=1)
    wrong = np.arange(rows) % 4 == 0
    labels[wrong] = (labels[wrong] + 1) % CLASSES
    return inputs, labels, weights


@pytest.mark.parametrize(("k", "r"), [(2, 1), (3, 1), (4, 2), (5, 3)])
def test_nothing_is_lost_where_reconstruction_is_exact(k: int, r: int, tmp_path: Path) -> None:
    inputs, labels, weights = draw_data(101)
    code = CodeSpec("sum", "subtraction", k, r)
    accuracy = evaluate(linear_bundle(tmp_path, weights, [weights] * r, code), inputs, labels)
    assert accuracy.metric == "top-1"
    assert accuracy.queries == 101
    assert accuracy.available_accuracy == pytest.approx(75 / 101)
    assert accuracy.degraded_accuracy == pytest.approx(75 / 101)
    assert accuracy.degraded_by_unavailable == pytest.approx([75 / 101] * r, abs=1e-3)
    assert accuracy.agreement == 1
    assert accuracy.overall == pytest.approx(dict.fromkeys(map(str, FRACTIONS), 75 / 101))


def test_stand_ins_no_better_than_one_prediction_for_all_are_worthless(tmp_path: Path) -> None:
    inputs, labels, weights = draw_data(100)
    code = CodeSpec("sum", "subtraction", 2)
    bundle = linear_bundle(tmp_path, weights, [weights], code, backup=-weights)
    accuracy = evaluate(bundle, inputs, labels)
    backup = accuracy.backup_accuracies[0]
    assert worthless(accuracy, least=backup / 2) == ()
    assert worthless(accuracy, least=backup) == ("backup",)
    assert worthless(accuracy, least=0.75) == ("reconstruction", "backup")
    assert worthless(accuracy, least=1.0) == (), "nothing could be better"


@pytest.mark.parametrize("rows", [6, 7, 8, 100])
def test_each_query_counts_once_with_the_rest_of_its_group_there(rows: int, tmp_path: Path) -> None:
    """Against the definition, followed one query at a time."""
    k = 3
    inputs, labels, weights = draw_data(rows)
    poor = weights + np.random.default_rng(2).normal(size=weights.shape).astype(np.float32)
    bundle = linear_bundle(tmp_path, weights, [poor], CodeSpec("sum", "subtraction", k))
    accuracy = evaluate(bundle, inputs, labels, seed=5)

    order = list(np.random.default_rng(5).permutation(rows))
    right: dict[int, list[bool]] = {slot: [] for slot in range(k)}
    same = []
    for start in range(0, rows, k):
        group = (order + order)[start : start + k]
        parity_output = inputs[group].sum(axis=0) @ poor
        for slot, row in enumerate(group[: rows - start]):
            others = [inputs[other] @ weights for i, other in enumerate(group) if i != slot]
            answer = (parity_output - np.sum(others, axis=0)).argmax()
            right[slot].append(answer == labels[row])
            same.append(answer == (inputs[row] @ weights).argmax())
    assert len(same) == rows
    assert accuracy.degraded_accuracy == pytest.approx(
        np.mean(np.concatenate(list(right.values())))
    )
    assert accuracy.degraded_by_slot == pytest.approx([np.mean(right[i]) for i in range(k)])
    assert accuracy.agreement == pytest.approx(np.mean(same))


def test_slots_are_told_apart(tmp_path: Path) -> None:
    """A parity model that has learned slot 0 and always answers class 0 in slot 1."""
    inputs, labels, weights = draw_data(1000)
    parity = np.zeros((2 * FEATURES, 2, CLASSES), np.float32)
    parity[:FEATURES, 0] = weights
    bundle = linear_bundle(
        tmp_path,
        weights,
        [parity.reshape(2 * FEATURES, 2 * CLASSES)],
        CodeSpec("stack", "separate", 2),
    )
    order = np.random.default_rng(0).permutation(1000).reshape(500, 2)
    predictions = (inputs @ weights).argmax(axis=1)
    accuracy = evaluate(bundle, inputs, labels)
    assert accuracy.degraded_by_slot == pytest.approx(
        [(predictions == labels)[order[:, 0]].mean(), (labels[order[:, 1]] == 0).mean()]
    )
    assert accuracy.degraded_accuracy == pytest.approx(np.mean(accuracy.degraded_by_slot))
    assert accuracy.agreement == pytest.approx(0.5 + (predictions[order[:, 1]] == 0).mean() / 2)


def test_overall_accuracy_weighs_the_two_by_how_many_are_unavailable(tmp_path: Path) -> None:
    inputs, labels, weights = draw_data(100)
    code = CodeSpec("sum", "subtraction", 2)
    accuracy = evaluate(linear_bundle(tmp_path, weights, [-weights], code), inputs, labels)
    a, d = accuracy.available_accuracy, accuracy.degraded_accuracy
    assert d is not None
    assert d < a
    assert list(accuracy.overall) == ["0.01", "0.05", "0.1", "0.2"]
    for fraction, share in accuracy.overall.items():
        assert share == pytest.approx((1 - float(fraction)) * a + float(fraction) * d)


def test_with_two_parities_pairs_are_taken_as_unavailable_too(tmp_path: Path) -> None:
    """The second parity model is poor: the first evens that out as long as it can."""
    inputs, labels, weights = draw_data(200)
    noise = np.random.default_rng(2).normal(size=weights.shape).astype(np.float32)
    code = CodeSpec("sum", "subtraction", 4, 2)
    bundle = linear_bundle(tmp_path, weights, [weights, weights + noise / 4], code)
    one, two = evaluate(bundle, inputs, labels).degraded_by_unavailable
    assert 0.75 > one > two + 0.1


def test_a_bundle_without_a_code_has_only_its_available_accuracy(tmp_path: Path) -> None:
    inputs, labels, weights = draw_data(40)
    bundle = linear_bundle(tmp_path, weights)
    accuracy = evaluate(bundle, inputs, labels)
    assert accuracy.available_accuracy == 0.75
    assert accuracy.degraded_accuracy is None
    assert accuracy.agreement is None
    assert accuracy.degraded_by_slot == ()
    assert accuracy.overall == {}
    assert not accuracy.backup_accuracies


def test_slots_of_too_few_queries_for_the_metric_are_left_out(tmp_path: Path) -> None:
    inputs, _, weights = draw_data(3)
    bundle = linear_bundle(tmp_path, weights, [weights], CodeSpec("sum", "subtraction", 3))
    accuracy = evaluate(bundle, inputs, inputs @ weights, metric="r2")
    assert accuracy.degraded_accuracy == pytest.approx(1)
    assert accuracy.degraded_by_slot == ()


def test_where_sets_are_very_many_some_are_tried(tmp_path: Path) -> None:
    inputs, labels, weights = draw_data(16)
    code = CodeSpec("stack", "separate", 16, 8)
    linear = [np.tile(weights, (16, 16))] * 8
    accuracy = evaluate(linear_bundle(tmp_path, weights, linear, code), inputs, labels)
    assert len(accuracy.degraded_by_unavailable) == 8
    assert some_sets(4, 2, seed=0) == list(combinations(range(4), 2))
    some = some_sets(64, 3, seed=0)
    assert len(set(some)) == len(some) == MOST_SETS
    assert some == some_sets(64, 3, seed=0)


@pytest.mark.parametrize("coded", [True, False])
def test_a_backup_is_judged_on_every_query(coded: bool, tmp_path: Path) -> None:
    inputs, labels, weights = draw_data(100)
    code = CodeSpec("sum", "subtraction", 2) if coded else None
    parity = [weights] if coded else []
    bundle = linear_bundle(tmp_path, -weights, parity, code, backup=weights)
    told: list[tuple[int, int]] = []
    accuracy = evaluate(
        bundle, inputs, labels, progress=lambda rows, total: told.append((rows, total))
    )
    assert accuracy.backup_accuracies[0] == 0.75
    assert accuracy.available_accuracy < 0.5
    assert {sum(rows for rows, _ in told)} == {total for _, total in told}


def test_the_seed_draws_the_groups_and_nothing_else_does(tmp_path: Path) -> None:
    inputs, labels, weights = draw_data(99)
    poor = weights + np.random.default_rng(2).normal(size=weights.shape).astype(np.float32)
    bundle = linear_bundle(tmp_path, weights, [poor], CodeSpec("sum", "subtraction", 2))
    assert evaluate(bundle, inputs, labels) == evaluate(bundle, inputs, labels, batch=7)
    assert evaluate(bundle, inputs, labels) != evaluate(bundle, inputs, labels, seed=1)


def test_progress_is_told_up_to_the_last_row(tmp_path: Path) -> None:
    inputs, labels, weights = draw_data(99)
    code = CodeSpec("sum", "subtraction", 2, 2)
    told: list[tuple[int, int]] = []
    evaluate(
        linear_bundle(tmp_path, weights, [weights, weights], code),
        inputs,
        labels,
        batch=10,
        progress=lambda rows, total: told.append((rows, total)),
    )
    assert {total for _, total in told} == {99 + 2 * 50}
    assert sum(rows for rows, _ in told) == 99 + 2 * 50


def test_arrays_that_do_not_fit_the_bundle_are_refused_with_the_reason(tmp_path: Path) -> None:
    inputs, labels, weights = draw_data(10)
    bundle = linear_bundle(tmp_path, weights, [weights], CodeSpec("sum", "subtraction", 2))
    for wrong_inputs, wrong_labels, reason in [
        (inputs[:, 1:], labels, r"rows of shape \[5\]; the model takes .*\[6\]"),
        (inputs[0], labels[:1], r"rows of shape \[\]"),
        (inputs.astype(np.int64) > 0, labels, "is bool; the model takes .* FP32"),
        (inputs, labels[1:], "10 inputs but 9 labels"),
        (inputs[:1], labels[:1], "1 inputs; this needs 2 at least"),
        (inputs[:0], labels[:0], "there are 0 inputs, too few"),
    ]:
        with pytest.raises(DataError, match=reason):
            evaluate(bundle, wrong_inputs, wrong_labels)


def test_the_table_names_every_number(tmp_path: Path) -> None:
    inputs, labels, weights = draw_data(100)
    bundle = linear_bundle(
        tmp_path, weights, [weights] * 2, CodeSpec("sum", "subtraction", 3, 2), weights
    )
    printed = StringIO()
    Console(file=printed, width=80).print(accuracy_table(bundle, evaluate(bundle, inputs, labels)))
    text = printed.getvalue()
    for line in (
        "A_a",
        "backup",
        "A_d",
        "in slot 2",
        "2 of a group",
        "10% unavailable",
        "agree with F",
    ):
        assert line in text
    assert text.count("75.00") >= 6
    assert text.count("65.7 to 82.5") >= 3, "of each share of queries, how sure it is"


def test_a_table_of_gates_fits_into_80_columns() -> None:
    result = GateResult("reconstruction", None, 1.0, 0.9, 0.9, 1.0)
    printed = StringIO()
    Console(file=printed, width=80).print(gate_table([result], "top-1 agreement"))
    (row,) = (line for line in printed.getvalue().splitlines() if "reconstruction" in line)
    assert row.endswith("│ 100.00 │")
