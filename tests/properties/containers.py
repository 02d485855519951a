"""Strategies: numbers and labels as people bring them, in every container, type, layout and scale."""

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from hypothesis import strategies as st

seeds = st.integers(0, 2**32 - 1)


def _values(rng, kind, shape):
    plain = rng.normal(size=shape)
    if kind == "tiny" or kind == "huge":
        return plain * 10.0 ** (-12 if kind == "tiny" else 12)
    if kind == "far":
        return plain + 1e8
    if kind == "mixed scales":
        return plain * 10.0 ** rng.integers(-12, 13, size=shape[-1:])
    if kind == "constant":
        return np.full(shape, plain.flat[0] if plain.size else 0.0)
    if kind == "duplicates":
        return plain[rng.integers(0, max(1, shape[0] // 3), size=shape[0])] if shape[0] else plain
    if kind == "integers":
        return np.round(3 * plain)
    if kind == "huge integers":
        return rng.integers(-(2**62), 2**62, size=shape)
    if kind == "truth":
        return plain > 0
    if kind in ("nan", "inf", "-inf") and plain.size:
        plain.flat[rng.integers(plain.size)] = float(kind)
    return plain


def _reversed(x):
    return np.ascontiguousarray(x[::-1])[::-1]


def _read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def _tensor(x):
    return torch.tensor(np.ascontiguousarray(x))


CONTAINERS = {
    "array": np.asarray,
    "Fortran": np.asfortranarray,
    "reversed": _reversed,
    "strided": lambda x: np.repeat(x, 2, axis=0)[::2],
    "read-only": _read_only,
    "list": lambda x: x.tolist(),
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "float32": lambda x: x.astype(np.float32),
    "float16": lambda x: x.astype(np.float16),
    "objects": lambda x: x.astype(object),
    "strings": lambda x: x.astype(str),
    "complex": lambda x: x.astype(complex),
    "masked": np.ma.masked_array,
    "tensor": _tensor,
    "tensor float32": lambda x: _tensor(x).float(),
    "tensor bfloat16": lambda x: _tensor(x).bfloat16(),
    "tensor with gradient": lambda x: _tensor(x.astype(float)).requires_grad_(),
}
TWO_AXES = {
    "frame": lambda x: pd.DataFrame(x, columns=[f"c{j}" for j in range(x.shape[1])]),
    "nullable frame": lambda x: pd.DataFrame(x, columns=[f"c{j}" for j in range(x.shape[1])]).convert_dtypes(),
    "sparse": scipy.sparse.csr_matrix,
}
ONE_AXIS = {"series": pd.Series, "shuffled series": lambda x: pd.Series(x, index=np.arange(len(x))[::-1])}

KINDS = [
    *"plain tiny huge far constant duplicates integers truth nan inf -inf".split(),
    "mixed scales",
    "huge integers",
]


@st.composite
def numbers(draw, *, rows):
    """Numbers (n,), (n, 1) or (n, 2), or of a wrong length."""
    rng = np.random.default_rng(draw(seeds))
    length = rows + draw(st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1]))
    shape = draw(st.sampled_from([(length,), (length,), (length, 1), (length, 2)]))
    values = _values(rng, draw(st.sampled_from(KINDS)), shape)
    containers = CONTAINERS | (ONE_AXIS if len(shape) == 1 else TWO_AXES)
    with np.errstate(over="ignore"):
        return containers[draw(st.sampled_from(list(containers)))](values)


NAMES = {
    "integers": lambda codes: codes,
    "strings": lambda codes: np.array([f"class {code}" for code in codes], dtype=object),
    "fixed strings": lambda codes: np.array([f"{code}" for code in codes], dtype="U3"),
    "signs": lambda codes: np.where(codes > 0, 1, -1),
    "truth": lambda codes: codes > 0,
    "far integers": lambda codes: codes + 2**60,
    "unsigned bytes": lambda codes: codes.astype(np.uint8),
    "whole reals": lambda codes: codes.astype(float),
    "halves": lambda codes: codes + 0.5,
    "missing": lambda codes: np.where(np.arange(len(codes)) == 0, np.nan, codes),
    "category": lambda codes: pd.Series(pd.Categorical([f"c{code}" for code in codes])),
    "tensor": torch.tensor,
    "one-hot": lambda codes: np.eye(4)[codes % 4],
    "list": lambda codes: codes.tolist(),
}


def rows_of(x):
    """Number of rows of anything made here."""
    return x.shape[0] if hasattr(x, "shape") else len(x)
