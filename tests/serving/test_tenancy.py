"""The request, or a header that the operator names, says whose queries share codes."""

import re
from pathlib import Path

import httpx
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from parity_models.errors import UserError
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.inference import InferRequest
from parity_models.serving.rest_codec import read_request
from parity_models.serving.server import ServeOptions
from rest_bodies import model_of, request
from served import ServerProcess, infer_message, queries
from triton_requests import grpc_infer

pytestmark = pytest.mark.slow

ROWS = np.zeros((1, 2), np.float32)


def asked(*, exact: bool = False, tenant: str | None = None) -> InferRequest:
    parameters = {"redundancy": "exact" if exact else "any", "tenant": tenant}
    return read_request(*request(ROWS, parameters=parameters), model_of(ROWS))


def test_without_the_header_a_request_shares_with_nobody_whatever_it_says() -> None:
    for each in (asked(), asked(tenant="a"), asked(exact=True)):
        each.take_tenant("x-tenant", ())
        assert (each.exact, each.tenant) == (True, None)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (("b",), "parameter tenant is 'a' and the header x-tenant is 'b'"),
        (("a", "a"), "header x-tenant is given 2 times"),
        (("",), "header x-tenant is a string of 1 to 128 characters, got ''"),
        (("a" * 129,), "header x-tenant is a string of 1 to 128 characters, got 'aaa"),
    ],
)
def test_headers_that_do_not_fit_are_refused(values: tuple[str, ...], reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(reason)):
        asked(tenant="a").take_tenant("x-tenant", values)


def test_the_header_is_one_that_http_and_grpc_can_carry() -> None:
    assert ServeOptions(tenant_header="X-Tenant").tenant_header == "x-tenant"
    for name in ("", "x tenant", ":path", "x-tenant-bin", "grpc-tenant", "é", "a" * 129):
        with pytest.raises(UserError, match="tenant_header="):
            ServeOptions(tenant_header=name)


def test_a_server_reads_the_header_over_rest_and_grpc(bundle: Path) -> None:
    row = queries(1)
    body = infer_message(row, tenant="a")
    with ServerProcess(str(bundle), "--grpc-port", "0", "--tenant-header", "X-Tenant") as server:
        url = f"{server.url}/v2/models/model/infer"
        assert httpx.post(url, json=body).status_code == 200
        assert httpx.post(url, json=body, headers={"x-tenant": "a"}).status_code == 200
        refused = httpx.post(url, json=body, headers={"X-Tenant": "b"})
        assert refused.status_code == 400
        assert "the header x-tenant is 'b'" in refused.json()["error"]
        address, tenant = server.grpc_address, {"tenant": "a"}
        for headers in ({}, {"x-tenant": "a"}):
            grpc_infer(address, 0, headers=headers, parameters=tenant)
        with pytest.raises(InferenceServerException, match="the header x-tenant is 'b'"):
            grpc_infer(address, 0, headers={"x-tenant": "b"}, parameters=tenant)
        exact = grpc_infer(address, 0, parameters={"redundancy": "exact"})
        assert exact.get_response().parameters["source"].string_param == "model"
