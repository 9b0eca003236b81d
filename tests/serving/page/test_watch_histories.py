"""The watch follows any history of a server, and remembers no more than it may."""

from hypothesis import given, settings
from hypothesis import strategies as st

from histories import check_nothing_is_left
from observed_world import observed_history
from parity_models.serving.page.stand_in_requests import KEPT
from parity_models.serving.page.watch import Watch


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_what_is_shown_is_what_happened_and_nothing_piles_up(seed: int) -> None:
    world, k = observed_history(seed, lambda: Watch(lambda query: 0.0, 0.0))
    watch = world.observer
    assert isinstance(watch, Watch)
    shown = {view.name: view.running for view in watch.instances.views(world.now, {})}
    running = {name: run.role for name, run in (world.running | world.unreported).items()}
    running |= dict.fromkeys(world.verifying, "golden query")
    for name in world.roles:
        assert shown[name] == running.get(name, "")
    for request in watch.requests.since(0.0, world.now):
        stood_in = {q for q in request.queries if q in world.answers and world.answers[q].stands_in}
        if request.role != "copy":
            assert stood_in.issuperset(request.answered)
    check_nothing_is_left(world, k)
    assert sum(watch.answers.values()) == len(world.answers)
    assert sum(watch.failures.values()) == len(world.failures)
    assert not watch.instances.running()
    assert len(watch.requests.since(0.0, world.now)) <= KEPT
    assert watch.remembered() == 0
