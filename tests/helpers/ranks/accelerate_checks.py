"""What must hold where accelerate prepares loaders in two processes: started by torchrun, it prints what has passed."""

from collections.abc import Callable
from typing import Any

import pytest
from accelerate import Accelerator, DataLoaderConfiguration
from ranks.running import everyones, run_checks
from ranks.trainers import MUST_BE_TRACKED, Model, plain_loader, require_each_sample_once, tracked_loader
from torch import distributed

from seqbatch import SeqbatchError


def prepared(loader: Any, **options: Any) -> Any:
    return Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options)).prepare(loader)


def every_sample_once() -> None:
    accelerator = Accelerator(cpu=True)
    model, tracked = Model(), tracked_loader()
    model, optimizer, loader = accelerator.prepare(model, model.configure_optimizers(), tracked)
    assert loader is tracked
    for _ in range(3):
        seen: list[Any] = []
        for batch in loader:
            signals, samples = (part.to(accelerator.device) for part in batch)
            accelerator.backward(model.module.training_step((signals, samples), 0))
            optimizer.step()
            optimizer.zero_grad()
            seen.append(samples.tolist())
        both = everyones(seen)
        assert [len(part) for part in both] == [len(loader)] * 2
        require_each_sample_once(both)


def loaders_are_not_sharded_again() -> None:
    for options in ({"even_batches": False}, {"even_batches": True}, {"use_stateful_dataloader": True}):
        sampler, plain = plain_loader()
        loader = prepared(plain, **options)
        with pytest.raises(SeqbatchError, match=MUST_BE_TRACKED):
            next(iter(loader))
        with pytest.raises(
            SeqbatchError, match=r"^`loader` must have this sampler as its batch_sampler; got an accelerate"
        ):
            sampler.track(loader)
    loader = prepared(plain_loader()[1], dispatch_batches=True)
    if distributed.get_rank() == 0:  # which alone draws batches, and sends them to the others
        with pytest.raises(SeqbatchError, match=MUST_BE_TRACKED):
            next(iter(loader))


CHECKS: dict[str, Callable[[], None]] = {
    "every sample once": every_sample_once,
    "loaders are not sharded again": loaders_are_not_sharded_again,
}


if __name__ == "__main__":
    run_checks(CHECKS)
