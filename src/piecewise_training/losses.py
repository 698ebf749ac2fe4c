"""What is minimised: log-likelihoods of scores and of marginals, and the losses the field compares them with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from piecewise_training import checks

VOID = 255

UnaryLoss = Callable[[Float[Tensor, "b k h w"], Int[Tensor, "b h w"]], Float[Tensor, ""]]


def cross_entropy(
    logits: Float[Tensor, "b k h w"], target: Int[Tensor, "b h w"], weight: Float[Tensor, k] | None = None
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of softmax(logits) over the pixels that are not void; 0 if all are.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) classes, 255 for void.
        weight: of each class; the mean is weighted.

    Raises:
        ValueError: a label is neither a class nor void, or no whole number, or the shapes do not fit.

    Example:
        >>> cross_entropy(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 255]]]))
        tensor(0.6931)
    """
    return marginal_nll(logits.log_softmax(1), target, weight)


def marginal_nll(
    log_q: Float[Tensor, "b k h w"], target: Int[Tensor, "b h w"], weight: Float[Tensor, k] | None = None
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of marginals given as log Q, which a CRF returns; 0 if every pixel is void.

    Raises:
        ValueError: a label is neither a class nor void, or no whole number, or the shapes do not fit.
    """
    return _nll(log_q, _labels(target, log_q), weight)


def _nll(log_q: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    log_q = _single(log_q)
    weight = None if weight is None else weight.to(log_q.dtype)
    total = functional.nll_loss(log_q, target, weight, ignore_index=VOID, reduction="sum")
    known = target != VOID
    count = known.sum() if weight is None else weight[target[known]].sum()
    return total / count.to(total.dtype).clamp(min=torch.finfo(total.dtype).tiny)


def node_labels(target: Int[Tensor, "b h w"], size: tuple[int, int]) -> Int[Tensor, "b y x"]:
    """The labels of the nodes of a feature map: those of the pixels at their centres.

    Args:
        target: (B, H, W) classes, 255 for void.
        size: rows and columns of the map.

    Example:
        >>> node_labels(torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 2]]]), (1, 2))
        tensor([[[0, 2]]])
    """
    return functional.interpolate(target[:, None].float(), size, mode="nearest-exact")[:, 0].to(target.dtype)


def edge_nll(
    scores: Float[Tensor, "b e k k"],
    edges: Int[Tensor, "2 e"],
    labels: Int[Tensor, "b n"],
    weight: Float[Tensor, k] | None = None,
    most: float = 10.0,
) -> Float[Tensor, ""]:
    r"""Mean negative log-likelihood of pairs of labels on edges, :math:`-\log \mathrm{softmax}_{K^2}(z)_{y_p, y_q}`.

    The pairwise half of piecewise training (Lin et al., CVPR 2016): every edge is a classification of its own into K²
    pairs, and no inference is needed. Edges with a void end are left out; 0 if all are.

    Args:
        scores: (B, E, K, K), of label a at the first end and b at the second.
        edges: (2, E) numbers of nodes.
        labels: (B, N) classes of the nodes, 255 for void.
        weight: of each class; a pair's is the product of its ends', and the mean is weighted.
        most: largest weight of a pair: without a bound the product of two rare classes would outweigh all others.

    Raises:
        ValueError: a label is neither a class nor void, or no whole number.

    Example:
        >>> edges, labels = torch.tensor([[0], [1]]), torch.tensor([[0, 1]])
        >>> edge_nll(torch.zeros(1, 1, 2, 2), edges, labels)
        tensor(1.3863)
    """
    scores = _single(scores)
    classes = scores.shape[-1]
    labels = _whole(labels, classes, "labels")
    first, second = labels[:, edges[0]], labels[:, edges[1]]
    known = (first != VOID) & (second != VOID)
    first, second = first.where(known, 0), second.where(known, 0)
    log_p = scores.flatten(2).log_softmax(2).gather(2, (first * classes + second)[..., None])[..., 0]
    share = known.to(scores.dtype)
    if weight is not None:
        share = share * (weight[first] * weight[second]).clamp(max=most)
    return -(log_p * share).sum() / share.sum().clamp(min=torch.finfo(scores.dtype).tiny)


def pairwise_agreement(logits: Float[Tensor, "b k h w"], target: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of "same class" or "not the same" for every two 4-neighbours; our own choice.

    With independent pixels, P(same) is the scalar product of two neighbours' class probabilities. Pairs of equal and
    of different labels, of which there are few, weigh one half each. Pairs with a void end are left out.

    Raises:
        ValueError: a label is neither a class nor void, or no whole number, or the shapes do not fit.

    Example:
        >>> sure = torch.tensor([[[[9.0, -9.0]], [[-9.0, 9.0]]]])
        >>> float(pairwise_agreement(sure, torch.tensor([[[0, 1]]]))) < 1e-3
        True
    """
    return _agreement(_single(logits).log_softmax(1), _labels(target, logits))


def _agreement(log_p: Tensor, target: Tensor) -> Tensor:
    alike, same, different = [], [], []
    for axis in (2, 3):
        size = log_p.shape[axis]
        first, second = (log_p.narrow(axis, start, size - 1) for start in (0, 1))
        label, neighbour = (target.narrow(axis - 1, start, size - 1) for start in (0, 1))
        known = (label != VOID) & (neighbour != VOID)
        alike.append(known & (label == neighbour))
        same.append((first + second).logsumexp(1).where(alike[-1], 0).sum())
        unlike = (known & (label != neighbour)).nonzero(as_tuple=True)
        log_first, log_second = (part.movedim(1, -1)[unlike] for part in (first, second))
        different.append((log_first + _log_others(log_second)).logsumexp(1))
    likelihoods = [torch.cat(different).mean()] if any(map(len, different)) else []
    if count := sum(int(pairs.sum()) for pairs in alike):
        likelihoods.append(torch.stack(same).sum() / count)
    return -torch.stack(likelihoods).mean() if likelihoods else log_p.sum() * 0


def _log_others(log_p: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """The log-probability that it is another class, for each: log(1 - p), which has a slope where p rounds to 1.

    The likeliest class alone may come near 1. The others are added up for it.
    """
    likeliest = log_p.argmax(1, keepdim=True)
    rest = log_p.scatter(1, likeliest, -torch.inf)
    return torch.log1p(-rest.exp()).scatter(1, likeliest, rest.logsumexp(1, keepdim=True))


def _labels(target: Tensor, logits: Tensor) -> Tensor:
    """Labels that fit logits, and are checked."""
    batch, classes, *size = logits.shape
    if target.shape != (batch, *size):  # one more axis would go through broadcasting, and be a sum over all classes
        raise ValueError(
            f"`target` must be {(batch, *size)} for scores of {tuple(logits.shape)}; got {checks.describe(target)}."
        )
    return _whole(target, classes, "target")


def _whole(target: Tensor, classes: int, called: str) -> Tensor:
    """Checked labels in the one type that PyTorch's functions take."""
    if target.is_floating_point():
        raise ValueError(
            f"`{called}` must hold whole numbers, of classes; got {checks.describe(target)}. Convert it with .long()."
        )
    target = target.long()
    checks.labels(target, classes, VOID, called)
    return target


def _single(scores: Tensor) -> Tensor:
    """Scores of half precision in single: sums over the pixels of an image would overflow."""
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores


class StructuredLoss(nn.Module):
    """Cross-entropy of every pixel plus the agreement of every two neighbours; both have a gradient to the logits.

    Args:
        weight: of each class, in the unary term.
        pairwise_weight: of the pairwise term.

    Example:
        >>> loss = StructuredLoss()(torch.zeros(1, 2, 2, 2), torch.tensor([[[0, 0], [0, 1]]]))
        >>> round(float(loss), 4)  # log 2 for the pixels, log 2 for the pairs
        1.3863
    """

    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None, pairwise_weight: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.pairwise_weight = pairwise_weight

    def forward(self, logits: Float[Tensor, "b k h w"], target: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
        """The loss of (B, K, H, W) logits for (B, H, W) labels, of which each is a class or void."""
        target = _labels(target, logits)
        log_p = _single(logits).log_softmax(1)
        return _nll(log_p, target, self.weight) + self.pairwise_weight * _agreement(log_p, target)


def dice(
    logits: Float[Tensor, "b k h w"], target: Int[Tensor, "b h w"], weight: Float[Tensor, k] | None = None
) -> Float[Tensor, ""]:
    """One minus the soft Dice coefficient, averaged over the classes that occur.

    After Milletari et al. (3DV 2016), whose coefficient is of one class and has sums of squares below; these are sums.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) classes, 255 for void.
        weight: of each class in the average.

    Raises:
        ValueError: a label is neither a class nor void, or no whole number, or the shapes do not fit.
    """
    target = _labels(target, logits)
    known = (target != VOID)[:, None]
    logits = _single(logits)
    probability = logits.softmax(1) * known
    truth = functional.one_hot(target.where(target != VOID, 0), logits.shape[1]).movedim(-1, 1) * known
    overlap = (probability * truth).sum((0, 2, 3))
    total = probability.sum((0, 2, 3)) + truth.sum((0, 2, 3))
    present = truth.sum((0, 2, 3)) > 0
    share = present.to(logits.dtype) if weight is None else present * weight
    coefficient = 2 * overlap / total.clamp(min=1e-6)
    return ((1 - coefficient) * share).sum() / share.sum().clamp(min=1e-6)


def focal(
    logits: Float[Tensor, "b k h w"],
    target: Int[Tensor, "b h w"],
    weight: Float[Tensor, k] | None = None,
    gamma: float = 2.0,
) -> Float[Tensor, ""]:
    """Cross-entropy with each pixel weighted by (1 - p)^gamma, p its true class's probability (Lin et al., ICCV 2017).

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) classes, 255 for void.
        weight: of each class; the mean is weighted.
        gamma: 0 gives cross-entropy.

    Raises:
        ValueError: a label is neither a class nor void, or no whole number, or the shapes do not fit.
    """
    log_p = _single(logits).log_softmax(1)
    # A power below 1 has no slope at 0, where a pixel is sure.
    miss = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).eps)
    modulated = miss.pow(gamma) * log_p
    return marginal_nll(modulated, target, weight)


def lovasz(
    logits: Float[Tensor, "b k h w"],
    target: Int[Tensor, "b h w"],
    weight: Float[Tensor, k] | None = None,
    every: int = 2,
) -> Float[Tensor, ""]:
    """Cross-entropy plus the Lovász-softmax loss, the convex surrogate of 1 - IoU (Berman et al., CVPR 2018).

    The IoU of a class is over the whole batch, its mean over the classes that occur in it. It alone trains slowly from
    a start far away, the sum of both does not.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) classes, 255 for void.
        weight: of each class in both terms.
        every: the second term takes every so many pixels of every so many rows: pixels are sorted by their errors for
            each class, which takes longer than a light network, and neighbours say much the same.

    Raises:
        ValueError: a label is neither a class nor void, or no whole number, or the shapes do not fit.

    Example:
        >>> right = torch.tensor([[[[99.0, -99.0]], [[-99.0, 99.0]]]])
        >>> lovasz(right, torch.tensor([[[0, 1]]])), lovasz(right, torch.tensor([[[1, 0]]]))
        (tensor(0.), tensor(199.))
    """
    target = _labels(target, logits)
    log_p = _single(logits).log_softmax(1)
    likelihood = _nll(log_p, target, weight)
    seen = target[:, ::every, ::every]
    known = seen != VOID
    labels = seen[known]
    present = torch.unique(labels)
    if not len(present):
        return likelihood
    probabilities = log_p[:, present, ::every, ::every].movedim(1, 0)[:, known].exp()
    terms = _lovasz_extension(probabilities, labels == present[:, None])
    shares = torch.ones_like(terms) if weight is None else weight[present]
    return likelihood + (terms * shares).sum() / shares.sum().clamp(min=1e-6)


def _lovasz_extension(probabilities: Float[Tensor, "c n"], truth: Bool[Tensor, "c n"]) -> Float[Tensor, c]:
    """For each class errors in falling order, each times the growth of the Jaccard distance as its pixel goes wrong."""
    errors, order = torch.where(truth, 1 - probabilities, probabilities).sort(1, descending=True)
    found = truth.gather(1, order).to(errors.dtype)
    total = truth.sum(1, keepdim=True)
    distance = 1 - (total - found.cumsum(1)) / (total + (1 - found).cumsum(1))
    return (errors * torch.diff(distance, dim=1, prepend=distance.new_zeros(len(distance), 1))).sum(1)


def unary_loss(
    name: Literal["cross_entropy", "structured", "dice", "focal", "lovasz"], weight: Tensor | None = None
) -> UnaryLoss:
    """The loss of a name, with the weights of the classes.

    Raises:
        ValueError: no loss has that name.
    """
    if name == "structured":
        return StructuredLoss(weight)
    functions = {"cross_entropy": cross_entropy, "dice": dice, "focal": focal, "lovasz": lovasz}
    if name not in functions:
        raise ValueError(f"`loss` must be cross_entropy, structured, dice, focal or lovasz; got {name!r}.")
    function = functions[name]
    return lambda logits, target: function(logits, target, weight)


def class_weights(
    pixels: Int[Tensor, k], around: Int[Tensor, k], rule: Literal["none", "inverse", "median"]
) -> Float[Tensor, k] | None:
    """Weights of the classes from their frequency.

    "inverse" is proportional to 1 / frequency, with mean 1 over the classes that occur; "median" is the median
    frequency over the frequency, where that of a class is its share of the images in which it occurs (Eigen & Fergus,
    ICCV 2015). A class that does not occur has weight 0.

    Args:
        pixels: number of pixels of each class.
        around: number of pixels, void aside, of all images in which the class occurs.
        rule: "none" gives None.

    Raises:
        ValueError: no rule has that name, or there is no pixel.

    Example:
        >>> class_weights(torch.tensor([8, 4, 2]), torch.tensor([14, 14, 14]), "median")
        tensor([0.5000, 1.0000, 2.0000])
    """
    if rule == "none":
        return None
    if rule not in ("inverse", "median"):
        raise ValueError(f"`class_weights` must be none, inverse or median; got {rule!r}.")
    present = pixels > 0
    if not bool(present.any()):
        raise ValueError("`pixels` must count at least one pixel that is not void.")
    frequency = pixels.double() / (around.clamp(min=1) if rule == "median" else pixels.sum())
    scale = frequency[present].quantile(0.5) if rule == "median" else 1 / (1 / frequency[present]).mean()
    return torch.where(present, scale / frequency, 0.0).float()
