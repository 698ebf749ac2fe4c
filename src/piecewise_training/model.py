"""The trained model: a unary network, a contextual and a dense CRF, built, run, saved and loaded as one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from piecewise_training import checks
from piecewise_training.compiling import uncompiled
from piecewise_training.crf import DenseCRF
from piecewise_training.dataset import IMAGENET_MEAN, IMAGENET_STD, VOID, Classes
from piecewise_training.networks import ContextualCRF, Pretrained, Relation, build_unary
from piecewise_training.networks.nodes import area_means, node_grid
from piecewise_training.storage import SUFFIX, plain, read_header, save_weights

__all__ = ["DenseCRF", "PiecewiseTrainedModel", "load_crf"]

_FORMAT = "piecewise-training model"


class Nodes(NamedTuple):
    """A network's output, and the nodes of the contextual CRF.

    Attributes:
        scores: (B, K, h, w), in the network's own resolution.
        coarse: (B, K, y, x), those of the nodes; None where there is no context that wants them.
        features: (B, C, y, x), likewise.
    """

    scores: Tensor
    coarse: Tensor | None = None
    features: Tensor | None = None


class PiecewiseTrainedModel(nn.Module):
    """A network that scores every pixel, and CRFs that make the scores agree with each other and with the image.

    Without `context` the dense CRF works on the network's scores. With it, as in Lin et al. (CVPR 2016), the places of
    the network's feature map, or the means over a few of a fine one's, are the nodes of a contextual CRF first. What
    they learn of each other is enlarged to the image's size and added to the scores for the dense CRF.

    Args:
        num_classes: K, from 2 to 255.
        crf_iterations: mean-field updates in evaluation mode.
        use_crf: False leaves the dense CRF out; without a context `forward` then returns None for it.
        unary: "largefov_vgg16", "fcn8s_vgg16", the name of a timm backbone, or a module of one's own from (B, 3, H, W)
            to K score maps of any size. For a context of its own features it has methods `feature_map` (image to
            (B, C, h, w)) and `score` (from there to the K score maps). If it has an attribute `multiple`, images are
            continued to the next multiple of it, so that its maps lie on the image without a shift.
        pretrained: ImageNet weights for a network given by name: True, False, a local file, or None to try.
        output_stride: 8, 16 or 32, for a timm backbone.
        crf: the dense CRF's starting values and options, as `DenseCRF` takes them.
        featmap: makes `unary`, "vgg16" or a timm backbone, the trunk of a FeatMap-Net with these options; see
            `networks.FeatMapNet`.
        context: the contextual CRF, or its options as `networks.ContextualCRF` takes them: {} for the paper's.
        classes: names and colours of the classes, kept with the model for reports and predictions.

    Raises:
        ValueError: an argument is out of its range, or a name is unknown.

    Example:
        >>> model = PiecewiseTrainedModel(5, unary=nn.Conv2d(3, 5, 3, stride=4, padding=1)).eval()
        >>> unary_logits, log_q = model(torch.zeros(1, 3, 32, 40))
        >>> unary_logits.shape, log_q.shape
        (torch.Size([1, 5, 32, 40]), torch.Size([1, 5, 32, 40]))
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int,
        crf_iterations: int = 10,
        use_crf: bool = True,
        *,
        unary: str | nn.Module = "largefov_vgg16",
        pretrained: Pretrained = None,
        output_stride: int = 16,
        crf: dict[str, Any] | None = None,
        featmap: Mapping[str, Any] | None = None,
        context: ContextualCRF | Mapping[str, Any] | None = None,
        classes: Classes | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"`num_classes` must be at least 2; got {num_classes}.")
        if num_classes > VOID:
            raise ValueError(f"`num_classes` must be at most {VOID}, which is the label of void; got {num_classes}.")
        if classes is not None and len(classes) != num_classes:
            raise ValueError(f"`classes` must name {num_classes} classes; got {len(classes)}.")
        self.num_classes = num_classes
        self.classes = classes if classes is not None else Classes.numbered(num_classes)
        own = isinstance(unary, nn.Module)
        if own and featmap is not None:
            raise ValueError("`featmap` needs the name of a trunk as `unary`; got a module.")
        if own and pretrained:
            raise ValueError("`pretrained` is for a network by name; load the weights of a module of your own into it.")
        self.unary: nn.Module = (
            unary
            if isinstance(unary, nn.Module)
            else build_unary(
                unary,
                num_classes,
                output_stride=output_stride,
                pretrained=pretrained,
                featmap=featmap,
            )
        )
        self.context = _build_context(context, self.unary, num_classes)
        self.crf = DenseCRF(num_classes, crf_iterations, **(crf or {})) if use_crf else None
        _check_crf(self.crf, num_classes)
        self.configuration: dict[str, Any] = {
            "num_classes": num_classes,
            "crf_iterations": crf_iterations,
            "use_crf": use_crf,
            "unary": None if own else unary,
            "output_stride": output_stride,
            "crf": dict(crf or {}),
            "featmap": None if featmap is None else dict(featmap),
            "context": None if self.context is None else self.context.configuration(),
        }
        self.configuration = plain(self.configuration)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(
        self, image: Float[Tensor, "b 3 h w"], apply_crf: bool = True
    ) -> tuple[Float[Tensor, "b k h w"], Float[Tensor, "b k h w"] | None]:
        """Scores an image.

        Args:
            image: (B, 3, H, W), normalised by ImageNet's mean and standard deviation.
            apply_crf: False skips both CRFs.

        Returns:
            The unary network's logits and the last CRF's log-marginals log Q, both of the image's size; None for the
            latter without a CRF.

        Raises:
            ValueError: the image is not (B, 3, H, W) floating point, or the network does not return K score maps.
        """
        if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
            raise ValueError(
                f"`image` must be (B, 3, H, W) floating point, normalised as ImageNet; got {checks.describe(image)}."
            )
        nodes = self.score_nodes(image)
        logits = self.enlarged(nodes.scores, image)
        return logits, self.refine(image, logits, self.contextual(image, nodes)) if apply_crf else None

    def score_nodes(self, image: Float[Tensor, "b 3 h w"], network: nn.Module | None = None) -> Nodes:
        """The unary network's scores in its own resolution, and with a context those of the nodes and their features.

        Args:
            image: (B, 3, H, W), normalised as ImageNet.
            network: another one of the same kind, whose scores are wanted instead.

        Where the places of the feature map lie closer together than the context's `stride`, a node is the mean of
        several. The paper's nodes lie 16 pixels apart; on a fine map a box holds as much of the image in more edges.
        """
        # A context wants more of a network than that it can be called.
        own: Any = self.unary if network is None else network
        image = self._continued(image)
        if self.context is None:
            return Nodes(self._checked(own(image)))
        features = own.feature_map(image)
        scores = self._checked(own.score(features))
        size = node_grid(image.shape[2:], features.shape[2:], self.context.stride)
        return Nodes(scores, area_means(scores, size), area_means(features, size))

    @uncompiled
    def _continued(self, image: Tensor) -> Tensor:
        """An image up to the multiples that the network wants."""
        return functional.pad(image, self.margin(image), mode="replicate")

    def contextual(self, image: Float[Tensor, "b 3 h w"], nodes: Nodes) -> Float[Tensor, "b k h w"] | None:
        """The scores of every pixel with what its context adds to them; None without a context."""
        if self.context is None:
            return None
        return self.enlarged(nodes.scores, image) + self.enlarged(self.told(nodes), image)

    def told(self, nodes: Nodes) -> Float[Tensor, "b k y x"]:
        """What the contextual CRF adds to the scores of the nodes, log Q less the network's log-probabilities."""
        assert self.context is not None
        assert nodes.coarse is not None
        assert nodes.features is not None  # as `score_nodes` gives them with a context
        log_q = self.context(nodes.coarse, nodes.features)
        return log_q - nodes.coarse.to(log_q.dtype).log_softmax(1)

    @uncompiled
    def enlarged(self, scores: Float[Tensor, "b k y x"], image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k h w"]:
        """Scores in the image's size, in single precision."""
        height, width = image.shape[2:]
        right, below = self.margin(image)[1::2]
        size = height + below, width + right
        return functional.interpolate(scores.float(), size, mode="bilinear", align_corners=False)[..., :height, :width]

    def margin(self, image: Tensor) -> tuple[int, int, int, int]:
        """By how much an image is continued for the network, as `torch.nn.functional.pad` wants it."""
        multiple = int(getattr(self.unary, "multiple", 1))
        height, width = image.shape[-2:]
        return 0, -width % multiple, 0, -height % multiple

    def refine(
        self,
        image: Float[Tensor, "b 3 h w"],
        logits: Float[Tensor, "b k h w"],
        contextual: Float[Tensor, "b k h w"] | None,
    ) -> Float[Tensor, "b k h w"] | None:
        """The last CRF's log-marginals; None without one."""
        if self.crf is None:
            return None if contextual is None else contextual.log_softmax(1)
        return self.crf(logits if contextual is None else contextual, self.to_grey_levels(image))

    def _checked(self, scores: Any) -> Tensor:
        if not isinstance(scores, Tensor) or scores.ndim != 4 or scores.shape[1] != self.num_classes:
            raise ValueError(
                f"`unary` must return {self.num_classes} score maps (B, {self.num_classes}, h, w); "
                f"it returned {checks.describe(scores)}. Wrap a network that returns more than its scores."
            )
        return scores

    def to_grey_levels(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Undoes ImageNet's normalisation: RGB from 0 to 255, as the CRF wants it."""
        return ((image.float() * self.std + self.mean) * 255).clamp(0, 255)

    def save(self, path: str | Path) -> None:
        """Writes weights and configuration to one safetensors file, the configuration as JSON in its header.

        Raises:
            ValueError: the file's name does not end in .safetensors, or the model was given a `crf` that is not for it.
        """
        save_weights(self, path, _FORMAT, model=self._present_configuration(), classes=asdict(self.classes))

    def _present_configuration(self) -> dict[str, Any]:
        """The configuration, with what may have been set since: the CRFs, or that there is none."""
        present = {**self.configuration, "use_crf": self.crf is not None}
        present["context"] = None if self.context is None else plain(self.context.configuration())
        if self.crf is None:
            return present
        _check_crf(self.crf, self.num_classes)
        crf = self.crf.configuration()
        del crf["num_classes"]
        return {**present, "crf_iterations": crf.pop("num_iterations"), "crf": crf}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PiecewiseTrainedModel:
        """Moves and casts; ImageNet's mean and deviation stay exact, for the CRF wants grey levels."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            device = getattr(self, name).device
            setattr(self, name, torch.tensor(values, dtype=torch.float32, device=device)[:, None, None])
        return self

    @classmethod
    def load(cls, path: str | Path, unary: nn.Module | None = None) -> PiecewiseTrainedModel:
        """Reads a model back, in evaluation mode, without repeating its arguments.

        Args:
            path: what `save` wrote, or a folder that a training run left.
            unary: the network, where it was a module of one's own: its weights are in the file, its code is not.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no saved model, or `unary` is missing, superfluous or does not fit.
        """
        path = model_file(Path(path))
        header = read_header(path)
        if header.get("format") != _FORMAT:
            raise ValueError(f"{path} holds weights but no model's configuration; it was not written by save.")
        try:
            configuration = json.loads(header["model"])
            classes = Classes.stored(json.loads(header["classes"]))
            name = configuration.pop("unary")
            context = configuration.get("context")
            if context:
                context["relations"] = [Relation(**relation) for relation in context["relations"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged, or of a later version: {error}") from error
        if name is None and unary is None:
            raise ValueError(f"{path} was saved with a network of its own: pass it as `unary`.")
        if name is not None and unary is not None:
            raise ValueError(f"{path} was saved with the network {name!r}: leave `unary` out.")
        before_strides = bool(context) and "stride" not in context
        if before_strides:
            context["stride"] = 1
        try:
            network = str(name) if unary is None else unary
            model = cls(**configuration, unary=network, pretrained=False, classes=classes)
        except (TypeError, ValueError) as error:
            what = "is damaged, or" if unary is None else "does not fit `unary`, is damaged, or"
            raise ValueError(f"{path} {what} of a later version: {error}") from error
        try:
            weights = safetensors.torch.load_file(path)
            if before_strides:  # and before relations were weighed together
                weights["context.log_factors"] += math.log(len(context["relations"]))
            model.load_state_dict(weights)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{path} does not fit the network: {error}") from error
        return model.eval()


def load_crf(path: str | Path) -> DenseCRF:
    """Reads a trained dense CRF alone, in evaluation mode, for scores that come from elsewhere.

    Args:
        path: a run's folder, or a file that `PiecewiseTrainedModel.save` or `DenseCRF.save` has written. A model's
            network is not needed, nor built.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds neither, a model without a dense CRF, or what does not fit together.
    """
    path = model_file(Path(path))
    header = read_header(path)
    if header.get("format") != _FORMAT:
        return DenseCRF.load(path)
    try:
        configuration = json.loads(header["model"])
        crf = _crf_of_model(path, configuration) if configuration["use_crf"] else None
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or of a later version: {error}") from error
    if crf is None:
        raise ValueError(f"{path} holds a model without a dense CRF.")
    return crf.eval()


def _crf_of_model(path: Path, configuration: Mapping[str, Any]) -> DenseCRF:
    crf = DenseCRF(configuration["num_classes"], configuration["crf_iterations"], **configuration["crf"])
    with safetensors.safe_open(path, framework="pt") as file:
        own = [name for name in file.keys() if name.startswith("crf.")]  # noqa: SIM118, it is no mapping
        crf.load_state_dict({name.removeprefix("crf."): file.get_tensor(name) for name in own})
    return crf


def read_configuration(path: str | Path) -> dict[str, Any]:
    """How the model in a file that `PiecewiseTrainedModel.save` has written is built; {} for weights alone.

    Raises:
        ValueError: the file ends in .safetensors and is none.
    """
    if Path(path).suffix != SUFFIX:
        return {}
    header = read_header(Path(path))
    found: dict[str, Any] = json.loads(header["model"]) if header.get("format") == _FORMAT else {}
    return found


def _check_crf(crf: DenseCRF | None, num_classes: int) -> None:
    if crf is None:
        return
    if crf.num_classes != num_classes:
        raise ValueError(f"`crf` must have {num_classes} classes; it has {crf.num_classes}.")
    maps = {name for kernel in crf.kernels.values() for name in kernel.feature_stds}
    if maps:
        raise ValueError(
            f"`crf` has kernels of further maps ({', '.join(sorted(maps))}), but a model is given images alone. "
            "Call a DenseCRF of your own with its `features`."
        )


def model_file(path: Path) -> Path:
    """The file of a saved model, which may be named by its run's folder."""
    if path.is_dir():
        folder, path = path, path / "piecewise_model_final.safetensors"
        if not path.is_file() and (folder / "checkpoints").is_dir():
            raise FileNotFoundError(
                f"the run in {folder} is not finished and has no model yet: "
                f"piecewise train --output {folder} --resume goes on with it."
            )
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no model {path}: name the folder of a run, or a file that `save` has written."
        )
    return path


def _build_context(
    context: ContextualCRF | Mapping[str, Any] | None, unary: nn.Module, num_classes: int
) -> ContextualCRF | None:
    if context is None:
        return None
    if not (hasattr(unary, "feature_map") and hasattr(unary, "score")):
        raise ValueError(
            f"`context` needs the unary network's feature map, and a {type(unary).__name__} has no methods "
            "`feature_map` and `score`. Take a FeatMap-Net, or give the network these two."
        )
    channels = getattr(unary, "channels", None)
    if not isinstance(context, ContextualCRF):
        options = dict(context)
        given = options.pop("channels", channels)
        if given is None:
            raise ValueError("`context` needs `channels`, those of the feature map, for a network of one's own.")
        context = ContextualCRF(given, num_classes, **options)
    if context.num_classes != num_classes:
        raise ValueError(f"`context` must have {num_classes} classes; it has {context.num_classes}.")
    if channels is not None and context.channels != channels:
        raise ValueError(f"`context` must take the network's {channels} channels; it takes {context.channels}.")
    return context
