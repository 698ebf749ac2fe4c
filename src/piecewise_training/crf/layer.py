"""The dense CRF as a module whose every parameter is learned."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from piecewise_training import checks
from piecewise_training.compiling import uncompiled
from piecewise_training.crf.filtering import GaussianKernel, Normalization
from piecewise_training.crf.lattice import Backend
from piecewise_training.crf.meanfield import PairwiseTerm, mean_field
from piecewise_training.crf.pixels import Spatial, bilateral_kernel, require_memory, spatial_kernel
from piecewise_training.storage import plain, read_header, save_weights

Costs = Literal["potts", "class", "matrix"]

_FORMAT = "piecewise-training dense CRF"


@dataclass(frozen=True)
class Kernel:
    """One Gaussian kernel of a `DenseCRF` and what it starts from.

    Attributes:
        xy_std: bandwidth of the position in pixels; None leaves the position out.
        rgb_std: bandwidth of the image in grey levels; None leaves the image out.
        feature_stds: bandwidths of further maps by their names, in their units, such as {"depth": 0.5}.
        weight: weight, above 0.
        compatibility: what is learned of the costs of labels beside each other: nothing ("potts"), a number for each
            class ("class"), or one for each pair of classes ("matrix").

    Example:
        >>> Kernel(xy_std=30, rgb_std=4, weight=1.5).stds()
        {'xy_std': 30, 'rgb_std': 4}
    """

    xy_std: float | None = None
    rgb_std: float | None = None
    feature_stds: Mapping[str, float] = field(default_factory=dict)
    weight: float = 1.0
    compatibility: Costs = "matrix"

    def stds(self) -> dict[str, float]:
        """The bandwidths that there are, by name."""
        usual = {"xy_std": self.xy_std, "rgb_std": self.rgb_std}
        others = {f"{name}_std": value for name, value in self.feature_stds.items()}
        return {name: value for name, value in usual.items() if value is not None} | others


class DenseCRF(nn.Module):
    r"""A fully connected CRF over an image's pixels, solved by mean field, with everything in it learnable.

    Pairwise energies :math:`w\,\mu(a, b)\,\hat k` couple every two pixels; see `dense_crf`. There are two of them
    unless `kernels` says otherwise: with a spatial kernel :math:`\exp(-|p_i - p_j|^2 / 2\sigma_p^2)` and a bilateral
    one :math:`\exp(-|p_i - p_j|^2 / 2\sigma_{xy}^2 - |c_i - c_j|^2 / 2\sigma_{rgb}^2)`. Weights and bandwidths are
    stored as logarithms, so that they stay above 0 and a learning rate means a relative change. Each kernel has its
    own compatibility, which starts as Potts.

    Kernels are called pos (position alone), bilateral (with the image) and feature (with other maps only), a second
    one of a kind bilateral2; their parameters are attributes by these names, such as `bilateral2_rgb_std`, `pos_w`.

    Args:
        num_classes: K, at least 2.
        num_iterations: mean-field updates in evaluation mode.
        pos_xy_std: bandwidth of the spatial kernel in pixels.
        pos_w: weight of the spatial kernel.
        bilateral_xy_std: bandwidth of the bilateral kernel in pixels.
        bilateral_rgb_std: bandwidth of the bilateral kernel in grey levels.
        bilateral_w: weight of the bilateral kernel.
        kernels: any number of kernels instead of these two, as `Kernel` or a mapping of its attributes.
        compatibility: what is learned of the costs of the two usual kernels; see `Kernel`. Those of `kernels` have
            their own.
        learn_bandwidths: False leaves all bandwidths as they are; weights and compatibilities are learned the same.
        temperature: whether the scores are divided by a number that is learned, from 1.
        class_bias: whether a number for each class is added to the scores, from 0.
        train_iterations: mean-field updates in training mode; at most `num_iterations` are made.
        normalization: see `GaussianKernel`.
        spatial: "lattice" or "exact"; see `spatial_kernel`.
        backend: "auto" takes the lattice's fastest kernels for the device, "exact" the sum over all pairs.

    Raises:
        ValueError: a number of classes below 2 or of iterations below 0, a bandwidth or weight not above 0, a kernel
            without any bandwidth or with a map called "xy" or "rgb" or with a dot in its name, or an unknown name.

    Example:
        >>> crf = DenseCRF(2, kernels=[Kernel(xy_std=2), Kernel(xy_std=30, rgb_std=4), Kernel(xy_std=60, rgb_std=12)])
        >>> image = torch.randint(0, 256, (1, 3, 8, 10), dtype=torch.uint8)
        >>> crf(torch.randn(1, 2, 8, 10), image).shape
        torch.Size([1, 2, 8, 10])
        >>> round(crf.bilateral2_xy_std.item(), 3)
        60.0
    """

    def __init__(
        self,
        num_classes: int,
        num_iterations: int = 10,
        pos_xy_std: float = 3.0,
        pos_w: float = 3.0,
        bilateral_xy_std: float = 80.0,
        bilateral_rgb_std: float = 13.0,
        bilateral_w: float = 10.0,
        *,
        kernels: Sequence[Kernel | Mapping[str, Any]] | None = None,
        compatibility: Costs = "matrix",
        learn_bandwidths: bool = True,
        temperature: bool = False,
        class_bias: bool = False,
        train_iterations: int = 5,
        normalization: Normalization = "symmetric",
        spatial: Spatial = "lattice",
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"`num_classes` must be at least 2; got {num_classes}.")
        for name, count in (("num_iterations", num_iterations), ("train_iterations", train_iterations)):
            if count < 0:
                raise ValueError(f"`{name}` must be at least 0; got {count}.")
        named = (
            ("compatibility", compatibility, Costs),
            ("normalization", normalization, Normalization),
            ("spatial", spatial, Spatial),
            ("backend", backend, Backend),
        )
        for name, value, known in named:
            if value not in get_args(known):
                raise ValueError(f"`{name}` must be {', '.join(get_args(known))}; got {checks.describe(value)}.")
        self.num_classes = num_classes
        self.num_iterations = num_iterations
        self.train_iterations = train_iterations
        self._options: dict[str, Any] = {"normalization": normalization, "backend": backend}
        self._spatial: Spatial = spatial
        self._learn_bandwidths = learn_bandwidths
        if kernels is None:
            kernels = (
                Kernel(pos_xy_std, weight=pos_w, compatibility=compatibility),
                Kernel(bilateral_xy_std, bilateral_rgb_std, weight=bilateral_w, compatibility=compatibility),
            )
        self.kernels = _named([kernel if isinstance(kernel, Kernel) else _described(kernel) for kernel in kernels])
        for name, kernel in self.kernels.items():
            self._add(name, kernel, learn_bandwidths)
        self.log_temperature = nn.Parameter(torch.zeros(())) if temperature else None
        self.class_bias = nn.Parameter(torch.zeros(num_classes)) if class_bias else None

    def __getattr__(self, name: str) -> Any:
        """A bandwidth or weight by its name, in its unit."""
        own = self.__dict__
        # In a replica of DataParallel's parameters are plain attributes.
        logarithm = own.get("_parameters", {}).get(f"log_{name}", own.get(f"log_{name}"))
        return super().__getattr__(name) if logarithm is None else logarithm.exp()

    @uncompiled
    def forward(
        self,
        unary_logits: Float[Tensor, "b k h w"],
        image: Float[Tensor, "b c h w"],
        features: Mapping[str, Float[Tensor, "b f h w"]] | None = None,
    ) -> Float[Tensor, "b k h w"]:
        """Refines a CNN's logits.

        Args:
            unary_logits: (B, K, H, W) unnormalised log-probabilities.
            image: (B, C, H, W) in grey levels from 0 to 255, uint8 or float; usually RGB.
            features: the further maps that kernels ask for, by name, such as depth or an embedding (B, F, H, W).

        Returns:
            log Q, the logarithm of the approximate marginals: argmax, exp and NLL all work on it.

        Raises:
            ValueError: K is not `num_classes`, or the arguments do not fit; see `dense_crf`.
            MemoryError: there is not enough memory, and says how much is needed.
        """
        unusual = checks.scores_and_image(unary_logits, image, "unary_logits")
        if unary_logits.shape[1] != self.num_classes:
            raise ValueError(
                f"`unary_logits` must have {self.num_classes} classes; got {checks.describe(unary_logits)}."
            )
        colours = [f"{name}_rgb_std" for name, kernel in self.kernels.items() if kernel.rgb_std is not None]
        if unusual and colours:
            checks.grey_levels("image", image, [getattr(self, name) for name in colours], stacklevel=5)
        maps = self._maps(unary_logits, features or {})
        require_memory(unary_logits, [self._count(kernel, image, maps) for kernel in self.kernels.values()])
        iterations = min(self.train_iterations, self.num_iterations) if self.training else self.num_iterations
        with torch.autocast(unary_logits.device.type, enabled=False):  # messages need single precision
            scores = unary_logits if unary_logits.dtype == torch.float64 else unary_logits.float()
            if self.log_temperature is not None:
                scores = scores * torch.exp(-self.log_temperature.to(scores))
            if self.class_bias is not None:
                scores = scores + self.class_bias.to(scores)[:, None, None]
            terms = [self._term(name, kernel, scores, image, maps) for name, kernel in self.kernels.items()]
            return mean_field(scores, terms, iterations).to(unary_logits.dtype)

    def kernel_parameters(self) -> dict[str, Tensor]:
        """The bandwidths and weights by name, in pixels and grey levels, with their gradient."""
        return {
            f"{name}_{part}": getattr(self, f"{name}_{part}")
            for name, kernel in self.kernels.items()
            for part in (*kernel.stds(), "w")
        }

    def configuration(self) -> dict[str, Any]:
        """The arguments that build this CRF again as it began, as JSON can hold them."""
        return plain(
            {
                "num_classes": self.num_classes,
                "num_iterations": self.num_iterations,
                "kernels": list(self.kernels.values()),
                "learn_bandwidths": self._learn_bandwidths,
                "temperature": self.log_temperature is not None,
                "class_bias": self.class_bias is not None,
                "train_iterations": self.train_iterations,
                "spatial": self._spatial,
                **self._options,
            }
        )

    def save(self, path: str | Path, **described: Any) -> None:
        """Writes what was learned and the configuration to one safetensors file.

        Args:
            path: ends in .safetensors.
            **described: what else is to stand in the file's header, as JSON can hold it.

        Raises:
            ValueError: the file's name does not end in .safetensors.
        """
        save_weights(self, path, _FORMAT, crf=self.configuration(), **described)

    @classmethod
    def load(cls, path: str | Path) -> DenseCRF:
        """Reads back what `save` has written, in evaluation mode.

        That of a whole model is read by `piecewise_training.model.load_crf`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds something else, or what does not fit together.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no CRF {path}: name a file that DenseCRF.save has written.")
        header = read_header(path)
        if header.get("format") != _FORMAT:
            raise ValueError(
                f"{path} was not written by DenseCRF.save: it holds {header.get('format', 'other weights')}."
            )
        try:
            crf = cls(**json.loads(header["crf"]))
            crf.load_state_dict(safetensors.torch.load_file(path))
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged, or of a later version: {error}") from error
        return crf.eval()

    def is_built_like(self, other: DenseCRF) -> bool:
        """Whether the weights of either fit the other, and would mean the same there."""
        mine, its = (
            (
                {name: value.shape for name, value in crf.state_dict().items()},
                {name: (*kernel.stds(), kernel.compatibility) for name, kernel in crf.kernels.items()},
                crf._options,
                crf._spatial,
            )
            for crf in (self, other)
        )
        return mine == its

    def _add(self, name: str, kernel: Kernel, learn_bandwidths: bool) -> None:
        """The parameters of a kernel."""
        if kernel.compatibility not in get_args(Costs):
            raise ValueError(
                f"`compatibility` must be {', '.join(get_args(Costs))}; got {checks.describe(kernel.compatibility)}."
            )
        for part in kernel.feature_stds:
            if part in ("xy", "rgb"):
                raise ValueError(f"`feature_stds` must not have {part!r}, whose bandwidth is `{part}_std`; {kernel}.")
            if "." in part:
                raise ValueError(f"`feature_stds` must have no dot in a map's name, as no parameter has; got {part!r}.")
        if not kernel.stds():
            raise ValueError(
                f"A kernel needs the bandwidth of something: `xy_std`, `rgb_std` or `feature_stds`; {kernel}."
            )
        for part, value in (kernel.stds() | {"w": kernel.weight}).items():
            checks.scalar(f"{name}_{part}", value, positive=True)
            logarithm = nn.Parameter(torch.tensor(float(value)).log(), learn_bandwidths or part == "w")
            self.register_parameter(f"log_{name}_{part}", logarithm)
        start = {"potts": None, "class": torch.ones(self.num_classes), "matrix": 1 - torch.eye(self.num_classes)}
        costs = start[kernel.compatibility]
        self.register_parameter(f"{name}_compatibility", None if costs is None else nn.Parameter(costs))

    def _maps(self, logits: Tensor, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The maps that kernels ask for."""
        wanted = {name for kernel in self.kernels.values() for name in kernel.feature_stds}
        if wanted - features.keys():
            raise ValueError(
                f"`features` must have {', '.join(sorted(wanted))}; got {checks.describe(dict(features))}."
            )
        for name in wanted:
            found = features[name]
            if found.ndim != 4 or found.shape[0] != len(logits) or found.shape[2:] != logits.shape[2:]:
                raise ValueError(
                    f"`features['{name}']` must be (B, F, H, W) and fit `unary_logits` {checks.describe(logits)}; "
                    f"got {checks.describe(found)}."
                )
            checks.finite(f"features['{name}']", found)
        return {name: features[name] for name in wanted}

    @staticmethod
    def _count(kernel: Kernel, image: Tensor, maps: Mapping[str, Tensor]) -> int:
        """How many features a kernel has."""
        place, colour = 2 * (kernel.xy_std is not None), image.shape[1] * (kernel.rgb_std is not None)
        return place + colour + sum(maps[own].shape[1] for own in kernel.feature_stds)

    def _term(self, name: str, kernel: Kernel, like: Tensor, image: Tensor, maps: Mapping[str, Tensor]) -> PairwiseTerm:
        for part in (*kernel.stds(), "w"):
            learned = getattr(self, f"{name}_{part}")
            if learned.device.type == "cpu":  # to look at a GPU's would wait
                checks.scalar(f"{name}_{part}", learned, positive=part != "w")
        weight, costs = getattr(self, f"{name}_w"), getattr(self, f"{name}_compatibility")
        return PairwiseTerm(self._gaussian(name, kernel, like, image, maps), weight, costs)

    def _gaussian(
        self, name: str, kernel: Kernel, like: Tensor, image: Tensor, maps: Mapping[str, Tensor]
    ) -> GaussianKernel:
        std = {part: getattr(self, f"{name}_{part}") for part in kernel.stds()}
        if [*std] == ["xy_std"]:
            height, width = like.shape[2:]
            return spatial_kernel(height, width, std["xy_std"], like=like, spatial=self._spatial, **self._options)
        parts = [image] if kernel.rgb_std is not None else []
        bandwidths = [std["rgb_std"]] * image.shape[1] if parts else []
        for own in kernel.feature_stds:
            parts.append(maps[own])
            bandwidths += [std[f"{own}_std"]] * maps[own].shape[1]
        whole = parts[0] if len(parts) == 1 else torch.cat([part.to(like.dtype) for part in parts], 1)
        return bilateral_kernel(whole, std.get("xy_std"), bandwidths, like=like, **self._options)


def _described(kernel: Mapping[str, Any]) -> Kernel:
    known = [own.name for own in fields(Kernel)]
    unknown = [name for name in kernel if name not in known]
    if unknown:
        raise ValueError(f"`kernels` must have {', '.join(known)} alone; got {', '.join(map(repr, unknown))}.")
    return Kernel(**kernel)


def _named(kernels: Sequence[Kernel]) -> dict[str, Kernel]:
    """Kernels by the names of their kinds, numbered from the second of a kind on."""
    seen: Counter[str] = Counter()
    named = {}
    for kernel in kernels:
        kind = "bilateral" if kernel.rgb_std is not None else "feature" if kernel.feature_stds else "pos"
        seen[kind] += 1
        named[f"{kind}{seen[kind] if seen[kind] > 1 else ''}"] = kernel
    return named
