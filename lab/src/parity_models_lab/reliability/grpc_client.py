"""Clients over gRPC, whose statuses count as the HTTP statuses they stand for."""

from dataclasses import dataclass

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray

from parity_models.scheduling import Source
from parity_models.serving.grpc.inference_pb2 import ModelInferRequest, ModelInferResponse
from parity_models_lab.reliability.http_client import BrokenError
from parity_models_lab.reliability.known_model import MODEL, OUTPUTS
from parity_models_lab.reliability.requests import Drawn

METHOD = "/inference.GRPCInferenceService/ModelInfer"
STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.ABORTED: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 503,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
TRANSPORT = ("connect", "Socket closed", "recvmsg", "GOAWAY", "Connection reset", "Broken pipe")
"""What grpc's own texts for a connection that broke hold."""


@dataclass(frozen=True)
class GrpcError:
    """The call ended with an error of the server."""

    status: int
    text: str


class GrpcClients:
    """One channel: HTTP/2 carries all calls."""

    def __init__(self, address: str) -> None:
        options = (("grpc.max_reconnect_backoff_ms", 500), ("grpc.enable_retries", 0))
        self._channel = grpc.aio.insecure_channel(address, options)
        self._call = self._channel.unary_unary(
            METHOD,
            request_serializer=ModelInferRequest.SerializeToString,
            response_deserializer=ModelInferResponse.FromString,
        )

    async def infer(
        self, drawn: Drawn, number: int
    ) -> tuple[NDArray[np.float32], list[Source]] | GrpcError:
        """Outputs (n, OUTPUTS) and sources, or the server's error. Raises BrokenError."""
        assert drawn.rows is not None
        message = ModelInferRequest(model_name=MODEL, id=str(number))
        message.inputs.add(name="input", datatype="FP32", shape=drawn.rows.shape)
        message.raw_input_contents.append(drawn.rows.tobytes())
        if drawn.timeout is not None:
            message.parameters["timeout"].int64_param = max(1, round(drawn.timeout * 1e6))
        if drawn.exact:
            message.parameters["redundancy"].string_param = "exact"
        try:
            response = await self._call(message)
        except grpc.aio.AioRpcError as error:
            text = error.details() or ""
            if error.code() is grpc.StatusCode.UNAVAILABLE and any(
                map(text.__contains__, TRANSPORT)
            ):
                raise BrokenError(f"gRPC: {text[:60]}") from error
            return GrpcError(STATUSES.get(error.code(), 500), text)
        if response.id != str(number):
            raise BrokenError("gRPC: the answer is another's")
        outputs = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(-1, OUTPUTS)
        sources = response.parameters["source"].string_param.split(",")
        return outputs, [Source(source) for source in sources]

    async def close(self) -> None:
        await self._channel.close()
