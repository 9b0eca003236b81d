"""The frontend keeps stand-ins from inputs unlike those they learned from, and from nonsense."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from parity_models.scheduling import DEPLOYED, Parity, Source
from parity_models.serving.screen import Screen
from puppet_engine import CODE, asked, metric, queries, serving, settle


@pytest.mark.parametrize("value", [np.nan, np.inf])
async def test_what_would_spoil_other_queries_reconstructions_is_served_exact(
    value: float,
) -> None:
    spoilt = queries(2)
    spoilt[1, 3] = value
    async with serving(Parity(CODE), instances=3) as (frontend, engine):
        request = await asked(frontend.infer(spoilt))
        assert [role for _, role in engine.log] == [DEPLOYED, DEPLOYED]  # no group, no parity
        for unit in list(engine.units):
            engine.finish(unit)
        answers = await request
        assert answers.sources == [Source.MODEL] * 2
        assert not np.isfinite(answers.outputs[1]).all()
        assert metric(frontend, "parm_queries_unlike_total") == 1


class Positive:
    """An envelope of inputs above 0, and outputs below 100."""

    def unlike(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        return np.asarray(~(rows > 0).all(axis=1))

    def impossible(self, outputs: NDArray[Any]) -> NDArray[np.bool_]:
        return np.asarray(~(outputs < 100).all(axis=1))


async def test_queries_unlike_those_that_stand_ins_learned_from_join_no_group() -> None:
    rows = np.abs(queries(3)) + 0.1
    rows[1, 0] = -1e30
    async with serving(Parity(CODE), 4, screen=Screen(Positive())) as (frontend, engine):
        request = await asked(frontend.infer(rows))
        first, unlike, other, parity = engine.units
        np.testing.assert_allclose(parity.rows[0], rows[0] + rows[2])
        for unit in (unlike, other, parity):
            engine.finish(unit)
        assert (await request).sources == [Source.RECONSTRUCTION, Source.MODEL, Source.MODEL]
        engine.finish(first)


async def test_a_reconstruction_beyond_the_model_s_outputs_answers_nobody() -> None:
    rows = np.abs(queries(2)) + 0.1
    async with serving(Parity(CODE), screen=Screen(Positive())) as (frontend, engine):
        request = await asked(frontend.infer(rows))
        late, other, parity = engine.units
        engine.finish(other)
        engine.units.remove(parity)
        engine.listener.unit_finished(parity.id, np.full((1, 3), 1e6, np.float32))
        await settle()
        assert not request.done()
        engine.finish(late)
        assert (await request).sources == [Source.MODEL] * 2
        assert metric(frontend, "parm_stand_in_outputs_impossible_total") == 1
