"""All that an ONNX model computes for some rows, tensor by tensor.

Needs the package onnx; serving does without.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper


class OtherLayersError(Exception):
    """The model has other layers than are looked for."""


class Watched:
    """A model's graph, and what it has `computed` for some rows of its inputs, by name (n, ...).

    That is each float32 tensor (n, ...), or those that are called `only` so. `rows` are those of
    the first input. Raises OtherLayersError for a model that does not run.
    """

    def __init__(
        self,
        content: bytes,
        inputs: Mapping[str, NDArray[Any]],
        only: Collection[str] | None = None,
    ) -> None:
        model = onnx.load_model_from_string(content)
        self.rows = next(iter(inputs.values()))
        self.nodes = list(model.graph.node)
        self.outputs = [each.name for each in model.graph.output]
        self.constants = {
            each.name: numpy_helper.to_array(each) for each in model.graph.initializer
        }
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            elif node.op_type == "Transpose" and node.input[0] in self.constants:
                turn = list(node.attribute[0].ints) if node.attribute else None
                turned = self.constants[node.input[0]].transpose(turn)
                self.constants[node.output[0]] = turned
        self.made = {output: node for node in self.nodes for output in node.output if output}
        asked = self.made if only is None else only
        watched = [each for each in asked if each not in self.outputs]
        model.graph.output.extend(onnx.ValueInfoProto(name=each) for each in watched)
        try:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), providers=["CPUExecutionProvider"]
            )
            names = [*self.outputs, *watched]
            found = session.run(names, dict(inputs))
        except Exception as error:  # ONNX Runtime's errors share no base class but this
            raise OtherLayersError from error
        self.computed: dict[str, Any] = {
            each: array
            for each, array in zip(names, found, strict=True)
            if isinstance(array, np.ndarray)
            and array.dtype == np.float32
            and array.shape[:1] == (len(self.rows),)
        }

    def before(self, name: str) -> Iterator[str]:
        """`name` and the tensors that it is computed from, the nearest first."""
        waiting, known = [name], {name}
        while waiting:
            name = waiting.pop(0)
            yield name
            node = self.made.get(name)
            for each in node.input if node else ():
                if each not in known:
                    known.add(each)
                    waiting.append(each)

    def behind(self, name: str) -> Iterator[onnx.NodeProto]:
        """The nodes that compute from the tensor `name`, in their order."""
        reached = {name}
        for node in self.nodes:
            if reached.intersection(node.input):
                reached.update(node.output)
                yield node
