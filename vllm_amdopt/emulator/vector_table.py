"""All vector instructions that are a function of their operands, and the comparisons.

VECTOR_ALU: name without encoding -> (types of the results, types of the sources, function). m as a
result: a lane mask; x: a lane mask that EXEC takes over as well. Source: CDNA4 ISA, 12.9 (VOPC) for
the comparisons; the other tables name theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .floats import class_test
from .registers import NUMPY_TYPE
from .vector_conversion_table import CONVERSION_TABLE
from .vector_floats import FLOAT_TABLE
from .vector_integers import INTEGER_TABLE

Semantics = Callable[..., Any]

COMPARES: dict[str, Callable[[Any, Any], Any]] = {
    "lt": np.less,
    "eq": np.equal,
    "le": np.less_equal,
    "gt": np.greater,
    "lg": lambda a, b: (a < b) | (a > b),
    "ne": np.not_equal,
    "ge": np.greater_equal,
    "o": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "u": lambda a, b: np.isnan(a) | np.isnan(b),
    "nge": lambda a, b: ~(a >= b),
    "nlg": lambda a, b: ~((a < b) | (a > b)),
    "ngt": lambda a, b: ~(a > b),
    "nle": lambda a, b: ~(a <= b),
    "neq": np.not_equal,
    "nlt": lambda a, b: ~(a < b),
    "f": lambda a, b: np.zeros(np.broadcast(a, b).shape, bool),
    "t": lambda a, b: np.ones(np.broadcast(a, b).shape, bool),
    "tru": lambda a, b: np.ones(np.broadcast(a, b).shape, bool),
}

COMPARED_TYPES = {
    "f32": "f",
    "f64": "F",
    "f16": "h",
    "i32": "i",
    "u32": "u",
    "i64": "I",
    "u64": "U",
    "i16": "s",
    "u16": "w",
}


def _comparisons() -> dict[str, tuple[str, str, Semantics]]:
    table: dict[str, tuple[str, str, Semantics]] = {}
    for result, prefix in (("m", "v_cmp"), ("x", "v_cmpx")):
        for name, code in COMPARED_TYPES.items():
            for condition, function in COMPARES.items():
                table[f"{prefix}_{condition}_{name}"] = (result, code * 2, function)
            if code in "fFh":
                test = class_test(NUMPY_TYPE[code])
                table[f"{prefix}_class_{name}"] = (result, code + "u", test)
    return table


VECTOR_ALU: dict[str, tuple[str, str, Semantics]] = {
    **FLOAT_TABLE,
    **CONVERSION_TABLE,
    **INTEGER_TABLE,
    **_comparisons(),
}
