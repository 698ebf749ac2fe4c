"""Several processes that train one model, each on its share of the images; torchrun starts them."""

from __future__ import annotations

import datetime
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler, Subset

_PATIENCE = datetime.timedelta(hours=12)  # the others wait while the first evaluates a whole validation set
Value = TypeVar("Value")


@dataclass(frozen=True)
class Group:
    """This process among those that train together.

    Attributes:
        rank: its number; the first, 0, writes all files.
        size: how many there are.
        local_rank: its number on its machine, which is that of its GPU.
        local_size: how many there are on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.size > 1:
            distributed.barrier()

    def share(self, value: Value) -> Value:
        """The first process's value, in all of them."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        distributed.broadcast_object_list(box)
        shared: Value = box[0]
        return shared

    def own_device(self, device: torch.device) -> torch.device:
        """The device on which this process computes.

        Raises:
            ValueError: the device cannot be shared out.
        """
        if self.size == 1 or device.type == "cpu":
            return device
        if device != torch.device("cuda"):
            raise ValueError(f"`device` is {device}, but {self.size} processes train together: give cuda or cpu.")
        if self.local_size > torch.cuda.device_count():
            raise ValueError(f"{self.local_size} processes on this machine share {torch.cuda.device_count()} GPUs.")
        return torch.device("cuda", self.local_rank)

    def join(self, device: torch.device) -> None:
        """Connects the processes; where they are connected already, nothing happens."""
        if self.size == 1 or distributed.is_initialized():
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)

    def training_share(self, loader: DataLoader[Any], seed: int) -> DataLoader[Any]:
        """A loader of this process's share of the training images, another one in each epoch.

        Raises:
            ValueError: the loader has its own sampler, or too few images for a batch in every process.
        """
        if self.size == 1:
            return loader
        self._check_sampler("train_loader", loader, RandomSampler | SequentialSampler)
        shuffle = isinstance(loader.sampler, RandomSampler)
        sampler: DistributedSampler[Any] = DistributedSampler(
            loader.dataset, self.size, self.rank, shuffle=shuffle, seed=seed, drop_last=loader.drop_last
        )
        share = _like(loader, loader.dataset, sampler=sampler, drop_last=loader.drop_last)
        if not len(share):
            images = len(loader.dataset)  # type: ignore[arg-type]
            raise ValueError(
                f"{images} training images do not fill a batch of {loader.batch_size} in each of {self.size} processes."
            )
        return share

    def validation_share(self, loader: DataLoader[Any] | None) -> DataLoader[Any] | None:
        """A loader of this process's share of the validation images; each image is in one share.

        Raises:
            ValueError: the loader has its own sampler, or there are fewer images than processes.
        """
        if self.size == 1 or loader is None:
            return loader
        self._check_sampler("val_loader", loader, SequentialSampler)
        images = len(loader.dataset)  # type: ignore[arg-type]
        if images < self.size:
            raise ValueError(f"{images} validation images cannot be shared out among {self.size} processes.")
        return _like(loader, Subset(loader.dataset, range(self.rank, images, self.size)))

    def _check_sampler(self, name: str, loader: DataLoader[Any], known: Any) -> None:
        """Raises a ValueError where a loader does not read every image of its set once, in batches of its own size."""
        sampler = loader.sampler
        images = len(loader.dataset)  # type: ignore[arg-type]
        some = isinstance(sampler, RandomSampler) and (sampler.replacement or sampler.num_samples != images)
        own = type(loader.batch_sampler).__name__ if loader.batch_size is None else type(sampler).__name__
        if loader.batch_size is None or some or not isinstance(sampler, known):
            raise ValueError(
                f"`{name}` draws with a {own} of its own, which {self.size} processes cannot share. "
                "Give a loader of the whole set, for training with shuffle=True or shuffle=False, for validation "
                "without shuffling; a torch.utils.data.Subset stands for a part of a set."
            )


def current() -> Group:
    """This process, as torchrun told it by its environment; alone, if none did.

    Example:
        >>> current().size
        1
    """
    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        return Group()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Group(*(int(os.environ[name]) for name in names))


def launch(arguments: Sequence[str], processes: int) -> None:
    """Runs `python -m piecewise_training` with these arguments in several processes of this machine, and waits.

    Raises:
        RuntimeError: one of them failed; it has said why.
        SystemExit: a signal has ended them, with its status.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        run_id=uuid.uuid4().hex,
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    try:
        elastic_launch(config, sys.executable)("-m", "piecewise_training", *arguments)
    except ChildFailedError as error:
        raise RuntimeError(f"one of {processes} processes failed, see above.") from error
    except SignalException as error:  # which this process was sent, and has passed on
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + error.sigval) from None


def _like(loader: DataLoader[Any], dataset: Any, **options: Any) -> DataLoader[Any]:
    """A loader of another data set or order with the workers and batches of this one.

    Without its generator, which is seeded alike in all processes: their workers would draw the same augmentations.
    """
    return DataLoader(
        dataset,
        loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        **options,
    )
