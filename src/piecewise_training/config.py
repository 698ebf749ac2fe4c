"""The configuration of a run: frozen dataclasses that are YAML, command-line flags and help at once. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DatasetName = Literal["synthetic", "folder", "voc2012", "voc2012_aug", "cityscapes", "camvid"]
Compatibility = Literal["potts", "class", "matrix"]
Strategy = Literal["piecewise", "joint", "independent"]
ContextTraining = Literal["after", "together"]
Loss = Literal["cross_entropy", "structured", "dice", "focal", "lovasz"]
ClassWeights = Literal["none", "inverse", "median"]
CRFImages = Literal["whole", "crops"]
Precision = Literal["32", "bf16", "16", "auto", 32, 16]  # the numbers are what YAML makes of these without quotes
RelationName = Literal["surrounding", "above_below"]


@dataclass(frozen=True)
class DataConfig:
    """What is trained on.

    The configuration that a run leaves has its files and folders by their whole paths.

    Attributes:
        name: The data set; "folder" takes any images and labels, "synthetic" draws its own.
        root: Folder of voc2012, voc2012_aug, cityscapes or camvid, or of a "folder" that holds images/ and labels/.
        images: Folder of training images, for "folder".
        labels: Folder of training labels, for "folder".
        image_list: File with the names of the training images, for "folder".
        val_images: Folder of validation images, for "folder"; without it a part of the training images is held out.
        val_labels: Folder of validation labels, for "folder".
        val_list: File with the names of the validation images, for "folder".
        label_suffix: What a label's name has behind its image's, such as _mask, for "folder".
        label_map: Classes for values of label images, {0: 255, 1: 0} say where 0 is void and classes begin at 1, for
            "folder"; other values stay.
        val_fraction: Share of the images held out, where neither val_images nor val_list is given; null means 0.2.
        num_classes: Number of classes, for "folder".
        class_names: Names of the classes in the order of their indices, for "folder".
        image_size: Height and width to which images are resized; the size of the drawn scenes, for "synthetic".
        train_scenes: Number of training scenes, for "synthetic".
        val_scenes: Number of validation scenes, for "synthetic".
        crop: Height and width of the training crops; without it the size of the first image.
        scale: Bounds of the random scale.
        flip: Probability of a horizontal flip.
        turns: Whether training images are turned by quarters as well, for those without an up and down, as from above.
        jitter: Largest relative change of brightness, contrast and saturation.
        batch_size: Training crops in a batch.
        void_is_border: Whether border measures take void for a border, as they should where a strip of it covers every
            border; null means for voc2012 and voc2012_aug.
        crf_images: What stages with the CRF see: images as they are or mirrored, since those of another scale or other
            colours are not what its bandwidths are for, "whole" and one at a time in stage 2, crops of them in stage 3;
            or in both the augmented "crops" of stage 1.
        workers: Processes that read images; 0 reads in the main process.
    """

    name: DatasetName = "synthetic"
    root: str | None = None
    images: str | None = None
    labels: str | None = None
    image_list: str | None = None
    val_images: str | None = None
    val_labels: str | None = None
    val_list: str | None = None
    label_suffix: str = ""
    label_map: dict[int, int] | None = None
    val_fraction: float | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    image_size: tuple[int, int] | None = None
    train_scenes: int = 320
    val_scenes: int = 64
    crop: tuple[int, int] | None = None
    scale: tuple[float, float] = (0.75, 1.5)
    flip: float = 0.5
    turns: bool = False
    jitter: float = 0.3
    batch_size: int = 8
    void_is_border: bool | None = None
    crf_images: CRFImages = "whole"
    workers: int = 2


@dataclass(frozen=True)
class KernelConfig:
    """One Gaussian kernel of the CRF.

    Attributes:
        xy_std: Bandwidth of the position, in pixels; null leaves the position out.
        rgb_std: Bandwidth of the image, in grey levels; null leaves the image out.
        weight: Weight to start from.
        compatibility: Learned of the costs of labels beside each other: nothing (potts), a number for each class or one
            for each pair of classes (matrix).
    """

    xy_std: float | None = None
    rgb_std: float | None = None
    weight: float = 1.0
    compatibility: Compatibility = "matrix"


@dataclass(frozen=True)
class FeatMapConfig:
    """FeatMap-Net, the network of the contextual CRF; with one scale of 1 and no pooling it is a plain one.

    Attributes:
        scales: Of the image; all share the trunk.
        pooling: Sides of the squares of sliding pyramid pooling.
        widths: Channels of the convolutions after the trunk; null takes 4096, 512, 512 for vgg16 and 128 for others.
        hidden: Width of the head.
    """

    scales: tuple[float, ...] = (1.2, 0.8, 0.4)
    pooling: tuple[int, ...] = (5, 9)
    widths: tuple[int, ...] | None = None
    hidden: int = 512


@dataclass(frozen=True)
class RelationConfig:
    """One relation between the nodes of the contextual CRF.

    Attributes:
        name: Nodes in the box around a node, or in the box on top of it.
        box: Side of the box relative to the shorter edge of the feature map.
        samples: Places along a side of the box; null takes all.
        hidden: Width of the pairwise network.
        symmetric: Whether the potential of labels (a, b) on nodes (p, q) is that of (b, a) on (q, p).
    """

    name: RelationName
    box: float = 0.4
    samples: int | None = 5
    hidden: int = 256
    symmetric: bool = False


@dataclass(frozen=True)
class ContextConfig:
    """The contextual CRF.

    Attributes:
        relations: One pairwise network each.
        iterations: Mean-field updates.
        residual: Whether pairwise networks are trained on top of the nodes' own scores, or alone as in the paper.
        stride: Pixels from one node to the next, about; on a finer feature map a node is the mean of several places.
    """

    relations: tuple[RelationConfig, ...] = (RelationConfig("surrounding"), RelationConfig("above_below"))
    iterations: int = 3
    residual: bool = True
    stride: int = 16


@dataclass(frozen=True)
class ModelConfig:
    """The CNN and the CRFs' starting point.

    Attributes:
        unary: The CNN: largefov_vgg16, fcn8s_vgg16 or the name of any convolutional timm backbone.
        featmap: Makes unary, vgg16 or a timm backbone, the trunk of a FeatMap-Net with these options.
        context: Adds a contextual CRF on the network's feature map.
        pretrained: ImageNet weights: true (fetch or fail), false (random), null (try to fetch) or a local file.
        start_from: A trained model to begin with, a run's folder or a file of weights, instead of ImageNet weights.
            What does not fit, as the layers for another number of classes, begins anew; so does a dense CRF that is
            configured otherwise.
        output_stride: Resolution of a timm backbone's deepest feature map: 8, 16 or 32.
        crf_iterations: Mean-field updates in evaluation.
        crf_train_iterations: Mean-field updates in training.
        pos_xy_std: Bandwidth of the spatial kernel, in pixels.
        pos_w: Weight of the spatial kernel.
        bilateral_xy_std: Bandwidth of the bilateral kernel, in pixels.
        bilateral_rgb_std: Bandwidth of the bilateral kernel, in grey levels.
        bilateral_w: Weight of the bilateral kernel.
        crf_kernels: Any number of kernels instead of these two.
        crf_compatibility: What is learned of the costs of labels beside each other with these two.
        crf_learn_bandwidths: Whether the bandwidths of kernels are learned; weights always are.
        crf_temperature: Whether the CNN's scores are divided by a learned number.
        crf_class_bias: Whether a learned number for each class is added to the CNN's scores.
        crf_spatial: Kernels of position alone as a lattice or without its error, which takes longer.
    """

    unary: str = "tf_efficientnet_lite0"
    featmap: FeatMapConfig | None = None
    context: ContextConfig | None = None
    pretrained: bool | str | None = None
    start_from: str | None = None
    output_stride: Literal[8, 16, 32] = 16
    crf_iterations: int = 10
    crf_train_iterations: int = 5
    pos_xy_std: float = 3.0
    pos_w: float = 3.0
    bilateral_xy_std: float = 80.0
    bilateral_rgb_std: float = 13.0
    bilateral_w: float = 10.0
    crf_kernels: list[KernelConfig] | None = None
    crf_compatibility: Compatibility = "matrix"
    crf_learn_bandwidths: bool = True
    crf_temperature: bool = False
    crf_class_bias: bool = False
    crf_spatial: Literal["lattice", "exact"] = "lattice"


@dataclass(frozen=True)
class InferenceConfig:
    """How a trained model looks at an image; probabilities are averaged over all looks.

    Attributes:
        scales: Of the image.
        flip: Whether to look at its mirror image, too.
        window: Height and width of windows that slide over it; null looks at the whole.
        overlap: Share of a window that the next one covers, too, at least.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    overlap: float = 0.5


@dataclass(frozen=True)
class OptimConfig:
    """How parameters are moved.

    Attributes:
        optimizer: Stochastic gradient descent with momentum, or AdamW; in stage 2, with the CNN fixed, always AdamW.
        learning_rate: Rate of the CNN in stage 1.
        weight_decay: Of the CNN; the CRF has none.
        momentum: Of stochastic gradient descent.
        backbone_factor: Rate of the pretrained backbone, relative to the rest of the CNN.
        context_learning_rate: Rate of the pairwise networks.
        crf_learning_rate: Rate of the CRF in stage 2; its bandwidths and weights are learned as logarithms.
        joint_factor: All rates in stage 3, relative to those of stages 1 and 2.
        schedule: "step" multiplies the rates by 0.1 every step_epochs, "poly" brings them to 0 with power 0.9.
        step_epochs: Epochs between the steps of "step".
        warmup_steps: Optimizer steps over which the rates grow from 0.
        accumulate: Batches of whose gradients one optimizer step takes the mean.
        clip: Largest norm of the gradient; 0 does not clip.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 1e-3
    weight_decay: float = 5e-4
    momentum: float = 0.9
    backbone_factor: float = 1.0
    context_learning_rate: float = 1e-3
    crf_learning_rate: float = 0.02
    joint_factor: float = 0.1
    schedule: Literal["step", "poly"] = "step"
    step_epochs: int = 10
    warmup_steps: int = 0
    accumulate: int = 1
    clip: float = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """The stages and their losses.

    Attributes:
        strategy: "piecewise" trains the CNN, then the CRF, then both; "joint" both from the first step; "independent"
            the CNN, then the CRF, never together.
        stage1_epochs: Epochs of the CNN.
        context_epochs: Epochs of the pairwise networks, with the CNN fixed; only with a contextual CRF.
        stage2_epochs: Epochs of the CRF with the CNN fixed.
        stage3_epochs: Epochs of both together.
        context_training: Whether the pairwise networks are trained after the CNN, with it fixed, or together with it in
            stage 1, which has no context_epochs then.
        loss: Loss of the CNN.
        crf_loss: Loss of the CRF, on its marginals; cross_entropy is their negative log-likelihood.
        crf_scores_at: Share of stage 1's epochs after which weights are kept on whose scores stage 2 learns: they err
            on training images as the trained network errs on new ones. 0 takes the trained network's own, as does stage
            2 with a contextual CRF or without a stage 1 before it in the same run.
        class_weights: Weights of the classes in all losses, the CRF's too, counted from the training labels.
        ema: Decay of the mean of the weights over the steps, which is what is validated and kept; 0 takes the last.
        precision: 32-bit, or mixed with bfloat16 or (on a GPU) half precision. Bfloat16 slows down an x86 CPU without
            AVX-512 or its extension AVX512_BF16; auto takes it on those with the extension or AMX, and on GPUs that
            compute in it, else 32-bit.
        validate_every: Epochs from one validation to the next, counted back from a stage's last: that one is always
            validated.
        patience: Validations without a better mIoU after which a stage ends; 0 never ends it early.
        optim: How parameters are moved.
    """

    strategy: Strategy = "piecewise"
    stage1_epochs: int = 20
    context_epochs: int = 4
    stage2_epochs: int = 4
    stage3_epochs: int = 8
    context_training: ContextTraining = "after"
    loss: Loss = "cross_entropy"
    crf_loss: Loss = "cross_entropy"
    crf_scores_at: float = 0.0
    class_weights: ClassWeights = "none"
    ema: float = 0.0
    precision: Precision = "32"
    validate_every: int = 1
    patience: int = 0
    optim: OptimConfig = field(default_factory=OptimConfig)
