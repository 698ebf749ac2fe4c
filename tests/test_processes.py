"""Processes that train together: who they are, and how images are shared out among them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from piecewise_training import processes
from piecewise_training.processes import Group


def loader(images: int, batch_size: int = 2, **kwargs: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(images)), batch_size, **kwargs)


def seen(batches: DataLoader[Any] | None) -> list[int]:
    assert batches is not None
    return [int(image) for (batch,) in batches for image in batch]


def test_alone() -> None:
    alone = processes.current()
    assert alone == Group(0, 1, 0, 1)
    assert alone.first
    assert alone.share("a folder") == "a folder"
    batches = loader(3)
    assert alone.training_share(batches, 0) is batches
    assert alone.validation_share(batches) is batches
    alone.join(torch.device("cpu"))
    alone.wait()
    assert not torch.distributed.is_initialized()


def test_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    for name, value in {**numbers, "TORCHELASTIC_RUN_ID": "run"}.items():
        monkeypatch.setenv(name, value)
    assert processes.current() == Group(5, 8, 1, 4)
    assert not processes.current().first


@pytest.mark.parametrize(("images", "size"), [(7, 3), (4, 4), (9, 2)])
def test_each_validation_image_is_in_one_share(images: int, size: int) -> None:
    shares = [seen(Group(rank, size).validation_share(loader(images))) for rank in range(size)]
    assert sorted(itertools.chain(*shares)) == list(range(images))
    assert Group(0, 2).validation_share(None) is None


@pytest.mark.parametrize("shuffle", [False, True])
def test_training_shares_are_as_large_as_each_other_and_apart(shuffle: bool) -> None:
    batches = loader(11, shuffle=shuffle, drop_last=True)
    shares = [Group(rank, 2).training_share(batches, seed=3) for rank in range(2)]
    first, second = (seen(share) for share in shares)
    assert len(first) == len(second) == 4  # two batches of two
    assert not {*first} & {*second}
    shares[0].sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert (seen(shares[0]) != first) is shuffle


def test_a_share_keeps_the_loaders_ways() -> None:
    def stack(items: list[Any]) -> Any:
        return (torch.stack([item[0] for item in items]),)

    ways = {"num_workers": 1, "persistent_workers": True, "prefetch_factor": 3, "timeout": 7.0}
    batches = loader(8, batch_size=4, collate_fn=stack, **ways)
    for share in (Group(1, 2).training_share(batches, 0), Group(1, 2).validation_share(batches)):
        assert share is not None
        assert share.batch_size == 4
        assert {name: getattr(share, name) for name in ways} == ways
        assert share.collate_fn is stack


def test_workers_of_the_processes_draw_apart() -> None:
    """A loader's generator is the same in all of them, and would seed their workers alike."""
    batches = loader(8, shuffle=True, generator=torch.Generator().manual_seed(0))
    assert Group(1, 2).training_share(batches, 0).generator is not batches.generator


def test_errors() -> None:
    two = Group(0, 2)
    weighted = loader(4, sampler=WeightedRandomSampler([1.0] * 4, 4))
    with pytest.raises(ValueError, match="a WeightedRandomSampler of its own, which 2 processes cannot share"):
        two.training_share(weighted, 0)
    some = loader(8, sampler=RandomSampler(range(8), num_samples=4))
    with pytest.raises(ValueError, match="`train_loader` draws with a RandomSampler of its own"):
        two.training_share(some, 0)
    batched = DataLoader(range(8), batch_sampler=BatchSampler(SequentialSampler(range(8)), 2, False))  # type: ignore[arg-type]
    for share in (lambda: two.training_share(batched, 0), lambda: two.validation_share(batched)):
        with pytest.raises(ValueError, match="draws with a BatchSampler of its own"):
            share()
    with pytest.raises(ValueError, match="`val_loader` draws with a SubsetRandomSampler of its own"):
        two.validation_share(loader(8, sampler=SubsetRandomSampler([6, 7])))
    with pytest.raises(ValueError, match="3 training images do not fill a batch of 2 in each of 2 processes"):
        two.training_share(loader(3, drop_last=True), 0)
    with pytest.raises(ValueError, match="1 validation images cannot be shared out among 2 processes"):
        two.validation_share(loader(1))
    with pytest.raises(ValueError, match="`device` is mps, but 2 processes train together: give cuda or cpu"):
        two.own_device(torch.device("mps"))
    with pytest.raises(ValueError, match="`device` is cuda:1, but 2 processes train together"):
        two.own_device(torch.device("cuda", 1))


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Group(1, 2, 1, 2).own_device(torch.device("cuda")) == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="3 processes on this machine share 2 GPUs"):
        Group(1, 3, 1, 3).own_device(torch.device("cuda"))
