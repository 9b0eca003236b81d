"""TLS, tokens and a port for metrics: who may ask a server, and how its files are read again."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
import trustme
from grpc import StatusCode
from tritonclient.grpc import service_pb2

from access_files import LATER, OTHER, TOKEN, Files, trusting
from served import ServerProcess, infer, queries, until

pytestmark = pytest.mark.slow

SERVICE = "inference.GRPCInferenceService"


def call(
    channel: grpc.Channel, method: str, message: bytes = b"", *metadata: tuple[str, str]
) -> bytes:
    ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    return ask(message, metadata=metadata, timeout=20)


def bearing(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("shown"))


@pytest.fixture(scope="module")
def server(shown: Files, plain: Path) -> Iterator[ServerProcess]:
    with ServerProcess(
        *(str(plain), "--instances", "1", "--grpc-port", "0", "--metrics-port", "0"),
        *("--tls-cert", str(shown.certificate), "--tls-key", str(shown.key)),
        *("--tokens", str(shown.tokens)),
    ) as process:
        yield process


@pytest.fixture
def client(server: ServerProcess, shown: Files) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, verify=shown.trusting) as client:
        yield client


@pytest.fixture
def channel(server: ServerProcess, shown: Files) -> Iterator[grpc.Channel]:
    trusted = grpc.ssl_channel_credentials(shown.authority.cert_pem.bytes())
    with grpc.secure_channel(server.grpc_address, trusted) as channel:
        yield channel


@pytest.mark.parametrize("token", [TOKEN, OTHER])
def test_token_is_accepted_over_https(client: httpx.Client, token: str) -> None:
    assert client.base_url.scheme == "https"
    client.headers = httpx.Headers(bearing(token))
    assert infer(client, queries(1, 3)).is_success


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearing("no-token-of-this-server"),
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
    ],
)
def test_missing_token_gets_a_bare_401(
    server: ServerProcess, client: httpx.Client, headers: dict[str, str]
) -> None:
    before = server.metric("parm_requests_unauthorized_total")
    for method, path in [
        ("GET", "/v2"),
        ("GET", "/nothing"),
        ("GET", "/v2/models/other"),
        ("POST", "/v2/models/model/infer"),
        ("GET", "/metrics"),
    ]:
        answer = client.request(method, path, headers=headers)
        assert (answer.status_code, answer.json()) == (401, {"error": "unauthorized"})
        assert answer.headers["www-authenticate"] == "Bearer"
    assert server.metric("parm_requests_unauthorized_total") == before + 5


def test_anybody_may_ask_for_the_health(client: httpx.Client, channel: grpc.Channel) -> None:
    assert client.get("/v2/health/live").is_success
    assert client.get("/v2/health/ready").is_success
    assert call(channel, "/grpc.health.v1.Health/Check")
    assert call(channel, f"/{SERVICE}/ServerReady")


def test_calls_need_a_token_too(channel: grpc.Channel) -> None:
    method = f"/{SERVICE}/ModelMetadata"
    message = service_pb2.ModelMetadataRequest(name="model").SerializeToString()
    for metadata in [(), (("authorization", "Bearer no-token-of-this-server"),)]:
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, method, message, *metadata)
        assert caught.value.code() is StatusCode.UNAUTHENTICATED
        assert caught.value.details() == "unauthorized"
    assert call(channel, method, message, ("authorization", f"Bearer {OTHER}"))


def test_metrics_have_a_port_of_their_own(server: ServerProcess, client: httpx.Client) -> None:
    assert server.metric("parm_instances_up") == 1
    base = server.metrics_url.removesuffix("/metrics")
    assert httpx.get(f"{base}/v2/health/ready").is_success
    assert httpx.get(f"{base}/v2").status_code == 404
    assert httpx.post(f"{base}/v2/models/model/infer", content=b"{}").status_code == 404
    for nowhere in ("/metrics", "/ui/"):
        assert client.get(nowhere, headers=bearing(TOKEN)).status_code == 404


def test_changed_files_are_read(server: ServerProcess, shown: Files, channel: grpc.Channel) -> None:
    assert call(channel, f"/{SERVICE}/ServerLive")
    before, after = shown.authority, trustme.CA()
    shown.renew(after)
    shown.tokens.write_text(f"{LATER}\n")

    def answered() -> bool:
        try:
            with httpx.Client(base_url=server.url, verify=trusting(after)) as client:
                return client.get("/v2", headers=bearing(LATER)).is_success
        except httpx.ConnectError:
            return False

    until(answered, "the new certificate is not shown")
    with httpx.Client(base_url=server.url, verify=trusting(after)) as client:
        assert client.get("/v2", headers=bearing(TOKEN)).status_code == 401
    trusted = grpc.ssl_channel_credentials(after.cert_pem.bytes())
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(server.grpc_address, trusted, options) as fresh:
        assert call(fresh, f"/{SERVICE}/ServerLive")
    shown.renew(before)
