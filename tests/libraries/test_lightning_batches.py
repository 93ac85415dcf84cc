"""Batches in the hands of Lightning and Fabric: their dtypes converted, and gathered."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import precision as fabric_precision
from lightning.pytorch.plugins import precision as trainer_precision
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from seqbatch import SeqbatchTypeError, SequenceBatch, encode

RANKS = Path(__file__).parents[1] / "helpers" / "ranks"
SECONDS = 300

# What Lightning warns of by itself: few workers, no logger, deprecated functions of PyTorch that it calls.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

DTYPES: dict[Any, torch.dtype] = {
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
    "32-true": torch.float32,
    "64-true": torch.float64,
    "bf16-mixed": torch.float32,
}


def samples() -> Iterator[SequenceBatch]:
    for lengths in ([3, 0, 2], [2, 2], [4]):
        yield SequenceBatch(torch.randn(sum(lengths), 3), lengths)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_apply_to_collection(dtype: torch.dtype) -> None:
    for batch in samples():
        for found in (
            apply_to_collection(batch, Tensor, Tensor.to, dtype),
            apply_to_collection({"x": [batch]}, Tensor, Tensor.to, dtype)["x"][0],
            apply_to_collection((batch, 3), Tensor, Tensor.to, dtype, include_none=False)[0],
        ):
            assert isinstance(found, SequenceBatch)
            assert found.lengths == batch.lengths
            assert_close(found.values, batch.values.to(dtype), rtol=0, atol=0)


PLUGINS: list[tuple[Any, torch.dtype]] = [
    (fabric_precision.HalfPrecision("bf16-true"), torch.bfloat16),
    (fabric_precision.HalfPrecision("16-true"), torch.float16),
    (fabric_precision.DoublePrecision(), torch.float64),
    (fabric_precision.MixedPrecision("bf16-mixed", "cpu"), torch.bfloat16),
    (trainer_precision.HalfPrecision("bf16-true"), torch.bfloat16),
    (trainer_precision.HalfPrecision("16-true"), torch.float16),
    (trainer_precision.DoublePrecision(), torch.float64),
    (trainer_precision.MixedPrecision("bf16-mixed", "cpu"), torch.float32),
]


@pytest.mark.parametrize(("plugin", "dtype"), PLUGINS, ids=lambda value: str(getattr(value, "precision", value)))
def test_precision_plugins(plugin: Any, dtype: torch.dtype) -> None:
    for batch in samples():
        converted = plugin.convert_input({"x": batch, "ids": SequenceBatch(torch.tensor([1, 2]), [1, 1])})
        assert isinstance(converted["x"], SequenceBatch)
        assert converted["x"].lengths == batch.lengths
        assert_close(converted["x"].values, batch.values.to(dtype), rtol=0, atol=0)
        assert converted["ids"].dtype is torch.int64


class Model(lightning.LightningModule):
    """Sums what an LSTM outputs, and keeps the dtypes that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4)
        self.seen: list[tuple[torch.dtype, tuple[int, ...]]] = []

    def forward(self, batch: SequenceBatch) -> SequenceBatch:
        self.seen.append((batch.dtype, batch.lengths))
        return encode(self.lstm, batch)

    def training_step(self, batch: SequenceBatch) -> Tensor:
        return self.forward(batch).values.float().square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("precision", DTYPES)
def test_a_trainer(precision: Any, tmp_path: Path) -> None:
    model, data = Model(), list(samples())
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, precision=precision, default_root_dir=tmp_path,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader: DataLoader[SequenceBatch] = DataLoader(data, batch_size=None)  # type: ignore[arg-type]  # a list will do
    trainer.fit(model, loader)
    assert model.seen == [(DTYPES[precision], batch.lengths) for batch in data]


@pytest.mark.parametrize("precision", DTYPES)
def test_fabric(precision: Any) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    model = fabric.setup_module(Model())
    data: DataLoader[SequenceBatch] = DataLoader(list(samples()), batch_size=None)  # type: ignore[arg-type]  # as above
    loader = fabric.setup_dataloaders(data)
    for batch, wanted in zip(loader, samples(), strict=True):
        outputs = model(batch)
        assert isinstance(outputs, SequenceBatch)
        assert outputs.lengths == wanted.lengths
        assert outputs.dtype is torch.float32  # to which Fabric converts what a model returns
        fabric.backward(outputs.values.float().sum())
    taken = torch.bfloat16 if precision == "bf16-mixed" else DTYPES[precision]
    assert model.seen == [(taken, batch.lengths) for batch in samples()]


def gather(case: str, *command: str) -> tuple[int, str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, str(RANKS / "gather.py"), case],
        env=environment, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_all_gather_in_one_process_returns_the_batch() -> None:
    status, printed = gather("alone")
    assert "0: (2, 3) [0.0, 1.0, 2.0, 3.0, 4.0]" in printed.splitlines(), printed
    assert status == 0


@pytest.mark.parametrize("case", ["equal", "others"])
def test_all_gather_in_two_processes_is_an_error(case: str) -> None:
    status, printed = gather(case, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    assert status != 0
    assert not [line for line in printed.splitlines() if line[:4] in ("0: (", "1: (")], printed
    if case == "equal":  # where lengths differ, gloo itself fails
        message = "`values[0]` must have shape (steps, 1), as the sequences they are made of; got (2, 2, 1)."
        assert f"0: SeqbatchValueError: {message}" in printed, printed


def test_a_layer_on_a_batch() -> None:
    with pytest.raises(SeqbatchTypeError, match=r"Call encode\(layer, batch\) for a layer"):
        Fabric(accelerator="cpu", devices=1, precision="bf16-true").setup_module(nn.Linear(3, 2))(next(samples()))
