"""Lightning: the mean that it logs for an epoch is that over sequences, if `log` gets the batch size."""

import warnings
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.utilities import data as lightning_data
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from seqbatch import SequenceBatch, encode
from seqbatch.data import collate_sequences

pytestmark = [
    # Lightning's advice on workers and on logging, and its use of other libraries.
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
AMBIGUOUS = "Trying to infer the `batch_size` from an ambiguous collection"
# Three batches, of 2, 2 and 1 sequences.
RAGGED = [[7, 1], [2, 3], [5]]
ALIKE = [[7, 7], [2, 2], [5]]
TARGETS = [0.0, 1.0, 2.0, 3.0, 9.0]


class Regression(lightning.LightningModule):
    """Logs the error of each batch, for the mean over an epoch."""

    def __init__(self, told: bool) -> None:
        super().__init__()
        self.gru, self.head, self.told = nn.GRU(3, 4), nn.Linear(4, 1), told

    def errors(self, sequences: SequenceBatch, targets: Tensor) -> Tensor:
        found: Tensor = self.head(encode(self.gru, sequences).mean())[:, 0]
        return (found - targets).abs()

    def _log(self, name: str, batch: Any) -> Tensor:
        loss = self.errors(*batch).mean()
        number: dict[str, Any] = {"batch_size": len(batch[0])} if self.told else {}
        self.log(name, loss, on_step=False, on_epoch=True, **number)
        return loss

    def training_step(self, batch: Any) -> Tensor:
        return self._log("training", batch)

    def validation_step(self, batch: Any) -> None:
        self._log("validation", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)  # so that every batch meets the same weights


def logged(path: Path, lengths: list[list[int]], told: bool) -> tuple[dict[str, float], Tensor]:
    """Train and validate for an epoch; give the means that Lightning logs, and that over all sequences."""
    torch.manual_seed(0)
    sequences = [torch.randn(length, 3) for part in lengths for length in part]
    samples: Any = [*zip(sequences, torch.tensor(TARGETS), strict=True)]
    model = Regression(told)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path,
    )
    loaders: list[Any] = [DataLoader(samples, batch_size=2, collate_fn=collate_sequences) for _ in range(2)]
    trainer.fit(model, *loaders)
    found = {name: trainer.callback_metrics[name].item() for name in ("training", "validation")}
    with torch.no_grad():
        return found, model.errors(SequenceBatch.from_sequences(sequences), torch.tensor(TARGETS)).mean()


@pytest.fixture(autouse=True)
def _warn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset Lightning's record of warnings, because it warns once in a process."""
    monkeypatch.setattr(lightning_data, "warning_cache", type(lightning_data.warning_cache)())


@pytest.mark.parametrize("lengths", [RAGGED, ALIKE])
def test_the_mean_of_an_epoch_is_that_over_its_sequences(tmp_path: Path, lengths: list[list[int]]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found, wanted = logged(tmp_path, lengths, told=True)
    assert not [warning for warning in caught if AMBIGUOUS in str(warning.message)]
    assert_close(torch.tensor([*found.values()]), wanted.repeat(2))


def test_without_batch_size_lightning_warns_and_weighs_by_the_steps_of_the_first_sequence(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=AMBIGUOUS):
        found, wanted = logged(tmp_path, RAGGED, told=False)
    assert abs(found["training"] - wanted.item()) > 0.1


def test_without_batch_size_lightning_warns_only_where_lengths_differ() -> None:
    with pytest.warns(UserWarning, match=AMBIGUOUS):
        assert lightning_data.extract_batch_size(SequenceBatch(torch.randn(8, 3), [7, 1])) == 7  # of two sequences
    assert lightning_data.extract_batch_size(SequenceBatch(torch.randn(14, 3), [7, 7])) == 7
