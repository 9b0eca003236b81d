"""Contention takes the same course in every run, and what cannot be carried out is refused."""

import os
import signal
from itertools import islice, pairwise
from pathlib import Path

import msgspec
import pytest

from parity_models.emulation import Constant, FaultPlan, Pauses, Uniform, WorkerFaults
from parity_models.errors import ContentionError
from parity_models_lab.contention.apply import contended
from parity_models_lab.contention.namespaces import check_privileges
from parity_models_lab.contention.pauses import LONGEST, Step, steps
from parity_models_lab.contention.plan import Contention, Hogs, Tenant
from parity_models_lab.contention.transfers import Leg, Network, legs

WORKERS = 3


def test_at_all_times_each_lane_has_one_transfer_between_two_machines() -> None:
    network = Network()
    course = list(islice(legs(network, 18, seed=1, lane=0), 200))
    assert course[0].start == 0
    assert all(before.end == after.start for before, after in pairwise(course))
    assert all(leg.source != leg.target for leg in course)
    assert {leg.source for leg in course} == set(range(18))


def test_a_transfer_goes_out_and_comes_back_in_the_time_its_bytes_take() -> None:
    network = Network(rate=8e6, smallest=1_000_000, largest=2_000_000)
    course = list(islice(legs(network, 5, seed=1, lane=3), 100))
    for out, back in zip(course[::2], course[1::2], strict=True):
        assert (out.source, out.target) == (back.target, back.source)
        assert out.end - out.start == pytest.approx(back.end - back.start)
    assert all(1 <= leg.end - leg.start <= 2 for leg in course[2:])


def test_the_course_depends_on_the_seed_alone() -> None:
    def course(seed: int) -> tuple[list[Leg], list[Step]]:
        return (
            list(islice(legs(Network(), 18, seed, lane=1), 50)),
            list(islice(steps(Pauses(5.0, Uniform(0.1, 0.5)), 18, seed), 50)),
        )

    assert course(1) == course(1)
    assert all(one != other for one, other in zip(course(1), course(2), strict=True))


def test_no_pause_lasts_long_enough_to_be_taken_for_a_death() -> None:
    stopped: dict[int, float] = {}
    lengths = []
    for step in islice(steps(Pauses(1.0, Constant(60.0)), 4, seed=1), 100):
        if step.signal is signal.SIGSTOP:
            stopped[step.worker] = step.time
        else:
            lengths.append(step.time - stopped.pop(step.worker))
    assert len(lengths) > 40
    assert lengths == pytest.approx([LONGEST] * len(lengths))


def test_pauses_of_all_workers_come_in_the_order_of_time() -> None:
    course = list(islice(steps(Pauses(1.0, Constant(0.1)), 4, seed=1), 100))
    assert course == sorted(course)
    assert {step.worker for step in course} == {0, 1, 2, 3}
    together = islice(steps(Pauses(1.0, Constant(0.1), nodes=2), 4, seed=1), 40)
    assert len({(step.time, step.worker % 2) for step in together}) == 20
    few = islice(steps(Pauses(1.0, Constant(0.1), workers=(2,)), 4, seed=1), 10)
    assert {step.worker for step in few} == {2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        (Contention(hogs=Hogs((999,), 1, 1)), "no core 999"),
        (Contention(hogs=Hogs((), 1, 1)), "need cores"),
        (Contention(tenant=Tenant(instances=4)), "4 instances of the tenant"),
        (Contention(pauses=Pauses(1, Constant(1), (7,))), "name worker 7, but there are 3"),
    ],
)
async def test_a_plan_that_cannot_be_carried_out_is_refused(
    plan: Contention, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(ContentionError, match=complaint):
        async with contended(plan, WORKERS, tmp_path):
            pass


@pytest.mark.parametrize(
    "document", ['{"network": {"smallest": 3, "largest": 2}}', '{"hogs": {}}', '{"tennant": {}}']
)
def test_what_is_no_plan_is_refused(document: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(document, type=Contention)


def test_without_root_the_network_is_refused() -> None:
    user = os.geteuid()
    os.seteuid(user or 1000)
    try:
        with pytest.raises(ContentionError, match="takes root"):
            check_privileges()
    finally:
        os.seteuid(user)


@pytest.mark.root
def test_without_its_tools_the_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ContentionError, match="install the package iproute2"):
        check_privileges()


def test_real_workers_pause_when_simulated_ones_do() -> None:
    plan = Pauses(1.0, Constant(0.2))
    begun = next(steps(plan, 1, seed=3)).time - 0.01
    simulated = WorkerFaults(FaultPlan(3, pauses=plan), 0)
    assert simulated.release(begun, begun + 0.02) == pytest.approx(begun + 0.22)
