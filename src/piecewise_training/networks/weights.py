"""Weights for a network: fetched, from a local file, or none, and never a silent mixture."""

from __future__ import annotations

import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Pretrained = bool | str | Path | None
StateDict = Mapping[str, Tensor]

_WANTED = "`pretrained` must be True, False, None or an existing file"


def initialise(
    network: nn.Module,
    pretrained: Pretrained,
    fetch: Callable[[], StateDict],
    adapt: Callable[[StateDict], StateDict] = lambda state: state,
    *,
    complete: bool = False,
) -> None:
    """Fills a network with weights as the user asked.

    Args:
        network: what the weights are for; parameters that they lack keep their random values, unless `complete`.
        pretrained: True fetches and fails if that fails; None fetches and, if that fails, warns and leaves random
            weights; False leaves random weights; a path reads a local file.
        fetch: downloads the ImageNet weights.
        adapt: turns the state of the published classifier into the network's.
        complete: whether the weights must have every parameter of the network.

    Raises:
        RuntimeError: `pretrained` is True and the weights could not be fetched.
        FileNotFoundError: `pretrained` is a path that does not exist.
        ValueError: a file is no state dict, or the weights hold not one tensor that fits, or not all that they must.
    """
    if pretrained is False:
        return
    if isinstance(pretrained, str | Path):
        report_loading(network, adapt(read_state_dict(pretrained)), str(pretrained), complete=complete)
        return
    try:
        state = fetch()
    except Exception as error:
        if pretrained:
            raise RuntimeError(
                "`pretrained=True` needs the ImageNet weights, and they could not be fetched "
                f"({type(error).__name__}: {_first_line(error)}). Check the network, or pass the path of a local file, "
                "or False for random weights."
            ) from error
        warnings.warn(
            f"The ImageNet weights could not be fetched ({type(error).__name__}: {_first_line(error)}); training "
            "starts from random weights. Pass `pretrained=PATH` for a local file, or `pretrained=False` to say that "
            "random is meant.",
            stacklevel=2,
        )
        return
    report_loading(network, adapt(state), "the file of ImageNet weights", complete=complete)


def read_state_dict(path: str | Path, wanted: str = _WANTED) -> StateDict:
    """Reads a safetensors file or a state dict saved by torch, without running any code in it.

    Args:
        path: the file.
        wanted: what an error says that the argument must be.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is neither, or holds something else than named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: {wanted}.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds on a broken file
        raise ValueError(
            f"{path} could not be read as weights ({_first_line(error)}). "
            "It must be a .safetensors file or a state dict written by torch.save(model.state_dict(), path)."
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict: it must map names to tensors. Save model.state_dict().")
    return state


def report_loading(network: nn.Module, state: StateDict, source: str, *, complete: bool = False) -> None:
    """Loads what fits and logs what is missing and what was not used.

    Raises:
        ValueError: no tensor fits by name, one that does has another shape, or it is to be complete and one is missing.
    """
    own = network.state_dict()
    common = own.keys() & state.keys()
    if not common:
        raise ValueError(
            f"{source} holds no tensor of this network: it has {_some(state)}, the network wants {_some(own)}."
        )
    misfits = [name for name in sorted(common) if own[name].shape != state[name].shape]
    if misfits:
        name = misfits[0]
        raise ValueError(
            f"{source} holds {name} as {tuple(state[name].shape)}, the network wants {tuple(own[name].shape)}"
            + (f", and {len(misfits) - 1} more tensors differ in shape." if len(misfits) > 1 else ".")
        )
    missing, unexpected = network.load_state_dict(state, strict=False)
    if missing and complete:
        raise ValueError(
            f"{source} lacks {len(missing)} of the network's {len(own)} tensors: {_some(missing)}. Take a file of this "
            "very network, or `pretrained=False` for random weights."
        )
    logger.log(
        logging.WARNING if missing else logging.INFO,
        "loaded %d tensors from %s; missing: %s; not used: %s",
        len(common),
        source,
        _some(missing),
        _some(unexpected),
    )


def transfer(network: nn.Module, state: StateDict, source: str) -> None:
    """Loads each tensor that has the name and the shape of one of the network's, and logs which ones begin anew.

    Raises:
        ValueError: no tensor fits.
    """
    own = network.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise ValueError(f"{source} has nothing to begin with: it has {_some(state)}, the model wants {_some(own)}.")
    versioned: Any = OrderedDict(fitting)
    versioned._metadata = getattr(own, "_metadata", None)  # without which batch norm does not say that counters lack
    anew, _ = network.load_state_dict(versioned, strict=False)
    logger.log(
        logging.WARNING if anew else logging.INFO,
        "began with %d of %d tensors from %s; anew: %s",
        len(own) - len(anew),
        len(own),
        source,
        _some(anew),
    )


def _some(names: object, limit: int = 3) -> str:
    listed = [str(name) for name in names]  # type: ignore[attr-defined]
    if not listed:
        return "none"
    rest = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + rest


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
