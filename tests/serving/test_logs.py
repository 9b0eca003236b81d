"""The log in both forms, and a request's id from its head to its line in the access log."""

import io
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2

from parity_models.serving.logs import LogFormat, Logging, LogLevel, set_up
from parity_models.serving.request_log import RequestLog
from served import ServerProcess, infer_message, queries

pytestmark = pytest.mark.slow


@pytest.fixture
def kept() -> Iterator[None]:
    """The log's set-up is as it was afterwards."""
    loggers = [logging.getLogger(name) for name in ("", "parity_models", "parity_models.access")]
    before = [(each.level, list(each.handlers)) for each in loggers]
    yield
    for each, (level, handlers) in zip(loggers, before, strict=True):
        each.setLevel(level)
        each.handlers[:] = handlers


def test_requests_are_logged_as_json_with_their_ids(plain: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    message = {**infer_message(queries(1)), "id": "in-body"}
    before = time.monotonic()
    with ServerProcess(
        *(str(plain), "--instances", "1", "--grpc-port", "0"),
        *("--log-format", "json", "--access-log"),
        before=lambda: os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2),
    ) as server:
        with httpx.Client(base_url=server.url) as client:
            named = {"X-Request-Id": "from-the-header"}
            path = "/v2/models/model/infer"
            answer = client.post(path, json=message, headers=named)
            assert answer.headers["x-request-id"] == "from-the-header"
            answer = client.post(path, json=message)
            assert answer.headers["x-request-id"] == "in-body"
            made = client.get("/nothing?secret=1", headers={"X-Request-Id": "two words"})
            assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]+", made.headers["x-request-id"])
            client.get("/v2/health/live")
        with grpc.insecure_channel(server.grpc_address) as channel:
            ask: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata")
            other = service_pb2.ModelMetadataRequest(name="other").SerializeToString()
            with pytest.raises(grpc.RpcError) as caught:
                ask(other, metadata=(("x-request-id", "of-a-call"),))
            refused: Any = caught.value  # its stub says nothing of what it carries
            assert ("x-request-id", "of-a-call") in list(refused.initial_metadata())
    every = [json.loads(line) for line in log.read_text().splitlines()]
    lines = [line for line in every if line["logger"] == "parity_models.access"]
    took = time.monotonic() - before
    assert [(each["method"], each["path"], each["status"]) for each in lines] == [
        ("POST", path, 200),
        ("POST", path, 200),
        ("GET", "/nothing", 404),
        ("gRPC", "ModelMetadata", "NOT_FOUND"),
    ]
    ids = ["from-the-header", "in-body", made.headers["x-request-id"], "of-a-call"]
    assert [each["request_id"] for each in lines] == ids
    assert [each["sources"] for each in lines] == [["model"], ["model"], [], []]
    assert all(each["seconds"] >= 0 for each in lines)
    assert sum(each["seconds"] for each in lines) <= took, "they came one after the other"


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("level", "lines"), [(LogLevel.DEBUG, 3), (LogLevel.INFO, 2), (LogLevel.ERROR, 0)]
)
def test_levels_are_of_this_software_and_libraries_only_warn(level: LogLevel, lines: int) -> None:
    stream = io.StringIO()
    stop = set_up(Logging(log_level=level), stream)
    ours, access = logging.getLogger("parity_models.x"), logging.getLogger("parity_models.access")
    ours.debug("ours")
    ours.info("ours")
    ours.warning("ours")
    access.info("no request is logged without being asked for")
    logging.getLogger("library").info("theirs")
    stop()
    assert stream.getvalue().count("ours") == lines
    assert stream.getvalue().count("\n") == lines


@pytest.mark.usefixtures("kept")
def test_lines_for_people_say_what_json_says() -> None:
    stream = io.StringIO()
    stop = set_up(Logging(log_format=LogFormat.TEXT, access_log=True), stream)
    log = RequestLog("GET", "/v2?token=x", {"x-request-id": "an-id"})
    log.sources = ["model", "backup"]
    log.ended(200)
    stop()
    pattern = r"INFO GET /v2 200 \d+\.\d ms id=an-id sources=model,backup\n"
    assert re.search(pattern, stream.getvalue())


def test_an_id_that_could_forge_a_line_is_not_taken() -> None:
    for bad in ("a\nb", "a b", "", "ü", "x" * 129):
        assert RequestLog("GET", "/", {"x-request-id": bad}).id != bad
