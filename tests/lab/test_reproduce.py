"""Latency experiments: files are checked, trials are cached, a report says what was run."""

import json
from collections.abc import Iterator
from math import exp
from pathlib import Path

import msgspec
import numpy as np
import pytest

from commands import Here, assert_refused
from parity_models.errors import UserError
from parity_models.faults import Empirical, LogNormal
from parity_models.lab.latency.experiment import (
    Setting,
    experiment_names,
    figures_of,
    load_experiment,
)
from parity_models.lab.latency.figures import Line
from parity_models.lab.latency.real_trial import Laboratory
from parity_models.lab.latency.reproduce_latency import (
    PRESETS,
    FigureResult,
    Plan,
    expected_seconds,
)
from parity_models.lab.latency.targets import Target, collapse, targets
from parity_models.lab.latency.trial import (
    Emulation,
    Mode,
    Trial,
    TrialResult,
    result_of,
    simulate_trial,
)
from parity_models.lab.latency.trial_cache import TrialCache
from parity_models.scheduling.choice import PolicyChoice
from parity_models.simulation.service_times import read_service_times
from parity_models.training import Settings

SMALL = """
title = "Small"
axis = "load"
points = [{ load = 0.3 }, { load = 0.6 }]
[setting]
instances = 4
[[series]]
label = "equal resources"
policy = { name = "equal-resources" }
[[series]]
label = "adaptive parity"
policy = { name = "adaptive-parity" }
"""


def trial(mode: Mode, queries: int) -> Trial:
    return Trial(
        mode=mode,
        setting=Setting(instances=2, load=0.3, shuffles=1),
        policy=PolicyChoice("adaptive-parity"),
        queries=queries,
        warm_up=20,
        seed=0,
    )


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
    assert set(experiment_names()) - set(everyone) == {"engines", "hedging", "million"}
    assert everyone.count("9a") == 1


def test_the_quick_preset_takes_less_than_a_quarter_of_an_hour() -> None:
    plans = [
        Plan(name, load_experiment(name), PRESETS["quick"], 0, Emulation.NOTHING)
        for name in figures_of(["all"])
    ]
    trials = [trial for plan in plans for trial in plan.all_trials()]
    assert expected_seconds(trials) < 15 * 60


def test_the_paper_s_settings_are_those_of_the_paper() -> None:
    experiment = load_experiment("9a")
    setting = experiment.at(4, experiment.series[0])
    assert (setting.instances, setting.parity_instances, setting.k) == (12, 6, 2)
    assert setting.queries_per_second == 270
    assert setting.shuffles == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("axis", "axes"), "missing required field|unknown field"),
        (('axis = "load"', 'axis = "colour"'), "does not say what colour is"),
        (("{ load = 0.6 }", "{ load = 0.6, colour = 1 }"), "unknown field `colour`"),
        (("load = 0.6", "rate = 5"), "does not say what load is"),
        (("instances = 4", "instances = 0"), "Expected `int` >= 1"),
        (("equal-resources", "equal"), "there is no policy .equal."),
        (("[[series]]", "[[series"), "is not an experiment"),
    ],
)
def test_a_file_that_is_no_experiment_is_refused(
    change: tuple[str, str], reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(SMALL.replace(*change))
    with pytest.raises(UserError, match=reason):
        load_experiment(str(file))


def test_points_may_be_named_in_words(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    words = SMALL.replace('"load"', '"kind"').replace("{ load", '{ kind = "this", load')
    file.write_text(words)
    experiment = load_experiment(str(file))
    assert experiment.labels == ["this", "this"]
    assert experiment.xs == [0.0, 1.0]
    file.write_text(words.replace('kind = "this"', "kind = 3"))
    with pytest.raises(UserError, match="no setting 'kind'"):
        load_experiment(str(file))


def test_real_and_simulated_runs_meet_the_same_kinds_of_contention() -> None:
    calm = Setting(shuffles=0)
    assert calm.contention(0, links=True) is None
    for changes, outside, drawn in (
        ({"shuffles": 4}, "network", "shuffles"),
        ({"tenants": 3}, "tenant", "neighbours"),
        ({"hogs": 1}, "hogs", "slowdowns"),
        ({"pause_every": 5.0}, "pauses", "pauses"),
    ):
        setting = msgspec.structs.replace(calm, **changes)
        contention = setting.contention(0, links=True)
        assert getattr(contention, outside) is not None
        assert getattr(setting.simulated_faults(0, 60.0), drawn) is not None
        assert getattr(setting.faults(0, 60.0), drawn) is None


def test_another_tenant_is_beside_the_same_workers_in_real_and_simulated_runs() -> None:
    setting = Setting(shuffles=0, tenants=3)
    neighbours = setting.simulated_faults(5, 60.0).neighbours
    contention = setting.contention(5, links=True)
    assert neighbours is not None
    assert contention is not None
    assert list(neighbours.workers) == contention.shared(setting.all_instances)


def test_one_instance_is_killed_every_so_many_seconds() -> None:
    kills = Setting(kill_every=2.0).faults(0, 60.0).kills
    assert [kill.at for kill in kills] == [2.0 * (i + 1) for i in range(30)]
    assert len({kill.worker for kill in kills}) > 5
    assert Setting(kill_every=2.0).faults(0, 60.0).kills == kills


def test_a_file_does_not_pass_for_a_figure_or_for_another_file() -> None:
    with pytest.raises(UserError, match=r"mine/load\.toml is called like another"):
        figures_of(["mine/load.toml"])
    with pytest.raises(UserError, match="is called like another"):
        figures_of(["a/small.toml", "b/small.toml"])
    assert figures_of(["small.toml", "small.toml", "load"]) == ["small.toml", "load"]


def test_a_load_is_a_share_of_what_instances_carry_on_average() -> None:
    setting = Setting(load=0.5, service=LogNormal(0.02, 1.0))
    assert setting.queries_per_second == pytest.approx(0.5 * 12 / (0.02 * exp(0.5)))
    assert setting.carried == pytest.approx(0.5)


def test_an_experiment_that_is_not_there_is_refused_naming_those_that_are() -> None:
    with pytest.raises(UserError, match="9a"):
        load_experiment("99z")


def test_trials_are_called_what_they_were_always_called() -> None:
    """Results that were measured with an earlier version are found again."""
    assert trial(Mode.SIMULATED, 500).key == "d2d9bcd42e25a8bcb34449bb"
    assert trial(Mode.REAL, 100).key == "b10af9b76587414b9c39e872"


def test_a_simulated_trial_is_the_same_every_time() -> None:
    assert simulate_trial(trial(Mode.SIMULATED, 500)) == simulate_trial(trial(Mode.SIMULATED, 500))


def test_a_cache_keeps_results_and_takes_a_damaged_one_for_missing(tmp_path: Path) -> None:
    cache = TrialCache(tmp_path)
    result = simulate_trial(trial(Mode.SIMULATED, 200))
    cache.put(trial(Mode.SIMULATED, 200), result)
    assert cache.get(trial(Mode.SIMULATED, 200)) == result
    assert cache.get(trial(Mode.SIMULATED, 201)) is None
    for file in tmp_path.iterdir():
        file.write_text(file.read_text()[:-5])
    assert cache.get(trial(Mode.SIMULATED, 200)) is None


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for results and bundles, so that these are trained once, and briefly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("parity_models.lab.latency.real_trial.TRAINING", Settings(epochs=3))
        yield tmp_path_factory.mktemp("work")


def test_a_policy_without_redundancy_has_the_first_instances_of_a_real_trial(work: Path) -> None:
    """What is planned for the others, a kill and pauses, is left out."""
    asked = trial(Mode.REAL, 100)
    setting = msgspec.structs.replace(asked.setting, kill_every=100.0, pause_every=5.0)
    asked = msgspec.structs.replace(asked, setting=setting, policy=PolicyChoice("none"), seed=9)
    assert (asked.workers, setting.all_instances) == (2, 3)
    assert [kill.worker for kill in setting.faults(9, asked.seconds).kills] == [2]
    result = Laboratory(work / "bundles").run(asked)
    assert (result.answered, result.errors) == (100, 0)


def test_contention_may_be_drawn_in_a_real_trial_and_spares_those_not_there(work: Path) -> None:
    asked = trial(Mode.REAL, 100)
    setting = msgspec.structs.replace(asked.setting, tenants=3, hogs=1, pause_every=5.0)
    asked = msgspec.structs.replace(
        asked,
        setting=setting,
        policy=PolicyChoice("none"),
        network=Emulation.EVERYTHING,
    )
    assert asked.workers < setting.all_instances
    result = Laboratory(work / "bundles").run(asked)
    assert (result.answered, result.errors) == (100, 0)


def test_a_real_trial_serves_and_asks_for_real(work: Path) -> None:
    result = Laboratory(work / "bundles").run(trial(Mode.REAL, 100))
    assert (result.answered, result.errors) == (100, 0)
    assert sum(result.sources.values()) == 100
    assert result.accuracy is not None
    assert result.accuracy > 0.8
    assert result.p50_ms > 25


def test_reproduce_writes_a_report_and_pictures_and_reuses_what_was_run(
    parm_here: Here, tmp_path: Path
) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    arguments = ("reproduce", "latency", "--figure", tmp_path / "small.toml", "--network", "none")
    places = ("--out", tmp_path / "latency.md", "--work", tmp_path / "work")
    first = parm_here(*arguments, *places)
    assert first.returncode == 0, first.stderr
    report = (tmp_path / "latency.md").read_text()
    assert "| 0.6 | adaptive parity |" in report
    assert "Everything here is simulated." in report
    assert (tmp_path / "latency" / "small.png").read_bytes().startswith(b"\x89PNG")
    again = parm_here(*arguments, *places)
    assert "simulated:" in first.stderr
    assert "simulated:" not in again.stderr


def result(p50: float, p999: float, errors: int = 0) -> TrialResult:
    """As of a real run, or a simulated one."""
    latencies = np.full(1000, p50 / 1e3)
    latencies[-3:] = p999 / 1e3
    return result_of(latencies, errors, {"model": 1000}, work=1.2, send_delay_p99_ms=0.4)


def judged(
    name: str, modes: tuple[Mode, ...] = tuple(Mode), **series: dict[int, TrialResult]
) -> dict[str, Target]:
    """The targets of a figure with such results, by point, in all `modes` alike."""
    experiment = load_experiment(name)
    lines = []
    for each in experiment.series:
        at = series.get(each.label.split(",")[0].replace(" ", "_"), {})
        results = [at.get(point) for point in range(len(experiment.points))]
        nothing = [None] * len(results)
        simulated, real = (
            results if mode in modes else nothing for mode in (Mode.SIMULATED, Mode.REAL)
        )
        lines.append(Line(each.label, simulated, real))
    plan = Plan(name, experiment, PRESETS["quick"], 0, Emulation.NOTHING)
    return {target.what: target for target in targets([FigureResult(plan, tuple(lines))])}


def test_the_gap_is_judged_at_middling_load_and_the_load_generator_everywhere() -> None:
    found = judged(
        "9a",
        equal_resources={4: result(25, 125), 8: result(25, 500)},
        adaptive_parity={4: result(26, 66), 8: result(26, 66)},
    )
    gap = found["gap of equal resources / adaptive parity, k=2, 270 queries/s (56% load), real"]
    assert (gap.measured, gap.met) == ("2.50x", False)
    assert not any("390" in what for what in found)
    assert found["the load generator's send error at p99, worst of all real runs"].met
    assert found["figure `kills`"].met is None


def test_kills_are_compared_with_the_undisturbed_run() -> None:
    what = "adaptive parity, kill -9 every 2 s, real"
    calm = result(25, 30)
    assert judged("kills", adaptive_parity={0: calm, 2: result(25, 59)})[what].met
    assert not judged("kills", adaptive_parity={0: calm, 2: result(25, 61)})[what].met
    assert not judged("kills", adaptive_parity={0: calm, 2: result(25, 30, 1)})[what].met


def test_adaptive_parity_is_compared_with_the_best_fixed_policy_at_each_load() -> None:
    what = "p99.9 of adaptive parity / the best fixed policy, by load, simulated"
    equal = {0: result(25, 100), 1: result(25, 100), 2: result(25, 50, errors=3)}
    shared = {0: result(25, 60), 1: result(25, 200), 2: result(25, 200)}
    adaptive = {0: result(25, 63), 1: result(25, 50), 2: result(25, 100)}
    found = judged("load", equal_resources=equal, hedging=shared, adaptive_parity=adaptive)
    assert found[what].measured == "10%: 1.05x, 20%: 0.50x, 30%: 0.50x"
    assert found[what].met
    slower = adaptive | {1: result(25, 120)}
    assert not judged("load", equal_resources=equal, adaptive_parity=slower)[what].met


@pytest.mark.parametrize(
    ("figure", "what"),
    [
        ("9a", "gap of equal resources / adaptive parity, k=2, 270 queries/s (56% load), real"),
        ("10", "gap of equal resources / adaptive parity, k=3, real"),
        ("hedging", "p99.9 of hedging / adaptive parity, by load, real"),
        ("hedging", "p99.9 of hedging / adaptive parity at 50 % load, real"),
        ("load", "p99.9 of equal resources / adaptive parity at 100 % load, real"),
        ("kills", "adaptive parity, kill -9 every 2 s, real"),
        ("9a", "median of adaptive parity / equal resources, worst of all figures, real"),
        ("9a", "the load generator's send error at p99, worst of all real runs"),
    ],
)
def test_what_was_not_run_for_real_says_so(figure: str, what: str) -> None:
    alike = {point: result(25, 100) for point in range(8)}
    found = judged(
        figure, (Mode.SIMULATED,), equal_resources=alike, hedging=alike, adaptive_parity=alike
    )
    assert (found[what].measured, found[what].met) == ("not run", None)


def test_a_policy_collapses_where_its_median_doubles_or_queries_fail() -> None:
    fine, waiting, failing = result(25, 60), result(51, 90), result(25, 60, errors=1)
    assert collapse(Line("", [fine, fine, waiting], []), [0.1, 0.2, 0.3]) == 0.3
    assert collapse(Line("", [fine, failing, fine], []), [0.1, 0.2, 0.3]) == 0.2
    assert collapse(Line("", [fine, fine, fine], []), [0.1, 0.2, 0.3]) is None
    what = "collapse of adaptive parity, simulated"
    assert judged("load", adaptive_parity={0: fine, 10: waiting})[what].met
    assert not judged("load", adaptive_parity={0: fine, 9: waiting})[what].met


def test_validation_compares_every_policy_with_what_answers_take_outside(
    parm_here: Here, tmp_path: Path, work: Path
) -> None:
    file = tmp_path / "small.toml"
    quick = 'instances = 2\nservice = { type = "constant", seconds = 0.004 }'
    file.write_text(SMALL.replace("instances = 4", quick))
    done = parm_here(
        "reproduce", "validation", "--figure", file, "--point", "0", "--queries", "100",
        "--out", tmp_path / "validation.md", "--work", work,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "validation.md").read_text()
    assert "| equal resources |" in report
    assert "| adaptive parity |" in report
    assert "Simulated answers take a time drawn from those longer." in report


def test_simulate_prints_a_table_and_writes_json(parm_here: Here, tmp_path: Path) -> None:
    done = parm_here(
        "simulate", "--queries", "500", "--policy", "hedging", "--json", tmp_path / "s.json"
    )
    assert done.returncode == 0, done.stderr
    assert "hedging" in done.stdout
    assert '"p999_ms"' in (tmp_path / "s.json").read_text()


def test_simulate_takes_options_of_policies_traces_measured_times_and_faults(
    parm_here: Here, tmp_path: Path
) -> None:
    (tmp_path / "trace.txt").write_text("\n".join(str(7 + i / 200) for i in range(2000)))
    np.save(tmp_path / "times.npy", np.repeat([0.02, 0.03], 500))
    done = parm_here(
        "simulate", "--policy", "replication", "--copies", "3", "--policy", "parity", "--pool",
        "dedicated", "--instances", "12", "--arrivals", tmp_path / "trace.txt", "--service-times",
        tmp_path / "times.npy", "--pause-every", "2", "--pause", "300", "--kill-every", "1",
        "--deadline", "0.1", "--default-prediction", "--json", tmp_path / "s.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1,000 queries at 200/s" in done.stdout
    assert "defaults" in done.stdout
    report = json.loads((tmp_path / "s.json").read_text())
    replication, parity = report["options"]
    assert (replication["copies"], parity["pool"]) == (3, "dedicated")
    assert report["setting"]["kill_every"] == 1
    assert report["policies"]["replication"]["sources"]["default"] > 0
    assert all(each["errors"] == 0 for each in report["policies"].values())


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("times.txt", "0.02\nfast\n", "one number of seconds per line"),
        ("times.txt", "", "has 0 service times"),
        ("times.txt", "0.1 0.2\n0.3 0.4\n", "of shape"),
        ("times.txt", "0.02\n0\n", "that are 0"),
        ("times.txt", "nan\n", "not finite"),
        ("times.npy", "0.02\n", "must be an .npy file"),
        ("", None, "cannot read"),
    ],
)
def test_what_is_no_file_of_service_times_is_refused(
    name: str, content: str | None, reason: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=reason):
        read_service_times(tmp_path / name)


def test_service_times_are_read_from_arrays_and_lists(tmp_path: Path) -> None:
    np.save(tmp_path / "times.npy", np.array([0.02, 0.03]))
    (tmp_path / "times.txt").write_text("# measured\n0.02\n0.03\n")
    for name in ("times.npy", "times.txt"):
        assert read_service_times(tmp_path / name) == Empirical((0.02, 0.03))
    measured = Setting(service=Empirical((0.02, 0.03)), load=0.5)
    assert measured.queries_per_second == pytest.approx(0.5 * 12 / 0.025)


@pytest.mark.parametrize(
    "arguments",
    [
        ("simulate", "--k", "1"),
        ("simulate", "--load", "0"),
        ("simulate", "--decoder", "none"),
        ("simulate", "--policy", "hedging", "--copies", "3"),
        ("simulate", "--deadline", "0"),
        ("simulate", "--kill-every", "0.00001"),
        ("simulate", "--arrivals", "no such file"),
        ("reproduce", "latency", "--preset", "huge"),
        ("reproduce", "latency", "--figure", "99z"),
        ("reproduce", "latency", "--network", "wireless"),
    ],
)
def test_mistakes_end_with_2_and_one_line(
    parm_here: Here, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    where = ("--work", tmp_path) if arguments[0] == "reproduce" else ("--queries", 100)
    assert_refused(parm_here(*arguments, *where), "")
