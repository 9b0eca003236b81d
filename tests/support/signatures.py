"""Random signatures, and random queries of them, for properties."""

from math import prod
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from numpy.typing import NDArray

from parity_models.tensors.signature import DATATYPES, Axis, Tensor, TensorSpec
from parity_models.tensors.texts import BYTES

BUCKETS = Axis((2, 5))


@st.composite
def tensors(draw: st.DrawFn, *, texts: bool = False) -> tuple[Tensor, ...]:
    """One to three tensors of any datatype, of texts only if `texts`; an axis may be dynamic."""
    datatypes = sorted(DATATYPES if texts else DATATYPES.keys() - {BYTES})
    names = draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True))
    shapes = st.lists(st.integers(1, 3) | st.just("length"), max_size=3).map(tuple)
    return tuple(Tensor(name, draw(st.sampled_from(datatypes)), draw(shapes)) for name in names)


def axes_of(*several: Tensor) -> dict[str, Axis]:
    return {"length": BUCKETS} if any(each.axes for each in several) else {}


@st.composite
def values(draw: st.DrawFn, spec: TensorSpec, rows: int) -> NDArray[Any]:
    """Finite values, or texts, (rows, *shape)."""
    if spec.is_text:
        count, shape = rows * prod(spec.shape), (rows, *spec.shape)
        texts = draw(st.lists(st.text(max_size=9), min_size=count, max_size=count))
        return np.array(texts, object).reshape(shape)
    found = draw(arrays_of.arrays(spec.dtype, (rows, *spec.shape), fill=st.nothing()))
    return np.nan_to_num(found) if found.dtype.kind == "f" else found
