"""What must hold where Lightning trains in two processes: started by torchrun, it prints what has passed."""

import functools
from collections.abc import Callable
from typing import Any

import lightning
import pytest
import torch
from ranks.running import everyones, run_checks
from ranks.trainers import (
    LENGTHS,
    MUST_BE_TRACKED,
    Model,
    plain_loader,
    require_each_sample_once,
    tracked_loader,
    trainer,
)

from seqbatch import SeqbatchError

two = functools.partial(trainer, devices=2, strategy="ddp")


def every_sample_once() -> None:
    model, loader = Model(), tracked_loader()
    runner = two(max_epochs=3)
    runner.fit(model, loader, tracked_loader(shuffle=False))
    batches = len(loader)
    assert runner.num_training_batches == batches
    assert [len(seen) for seen in everyones(model.seen)] == [3 * batches] * 2
    for epoch in range(3):
        require_each_sample_once(everyones(model.seen[epoch * batches : (epoch + 1) * batches]))
    validated = [i for part in everyones(model.validated) for i in part]
    assert sorted(validated) == sorted([*range(len(LENGTHS))] * 3)
    weights = everyones([parameter.detach() for parameter in model.parameters()])
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def loaders_are_not_sharded_again() -> None:
    with pytest.raises(TypeError, match="Lightning can't inject a \\(distributed\\) sampler into your batch sampler"):
        two(max_epochs=1).fit(Model(), plain_loader()[1])
    model = Model()
    with pytest.raises(SeqbatchError, match=MUST_BE_TRACKED):
        two(max_epochs=1, use_distributed_sampler=False).fit(model, plain_loader()[1])
    assert model.seen == []

    class WithLoader(Model):
        """Makes its loader in a hook, where Lightning records how a BatchSampler is made, to make another."""

        def train_dataloader(self) -> Any:
            return plain_loader()[1]

    with pytest.raises(TypeError, match="Lightning can't inject a \\(distributed\\) sampler into your batch sampler"):
        two(max_epochs=1).fit(WithLoader())


def fabric() -> None:
    runner = lightning.Fabric(accelerator="cpu", devices=2, strategy="ddp")
    runner.launch()
    _, loader = plain_loader()
    with pytest.raises(TypeError, match="Lightning can't inject a \\(distributed\\) sampler into your batch sampler"):
        runner.setup_dataloaders(loader)
    with pytest.raises(SeqbatchError, match=MUST_BE_TRACKED):
        next(iter(runner.setup_dataloaders(loader, use_distributed_sampler=False)))
    tracked: Any = tracked_loader()
    with pytest.raises(TypeError, match="Only PyTorch DataLoader"):
        runner.setup_dataloaders(tracked)
    require_each_sample_once(everyones([runner.to_device(samples).tolist() for _, samples in tracked]))


CHECKS: dict[str, Callable[[], None]] = {
    "every sample once": every_sample_once,
    "loaders are not sharded again": loaders_are_not_sharded_again,
    "fabric": fabric,
}


if __name__ == "__main__":
    run_checks(CHECKS)
