"""What a stage changes while it runs, and what is put back after it."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException


@contextmanager
def interruptible() -> Iterator[None]:
    """Makes a KeyboardInterrupt of what Lightning makes of one: the end of the process, deaf to further ones.

    And of SIGTERM the end that says so: with Lightning's status 0 a run that was cut off passes for a finished one.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SIGTERMException:
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


@contextmanager
def restored_gradients(model: torch.nn.Module) -> Iterator[None]:
    """Undoes a stage's freezing, and keeps what the user has frozen."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        yield
    finally:
        model.requires_grad_(True)
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps back Lightning's advice and advertisements: what it says of devices and workers, the configuration does."""
    chatter = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")  # most networks have none
            yield
    finally:
        chatter.setLevel(level)
