"""The service as an ASGI application."""

from typing import Any, cast

import httpx

from http_served import INFER, MODEL, Echo, body
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import ServedVersion
from parity_models.serving.rest.asgi import AsgiApp
from parity_models.serving.rest.service import Rest


def app_of(echo: Echo, metrics: Metrics, **given: Any) -> AsgiApp:
    limits = Limits(**given)
    return AsgiApp(
        Rest(
            ServedVersion(cast(Any, echo), MODEL), metrics, limits, ByteBudget(limits.max_in_flight)
        )
    )


async def test_the_asgi_application_is_the_same_service() -> None:
    echo = Echo()
    app = app_of(echo, Metrics(), max_body=1000)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        response = await client.post(INFER, content=body(1, 2, 3, 4))
        assert response.json()["outputs"][0]["data"] == [1, 2, 3, 4]
        assert (await client.get("/v2/health/live")).json() == {"live": True}
        assert (await client.head("/v2")).content == b""
        response = await client.post(INFER, content=bytes(1001))
        assert (response.status_code, "1000 bytes" in response.json()["error"]) == (413, True)
        assert (await client.post(INFER, content=body(-3, 0, 0, 0))).headers["retry-after"] == "3"
        assert (await client.get("/nowhere")).status_code == 404


async def test_a_client_that_leaves_the_asgi_application_has_its_query_abandoned() -> None:
    echo, metrics = Echo(), Metrics()
    app = app_of(echo, metrics)
    echo.may.clear()
    messages = iter([{"type": "http.request", "body": body()}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": INFER, "headers": []}
    await app(scope, receive, send)
    assert not sent
    assert metrics.registry.get_sample_value("parm_requests_total", {"code": "499"}) == 1
