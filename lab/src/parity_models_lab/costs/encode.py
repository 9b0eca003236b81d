"""What encoding and decoding cost, beside copying one query: the least any redundancy costs.

Every call works on the memory of another group, out of more groups than the second-level cache
holds, as in a server: a query is encoded once, and everything else the server does passes
through the same cache. The costs with all of a group's memory in that cache are measured too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter_ns

import msgspec
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from parity_models.codes import Code, CodeSpec
from parity_models.errors import BundleError
from parity_models.models.bundle import Bundle

QUERY_SHAPE = (3, 224, 224)
OUTPUT_SHAPE = (1000,)
PAIRS = (("sum", "subtraction"), ("concatenation", "separate"), ("stack", "separate"))
KS = (2, 3, 4)
GROUPS = 16
ROUNDS = 40

Call = Callable[[], object]


class CodeCost(msgspec.Struct, frozen=True):
    """Median costs of one code; ratios are to a copy of one query under the same conditions.

    `encode_us` and `ratio` are with each group's memory out of the cache, `cached_encode_us`
    and `cached_ratio` with it in the cache. `decode_us` is for one unavailable prediction.
    """

    encoder: str
    decoder: str
    k: int
    encode_us: float
    ratio: float
    cached_encode_us: float
    cached_ratio: float
    decode_us: float


class EncodeCosts(msgspec.Struct, frozen=True):
    """Costs of all codes for queries of `query_shape` and `output_shape`, in microseconds.

    `ratio` is the headline, the first code over one copy: sum, k = 2, or a bundle's own code.
    """

    query_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    datatype: str
    copy_us: float
    cached_copy_us: float
    ratio: float
    codes: tuple[CodeCost, ...]


@dataclass(frozen=True)
class _Bench:
    """One code's calls, by group of queries."""

    code: Code
    encode: list[Call]
    decode: list[Call]


def measure_encode(bundle: Bundle | None = None) -> EncodeCosts:
    """Measure every pair of encoder and decoder for each k; takes a few seconds.

    Of a `bundle`, its own code for its own queries: so are learned coders measured. Raises
    BundleError for one without a code.
    """
    codes = _codes() if bundle is None else [_code_of(bundle)]
    shape = codes[0].query_shape
    most = max(code.k for code in codes)
    rng = np.random.default_rng(0)
    queries = [[rng.random(shape, np.float32) for _ in range(most)] for _ in range(GROUPS)]
    copies: list[Call] = [
        partial(np.copyto, np.zeros(shape, np.float32), members[0]) for members in queries
    ]
    benches = [_bench(code, queries) for code in codes]
    with tqdm(total=3 * ROUNDS, desc="encode", unit="round") as progress:
        fresh = [copies, *(bench.encode for bench in benches)]
        copy, *encode = _medians(fresh, progress)
        cached_copy, *cached = _medians([calls[:1] * GROUPS for calls in fresh], progress)
        decode = _medians([b.decode for b in benches], progress)
    costs = tuple(
        CodeCost(
            bench.code.spec.encoder,
            bench.code.spec.decoder,
            bench.code.k,
            encode_us=encode[i],
            ratio=encode[i] / copy,
            cached_encode_us=cached[i],
            cached_ratio=cached[i] / cached_copy,
            decode_us=decode[i],
        )
        for i, bench in enumerate(benches)
    )
    return EncodeCosts(
        shape, codes[0].output_shape, "FP32", copy, cached_copy, costs[0].ratio, costs
    )


def _codes() -> list[Code]:
    return [
        Code(CodeSpec(encoder, decoder, k), QUERY_SHAPE, OUTPUT_SHAPE)
        for encoder, decoder in PAIRS
        for k in KS
    ]


def _code_of(bundle: Bundle) -> Code:
    code = bundle.code()
    if code is None:
        raise BundleError(f"{bundle.path} has no code whose cost there could be; name another")
    return code


def _bench(code: Code, queries: Sequence[Sequence[NDArray[np.float32]]]) -> _Bench:
    groups = [members[: code.k] for members in queries]
    # The encoder's own choice of memory; from here on it is written over and over.
    buffers = [code.encode(members) for members in groups]
    prediction = np.ones(code.output_shape, np.float32)
    predictions = [None, *[prediction] * (code.k - 1)]
    parity_output = np.ones(code.parity_output_shape, np.float32)
    decode = partial(code.decode, predictions, [parity_output] * code.r)
    return _Bench(
        code,
        [partial(code.encode, *pair) for pair in zip(groups, buffers, strict=True)],
        [decode] * GROUPS,
    )


def _medians(benches: Sequence[list[Call]], progress: "tqdm[None]") -> list[float]:
    """Median microseconds of each bench's calls, taken in turns so that noise hits all alike."""
    times: list[list[int]] = [[] for _ in benches]
    for _ in range(ROUNDS):
        for calls, taken in zip(benches, times, strict=True):
            calls[-1]()
            for call in calls:
                start = perf_counter_ns()
                call()
                taken.append(perf_counter_ns() - start)
        progress.update()
    return [median(taken) / 1e3 for taken in times]
