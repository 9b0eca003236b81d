"""Which model has how many of the shared instances: decisions, without a server."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_models.errors import UserError
from parity_models.serving.repository.sharing import Move, Sharing, Work

NAMES = ["a", "b", "c", "d"]
STEP = 0.5


class Models:
    """Models that are asked so many queries a second as keep `loads` instances busy."""

    def __init__(self, sharing: Sharing) -> None:
        self.sharing = sharing
        self.loads: dict[str, float] = {}
        self.now = 0.0
        self._asked: Counter[str] = Counter()

    def look(self) -> Move | None:
        """Some time passes."""
        self.now += STEP
        for name, load in self.loads.items():
            self._asked[name] += round(1000 * load * STEP)
        return self.sharing.look(
            self.now, {name: Work(self._asked[name], 0, 1000.0) for name in self.loads}
        )

    def settle(self, looks: int = 200) -> list[Move]:
        """The moves at so many looks; the last of which are without any."""
        moves = [self.look() for _ in range(looks)]
        assert not any(moves[-50:]), "instances come to rest where loads stay as they are"
        return [move for move in moves if move is not None]


def shared(total: int, loads: dict[str, float], **reserves: int) -> Models:
    sharing = Sharing(total, reserves)
    sharing.begin(loads)
    models = Models(sharing)
    models.loads = dict(loads)
    return models


def check(sharing: Sharing, total: int) -> None:
    assert sharing.free >= 0
    assert sum(sharing.has.values()) + sharing.free == total
    assert all(sharing.has[name] >= least >= 1 for name, least in sharing.least.items())
    assert sharing.has.keys() == sharing.least.keys() == sharing.loads.keys()


def check_at_rest(sharing: Sharing) -> None:
    """Nobody waits for what another could give."""
    assert not sharing.free or not sharing.has
    for name in sharing.has:
        if sharing.has[name] >= sharing.wants(name):
            continue
        for other in sharing.has:
            if sharing.has[other] > sharing.least[other]:
                assert sharing.has[other] <= sharing.keeps(other), f"{other} has some to spare"
                assert sharing.has[other] <= sharing.has[name] + 1, "too little is divided evenly"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["enter", "leave", "load", "look", "look", "look"]),
        st.sampled_from(NAMES),
        st.floats(0, 12),
    ),
    max_size=60,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.integers(1, 12), st.dictionaries(st.sampled_from(NAMES), st.integers(1, 4)), STEPS)
def test_no_model_has_less_than_its_least_and_all_of_them_no_more_than_there_are(
    total: int, reserves: dict[str, int], steps: list[tuple[str, str, float]]
) -> None:
    if sum(reserves.values()) > total:
        with pytest.raises(UserError, match="are reserved"):
            Sharing(total, reserves)
        return
    sharing = Sharing(total, reserves)
    sharing.begin(NAMES[:2])
    models = Models(sharing)
    for step, name, load in steps:
        before = dict(sharing.has)
        if step == "enter":
            try:
                sharing.enter(name, 1 + int(load) // 6)
            except UserError:
                assert sharing.has == before, "what is refused changes nothing"
        elif step == "leave":
            sharing.leave(name)
        elif step == "load":
            models.loads[name] = load
        else:
            move = models.look()
            changed = {each: sharing.has[each] - before[each] for each in before}
            gone = {} if move is None or move.giver is None else {move.giver: -1}
            come = {} if move is None else {move.taker: 1}
            assert {each: by for each, by in changed.items() if by} == gone | come
        check(sharing, total)
    models.settle()
    check(sharing, total)
    check_at_rest(sharing)


def test_places_are_divided_evenly_at_first_and_the_reserved_ones_kept() -> None:
    assert shared(7, {"a": 0, "b": 0, "c": 0}).sharing.has == {"a": 3, "b": 2, "c": 2}
    assert shared(7, {"a": 0, "b": 0}, b=5).sharing.has == {"a": 2, "b": 5}
    assert shared(2, {"a": 0, "b": 0, "c": 0}, c=1).sharing.has == {"a": 1, "c": 1}


def test_instances_follow_the_load_and_come_back_with_it() -> None:
    models = shared(6, {"a": 0.2, "b": 0.2})
    assert models.settle() == []
    models.loads["a"] = 3.0
    assert models.settle() == [Move("b", "a")]
    models.loads |= {"a": 0.1, "b": 3.7}
    assert set(models.settle()) == {Move("a", "b")}
    assert models.sharing.has == {"a": 1, "b": 5}


def test_a_model_keeps_what_is_reserved_for_it_whatever_others_need() -> None:
    models = shared(6, {"a": 0.0, "b": 50.0}, a=2)
    models.settle()
    assert models.sharing.has == {"a": 2, "b": 4}


def test_a_flood_for_one_model_leaves_another_what_it_needs() -> None:
    models = shared(8, {"a": 100.0, "b": 2.0})
    models.settle()
    assert models.sharing.has == {"a": 5, "b": 3}
    models.loads["b"] = 100.0
    models.settle()
    assert models.sharing.has == {"a": 4, "b": 4}


def test_a_load_that_wavers_moves_nothing() -> None:
    models = shared(4, {"a": 1.3, "b": 1.3})
    for at in range(200):
        models.loads["a"] = 1.1 if at % 8 < 4 else 1.6
        assert models.look() is None


@pytest.mark.parametrize("takes", [0.02, 0.2, 2.0])
def test_chance_moves_hardly_anything_however_long_queries_take(takes: float) -> None:
    random = Random(1)
    sharing = Sharing(3, {})
    sharing.begin(["a", "b"])
    asked, moves = Counter[str](), 0
    due = {name: random.expovariate(0.6 / takes) for name in sharing.has}
    for look in range(1, 1200):
        for name in due:
            while due[name] < look * STEP:
                asked[name] += 1
                due[name] += random.expovariate(0.6 / takes)
        works = {name: Work(asked[name], 0, 1 / takes) for name in due}
        moves += sharing.look(look * STEP, works) is not None
    assert moves <= 20, "in ten minutes, where both are at the edge of giving and of getting"


def test_what_nobody_has_goes_to_who_needs_it_most() -> None:
    models = shared(6, {"a": 0.5, "b": 1.5, "c": 0.1})
    models.settle()
    models.sharing.leave("c")
    del models.loads["c"]
    moves = models.settle()
    assert moves[0] == Move(None, "b")
    assert len(moves) == 2
    check_at_rest(models.sharing)


def test_a_model_that_comes_gets_its_least_of_those_that_can_spare_it() -> None:
    models = shared(6, {"a": 1.5, "b": 0.1}, c=2)
    models.settle()
    models.sharing.enter("c")
    assert models.sharing.has == {"a": 3, "b": 1, "c": 2}
    with pytest.raises(UserError, match=r"needs 5 of the 6 instances .* 2 are left: .* a 1, b 1"):
        models.sharing.enter("d", 5)


def test_while_it_is_unknown_how_long_queries_take_busy_instances_count() -> None:
    sharing = Sharing(4, {})
    sharing.begin(["a", "b"])
    moves = [
        sharing.look(at * STEP, {"a": Work(0, 2, 0.0), "b": Work(0, 0, 0.0)}) for at in range(40)
    ]
    assert [move for move in moves if move is not None] == [Move("b", "a")]
