"""What must hold in two processes: started by torchrun, it prints what has passed, and stops at what has not."""

import functools
import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ranks.running import run_checks
from ranks.training import LENGTHS, Run, Samples, Tagger, collate, exact, loader_of, losses_of, make_model, train
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torch.utils.data import DataLoader, DistributedSampler, Subset

from seqbatch import SeqbatchError, SeqbatchValueError, SequenceBatch
from seqbatch.data import BucketBatchSampler, mean_loss

KINDS = ["lstm", "gru", "layers"]
DATA = Samples(LENGTHS)
# Before main makes the process group.
EARLY = BucketBatchSampler(LENGTHS, batch_size=3)
# Both processes must draw the same, so nothing may depend on chance or on the clock.
same = settings(
    max_examples=20, derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
parts = st.lists(st.lists(st.integers(0, len(LENGTHS) - 1), max_size=4), min_size=2, max_size=2)


def joined(indices: list[list[int]]) -> list[int]:
    return [i for part in indices for i in part]


def mean_over_processes(value: Tensor) -> Tensor:
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / 2


def gradients_of(model: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in model.parameters()]


def whole(model: nn.Module, indices: list[int]) -> Tensor:
    """Return the mean loss of all steps, in one process; 0 without steps."""
    losses = losses_of(model, collate([DATA[i] for i in indices]))
    return losses.sum() / max(1, len(losses))


@same
@given(st.sampled_from(KINDS), parts)
def gradients(kind: str, indices: list[list[int]]) -> None:
    model, alone = DistributedDataParallel(make_model(kind)), make_model(kind)
    loss = mean_loss(losses_of(model, collate([DATA[i] for i in indices[distributed.get_rank()]])))
    loss.backward()
    wanted = whole(alone, joined(indices))
    wanted.backward()
    assert_close(mean_over_processes(loss), wanted)
    assert_close(gradients_of(model), gradients_of(alone))


@same
@given(parts)
def gradients_of_some_steps(indices: list[list[int]]) -> None:
    """The loss is that of the steps whose tag is not 0."""
    model, alone = DistributedDataParallel(make_model("lstm")), make_model("lstm")
    batch = collate([DATA[i] for i in indices[distributed.get_rank()]])
    weights = (batch[1].values > 0).float()
    count = weights.sum()
    mean_loss(losses_of(model, batch) * weights, count=count).backward()
    exact(count, weights.sum())
    batch = collate([DATA[i] for i in joined(indices)])
    losses = losses_of(alone, batch)[batch[1].values > 0]
    (losses.sum() / max(1, len(losses))).backward()
    assert_close(gradients_of(model), gradients_of(alone))


@same
@given(st.sampled_from(KINDS), parts)
def gradients_of_shards(kind: str, indices: list[list[int]]) -> None:
    model, alone = make_model(kind), make_model(kind)
    fully_shard(model)
    mean_loss(losses_of(model, collate([DATA[i] for i in indices[distributed.get_rank()]]))).backward()
    whole(alone, joined(indices)).backward()
    found: list[Any] = gradients_of(model)
    assert_close([one.full_tensor() for one in found], gradients_of(alone))


class GivesBatches(Tagger):
    """Gives its scores as a batch, in which PyTorch does not look for Tensors."""

    def forward(self, batch: SequenceBatch) -> Any:
        return batch.with_values(super().forward(batch))


def batches_given_back() -> None:
    """As docs/training.md says: with a batch for its output `fully_shard` reduces no gradients, and says nothing.

    It does in torch 2.10, which looks for Tensors in a batch.
    """
    batch = collate([DATA[i] for i in ([0, 3], [5])[distributed.get_rank()]])
    for kind in KINDS:
        model, alone = GivesBatches(kind), GivesBatches(kind)
        alone.load_state_dict(model.state_dict())
        fully_shard(model)
        for one in (model, alone):
            mean_loss(cross_entropy(one(batch[0]).values, batch[1].values, reduction="none")).backward()
        found: list[Any] = gradients_of(model)
        wanted = gradients_of(alone)  # of what this process has, and as if not sharded
        if isinstance(found[0], DTensor):
            found = [one.full_tensor() for one in found]
            tagger = Tagger(kind)
            tagger.load_state_dict({name: part.full_tensor() for name, part in model.state_dict().items()})
            whole(tagger, [0, 3, 5]).backward()
            wanted = gradients_of(tagger)
        assert_close(found, wanted)


def gradients_added_up() -> None:
    """Two batches before a step of the optimizer, as if they were one."""
    model, alone = DistributedDataParallel(make_model("gru")), make_model("gru")
    mine = [[3, 1], [0]] if distributed.get_rank() else [[5], [7, 8, 9]]
    batches = [collate([DATA[i] for i in indices]) for indices in mine]
    steps = sum(tags.total_steps for _, tags in batches)
    with model.no_sync():
        mean_loss(losses_of(model, batches[0]), count=steps).backward()
    mean_loss(losses_of(model, batches[1]), count=steps).backward()
    whole(alone, [3, 1, 0, 5, 7, 8, 9]).backward()
    assert_close(gradients_of(model), gradients_of(alone))


def rounds(epochs: int) -> list[list[list[int]]]:
    """Return the batches of both processes, as the sampler in each draws them."""
    samplers = [BucketBatchSampler(LENGTHS, batch_size=3, rank=rank, world_size=2) for rank in range(2)]
    loaders = [sampler.track(sampler) for sampler in samplers]
    return [[*both] for _ in range(epochs) for both in zip(*loaders, strict=True)]


@functools.cache
def train_alone(kind: str) -> tuple[list[float], Tagger]:
    """Train in one process on what both have, step by step."""
    model = make_model(kind)
    batches = [collate([DATA[i] for i in joined(both)]) for both in rounds(2)]
    return train(model, batches, torch.optim.SGD(model.parameters(), 0.3, 0.9)), model


def train_together(model: nn.Module) -> list[float]:
    """Train on what this process has, and give the losses of both."""
    loader = loader_of(LENGTHS, batch_size=3)
    optimizer = torch.optim.SGD(model.parameters(), 0.3, 0.9)
    return mean_over_processes(torch.tensor(train(model, loader, optimizer) + train(model, loader, optimizer))).tolist()


def weights() -> None:
    for kind in KINDS:
        losses, alone = train_alone(kind)
        model = DistributedDataParallel(make_model(kind))
        assert_close(train_together(model), losses, rtol=1e-4, atol=1e-5)
        assert_close([*model.parameters()], [*alone.parameters()], rtol=1e-3, atol=1e-5)
        assert losses[-1] < losses[0]


def shard_as_one(model: Tagger) -> None:
    fully_shard(model)


def shard_layers(model: Tagger) -> None:
    if isinstance(model.body, nn.Sequential):
        for layer in model.body:
            fully_shard(layer)
    fully_shard(model.body)
    fully_shard(model.head)
    fully_shard(model)


def sharded(shard: Callable[[Tagger], None]) -> None:
    for kind in KINDS:
        losses, alone = train_alone(kind)
        model = make_model(kind)
        shard(model)
        assert_close(train_together(model), losses, rtol=1e-4, atol=1e-5)
        found: list[Any] = [*model.parameters()]
        assert_close([one.full_tensor() for one in found], [*alone.parameters()], rtol=1e-3, atol=1e-5)


def some_processes_only() -> None:
    """Each process is a group by itself."""
    groups: list[Any] = [distributed.new_group([rank]) for rank in range(2)]
    rank = distributed.get_rank()
    losses = torch.arange(3.0 + rank)
    assert_close(mean_loss(losses, group=groups[rank]), losses.mean())
    assert_close(mean_loss(losses), torch.tensor([3, 6][rank] * 2 / 7))
    with pytest.raises(SeqbatchValueError, match=r"^`group` must hold this process; got one of others\.$"):
        mean_loss(losses, group=groups[1 - rank])


def dtypes() -> None:
    """One process has losses of double precision; the other has none, in the default dtype."""
    losses = [torch.arange(3.0, dtype=torch.float64), torch.zeros(0)][distributed.get_rank()]
    found = mean_loss(losses)
    assert_close(found, torch.tensor(losses.sum() * 2 / 3))
    assert found.dtype is losses.dtype


def resumed() -> None:
    """Each process saves its own random state, and goes on in another object as if never stopped."""
    folder = [tempfile.mkdtemp() if distributed.get_rank() == 0 else ""]
    distributed.broadcast_object_list(folder)
    path = Path(folder[0]) / f"{distributed.get_rank()}.pt"
    straight = Run(0, DistributedDataParallel)
    straight.go_on(9)
    stopped = Run(0, DistributedDataParallel)
    stopped.go_on(5)
    stopped.save(path)
    torch.manual_seed(99)
    again = Run(0, DistributedDataParallel)
    again.load(path)
    again.go_on(4)
    exact(again.seen, straight.seen)
    exact(again.model.state_dict(), straight.model.state_dict())


def part_of_a_part() -> None:
    """A data set that was sharded before, as by a DistributedSampler, is not sharded again."""
    parts: Any = DistributedSampler(range(len(LENGTHS)), shuffle=False)  # type: ignore[arg-type]  # a range is data
    sampler = BucketBatchSampler([LENGTHS[i] for i in parts], batch_size=2)
    with pytest.raises(SeqbatchError, match="Pass the lengths of the whole data set in every process"):
        next(iter(sampler.track(DataLoader(Subset(DATA, [*parts]), batch_sampler=sampler))))
    # Wrapped by what draws its batches, as a DistributedSampler over batches would.
    whole = BucketBatchSampler(LENGTHS, batch_size=2)
    with pytest.raises(SeqbatchError, match=r"^`sampler` must be iterated over by sampler\.track"):
        DistributedSampler(list(whole))  # type: ignore[arg-type]  # a list is data


def made_before_the_group() -> None:
    """A sampler that was made before the process group shards as one that was made after it."""
    loader = EARLY.track(EARLY)
    mine = rounds(1)
    assert list(loader) == [both[distributed.get_rank()] for both in mine]


CHECKS: dict[str, Callable[[], None]] = {
    "gradients": gradients,
    "gradients of some steps": gradients_of_some_steps,
    "gradients of shards": gradients_of_shards,
    "batches given back": batches_given_back,
    "gradients added up": gradients_added_up,
    "weights": weights,
    "sharded as one": functools.partial(sharded, shard_as_one),
    "sharded layers": functools.partial(sharded, shard_layers),
    "some processes only": some_processes_only,
    "dtypes": dtypes,
    "resumed": resumed,
    "part of a part": part_of_a_part,
    "made before the group": made_before_the_group,
}


def main() -> None:
    distributed.init_process_group("gloo", timeout=timedelta(seconds=30))
    run_checks(CHECKS)
    # PyTorch keeps the group of sharded models, and a thread of it that is busy while Python ends aborts the process.
    os._exit(0)


if __name__ == "__main__":
    main()
