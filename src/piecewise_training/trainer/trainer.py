"""PiecewiseTrainer: runs the stages of a plan with Lightning, one after the other."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from piecewise_training import processes
from piecewise_training.config import OptimConfig, Strategy, TrainConfig
from piecewise_training.losses import class_weights
from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.networks.depthwise import adapt_to_cpu
from piecewise_training.trainer import stages
from piecewise_training.trainer.callbacks import AbsentClasses, History, Pace, ProgressBar, checkpoints, mean_of_weights
from piecewise_training.trainer.contexts import interruptible, quiet, restored_gradients
from piecewise_training.trainer.counting import count_classes, labels_on_disk
from piecewise_training.trainer.device import accelerator, best_device, lightning_precision, own_precision
from piecewise_training.trainer.earlier import EarlierNetwork
from piecewise_training.trainer.judge import PREFIX, Judge
from piecewise_training.trainer.memory import kept_memory
from piecewise_training.trainer.module import StageModule
from piecewise_training.trainer.schedule import check_config
from piecewise_training.trainer.stages import Stage
from piecewise_training.writing import atomic_write

_BEST = "best.ckpt"  # of the validations of a stage

StageHistory = dict[str, list[float]]
Loader = DataLoader[Any]


class PiecewiseTrainer:
    """Trains a model in stages: the CNN, the CRF with the CNN fixed, then both at a lower rate.

    After each stage the model holds the weights of the epoch with the best validation mIoU, or those that the stage
    began with, where they are known to be better; of the last epoch, without a validation set.

    In a script that torchrun has started in several processes, these train together: every process on its share of the
    images, in batches of the loader's size each, and all end with the same weights. The first of them writes the files.

    Args:
        model: what to train, in place.
        device: "cpu", "cuda", "cuda:1", "mps", a torch.device, or "auto" for the best there is.
        num_classes: K, the model's.
        learning_rate: of the CNN in stage 1.
        weight_decay: of the CNN.
        config: everything else: losses, optimizer, schedule, precision. It has its own rate and decay.
        output_dir: where checkpoints and logs go; None keeps neither.
        seed: of everything random.
        progress: whether to show a progress bar.

    Raises:
        ValueError: `num_classes` is not the model's, a rate is given both here and in `config`, an option of the
            `config` is unknown or out of its range, or several processes cannot share the `device`.

    Example:
        >>> from piecewise_training.dataset import SyntheticDataset
        >>> model = PiecewiseTrainedModel(7, unary=torch.nn.Conv2d(3, 7, 3, padding=1))
        >>> loader = DataLoader(SyntheticDataset(4, image_size=(32, 32)), batch_size=2)
        >>> trainer = PiecewiseTrainer(model, "cpu", num_classes=7, progress=False)
        >>> history = trainer.train_piecewise(loader, 1, 1, 1, val_loader=loader)
        >>> list(history), len(history["stage1"]["train_loss"])
        (['stage1', 'stage2', 'stage3'], 1)
    """

    def __init__(
        self,
        model: PiecewiseTrainedModel,
        device: str | torch.device,
        num_classes: int,
        learning_rate: float = OptimConfig.learning_rate,
        weight_decay: float = OptimConfig.weight_decay,
        *,
        config: TrainConfig | None = None,
        output_dir: str | Path | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        if num_classes != model.num_classes:
            raise ValueError(f"`num_classes` is {num_classes}, the model's {model.num_classes}.")
        given = OptimConfig(learning_rate=learning_rate, weight_decay=weight_decay)
        if config is None:
            config = TrainConfig(optim=given)
        elif given != OptimConfig() and (learning_rate, weight_decay) != (
            config.optim.learning_rate,
            config.optim.weight_decay,
        ):
            raise ValueError("give `learning_rate` and `weight_decay` in `config.optim` or as arguments, not in both.")
        check_config(config)
        self.model = model
        self.group = processes.current()
        self.device = self.group.own_device(best_device(device))
        self.config = config
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.seed = seed
        self.precision = own_precision(config.precision, self.device)  # what auto stands for here
        if self.precision == "bf16" and self.device.type == "cpu":
            adapt_to_cpu(model.unary)  # which a network by name is already
        self.progress = progress
        self.history: dict[str, StageHistory] = {}
        self._weight: Tensor | None = None
        self._counted: Any = None  # what the weights of the classes were counted on
        self._judge = Judge(model, self.group.first)
        self._absent = AbsentClasses(model.classes.names)
        self._earlier = EarlierNetwork(model, config.crf_scores_at)

    @property
    def best_miou(self) -> float | None:
        """The validation mIoU of the weights that the last stage has left; None without a validation set."""
        return self._judge.miou

    def train_piecewise(
        self,
        train_loader: Loader,
        stage1_epochs: int = 20,
        stage2_epochs: int = 4,
        stage3_epochs: int = 8,
        val_loader: Loader | None = None,
        *,
        crf_loader: Loader | None = None,
        joint_loader: Loader | None = None,
        resume: bool = False,
    ) -> dict[str, StageHistory]:
        """Trains the CNN, then the CRF with the CNN fixed, then both.

        The strategy and the epochs are these, whatever `config` says of them. How a contextual CRF's networks are
        trained is said by `config`: as "stage2_context" before stage 2, or together with the CNN in stage 1.

        Args:
            train_loader: yields images (B, 3, H, W), normalised as ImageNet, and labels (B, H, W), 255 for void.
            stage1_epochs: of the CNN; a stage of 0 epochs is left out.
            stage2_epochs: of the CRF.
            stage3_epochs: of both.
            val_loader: yields the same; its mIoU chooses the best epoch.
            crf_loader: yields the same for stage 2, where other images suit the CRF: whole ones of their own scale and
                colours, not augmented crops. `train_loader`, if not given.
            joint_loader: yields the same for stage 3: crops, but of their own scale and colours. `train_loader`, if not
                given.
            resume: whether to go on from what an interrupted run left in `output_dir`.

        Returns:
            By stage ("stage1", "stage2_context" if that is trained, "stage2", "stage3") and quantity ("train_loss",
            "val_loss", "val_miou", "val_accuracy", "lr", "seconds", "peak_bytes") a value for each epoch, NaN
            where `validate_every` has left out its validation; time and memory include validation.

        Raises:
            ValueError: the model has no CRF, or a label is neither a class nor void.
        """
        epochs = stage1_epochs, stage2_epochs, stage3_epochs
        loaders = {"augmented": train_loader, "whole": crf_loader, "cropped": joint_loader}
        return self._train("piecewise", epochs, loaders, val_loader, resume)

    def train_independent(
        self,
        train_loader: Loader,
        stage1_epochs: int = 20,
        stage2_epochs: int = 4,
        val_loader: Loader | None = None,
        *,
        crf_loader: Loader | None = None,
    ) -> dict[str, StageHistory]:
        """Trains the CNN, then the CRF with the CNN fixed, and never both together."""
        loaders = {"augmented": train_loader, "whole": crf_loader}
        return self._train("independent", (stage1_epochs, stage2_epochs, 0), loaders, val_loader)

    def train_joint(
        self, train_loader: Loader, epochs: int = 32, val_loader: Loader | None = None
    ) -> dict[str, StageHistory]:
        """Trains CNN and CRF together from the first step, at the full rates."""
        return self._train("joint", (epochs, 0, 0), {"augmented": train_loader}, val_loader)

    def train_unary(self, train_loader: Loader, epochs: int = 20, val_loader: Loader | None = None) -> StageHistory:
        """Stage 1 alone: the CNN."""
        return self.run_stage(stages.unary_stage(epochs), train_loader, val_loader)

    def train_context(self, train_loader: Loader, epochs: int = 4, val_loader: Loader | None = None) -> StageHistory:
        """The pairwise networks alone, with the CNN fixed and without inference."""
        return self.run_stage(stages.context_stage(epochs), train_loader, val_loader)

    def train_crf(self, train_loader: Loader, epochs: int = 4, val_loader: Loader | None = None) -> StageHistory:
        """Stage 2 alone: the CRF, with the CNN fixed."""
        return self.run_stage(stages.crf_stage(epochs), train_loader, val_loader)

    def fine_tune(self, train_loader: Loader, epochs: int = 8, val_loader: Loader | None = None) -> StageHistory:
        """Stage 3 alone: both at a lower rate."""
        stage = stages.joint_stage(epochs, self.config.optim.joint_factor)
        return self.run_stage(stage, train_loader, val_loader)

    def run_stage(
        self, stage: Stage, train_loader: Loader, val_loader: Loader | None = None, *, resume: bool = False
    ) -> StageHistory:
        """Runs one stage and leaves the model with its best weights, on the trainer's device and in evaluation mode.

        Args:
            stage: what to train.
            train_loader: as in `train_piecewise`.
            val_loader: as in `train_piecewise`.
            resume: whether to go on from what an earlier run left in `output_dir`: a finished stage is loaded, an
                interrupted one continued, by the rates of the `config` now.

        Raises:
            ValueError: the stage trains a CRF and the model has none, it has no epoch or `train_loader` no batch, or
                there is nowhere to resume from.
        """
        self._check(stage, val_loader, resume)
        self.group.join(self.device)
        with tempfile.TemporaryDirectory() as scratch, restored_gradients(self.model):
            folder = (self.output_dir or Path(self.group.share(scratch))) / "checkpoints" / stage.name
            finished = folder / "history.json"
            if not resume and self.group.first:
                shutil.rmtree(folder, ignore_errors=True)  # what an earlier run left must not pass for this one's
            self.group.wait()
            measure = None if val_loader is None else partial(self._measure, stage, val_loader)
            images = None if val_loader is None else val_loader.dataset
            start = self._judge.before(stage, folder, measure, resume, images)
            if resume and finished.is_file():
                history: StageHistory = json.loads(finished.read_text())
                epochs = len(history["seconds"])
                if epochs > stage.epochs or (epochs < stage.epochs and not self.config.patience):
                    raise ValueError(
                        f"`resume` finds {stage.name} finished with {epochs} epochs in {folder}, and {stage.epochs} "
                        "are asked for. Ask for as many, or begin anew without `resume`."
                    )
            else:
                history = self._fit(stage, folder, train_loader, val_loader, resume)
                if val_loader is None and self.group.first:
                    (folder / _BEST).unlink(missing_ok=True)  # of before an interruption, when there still was one
                self.group.wait()
            self._load_best(folder)
            self._earlier.after(stage, folder)
            judged = (folder / _BEST).is_file()
            self.group.wait()  # all have read before anything is written over or removed
            if judged:
                known = [miou for miou in history["val_miou"] if not math.isnan(miou)]
                self._judge.after(stage, folder, start, max(known, default=math.nan))
            else:
                self._judge.forget()
            if self.output_dir is not None and self.group.first:
                with atomic_write(finished) as temporary:
                    temporary.write_text(json.dumps(history))
        self.model.to(self.device).eval()  # Lightning leaves it on the CPU
        self.history[stage.name] = history
        return history

    def _train(
        self,
        strategy: Strategy,
        epochs: tuple[int, int, int],
        loaders: Mapping[str, Loader | None],
        val_loader: Loader | None,
        resume: bool = False,
    ) -> dict[str, StageHistory]:
        first, second, third = epochs
        config = replace(self.config, strategy=strategy, stage1_epochs=first, stage2_epochs=second, stage3_epochs=third)
        plan = stages.plan(config, self.model.context is not None)
        for stage in plan:  # all of them before the first is trained
            self._check(stage, val_loader, resume)
        if not resume and self.output_dir is not None and self.group.first:
            for name in stages.NAMES:  # a later stage of an earlier run must not pass for this one's either
                shutil.rmtree(self.output_dir / "checkpoints" / name, ignore_errors=True)
        history = {}
        for stage in plan:
            suited = loaders[stage.images] or loaders["augmented"]
            assert suited is not None
            history[stage.name] = self.run_stage(stage, suited, val_loader, resume=resume)
        return history

    def _check(self, stage: Stage, val_loader: Loader | None, resume: bool) -> None:
        if stage.epochs < 1:
            raise ValueError(f"{stage.name} must have at least 1 epoch; got {stage.epochs}.")
        if stage.crf_weight and self.model.crf is None and self.model.context is None:
            raise ValueError(f"{stage.name} trains a CRF, but the model has none. Build it with use_crf=True.")
        if stage.judged_by == "context" and self.model.context is None:
            raise ValueError(
                f"{stage.name} trains pairwise networks, but the model has none. Build it with context={{}}."
            )
        if val_loader is not None and not len(val_loader):
            raise ValueError("`val_loader` yields no batch: its images do not fill one, or it has none.")
        if self.config.patience and val_loader is None:
            raise ValueError("`patience` counts validations: give a `val_loader`.")
        if resume and self.output_dir is None:
            raise ValueError("`resume` needs the trainer's `output_dir`.")

    def _fit(
        self, stage: Stage, folder: Path, train_loader: Loader, val_loader: Loader | None, resume: bool
    ) -> StageHistory:
        if not len(train_loader):
            raise ValueError(
                "`train_loader` yields no batch: its images do not fill one. Lower its batch_size or give up drop_last."
            )
        weight = self._class_weight(train_loader)
        last = folder / "last.ckpt"
        goes_on = resume and last.is_file()
        done = torch.load(last, map_location="cpu", weights_only=True)["global_step"] if goes_on else 0
        # Other crops in another order than in the epochs before an interruption.
        seed = (self.seed + zlib.crc32(stage.name.encode()) + 7919 * done + self.group.rank) % 2**32
        lightning.seed_everything(seed, workers=True, verbose=False)
        if goes_on and train_loader.generator is not None:
            train_loader.generator.manual_seed(seed)
        train_loader = self.group.training_share(train_loader, self.seed + 7919 * done)
        val_loader = self.group.validation_share(val_loader)
        module = StageModule(self.model, stage, self.config, weight, self._earlier.scorer(stage))
        module.train()
        history = History()
        with quiet(), interruptible(), kept_memory(self.device):
            self._lightning(stage, folder, history, val_loader is not None).fit(
                module, train_loader, val_loader, ckpt_path=str(last) if goes_on else None
            )
        return history.values

    def _lightning(self, stage: Stage, folder: Path, history: History, validates: bool) -> lightning.Trainer:
        optim = self.config.optim
        callbacks: list[Callback] = [history, self._absent, *checkpoints(folder, validates)]
        callbacks.append(Pace(self.config.validate_every))
        callbacks += self._earlier.callbacks(stage, folder)
        if self.config.patience and validates:
            callbacks.append(
                EarlyStopping("val_miou", mode="max", patience=self.config.patience, check_on_train_epoch_end=False)
            )
        if self.config.ema:
            callbacks.append(mean_of_weights(self.config.ema))
        if self.progress:
            callbacks.append(ProgressBar())
        return lightning.Trainer(
            accelerator=accelerator(self.device),
            use_distributed_sampler=False,  # the loaders are shares already
            max_epochs=stage.epochs,
            precision=lightning_precision(self.precision),
            accumulate_grad_batches=optim.accumulate,
            gradient_clip_val=optim.clip or None,
            callbacks=callbacks,
            logger=self._loggers(stage),
            enable_progress_bar=self.progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            default_root_dir=folder,
            **self._devices(),
        )

    def _devices(self) -> dict[str, Any]:
        group = self.group
        if group.size == 1:
            return {"devices": [self.device.index or 0] if self.device.type == "cuda" else 1}
        # Some backbones have branches that give no score, and get no gradient.
        strategy = "ddp_find_unused_parameters_true"
        return {"strategy": strategy, "devices": group.local_size, "num_nodes": group.size // group.local_size}

    def _loggers(self, stage: Stage) -> list[Logger]:
        if self.output_dir is None:
            return []
        logs = self.output_dir / "logs"
        known = (folder.name.partition("_resumed_")[0] for folder in (logs / "csv").glob("*"))
        earlier = sum(name == stage.name for name in known)  # a resumed stage: CSVLogger would start anew
        version = f"{stage.name}_resumed_{earlier}" if earlier else stage.name
        return [
            CSVLogger(logs, name="csv", version=version),
            TensorBoardLogger(logs, name="tensorboard", version=version),
        ]

    def _class_weight(self, train_loader: Loader) -> Tensor | None:
        dataset = train_loader.dataset
        files = getattr(dataset, "pairs", dataset)  # which copies of a set share: the stages read it in several ways
        if self.config.class_weights != "none" and self._counted is not files:
            ours = hasattr(dataset, "read_label")
            labels = labels_on_disk(dataset) if ours else (target for _, target in train_loader)
            counts = count_classes(labels, self.model.num_classes)
            self._weight, self._counted = class_weights(*counts, self.config.class_weights), files
        return self._weight

    def _measure(self, stage: Stage, val_loader: Loader) -> float:
        """The validation mIoU of the weights as they are."""
        with quiet(), interruptible(), restored_gradients(self.model):
            trainer = lightning.Trainer(
                accelerator=accelerator(self.device),
                use_distributed_sampler=False,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                **self._devices(),
            )
            module = StageModule(self.model, stage, self.config)
            found = trainer.validate(module, self.group.validation_share(val_loader), verbose=False)
        return float(found[0]["val_miou"])

    def _load_best(self, folder: Path) -> None:
        best = folder / _BEST
        checkpoint = torch.load(best if best.is_file() else folder / "last.ckpt", map_location="cpu", weights_only=True)
        saved = checkpoint["state_dict"].items()
        state = {name.removeprefix(PREFIX): value for name, value in saved if name.startswith(PREFIX)}
        self.model.load_state_dict(state)
