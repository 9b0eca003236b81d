"""What the live page costs is measured on real servers."""

from pathlib import Path

import pytest

from parity_models.models.bundle import open_bundle
from parity_models.scheduling.policies import NoRedundancy
from parity_models_lab.costs import live_page
from served import write_linear_bundle

pytestmark = pytest.mark.slow


async def test_servers_with_and_without_a_page_are_asked_alike(tmp_path: Path) -> None:
    bundle = open_bundle(write_linear_bundle(tmp_path))
    cost = await live_page.measure_page(
        bundle, policy=NoRedundancy.name, rate=50, seconds=1, warm_up=0.2, watchers=2
    )
    assert cost.seconds >= 0.9
    assert cost.rate * cost.seconds == pytest.approx(50)
    assert cost.watchers == 2
    assert cost.without > 0


async def test_servers_of_several_models_are_asked_for_each(tmp_path: Path) -> None:
    bundle = open_bundle(write_linear_bundle(tmp_path))
    cost = await live_page.measure_page(
        bundle, policy=NoRedundancy.name, rate=50, seconds=1, models=3, warm_up=0.2, watchers=2
    )
    assert (cost.models, cost.watchers) == (3, 2)
    assert cost.rate * cost.seconds == pytest.approx(50)
    assert cost.without > 0


def test_each_server_is_the_first_to_be_asked_as_often_as_the_others() -> None:
    orders = [live_page.in_turn("abcd", number) for number in range(8)]
    assert all(sorted(order) == list("abcd") for order in orders)
    assert [order[0] for order in orders] == list("abcd" * 2)
