"""Accelerate on BucketBatchSampler: every sample once an epoch, and resumed runs equal those never interrupted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import GradientState
from processes import HELPERS, torchrun
from ranks.trainers import Model, plain_loader, tracked_loader

from seqbatch import SeqbatchError, SeqbatchValueError

# torchdata calls it whenever a loader is made.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")


def epoch(loader: Any) -> list[list[int]]:
    return [samples.tolist() for _, samples in loader]


def epochs(number: int) -> list[list[list[int]]]:
    loader = tracked_loader()
    return [epoch(loader) for _ in range(number)]


BATCHES = len(tracked_loader())


def test_a_tracked_loader_is_left_as_it_is() -> None:
    loader = tracked_loader()
    assert Accelerator(cpu=True).prepare(loader) is loader


def test_passes_over_a_prepared_loader_are_an_epoch_each() -> None:
    loader = Accelerator(cpu=True).prepare(plain_loader()[1])
    assert [epoch(loader) for _ in range(3)] == epochs(3)


def test_a_prepared_loader_cannot_be_tracked() -> None:
    """Accelerate sets the epoch when a pass begins, and draws a batch ahead."""
    sampler, loader = plain_loader()
    tracked = sampler.track(Accelerator(cpu=True).prepare(loader))
    with pytest.raises(SeqbatchError, match=r"^`loader` must be iterated over once at a time; got another pass"):
        next(iter(tracked))


class Run:
    """A training whose state accelerate saves and loads."""

    def __init__(self) -> None:
        self.accelerator = Accelerator(cpu=True)
        model = Model()
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            model, model.configure_optimizers(), tracked_loader()
        )
        self.accelerator.register_for_checkpointing(self.loader)

    def train(self, batches: int) -> None:
        while batches:
            for batch in self.loader:
                self.accelerator.backward(self.model.training_step(batch, 0))
                self.optimizer.step()
                self.optimizer.zero_grad()
                batches -= 1
                if not batches:
                    break


@pytest.mark.parametrize("stop", [1, BATCHES, BATCHES + 4])
def test_a_run_that_is_resumed_equals_one_that_was_not_interrupted(stop: int, tmp_path: Path) -> None:
    straight, stopped, resumed = Run(), Run(), Run()
    straight.train(2 * BATCHES)
    stopped.train(stop)
    stopped.accelerator.save_state(str(tmp_path))
    resumed.accelerator.load_state(str(tmp_path))
    resumed.train(2 * BATCHES - stop)
    assert stopped.model.seen + resumed.model.seen == straight.model.seen
    torch.testing.assert_close(resumed.model.state_dict(), straight.model.state_dict(), rtol=0, atol=0)


@pytest.fixture
def own_gradient_state() -> Iterator[None]:
    """Leave no half of an accumulation to other tests, because all Accelerators of a process share it."""
    yield
    GradientState._reset_state()


@pytest.mark.usefixtures("own_gradient_state")
@pytest.mark.parametrize("every", [BATCHES, 4])
def test_accumulated_gradients_go_on_into_the_next_epoch(every: int) -> None:
    """As the page says: accelerate sees the ends of epochs of its own loaders only."""
    assert BATCHES % 4
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=every)
    model, loader = accelerator.prepare(Model(), tracked_loader())
    steps = []
    for _ in range(2):
        for _ in loader:
            with accelerator.accumulate(model):
                steps.append(accelerator.sync_gradients)
    assert steps == [(batch + 1) % every == 0 for batch in range(2 * BATCHES)]
    assert steps[-1] == (every == BATCHES)  # else the last batches are lost


def stateful() -> Any:
    configuration = DataLoaderConfiguration(use_stateful_dataloader=True)
    loader: Any = Accelerator(cpu=True, dataloader_config=configuration).prepare(plain_loader()[1])
    return loader


def test_a_stateful_loader_resumes() -> None:
    loader = stateful()
    assert epoch(loader) == epochs(1)[0]
    batches = iter(loader)
    found = [next(batches)[1].tolist() for _ in range(4)]
    state = loader.state_dict()
    resumed = stateful()
    resumed.load_state_dict(state)
    resumed.set_epoch(1)
    assert [found + epoch(resumed), epoch(resumed)] == epochs(3)[1:]


def test_a_stateful_loader_whose_epochs_are_counted_from_0_again_is_an_error() -> None:
    """Accelerate counts the passes of this process, so it would repeat epochs that are done."""
    loader = stateful()
    epoch(loader)
    epoch(loader)
    next(iter(loader))
    resumed = stateful()
    resumed.load_state_dict(loader.state_dict())
    assert epoch(resumed) == epochs(3)[2][1:]
    message = r"^`epoch` must be 2 or more, the epoch of the loaded state; got 1\. Count epochs from sampler\.epoch on"
    with pytest.raises(SeqbatchValueError, match=message):
        next(iter(resumed))


def test_skipping_batches_resumes_if_the_epoch_is_set() -> None:
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(plain_loader()[1])
    loader.set_epoch(2)
    assert epoch(accelerator.skip_first_batches(loader, 3)) == epochs(3)[2][3:]
    loader.set_epoch(3)
    assert epoch(loader) == epochs(4)[3]


@pytest.fixture(scope="module")
def checked() -> tuple[int, str]:
    """Return what the checks in two processes print."""
    return torchrun(HELPERS / "ranks" / "accelerate_checks.py")


@pytest.mark.parametrize("check", ["every sample once", "loaders are not sharded again"])
def test_two_processes(check: str, checked: tuple[int, str]) -> None:
    status, printed = checked
    assert f"{check}: passed" in printed.splitlines(), printed
    assert status == 0, printed
