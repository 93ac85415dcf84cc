"""Lightning on BucketBatchSampler: every sample once an epoch, and resumed runs equal those never interrupted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from processes import HELPERS, torchrun
from ranks.trainers import LENGTHS, Model, plain_loader, tracked_loader, trainer

pytestmark = [
    # What Lightning calls itself in this version of torch.
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    # It advises more workers, and to keep the callback that wrote a checkpoint.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]
BATCHES = len(tracked_loader())
EPOCHS = 3


def trained(loader: Any, **options: Any) -> Model:
    model = Model()
    trainer(max_epochs=EPOCHS, **options).fit(model, loader)
    return model


@pytest.fixture(scope="module")
def straight() -> Model:
    """Return the model of a run that was not interrupted."""
    return trained(tracked_loader())


def test_every_sample_is_seen_once_in_every_epoch(straight: Model) -> None:
    assert len(straight.seen) == EPOCHS * BATCHES
    for epoch in range(EPOCHS):
        seen = straight.seen[epoch * BATCHES : (epoch + 1) * BATCHES]
        assert sorted(i for batch in seen for i in batch) == list(range(len(LENGTHS)))


@pytest.mark.parametrize("tracked", [True, False])
def test_validation_runs_after_every_epoch(tracked: bool) -> None:
    """Lightning asks for the number of batches once: it must be that of every epoch."""
    model = Model()
    trainer(max_epochs=EPOCHS).fit(
        model, tracked_loader() if tracked else plain_loader()[1], tracked_loader(shuffle=False)
    )
    assert sorted(model.validated) == sorted([*range(len(LENGTHS))] * EPOCHS)
    assert len(model.seen) == EPOCHS * BATCHES


def test_a_pass_that_lightning_leaves_early_takes_nothing_from_the_next() -> None:
    model, loader = Model(), tracked_loader(shuffle=False)
    trainer(max_epochs=2, limit_val_batches=2).fit(model, tracked_loader(), loader)
    batches = [samples.tolist() for _, samples in tracked_loader(shuffle=False)]
    assert model.validated == [*batches[0], *batches[1]] * 2
    trainer(fast_dev_run=True).fit(model, tracked_loader(), loader)
    model.validated.clear()
    trainer().validate(model, loader, verbose=False)
    assert sorted(model.validated) == list(range(len(LENGTHS)))
    for _ in range(2):
        assert trainer(limit_predict_batches=2).predict(model, loader) == batches[:2]


@pytest.mark.parametrize("stop", [1, 3, BATCHES - 1, BATCHES, BATCHES + 1, 2 * BATCHES])
def test_a_run_that_is_resumed_equals_one_that_was_not_interrupted(stop: int, straight: Model, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=stop)
    stopped = Model()
    trainer(max_steps=stop, enable_checkpointing=True, callbacks=[checkpoint]).fit(stopped, tracked_loader())
    assert stopped.seen == straight.seen[:stop]
    resumed = trained_from(checkpoint.best_model_path, tracked_loader())
    assert resumed.seen == straight.seen[stop:]
    torch.testing.assert_close(resumed.state_dict(), straight.state_dict(), rtol=0, atol=0)


def trained_from(path: str, loader: Any) -> Model:
    model = Model()
    trainer(max_epochs=EPOCHS).fit(model, loader, ckpt_path=path)
    return model


def test_lightning_says_that_a_dataloader_cannot_resume(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=3)
    stopped = Model()
    trainer(max_steps=3, enable_checkpointing=True, callbacks=[checkpoint]).fit(stopped, plain_loader()[1])
    with pytest.warns(UserWarning, match="your dataloader is not resumable"):
        trained_from(checkpoint.best_model_path, plain_loader()[1])


@pytest.fixture(scope="module")
def checked() -> tuple[int, str]:
    """Return what the checks in two processes print."""
    return torchrun(HELPERS / "ranks" / "lightning_checks.py")


@pytest.mark.parametrize("check", ["every sample once", "loaders are not sharded again", "fabric"])
def test_two_processes(check: str, checked: tuple[int, str]) -> None:
    status, printed = checked
    assert f"{check}: passed" in printed.splitlines(), printed
    assert status == 0, printed
