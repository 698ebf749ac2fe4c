"""Beginning with a trained model: its networks, and its CRFs where they are what is asked for now."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from piecewise_training.crf import DenseCRF
from piecewise_training.model import PiecewiseTrainedModel, read_configuration
from piecewise_training.networks.weights import read_state_dict, transfer

logger = logging.getLogger(__name__)

_CRF, _CONTEXT, _NETS, _FACTORS = "crf.", "context.", "context.nets.", "context.log_factors"


def begin_with(model: PiecewiseTrainedModel, start_from: Path) -> None:
    """Loads what fits of a trained model's weights, and logs what begins anew.

    A dense CRF is taken whole, and only if it began as this one does: of another the numbers would replace those that
    were asked for. Pairwise networks are taken by the names of their relations.

    Args:
        model: just built, and not trained.
        start_from: a file of weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no weights, or none that fit.
    """
    state = dict(read_state_dict(start_from, "`start_from` must be the folder of a finished run or a file"))
    earlier = read_configuration(start_from)
    if not (_began_alike(model, earlier) if earlier else _may_fit(model, state)):
        logger.warning("the CRF of %s is another: this one begins as it is configured", start_from)
        state = _without(state, _CRF)
    transfer(model, _by_relation(model, earlier, state), str(start_from))


def _began_alike(model: PiecewiseTrainedModel, earlier: Mapping[str, Any]) -> bool:
    """Whether an earlier CRF, perhaps for other classes, was made with the kernels and values that this one has."""
    if model.crf is None or not earlier["use_crf"]:
        return True
    again = DenseCRF(model.num_classes, **earlier["crf"])
    if not again.is_built_like(model.crf):
        return False
    pairs = zip(again.parameters(), model.crf.parameters(), strict=True)
    return all(torch.equal(a, b) and a.requires_grad == b.requires_grad for a, b in pairs)


def _may_fit(model: PiecewiseTrainedModel, state: Mapping[str, Tensor]) -> bool:
    """Whether weights without a configuration have the numbers of this CRF, and the same where they are not learned."""
    given = {name.removeprefix(_CRF): value for name, value in state.items() if name.startswith(_CRF)}
    if model.crf is None or not given:
        return True
    fixed = {name: value for name, value in model.crf.named_parameters() if not value.requires_grad}
    return given.keys() == model.crf.state_dict().keys() and all(
        torch.equal(given[name], value) for name, value in fixed.items()
    )


def _by_relation(
    model: PiecewiseTrainedModel, earlier: Mapping[str, Any], state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The weights with those of each relation's network where the model has that relation."""
    trained = earlier.get("context")
    if model.context is None or not trained:
        return state
    found = _without(state, _CONTEXT)
    if trained.get("residual", True) != model.context.residual:  # such a network has learned something else
        return found
    left: list[Any] = [(relation["name"], relation["symmetric"]) for relation in trained["relations"]]
    places = []
    for place, relation in enumerate(model.context.relations):
        wanted = (relation.name, relation.symmetric)
        if wanted not in left:
            continue
        source = left.index(wanted)
        left[source] = None
        places.append(source)
        own = f"{_NETS}{source}."
        found |= {f"{_NETS}{place}.{n.removeprefix(own)}": v for n, v in state.items() if n.startswith(own)}
    if len(places) == len(left) == len(model.context.relations):  # among others a relation has another weight
        found[_FACTORS] = state[_FACTORS][places]
    return found


def _without(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(prefix)}
