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

    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-untyped-call]
        return function(*args, **kwargs)

    # The compiler counts its versions of a function by the code, and warns of many: each has a code of its own.
    call.__code__ = call.__code__.replace(co_name=f"{function.__module__}.{function.__qualname__}")
    return functools.update_wrapper(call, function)
