"""Experiment files: what is in them is checked, and figures are found by name."""

from pathlib import Path

import pytest

from parity_models.errors import UserError
from parity_models_lab.latency.experiment import experiment_names, figures_of, load_experiment
from parity_models_lab.latency.reproduce_latency import PRESETS, Plan, expected_seconds
from parity_models_lab.latency.trial import Emulation
from small_experiment import SIMULATED


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_of_the_package_compares_with_equal_resources(name: str) -> None:
    experiment = load_experiment(name)
    assert experiment.series[0].choice.name == "equal-resources"
    for point in range(len(experiment.points)):
        for series in experiment.series:
            setting = experiment.at(point, series)
            workers = setting.all_instances
            setting.simulated_faults(0, 10.0).check(workers)
            contention = setting.contention(0, links=True)
            if contention is not None and not setting.hogs:
                contention.check(workers)


def test_all_is_every_figure_but_those_that_take_long() -> None:
    everyone = figures_of(["all", "9a"])
    assert set(experiment_names()) - set(everyone) == {
        "bursts",
        "correlated",
        "cost-frontier",
        "degradation",
        "generations",
        "hedging",
        "late",
        "million",
        "slow-start",
        "speed",
        "validation",
    }
    assert everyone.count("9a") == 1


def test_the_quick_preset_takes_less_than_half_an_hour() -> None:
    plans = [
        Plan(name, load_experiment(name), PRESETS["quick"], 0, Emulation.NOTHING)
        for name in figures_of(["all"])
    ]
    trials = [trial for plan in plans for trial in (*plan.tuning_trials(), *plan.all_trials())]
    assert expected_seconds(trials) < 30 * 60


def test_the_paper_s_settings_are_those_of_the_paper() -> None:
    experiment = load_experiment("9a")
    setting = experiment.at(4, experiment.series[0])
    assert (setting.instances, setting.parity_instances, setting.k) == (12, 6, 2)
    assert setting.queries_per_second == 270
    assert setting.shuffles == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("axis", "axes"), "it has no .axes.; did you mean axis"),
        (('axis = "load"', 'axis = "colour"'), "does not say what colour is"),
        (
            ("{ load = 0.6 }", "{ load = 0.6, colour = 1 }"),
            "it has no .colour.; there are instances, k,",
        ),
        (("load = 0.6", "rate = 5"), "does not say what load is"),
        (("instances = 4", "instances = 0"), "instances must be 1 or more, got 0"),
        (("equal-resources", "equal"), "there is no policy .equal."),
        (("[[series]]", "[[series"), "it is no TOML: .* .at line 9"),
    ],
)
def test_a_file_that_is_no_experiment_is_refused(
    change: tuple[str, str], reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(SIMULATED.replace(*change))
    with pytest.raises(UserError, match=reason):
        load_experiment(str(file))


def test_points_may_be_named_in_words(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    words = SIMULATED.replace('"load"', '"kind"').replace("{ load", '{ kind = "this", load')
    file.write_text(words)
    experiment = load_experiment(str(file))
    assert experiment.labels == ["this", "this"]
    assert experiment.xs == [0.0, 1.0]
    file.write_text(words.replace('kind = "this"', "kind = 3"))
    with pytest.raises(UserError, match="no setting 'kind'"):
        load_experiment(str(file))


def test_a_file_does_not_pass_for_a_figure_or_for_another_file() -> None:
    with pytest.raises(UserError, match=r"mine/load\.toml is called like another"):
        figures_of(["mine/load.toml"])
    with pytest.raises(UserError, match="is called like another"):
        figures_of(["a/small.toml", "b/small.toml"])
    assert figures_of(["small.toml", "small.toml", "load"]) == ["small.toml", "load"]


def test_an_experiment_that_is_not_there_is_refused_naming_those_that_are() -> None:
    with pytest.raises(UserError, match="9a"):
        load_experiment("99z")
