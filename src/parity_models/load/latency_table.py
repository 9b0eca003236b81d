"""What became of each query of a load, as a table in a file."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from parity_models.load.result import LoadResult


def write_latencies(path: Path, result: LoadResult) -> None:
    """Write a Parquet file with a row for each query, in order of arrival.

    Times in seconds: `scheduled` and `sent` since the first query was due, `latency` from the
    scheduled time. `source`, or `error`; `correct` is the answer's score by the metric: for
    top-1, 1 or 0. What does not apply is null.
    """
    answered = result.answered
    kinds = pa.DictionaryArray.from_arrays(
        pa.array(result.outcome), pa.array(result.outcomes.tolist(), pa.string())
    )
    nothing = pa.scalar(None, kinds.type)
    here = pa.array(answered)
    table = pa.table(
        {
            "scheduled": result.scheduled,
            "sent": _or_null(result.scheduled + result.send_delay),
            "latency": _or_null(result.latency),
            "source": pc.if_else(here, kinds, nothing),
            "correct": _or_null(result.score),
            "error": pc.if_else(here, nothing, kinds),
        }
    )
    pq.write_table(table, path)


def _or_null(values: NDArray[np.float64]) -> pa.Array:
    return pa.array(values, mask=np.isnan(values))
