"""skorch: a net whose `infer` takes a batch is right; one that would stack it is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.utils import to_tensor
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import Dataset

from seqbatch import SeqbatchTypeError, SequenceBatch, encode_with_state

# What skorch, scikit-learn and PyTorch warn of by themselves.
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]

LENGTHS = [3, 5, 2, 4, 3, 1]
XS = [torch.randn(length, 3, generator=torch.Generator().manual_seed(length)) for length in LENGTHS]
YS = np.array([0, 1, 0, 1, 0, 1])


class Classifier(nn.Module):
    """Takes a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.linear = nn.GRU(3, 4), nn.Linear(4, 2)

    def forward(self, batch: SequenceBatch) -> Tensor:
        scores: Tensor = self.linear(encode_with_state(self.gru, batch)[1].last())
        return scores.softmax(1)


class SequenceNet(NeuralNetClassifier):  # type: ignore[misc]  # it has no types
    """Gives the module the batch itself, which skorch would make an array of."""

    def infer(self, x: Any, **fit_params: Any) -> Any:
        return self.module_(x.to(self.device), **fit_params)


class Samples(Dataset[tuple[Tensor, Any]]):
    """Sequences with their classes."""

    def __init__(self, xs: list[Tensor], ys: Any = None) -> None:
        self.xs, self.ys = xs, YS if ys is None else ys

    def __len__(self) -> int:
        return len(self.xs)

    def __getitem__(self, i: int) -> tuple[Tensor, Any]:
        return self.xs[i], self.ys[i]


def collate(samples: list[tuple[Tensor, Any]]) -> tuple[SequenceBatch, Tensor]:
    xs, ys = zip(*samples, strict=True)
    return SequenceBatch.from_sequences(xs), torch.as_tensor(ys)


def net(kind: type[NeuralNetClassifier]) -> NeuralNetClassifier:
    torch.manual_seed(0)
    options: dict[str, Any] = {"train_split": None, "max_epochs": 2, "batch_size": 4, "verbose": 0, "classes": [0, 1]}
    return kind(Classifier, **options, iterator_train__collate_fn=collate, iterator_valid__collate_fn=collate)


def test_batches_are_right() -> None:
    fitted = net(SequenceNet).fit(Samples(XS), None)
    assert fitted.history[:, "batches", :, "train_batch_size"] == [[4, 2]] * 2  # by which skorch averages the loss
    found = torch.as_tensor(fitted.predict_proba(Samples(XS)))
    with torch.no_grad():
        wanted = torch.cat([fitted.module_(SequenceBatch.from_sequences([x])) for x in XS])
    assert_close(found, wanted)


@pytest.mark.parametrize("lengths", [[3, 3, 3, 3], [3, 5, 2, 4]])
def test_batches_are_never_stacked(lengths: list[int]) -> None:
    xs = [torch.randn(length, 3) for length in lengths]
    message = r"^`data` must be a Tensor, an array or numbers; got a seqbatch\.SequenceBatch\. Its steps are"
    with pytest.raises(SeqbatchTypeError, match=message):
        net(NeuralNetClassifier).fit(Samples(xs, YS[:4]), None)
    with pytest.raises(SeqbatchTypeError, match=message):
        net(NeuralNetClassifier).initialize().infer(SequenceBatch.from_sequences(xs))
    with pytest.raises(SeqbatchTypeError, match=message):
        to_tensor(SequenceBatch.from_sequences(xs), device="cpu")
