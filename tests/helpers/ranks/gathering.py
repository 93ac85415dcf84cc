"""What accelerate does to batches between processes: run alone, or started by torchrun; prints what has passed."""

import copy
import io
import pickle
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration, InitProcessGroupKwargs
from accelerate.utils import (
    broadcast,
    broadcast_object_list,
    concatenate,
    find_batch_size,
    gather_object,
    pad_across_processes,
    reduce,
    send_to_device,
    slice_tensors,
)
from ranks.running import everyones, run_checks
from torch import Tensor
from torch.utils.data import DataLoader

from seqbatch import RNNState, SeqbatchTypeError, SequenceBatch
from seqbatch.data import collate_sequences

LENGTHS = [3, 0, 5, 1, 2, 4, 2]
DATA: Any = [(torch.full((length, 2), float(i)), i) for i, length in enumerate(LENGTHS)]
accelerator: Any = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=60))])
COUNT, RANK = accelerator.num_processes, accelerator.process_index
TAKEN_APART = (
    "`object` must be a SequenceBatch or a list, because accelerate joins what the processes have by iterating it; got "
)
TAKEN_APART_IN_METRICS = (
    "`input_data` must be a SequenceBatch itself, because accelerate takes apart what holds one, and counts items as "
    "samples; got "
)
NO_TENSOR = r"Unsupported types \(<class 'seqbatch\.SequenceBatch'>\)"


def batch_of(rank: int) -> SequenceBatch:
    """Make the batch of a process: of other lengths in each, and of as many steps."""
    return SequenceBatch(torch.arange(4.0) + 10 * rank, [[1, 3], [2, 2]][rank])


def same(found: Any, wanted: list[Tensor]) -> None:
    assert [one.tolist() for one in found] == [one.tolist() for one in wanted]


def all_sequences() -> list[Tensor]:
    return [sequence for rank in range(COUNT) for sequence in batch_of(rank)]


def holders() -> list[Any]:
    """Return a batch, and containers that hold one."""
    batch = batch_of(RANK)
    return [batch, {"x": batch, "y": torch.ones(2)}, {"y": torch.ones(2), "x": batch}, (batch, torch.ones(2)), [batch]]


def gathered() -> None:
    """Raises in several processes; one process has nothing to gather."""
    for value in holders():
        if COUNT == 1:
            assert accelerator.gather(value) is value
        else:
            with pytest.raises(TypeError, match=NO_TENSOR):
                accelerator.gather(value)


def gathered_objects() -> None:
    """Gives all sequences, or an item of each process, in the order of the processes; a dict or a tuple raises."""
    same(gather_object(batch_of(RANK).to_sequences()), all_sequences())
    same(gather_object(batch_of(RANK)), all_sequences())
    batches = gather_object([batch_of(RANK)])
    assert [one.lengths for one in batches] == [batch_of(rank).lengths for rank in range(COUNT)]
    same(SequenceBatch.concat(batches), all_sequences())
    for value in (*holders()[1:4], {"state": RNNState(torch.zeros(1, 1, 2, 3))}):
        if COUNT == 1:
            assert gather_object(value) is value
            continue
        with pytest.raises(
            SeqbatchTypeError, match=rf"^{TAKEN_APART}a {type(value).__name__}\. Gather \[object\], a list"
        ):
            gather_object(value)
        found = gather_object([value])
        assert [type(one) for one in found] == [type(value)] * COUNT


def gathered_for_metrics() -> None:
    """Gives all sequences once, also where the last batch was filled up with others."""
    loader: Any = accelerator.prepare(DataLoader(DATA, batch_size=2, collate_fn=collate_sequences))
    sequences: list[Tensor] = []
    labels: list[int] = []
    for batch, label in loader:
        sequences += accelerator.gather_for_metrics(batch)
        labels += accelerator.gather_for_metrics(label).tolist()
    assert labels == [*range(len(DATA))]
    same(sequences, [sequence for sequence, _ in DATA])


def gathered_for_metrics_in_containers() -> None:
    """Raises in several processes, whose keys of dicts and items of tuples it would join; field by field is right."""
    for value in (*holders()[1:], [{"x": batch_of(RANK)}], [RNNState(torch.zeros(1, 1, 2, 3))]):
        if COUNT == 1:
            assert accelerator.gather_for_metrics(value) is value
            continue
        with pytest.raises(
            SeqbatchTypeError, match=rf"^{TAKEN_APART_IN_METRICS}a {type(value).__name__}\. Gather each"
        ):
            accelerator.gather_for_metrics(value)
    keyed = holders()[1]
    same(accelerator.gather_for_metrics(keyed["x"]), all_sequences())
    assert len(accelerator.gather_for_metrics(keyed["y"])) == 2 * COUNT


def pickled() -> None:
    """Outside of what gathers, anything that holds a batch is pickled, also to other processes, and saved."""
    keyed = holders()[1]
    file = io.BytesIO()
    torch.save(keyed, file)
    file.seek(0)
    for found in (pickle.loads(pickle.dumps(keyed)), copy.deepcopy(keyed), torch.load(file, weights_only=False)):
        same(found["x"], batch_of(RANK).to_sequences())
    if COUNT > 1:
        same([one for other in everyones(keyed) for one in other["x"]], all_sequences())
    loader: Any = DataLoader(DATA, batch_size=2, collate_fn=as_dict, num_workers=1)
    same([one for batch in loader for one in batch["x"]], [sequence for sequence, _ in DATA])


def padded() -> None:
    for value in holders():
        with pytest.raises(TypeError, match=NO_TENSOR):
            pad_across_processes(value)
    # What it is for: padded Tensors of other sizes in each process.
    batch = batch_of(RANK)
    filled: Any = pad_across_processes(batch.to_padded(batch_first=True), dim=1)
    lengths = accelerator.gather(torch.tensor(batch.lengths))
    same(SequenceBatch.from_padded(accelerator.gather(filled), lengths, batch_first=True), all_sequences())


def broadcasts() -> None:
    for value in holders():
        if COUNT == 1:
            assert broadcast(value) is value
        else:
            with pytest.raises(TypeError, match=NO_TENSOR):
                broadcast(value)
    for sent in (batch_of(RANK), {"x": batch_of(RANK)}):
        (found,) = broadcast_object_list([sent], from_process=COUNT - 1)
        same(found["x"] if isinstance(found, dict) else found, batch_of(COUNT - 1).to_sequences())


def reduced() -> None:
    for value in holders():
        with pytest.raises(TypeError, match=NO_TENSOR):
            reduce(value)


def moved() -> None:
    batch, keyed, *_ = holders()
    for found in (send_to_device(batch, torch.device("meta")), send_to_device(keyed, torch.device("meta"))["x"]):
        assert isinstance(found, SequenceBatch)
        assert (found.device.type, found.lengths) == ("meta", batch.lengths)


def parts() -> None:
    """What loaders that dispatch batches are made of: `slice_tensors` leaves a batch whole, and the others raise."""
    batch, keyed, *_ = holders()
    assert slice_tensors(batch, slice(0, 1)) is batch  # of accelerate itself; `batch[0:1]` is right
    assert slice_tensors(keyed, slice(0, 1))["x"] is batch
    assert concatenate([batch]) is batch
    for values in ([batch, batch], [keyed, keyed]):
        with pytest.raises(TypeError, match=r"Can only concatenate tensors but got <class 'seqbatch\.SequenceBatch'"):
            concatenate(values)
    for value in (batch, keyed):
        with pytest.raises(TypeError, match="Can only find the batch size of tensors but got <class 'seqbatch"):
            find_batch_size(value)


CHECKS: dict[str, Callable[[], None]] = {
    "gathered": gathered,
    "gathered objects": gathered_objects,
    "gathered for metrics": gathered_for_metrics,
    "gathered for metrics in containers": gathered_for_metrics_in_containers,
    "pickled": pickled,
    "padded": padded,
    "broadcasts": broadcasts,
    "reduced": reduced,
    "moved": moved,
    "parts": parts,
}


def as_batch(samples: Any) -> SequenceBatch:
    return SequenceBatch.from_sequences([sequence for sequence, _ in samples])


def as_dict(samples: Any) -> dict[str, Any]:
    """Put first what has a batch size for accelerate."""
    return {"y": torch.tensor([label for _, label in samples]), "x": as_batch(samples)}


COLLATE = {"batch": as_batch, "dict": as_dict}


def dispatch(form: str, split: str) -> None:
    """Read a loader that process 0 reads for all, and print each batch."""
    config = DataLoaderConfiguration(dispatch_batches=True, split_batches=split == "split")
    loader: Any = DataLoader(DATA, batch_size=2, collate_fn=COLLATE[form])
    for batch in Accelerator(cpu=True, dataloader_config=config).prepare(loader):
        print(f"labels {batch['y'].tolist()}, lengths {batch['x'].lengths}", flush=True)


def main() -> None:
    if sys.argv[1:]:
        dispatch(*sys.argv[1:])
    else:
        run_checks(CHECKS)


if __name__ == "__main__":
    main()
