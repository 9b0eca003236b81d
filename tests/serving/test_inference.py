"""Every prediction takes one way, whichever carrier brings it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

import parity_models as pm
from http_served import MODEL, Echo
from parity_models.serving.errors import TooLargeError, UnavailableError
from parity_models.serving.inference import Call, Inference, InferRequest
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import Result, ServedModel, ServedVersion
from parity_models.serving.protocol import Yield
from served import queries

ROWS = np.ones((2, 4), np.float32)


class Slow(Call[NDArray[Any]]):
    """A call whose rows take a while to read, in which `meanwhile` happens."""

    model = "model"

    def __init__(self, budget: ByteBudget, tenants: Sequence[str] = ()) -> None:
        self.budget = budget
        self.tenants = tenants
        self.reads = 0
        self.meanwhile: Any = lambda: None

    def values(self, header: str) -> Sequence[str]:
        return self.tenants

    def read(self, model: ServedModel) -> InferRequest:
        async def rows(wait: Yield) -> NDArray[Any]:
            await wait()
            self.meanwhile()
            return ROWS

        self.reads += 1
        return InferRequest(model, len(ROWS), None, None, (), False, None, (), {"x": rows})

    async def write(self, asked: InferRequest, result: Result) -> NDArray[Any]:
        return result.outputs


class Versions:
    """Models with one version at a time, of which each doubles what the one before answers."""

    def __init__(self) -> None:
        self.number = 1
        echoes = cast(Any, [Echo(times) for times in (0, 1, 2)])
        self.versions = [ServedVersion(each, MODEL, Metrics()) for each in echoes]

    def find(self, name: str, version: str | None) -> ServedVersion:
        if not self.number:
            raise UnavailableError("unloaded")
        return self.versions[self.number]


async def test_a_version_that_takes_over_while_rows_are_read_reads_them_again() -> None:
    budget, models = ByteBudget(2**20), Versions()
    call = Slow(budget)
    call.meanwhile = lambda: setattr(models, "number", 2)
    outputs = await Inference(cast(Any, models), budget).answer(call)
    assert outputs.shape == (2, 8)
    assert call.reads == 2
    assert budget.held == call.held == 2 * ROWS.nbytes  # of one answer
    call.release()
    assert budget.held == 0


async def test_a_model_that_is_unloaded_while_rows_are_read_answers_nothing() -> None:
    budget, models = ByteBudget(2**20), Versions()
    call = Slow(budget)
    call.meanwhile = lambda: setattr(models, "number", 0)
    with pytest.raises(UnavailableError, match="unloaded"):
        await Inference(cast(Any, models), budget).answer(call)


@pytest.mark.slow
async def test_predict_obeys_the_budget_of_bytes(bundle: Path) -> None:
    limits = Limits(max_body=2**12, max_in_flight=2**12)
    async with pm.serve(bundle, policy=pm.PolicyChoice("none"), limits=limits) as server:
        assert (await server.predict(queries(1))).sources == ("model",)
        with pytest.raises(TooLargeError, match="max_in_flight"):
            await server.predict(queries(2))


class Noting(Echo):
    """An echo that keeps the tenant of its last request, and whether it was exact."""

    async def infer(
        self, rows: NDArray[Any], timeout: float | None = None, **sharing: object
    ) -> Result:
        self.sharing = sharing
        return await super().infer(rows, timeout)


@pytest.mark.parametrize(("tenants", "exact"), [((), True), (("a",), False)])
async def test_call_without_a_tenant_is_exact(tenants: Sequence[str], exact: bool) -> None:
    budget, echo = ByteBudget(2**20), Noting()
    model = replace(MODEL, tenant_header="x-tenant")
    call = Slow(budget, tenants)
    await Inference(ServedVersion(cast(Any, echo), model, Metrics()), budget).answer(call)
    assert echo.sharing == {"tenant": tenants[0] if tenants else None, "exact": exact}
