"""Mean-field inference in a fully connected CRF as a pure function of scores, kernels and compatibilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from piecewise_training import checks
from piecewise_training.compiling import uncompiled
from piecewise_training.crf._reference import mixed
from piecewise_training.crf.filtering import GaussianKernel
from piecewise_training.crf.lattice import LatticeOperator


@dataclass(frozen=True)
class PairwiseTerm:
    r"""One pairwise energy :math:`w\,\mu(a, b)\,\hat k(f_i, f_j)` between every two pixels i and j.

    Attributes:
        kernel: the Gaussian kernel.
        weight: w; above 0 neighbours agree.
        compatibility: the cost :math:`\mu(a, b)` of label a at i beside label b at j (K, K), symmetric or not; or what
            each class gains from itself (K,), :math:`\mu(a, b) = -c_a` for a = b and 0 else; None is Potts, 1 unless
            a = b, which is the same as 1 for each class.

    Example:
        >>> PairwiseTerm(GaussianKernel(torch.rand(1, 2, 6)), 3.0, torch.ones(4)).mixture(torch.zeros(()))
        tensor([3., 3., 3., 3.])
    """

    kernel: GaussianKernel
    weight: Tensor | float = 1.0
    compatibility: Float[Tensor, "k k"] | Float[Tensor, " k"] | None = None

    def mixture(self, like: Tensor) -> Tensor:
        r"""What the filtered marginals add to the logits: :math:`-w\mu` as (K, K), its diagonal (K,) or a number ().

        Of Potts it is w times the identity: equal up to a constant over the labels, which the softmax removes.
        """
        if isinstance(self.weight, Tensor):
            weight = self.weight.to(like)
        else:  # filled in on the device: a copy from the CPU would wait for all that the GPU has to do
            weight = torch.full((), float(self.weight), dtype=like.dtype, device=like.device)
        if self.compatibility is None:
            return weight
        costs = self.compatibility.to(like)
        return weight * costs if costs.ndim == 1 else -weight * costs

    def message(self, q: Float[Tensor, "b k n"]) -> Float[Tensor, "b k n"]:
        """What the term adds to the logits, given the marginals."""
        return mixed(self.mixture(q), self.kernel(q))

    @property
    def learned(self) -> bool:
        """Whether anything in the term needs a gradient."""
        parts = (self.weight, self.compatibility)
        found = self.kernel.learned or any(isinstance(part, Tensor) and part.requires_grad for part in parts)
        return torch.is_grad_enabled() and found


@dataclass
class Convergence:
    r"""How mean field went, filled in by the function that it is handed to.

    Attributes:
        divergence: for each image (B,), before the first update and after each: the Kullback-Leibler divergence of Q
            from the CRF up to a constant, :math:`\sum_i Q_i \cdot (\log Q_i - z_i - \tfrac12 m_i)` with the scores z
            and the messages m. Where it does not fall, damping may help.
        change: for each update the largest change of a marginal in each image (B,), 0 for one that has stopped.
    """

    divergence: list[Tensor] = field(default_factory=list)
    change: list[Tensor] = field(default_factory=list)


@uncompiled
def mean_field(
    logits: Float[Tensor, "b k *space"],
    terms: Sequence[PairwiseTerm],
    iterations: int = 10,
    *,
    tolerance: float = 0.0,
    damping: float = 0.0,
    convergence: Convergence | None = None,
    logarithm: bool = True,
) -> Float[Tensor, "b k *space"]:
    r"""Approximates a CRF's marginals by the update of Krähenbühl & Koltun (2011), algorithm 1.

    All points at once, from Q = softmax(z):
    :math:`Q_i(a) \propto \exp(z_i(a) - \sum_m w_m \sum_b \mu_m(a,b) (\hat K_m Q)_i(b))`.
    Points may be anything: pixels, voxels, points of a cloud. On a CPU the updates of float32 scores are made in one
    pass over the points, forwards and backwards. Without it an update takes about ten times longer: where features
    need a gradient, where `tolerance`, `damping` or `convergence` is asked for and anything needs one, and with
    `damping` unless `logarithm` is False.

    Args:
        logits: unnormalised log-probabilities of K labels at N points, whose axes are those of an image or volume; of
            a dtype lower than float32 they are worked on in float32.
        terms: any number, with kernels over the same N points in the order of the flattened axes.
        iterations: the most updates; 0 gives log softmax of the logits.
        tolerance: an image stops when none of its marginals changes by more; 0 makes all iterations.
        damping: share of the old marginals in the new ones, from 0 to below 1, for models that swing.
        convergence: filled in, if given, which costs one filtering more.
        logarithm: False gives Q itself.

    Returns:
        log Q, whose exponentials sum to 1 over the labels; differentiable in all that the terms are made of.

    Raises:
        ValueError: a shape does not fit, a score is not finite, a weight or cost on the CPU is not, or a number is out
            of its range.

    Example:
        >>> place = torch.tensor([[[0.0, 1.0, 2.0, 10.0]]])  # three points side by side, and one far away
        >>> term = PairwiseTerm(GaussianKernel(place, backend="exact"), weight=2.0)
        >>> scores = torch.tensor([[[2.0, -0.5, 2.0, -0.5], [0.0, 0.0, 0.0, 0.0]]])
        >>> mean_field(scores, [term]).argmax(1)
        tensor([[0, 0, 0, 1]])
    """
    check_arguments(logits, terms, iterations, tolerance, damping)
    checks.finite("logits", logits)
    return approximate(logits, terms, iterations, tolerance, damping, convergence, logarithm)


def approximate(
    logits: Float[Tensor, "b k *space"],
    terms: Sequence[PairwiseTerm],
    iterations: int,
    tolerance: float,
    damping: float,
    convergence: Convergence | None,
    logarithm: bool,
) -> Float[Tensor, "b k *space"]:
    """`mean_field` of arguments that have been checked."""
    flat = logits.flatten(2) if logits.dtype == torch.float64 else logits.flatten(2).float()
    watched = tolerance > 0 or damping > 0 or convergence is not None
    learning = torch.is_grad_enabled() and (logits.requires_grad or any(term.learned for term in terms))
    together = _together(terms, flat)
    grid = (math.prod(logits.shape[2:-1]), logits.shape[-1])
    with torch.autocast(logits.device.type, enabled=False):  # messages need single precision
        if together and not watched:
            found = _infer(together, flat, terms, iterations, grid, logarithm, learning)
        elif together and together.watches and not learning and not (damping and logarithm):
            found = _watch(together, flat, terms, iterations, grid, logarithm, (tolerance, damping), convergence)
        else:
            log_q = _unroll(flat, terms, iterations, tolerance, damping, convergence)
            found = log_q if logarithm else log_q.exp()
    return found.reshape(logits.shape).to(logits.dtype)


def _unroll(
    logits: Tensor,
    terms: Sequence[PairwiseTerm],
    iterations: int,
    tolerance: float,
    damping: float,
    convergence: Convergence | None,
) -> Tensor:
    """Log-marginals, update by update."""
    log_q = logits.log_softmax(1)
    moving = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    for _ in range(iterations):
        messages = _messages(log_q, terms)
        updated = (logits + messages).log_softmax(1)
        if damping:
            # Not torch.logaddexp: the last numbers of each thread's share may there differ in their last bit.
            updated = torch.stack([updated + math.log1p(-damping), log_q + math.log(damping)]).logsumexp(0)
        if tolerance:
            updated = torch.where(moving[:, None, None], updated, log_q)  # an image that has stopped stays
        if tolerance or convergence is not None:
            change = (updated.detach().exp() - log_q.detach().exp()).abs().amax((1, 2))
            moving = moving & (change > tolerance)
            if convergence is not None:
                convergence.divergence.append(_divergence(log_q, logits, messages))
                convergence.change.append(change)
        log_q = updated
        if tolerance and not bool(moving.any()):
            break
    if convergence is not None:
        convergence.divergence.append(_divergence(log_q, logits, _messages(log_q, terms)))
    return log_q


def _watch(
    operator: LatticeOperator,
    logits: Tensor,
    terms: Sequence[PairwiseTerm],
    iterations: int,
    grid: tuple[int, int],
    logarithm: bool,
    how: tuple[float, float],
    convergence: Convergence | None,
) -> Tensor:
    """Marginals by the backend's own pass, damped or watched."""
    mixtures = [term.mixture(logits) for term in terms]
    given = (*how, convergence is not None)
    found, courses = operator.watch(_filters(terms), mixtures, logits, iterations, grid, logarithm, given)
    if convergence is not None:
        longest = max(len(change) for _, change in courses)
        for step in range(longest):
            change = [c[step] if step < len(c) else 0.0 for _, c in courses]
            convergence.change.append(torch.tensor(change, dtype=found.dtype, device=found.device))
        for step in range(longest + 1):
            values = [divergence[min(step, len(divergence) - 1)] for divergence, _ in courses]
            convergence.divergence.append(torch.tensor(values, dtype=torch.float64, device=found.device))
    return found


def check_arguments(
    logits: Tensor, terms: Sequence[PairwiseTerm], iterations: int, tolerance: float, damping: float
) -> None:
    """Raises a ValueError where an argument of `mean_field` does not fit; not for logits that are not finite."""
    if not isinstance(logits, Tensor) or logits.ndim < 3 or 0 in logits.shape or not logits.is_floating_point():
        raise ValueError(f"`logits` must be (B, K, ...) floating point; got {checks.describe(logits)}.")
    if iterations < 0:
        raise ValueError(f"`iterations` must be at least 0; got {iterations}.")
    if not tolerance >= 0:
        raise ValueError(f"`tolerance` must be at least 0; got {tolerance}.")
    if not 0 <= damping < 1:
        raise ValueError(f"`damping` must be from 0 to below 1; got {damping}.")
    batch, classes = logits.shape[:2]
    points = math.prod(logits.shape[2:])
    for place, term in enumerate(terms):
        images, own = term.kernel.images, term.kernel.points
        if own != points or images not in (1, batch):
            raise ValueError(
                f"The kernel of `terms[{place}]` is over {images} x {own} points; "
                f"`logits` {checks.describe(logits)} have {batch} x {points}."
            )
        if term.kernel.device != logits.device:
            raise ValueError(
                f"The kernel of `terms[{place}]` is on {term.kernel.device}, `logits` are on {logits.device}. "
                "Make it of features there."
            )
        if (term.kernel.dtype == torch.float64) != (logits.dtype == torch.float64):
            raise ValueError(
                f"The kernel of `terms[{place}]` is {term.kernel.dtype} and `logits` are {logits.dtype}; "
                "give its features the dtype of the logits, or float32 with lower ones."
            )
        costs = term.compatibility
        if costs is not None and costs.shape not in ((classes,), (classes, classes)):
            raise ValueError(
                f"The compatibility of `terms[{place}]` must be ({classes},) or ({classes}, {classes}); "
                f"got {checks.describe(costs)}."
            )
        if not isinstance(term.weight, Tensor) or term.weight.device.type == "cpu":  # to look at a GPU's would wait
            checks.scalar(f"terms[{place}].weight", term.weight)
        if costs is not None and costs.device.type == "cpu":
            checks.finite(f"terms[{place}].compatibility", costs)


def _messages(log_q: Tensor, terms: Sequence[PairwiseTerm]) -> Tensor:
    """What the terms add to the logits."""
    q = log_q.exp()
    return sum((term.message(q) for term in terms), torch.zeros_like(q))


def _divergence(log_q: Tensor, logits: Tensor, messages: Tensor) -> Tensor:
    with torch.no_grad():
        parts = log_q.exp() * (log_q - logits - 0.5 * messages)
        if parts.device.type in ("cpu", "mps"):  # torch's sum hangs on its number of threads; MPS has no double
            return torch.from_numpy(parts.cpu().double().numpy().sum((1, 2)))
        return parts.double().sum((1, 2))


def _together(terms: Sequence[PairwiseTerm], logits: Tensor) -> LatticeOperator | None:
    """The operator whose backend works on all terms together; None where there is none."""
    operators = [term.kernel.operator for term in terms if isinstance(term.kernel.operator, LatticeOperator)]
    features = [term.kernel.features for term in terms if term.kernel.features is not None]
    if not terms or len(operators) < len(terms) or logits.dtype != torch.float32:
        return None
    first = operators[0]
    known = all(operator.infers and operator.goes_with(first) for operator in operators)
    return first if known and not any(f.requires_grad for f in features) else None


def _infer(
    operator: LatticeOperator,
    logits: Tensor,
    terms: Sequence[PairwiseTerm],
    iterations: int,
    grid: tuple[int, int],
    logarithm: bool,
    learning: bool,
) -> Tensor:
    """Mean field in the backend's own pass, with its gradients if any is needed."""
    mixtures = [term.mixture(logits) for term in terms]
    if not learning:
        return operator.infer(_filters(terms), mixtures, logits, iterations, grid, logarithm, False)[0]
    parts = [
        part
        for term, mixture in zip(terms, mixtures, strict=True)
        for part in (mixture, term.kernel.before, term.kernel.after, term.kernel.bandwidths)
    ]
    log_q: Tensor = _Inference.apply(logits, operator, terms, iterations, grid, *parts)
    return log_q if logarithm else log_q.exp()


def _filters(terms: Sequence[PairwiseTerm]) -> list[Any]:
    return [
        term.kernel.operator.normalized(term.kernel.before, term.kernel.after)
        for term in terms
        if isinstance(term.kernel.operator, LatticeOperator)
    ]


class _Inference(torch.autograd.Function):
    """All updates at once; the parts of each term are its mixture, factors before and after, and bandwidths."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        operator: LatticeOperator,
        terms: Sequence[PairwiseTerm],
        iterations: int,
        grid: tuple[int, int],
        *parts: Tensor | None,
    ) -> Tensor:
        ctx.operator, ctx.terms, ctx.how = operator, terms, (iterations, grid)
        log_q, kept = _with_all_that_is_kept(ctx, logits, parts)
        # Autograd lets go of tensors that it saves after the backward pass, and of all else with the result.
        holder = logits.new_empty(0)
        vars(holder)["kept"] = kept
        ctx.save_for_backward(logits, log_q, holder, *parts)  # the backend may have kept the logits' memory
        return log_q

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        logits, log_q, holder, *parts = ctx.saved_tensors
        kept = vars(holder).get("kept")
        with torch.autocast(gradient.device.type, enabled=False):
            # Hooks, such as those of torch.utils.checkpoint, give back another tensor than the one that was saved.
            if kept is None:
                _, kept = _with_all_that_is_kept(ctx, logits, parts)
            return _Inference._slopes(ctx, kept, log_q, gradient, parts)

    @staticmethod
    def _slopes(
        ctx: Any, kept: Any, log_q: Tensor, gradient: Tensor, parts: Sequence[Any]
    ) -> tuple[Tensor | None, ...]:
        kernels = [term.kernel for term in ctx.terms]
        features = [
            None if kernel.features is None else (kernel.features.detach(), bandwidths.detach())
            for kernel, bandwidths in zip(kernels, parts[3::4], strict=True)
        ]
        to_logits, slopes = ctx.operator.infer_gradients(kept, log_q, gradient, features)
        found: list[Tensor | None] = []
        for place, (products, before, after, spread) in enumerate(slopes):
            own = parts[4 * place : 4 * place + 4]
            found += [_like_mixture(products, own[0]), _like_factor(before, own[1]), _like_factor(after, own[2])]
            found.append(None if spread is None else (spread / own[3]).to(own[3]))
        return to_logits, None, None, None, None, *found


def _with_all_that_is_kept(ctx: Any, logits: Tensor, parts: Sequence[Tensor | None]) -> tuple[Tensor, Any]:
    """The updates, and what their gradients are made of."""
    mixtures = [mixture for mixture in parts[::4] if mixture is not None]
    found: tuple[Tensor, Any] = ctx.operator.infer(_filters(ctx.terms), mixtures, logits, *ctx.how, True, True)
    return found


def _like_mixture(products: Tensor | None, mixture: Tensor) -> Tensor | None:
    """The gradient to a full matrix as that to a mixture that may be less."""
    if products is None:
        return None
    if mixture.ndim < 2:
        products = products.diagonal()
    return (products if mixture.ndim else products.sum()).to(mixture)


def _like_factor(slopes: Tensor | None, factor: Tensor | None) -> Tensor | None:
    """The gradient to the factors of each image as that to those that one kernel may have for all."""
    if slopes is None or factor is None:
        return None
    return slopes if len(factor) == len(slopes) else slopes.sum(0, keepdim=True)
