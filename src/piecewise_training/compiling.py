"""Functions that torch.compile leaves as they are: it cannot look into kernels of Numba, and need not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


def uncompiled(function: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
    """Makes torch.compile call a function and compile only what is around it.

    As `torch.compiler.disable`, which would load the compiler's front half, some seconds, where a function is defined;
    this one does so where something is compiled.

    Example:
        >>> uncompiled(abs)(-1)
        1
    """

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-untyped-call]
        return function(*args, **kwargs)

    return call
