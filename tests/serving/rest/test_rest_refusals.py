"""Whatever is wrong with a request is told with its reason, and is not fatal."""

import gzip
import json
import zlib

import httpx
import pytest

from served import INFER, infer, infer_message, queries

pytestmark = pytest.mark.slow

MAX_BODY = 2**20


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("POST", "/v2/models/other/infer", 404, "no model is called 'other'"),
        ("POST", "/v2/models/model/versions/2/infer", 404, "no version '2'; it has version '1'"),
        ("GET", "/v2/models/model/config", 404, "nothing is at /v2/models/model/config"),
        ("GET", "/v2/models/%2e%2e%2f%00/infer", 404, "nothing is at"),
        ("GET", "/", 404, "begin with /v2"),
        ("GET", INFER, 405, "does not take the method GET"),
        ("POST", "/v2/health/ready", 405, "does not take the method POST"),
    ],
)
def test_what_is_not_there_is_named(
    http: httpx.Client, method: str, path: str, status: int, reason: str
) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    assert reason in response.json()["error"]


def test_bodies_beyond_the_limit_get_413_however_they_come(http: httpx.Client) -> None:
    bomb = gzip.compress(bytes(100 * MAX_BODY))
    for content, headers in ((bytes(MAX_BODY + 1), {}), (bomb, {"Content-Encoding": "gzip"})):
        response = http.post(INFER, content=content, headers=headers)
        assert response.status_code == 413
        assert f"larger than the {MAX_BODY} bytes" in response.json()["error"]
    assert infer(http, queries(1)).is_success


def test_bodies_in_other_encodings_are_refused(http: httpx.Client) -> None:
    text = json.dumps(infer_message(queries(1))).encode()
    for content, encoding, status, reason in [
        (text, "br", 415, "send gzip, deflate or none"),
        (text, "gzip", 400, "not in gzip encoding"),
        (gzip.compress(text)[:-9], "gzip", 400, "not one whole stream"),
        (zlib.compress(text) + b"more", "deflate", 400, "not one whole stream"),
    ]:
        response = http.post(INFER, content=content, headers={"Content-Encoding": encoding})
        assert response.status_code == status
        assert reason in response.json()["error"]
    assert http.post(INFER, content=text, headers={"Content-Encoding": "identity"}).is_success
