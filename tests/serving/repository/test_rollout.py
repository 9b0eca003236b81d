"""Which versions of a model run and take requests: whatever happens, in whatever order."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from parity_models.serving.repository.evidence import Evidence, Seen
from parity_models.serving.repository.rollout import Actions, Phase, Rollout, Start, Stop
from parity_models.serving.repository.rollout_options import RolloutOptions

VERSIONS = st.sampled_from(["1", "2", "3"])
SHARES = st.sampled_from([None, 0.05, 0.5, 0.75])
OPTIONS = RolloutOptions(canary_predictions=20, canary_time=5.0)


class Rollouts(RuleBasedStateMachine):
    """A model whose versions are loaded, fail, are compared and unloaded at any time."""

    @initialize()
    def begin(self) -> None:
        self.rollout = Rollout(OPTIONS)
        self.now = 0.0
        self.starting: set[str] = set()
        self.running: set[str] = set()
        self.stopping: set[str] = set()
        self.was_served = False

    def carry_out(self, actions: Actions) -> None:
        for action in actions:
            if isinstance(action, Start):
                assert action.version not in self.starting | self.running
                self.starting.add(action.version)
            else:
                assert action.version in self.running - self.stopping
                self.stopping.add(action.version)

    @rule(seconds=st.floats(0, 10))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(version=VERSIONS, share=SHARES)
    def load(self, version: str, share: float | None) -> None:
        self.carry_out(self.rollout.load(version, share))

    @precondition(lambda self: self.starting)
    @rule(data=st.data())
    def loaded(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.starting)))
        self.starting.remove(version)
        self.running.add(version)
        self.carry_out(self.rollout.loaded(self.now, version))
        self.was_served |= version not in self.stopping

    @precondition(lambda self: self.starting)
    @rule(data=st.data())
    def failed(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.starting)))
        self.starting.remove(version)
        self.carry_out(self.rollout.failed(version, "broken"))
        assert "broken" in self.rollout.reason(version)

    @precondition(lambda self: self.stopping)
    @rule(data=st.data())
    def stopped(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.stopping)))
        self.stopping.remove(version)
        self.running.remove(version)
        self.carry_out(self.rollout.stopped(version))

    @rule()
    def unload(self) -> None:
        self.carry_out(self.rollout.unload())
        self.was_served = False
        assert self.rollout.choose() is None

    @rule(
        version=VERSIONS,
        failed=st.booleans(),
        old_failed=st.booleans(),
        compared=st.integers(0, 30),
        data=st.data(),
    )
    def saw(
        self, version: str, failed: bool, old_failed: bool, compared: int, data: st.DataObject
    ) -> None:
        differed = data.draw(st.integers(0, compared))
        before = self.rollout.current
        was_canary = version == self.rollout.canary
        actions = self.rollout.saw(self.now, version, Seen(failed, old_failed, compared, differed))
        self.carry_out(actions)
        if not was_canary:
            assert not actions
        elif self.rollout.current != before:
            assert self.rollout.current == version
            assert Stop(str(before)) in actions
        elif actions:
            assert actions == [Stop(version)]
            assert "went back" in self.rollout.reason(version)

    @invariant()
    def only_what_runs_takes_requests(self) -> None:
        chosen = {self.rollout.choose() for _ in range(3)} - {None}
        assert chosen <= self.running - self.stopping
        for version in ("1", "2", "3"):
            serves = version in (self.rollout.current, self.rollout.canary)
            assert (self.rollout.phase(version) is Phase.READY) == serves
            assert serves == (version in self.running - self.stopping)

    @invariant()
    def a_model_that_is_served_goes_on_being_served(self) -> None:
        assert (self.rollout.choose() is not None) == self.was_served
        assert (self.rollout.current is not None) == self.was_served


TestRollouts = Rollouts.TestCase
TestRollouts.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def with_canary(options: RolloutOptions = OPTIONS, share: float = 0.25) -> Rollout:
    rollout = Rollout(options)
    for version in ("1", "2"):
        rollout.load(version, share)
        rollout.loaded(0.0, version)
    return rollout


def test_a_canary_takes_its_share_of_requests_evenly() -> None:
    rollout = with_canary()
    taken = [rollout.choose() for _ in range(12)]
    assert taken == ["1", "1", "1", "2"] * 3


def test_a_canary_that_says_the_same_takes_all_after_enough_time_and_comparisons() -> None:
    rollout = with_canary()
    for _ in range(30):
        assert rollout.saw(4.0, "2", Seen(compared=1)) == []
    assert rollout.saw(5.0, "2", Seen(compared=1)) == [Stop("1")]
    assert [rollout.choose() for _ in range(4)] == ["2"] * 4
    assert rollout.reason("1") == "version 2 took its place"


def test_a_canary_that_differs_goes_back_before_the_time_is_over_and_says_why() -> None:
    rollout = with_canary()
    actions: Actions = []
    seen = 0
    while not actions:
        actions = rollout.saw(1.0, "2", Seen(compared=1, differed=1))
        seen += 1
    assert actions == [Stop("2")]
    assert seen < 10
    assert f"{seen} of {seen} predictions differ" in rollout.reason("2")
    assert rollout.current == "1"


def test_a_canary_that_fails_what_the_old_version_answers_goes_back() -> None:
    rollout = with_canary()
    for _ in range(100):
        assert rollout.saw(1.0, "2", Seen(failed=True, old_failed=True)) == []
    while rollout.canary is not None:
        rollout.saw(1.0, "2", Seen(failed=True))
    assert "requests that the old version answered" in rollout.reason("2")


def test_with_all_evidence_the_share_itself_is_judged() -> None:
    evidence = Evidence(RolloutOptions(canary_predictions=100, canary_time=0.0), 0.0)
    evidence.add(Seen(compared=99, differed=10))
    evidence.add(Seen(compared=1))
    assert not evidence.why_worse(0.0)
    evidence.add(Seen(compared=9, differed=1))
    assert "11 of 109 predictions differ" in evidence.why_worse(0.0)


@pytest.mark.parametrize("seen", [Seen(compared=1, differed=1), Seen(failed=True)])
def test_one_request_says_nothing_of_a_canary(seen: Seen) -> None:
    evidence = Evidence(RolloutOptions(), 0.0)
    evidence.add(seen)
    assert not evidence.why_worse(0.0)
    for _ in range(2):
        evidence.add(seen)
    assert "3 of 3" in evidence.why_worse(0.0)


@pytest.mark.parametrize(("differ", "fail"), [(0.08, 0.005), (0.1, 0.01)])
def test_a_canary_that_is_good_enough_hardly_ever_goes_back_before_its_time(
    differ: float, fail: float
) -> None:
    """It is judged after every one of its requests."""
    rng = random.Random(0)
    went_back = 0
    for _ in range(400):
        evidence = Evidence(RolloutOptions(), 0.0)
        for _ in range(300):
            differed, failed = rng.random() < differ, rng.random() < fail
            evidence.add(Seen(failed=failed, compared=1, differed=differed))
            if evidence.why_worse(0.0):
                went_back += 1
                break
    assert went_back <= 4


def test_what_is_not_allowed_at_all_is_worse_at_once_and_what_always_is_never() -> None:
    strict = RolloutOptions(canary_agreement=1.0, canary_failures=0.0)
    for seen in (Seen(compared=50, differed=1), Seen(failed=True)):
        evidence = Evidence(strict, 0.0)
        evidence.add(seen)
        assert evidence.why_worse(0.0)
    evidence = Evidence(RolloutOptions(canary_agreement=0.0), 0.0)
    evidence.add(Seen(compared=50, differed=50))
    assert not evidence.why_worse(0.0)


def test_loading_the_current_version_again_ends_the_canary() -> None:
    rollout = with_canary()
    assert rollout.load("1", None) == [Stop("2")]
    assert rollout.current == "1"


def test_loading_the_canary_without_a_share_makes_it_current() -> None:
    rollout = with_canary()
    assert rollout.load("2", None) == [Stop("1")]
    assert rollout.current == "2"
