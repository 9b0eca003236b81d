"""What encoding and decoding cost, beside copying one query: the least any redundancy costs.

Every call works on the memory of another group, out of more groups than the second-level cache
holds, as in a server. The costs with all of a group's memory in that cache are measured too.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code, CodeSpec
from parity_models.errors import BundleError
from parity_models.models.bundle import Bundle
from parity_models_lab.results import Row

QUERY_SHAPE = (3, 224, 224)
OUTPUT_SHAPE = (1000,)
PAIRS = (("sum", "subtraction"), ("concatenation", "separate"), ("stack", "separate"))
KS = (2, 3, 4)
GROUPS = 16
ROUNDS = 40

Call = Callable[[], object]


def measure_encode(bundle: Bundle | None = None) -> list[Row]:
    """Measure every pair of encoder and decoder for each k, or a bundle's own code.

    Returns:
        A row for copying one query, then one for each code: median µs for a group, out of the
        cache and in it, and as multiples of a copy; decoding is of one unavailable prediction.

    Raises:
        BundleError: The bundle has no code.

    """
    codes = _codes() if bundle is None else [_code_of(bundle)]
    shape = codes[0].query_shape
    most = max(code.k for code in codes)
    rng = np.random.default_rng(0)
    queries = [[rng.random(shape, np.float32) for _ in range(most)] for _ in range(GROUPS)]
    copies: list[Call] = [
        partial(np.copyto, np.zeros(shape, np.float32), members[0]) for members in queries
    ]
    fresh = [copies, *(_encode(code, queries) for code in codes)]
    copy, *encode = _medians(fresh)
    cached_copy, *cached = _medians([calls[:1] * GROUPS for calls in fresh])
    decode = _medians([[_decode(code)] * GROUPS for code in codes])
    rows: list[Row] = [{"code": "copy one query", "encode": copy, "cached": cached_copy}]
    for code, out_of_cache, in_cache, decoding in zip(codes, encode, cached, decode, strict=True):
        rows.append(
            {
                "code": str(code.spec),
                "encode": out_of_cache,
                "/ copy": out_of_cache / copy,
                "cached": in_cache,
                "cached / copy": in_cache / cached_copy,
                "decode": decoding,
            }
        )
    return rows


def _codes() -> list[Code]:
    return [
        Code(CodeSpec(encoder, decoder, k), QUERY_SHAPE, OUTPUT_SHAPE)
        for encoder, decoder in PAIRS
        for k in KS
    ]


def _code_of(bundle: Bundle) -> Code:
    code = bundle.code()
    if code is None:
        raise BundleError(f"{bundle.path} has no code to measure; name another bundle")
    return code


def _encode(code: Code, queries: Sequence[Sequence[NDArray[np.float32]]]) -> list[Call]:
    groups = [members[: code.k] for members in queries]
    # The encoder's own choice of memory; from here on it is written over and over.
    named = [[{"input": query} for query in members] for members in groups]
    return [partial(code.encode, members, _memory(code, members)) for members in named]


def _memory(
    code: Code, members: Sequence[Mapping[str, NDArray[np.float32]]]
) -> dict[str, NDArray[np.float32]]:
    """The memory that the encoder chooses; from then on it is written over and over."""
    return {"input": np.stack([each["input"] for each in code.encode(members)])}


def _decode(code: Code) -> Call:
    prediction = np.ones(code.output_shape, np.float32)
    predictions = [None, *[prediction] * (code.k - 1)]
    parity_output = np.ones(code.parity_output_shape, np.float32)
    return partial(code.decode, predictions, [parity_output] * code.r)


def _medians(benches: Sequence[list[Call]]) -> list[float]:
    """Return the median µs of each bench's calls, taken in turns so that noise meets all alike."""
    times: list[list[int]] = [[] for _ in benches]
    for _ in range(ROUNDS):
        for calls, taken in zip(benches, times, strict=True):
            calls[-1]()
            for call in calls:
                start = perf_counter_ns()
                call()
                taken.append(perf_counter_ns() - start)
    return [median(taken) / 1e3 for taken in times]
