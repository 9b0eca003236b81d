"""When the queries of a load are due: drawn, replayed from a trace, or refused."""

import re
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_models.arrivals import poisson_arrivals
from parity_models.errors import LoadError
from parity_models.load import LoadSpec, lasting


def test_arrivals_are_poisson_and_the_seed_fixes_them() -> None:
    arrivals = poisson_arrivals(200, 20_000, seed=1)
    gaps = np.diff(arrivals)
    assert (gaps > 0).all()
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 200, rel=0.05)
    np.testing.assert_array_equal(arrivals, poisson_arrivals(200, 20_000, seed=1))
    assert (arrivals != poisson_arrivals(200, 20_000, seed=2)).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rate": 0}, "rate must be from 0.001 to 1e+06, got 0"),
        ({"rate": float("nan")}, "got nan"),
        ({"rate": None}, "needs a rate or a trace"),
        ({"trace": "times.txt"}, "needs a rate or a trace file, and not both"),
        ({"count": 0}, "count must be"),
        ({"batch": 0}, "batch must be"),
        ({"max_in_flight": 1000}, "max in flight must be from 1 to 512"),
        ({"timeout": -1}, "timeout must be"),
    ],
)
def test_loads_that_make_no_sense_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(LoadError, match=re.escape(reason)):
        LoadSpec(**{"data": "", "rate": 10, "count": 1, **change})


@given(
    st.lists(st.floats(0, 1e5), min_size=1, max_size=50).map(sorted),
    st.sampled_from([0, 1.7e9]),
    st.sampled_from([0.5, 1, 20]),
)
def test_a_trace_is_sent_as_it_was_recorded(
    tmp_path_factory: pytest.TempPathFactory, times: list[float], since: float, speed: float
) -> None:
    path = tmp_path_factory.mktemp("trace") / "times.txt"
    path.write_text("# seconds\n" + "".join(f"{since + time!r}\n" for time in times))
    spec = LoadSpec(data="", trace=str(path), speed=speed, count=len(times))
    np.testing.assert_allclose(spec.due(), (np.array(times) - times[0]) / speed, atol=1e-5)
    assert lasting(spec, 0, inf).count == len(times)
    with pytest.raises(LoadError, match=f"has {len(times)} requests, but"):
        msgspec.structs.replace(spec, count=len(times) + 1).due()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("1\n3\n2\n", "is not in order: its time 3 is before the one above"),
        ("1\ntwo\n", "must have one number per line"),
        ("1 2\n3 4\n", "must have one number per line, not 2"),
        ("1\n2 3\n", "must have one number per line"),
        ("0\nnan\n", "not finite"),
        ("0\ninf\n", "not finite"),
        ("\x00\xff\x00", "must have one number per line"),
        (None, "cannot read the trace"),
    ],
)
def test_a_trace_that_is_none_is_refused(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "times.txt"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(LoadError, match=reason):
        LoadSpec(data="", trace=str(path), count=1).due()


@given(
    rate=st.floats(1, 1000),
    warm_up=st.floats(0, 2),
    duration=st.floats(0.1, 2),
    batch=st.integers(1, 4),
)
def test_warm_up_and_duration_are_kept(
    rate: float, warm_up: float, duration: float, batch: int
) -> None:
    spec = LoadSpec(data="", rate=rate, count=1, batch=batch)
    arrivals = poisson_arrivals(rate / batch, 10_000, seed=0)
    counted = (arrivals >= warm_up) & (arrivals < warm_up + duration)
    if not counted.any():
        with pytest.raises(LoadError, match="no query is due"):
            lasting(spec, warm_up, duration)
        return
    lasted = lasting(spec, warm_up, duration)
    assert lasted.warm_up == batch * (arrivals < warm_up).sum()
    assert lasted.count == batch * counted.sum()
    np.testing.assert_allclose(lasted.due()[lasted.warm_up_requests :], arrivals[counted])


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_times_that_make_no_sense_are_refused(seconds: float) -> None:
    spec = LoadSpec(data="", rate=10, count=1)
    for warm_up, duration in ((seconds, 1), (0, seconds)):
        with pytest.raises(LoadError, match="must be 0 seconds or more"):
            lasting(spec, warm_up, duration)
    with pytest.raises(LoadError, match="more than 10,000,000 queries"):
        lasting(spec, 0, 1e9)
