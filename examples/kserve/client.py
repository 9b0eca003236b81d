"""Ask a server by KServe's SDK, over REST and over gRPC (pip install kserve).

python client.py http://127.0.0.1:8000 127.0.0.1:8001 MODEL INPUT queries.npy
"""

import asyncio
import sys

import numpy as np
from kserve import (
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    RESTConfig,
)


async def main(url: str, grpc_address: str, model: str, name: str, file: str) -> None:
    """Send four rows of the file, for the input called `name`, over REST and over gRPC.

    Prints the classes that the model predicts.
    """
    rows = np.load(file)[:4]

    def request() -> InferRequest:
        tensor = InferInput(name, list(rows.shape), "FP32")
        tensor.set_data_from_numpy(rows, binary_data=True)
        return InferRequest(model, [tensor])

    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        response = await client.infer(url, request(), model_name=model)
        show("v2", response.outputs[0].as_numpy(), response.parameters["source"])

    async with InferenceGRPCClient(grpc_address) as client:
        response = await client.infer(request())
        source = response.parameters["source"].string_param
        show("grpc-v2", response.outputs[0].as_numpy(), source)


def show(protocol: str, predictions: object, sources: str) -> None:
    """Print the classes of the rows, and the sources of the answers."""
    classes = np.argmax(np.array(predictions), axis=-1).tolist()
    print(protocol, classes, sources)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
