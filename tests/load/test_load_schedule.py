"""The schedule of a load: drawn, replayed from a trace, or refused."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_models.errors import LoadError, UserError
from parity_models.load import LoadSpec
from parity_models.simulation.arrivals import poisson_arrivals


def spec(**fields: Any) -> LoadSpec:
    return LoadSpec(**{"inputs": "queries.npy", "rate": 10, **fields})


def trace(path: Path, **fields: Any) -> LoadSpec:
    return spec(rate=None, trace=str(path), **fields)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rate": 0}, "rate must be a number, from 0.001 to 1e+06; got 0"),
        ({"rate": float("nan")}, "got nan"),
        ({"rate": None}, "give rate= or trace="),
        ({"trace": "times.txt"}, "and not both"),
        ({"inputs": ""}, "say which queries to send"),
        ({"queries": 0}, "queries must be"),
        ({"batch": 0}, "batch must be"),
        ({"connections": 1000}, "connections must be a whole number, from 1 to 512"),
        ({"timeout": -1}, "timeout must be"),
        ({"duration": 0}, "duration must be a number, above 0"),
    ],
)
def test_loads_that_make_no_sense_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=re.escape(reason)):
        spec(**change)


@given(
    st.lists(st.floats(0, 1e5), min_size=1, max_size=50).map(sorted), st.sampled_from([0, 1.7e9])
)
def test_a_trace_is_sent_as_it_was_recorded(
    tmp_path_factory: pytest.TempPathFactory, times: list[float], since: float
) -> None:
    path = tmp_path_factory.mktemp("trace") / "times.txt"
    path.write_text("# seconds\n" + "".join(f"{since + time!r}\n" for time in times))
    np.testing.assert_allclose(trace(path).due, np.array(times) - times[0], atol=1e-5)
    with pytest.raises(LoadError, match=f"has {len(times)} requests, but"):
        _ = trace(path, queries=len(times) + 1).due
    with pytest.raises(LoadError, match="no query is due after the warm-up"):
        _ = trace(path, warm_up=len(times)).due


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("# nothing\n", "must have one time"),
        ("1\n3\n2\n", "in order"),
        ("1 2\n3 4\n", "must have one time"),
        ("1\n2 3\n", "must have one number per line"),
        ("0\nnan\n", "finite"),
        ("0\n1\ninf\n", "finite"),
        ("\x00\xff\x00", "must have one number per line"),
        (None, "cannot read the trace"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "times.txt"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(LoadError, match=reason):
        _ = trace(path).due
    with pytest.raises(LoadError, match="more than 10,000,000 queries"):
        _ = spec(duration=1e9).due


@given(
    rate=st.floats(1, 1000),
    warm_up=st.integers(0, 50),
    duration=st.floats(0.1, 2),
    batch=st.integers(1, 4),
)
def test_a_load_lasts_for_its_time(rate: float, warm_up: int, duration: float, batch: int) -> None:
    load = spec(rate=rate, warm_up=warm_up, duration=duration, batch=batch)
    first = -(-warm_up // batch)
    assert load.warm_up_requests == first
    arrivals = poisson_arrivals(rate / batch, 10_000, seed=0)
    end = duration + (arrivals[first - 1] if first else 0.0)
    wanted = arrivals[arrivals < end]
    if len(wanted) == first:
        with pytest.raises(LoadError, match="no query is due"):
            _ = load.due
        return
    np.testing.assert_array_equal(load.due, wanted)
    counted = replace(load, duration=None, queries=5)
    np.testing.assert_array_equal(counted.due, arrivals[: first + -(-5 // batch)])
    assert msgspec.json.decode(msgspec.json.encode(load), type=LoadSpec) == load
