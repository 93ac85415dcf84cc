"""torch.export: one program for any number of sequences and steps, as it is and in another process."""

import io
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from graph_models import LAYERS, PATTERNS, SMALL, Tagger, check_alone, signals, tokens
from reference import REDUCTIONS
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram, export
from torch.testing import assert_close

from seqbatch import SequenceBatch, encode

STEPS, BATCH, TIME = Dim("steps", min=0), Dim("batch", min=0), Dim("time", min=0)


def exported(model: nn.Module) -> ExportedProgram:
    """Export a model that takes a batch; its values and its lengths may have any number of rows."""
    return export(model.eval(), (tokens([3, 2, 4]),), dynamic_shapes=([{0: STEPS}, {0: BATCH}],))


@cache
def tagger(kind: str) -> tuple[Tagger, ExportedProgram]:
    """Return a model and its program, which no test changes."""
    model = Tagger(kind)
    return model, exported(model)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_program_serves_all_lengths(kind: str) -> None:
    model, made = tagger(kind)
    file = io.BytesIO()
    torch.export.save(made, file)
    file.seek(0)
    program = torch.export.load(file).module()
    for lengths in (PATTERNS | SMALL).values():
        batch = tokens(lengths)
        with torch.no_grad():
            check_alone(model, batch, program(batch))


class Padded(nn.Module):
    """A model from padded sequences and their lengths to padded scores, as it is served."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.tagger = Tagger(kind)

    def forward(self, padded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        outputs, means, _ = self.tagger(SequenceBatch.from_padded(padded, lengths, batch_first=True))
        return outputs.to_padded(batch_first=True), means


@pytest.mark.parametrize("kind", LAYERS)
def test_padded_sequences_and_their_lengths(kind: str) -> None:
    model = Padded(kind).eval()
    given = torch.zeros(3, 5, dtype=torch.int64), torch.tensor([3, 5, 0])
    program = export(model, given, dynamic_shapes=({0: BATCH, 1: TIME}, {0: BATCH})).module()
    for lengths in (PATTERNS | SMALL).values():
        batch = tokens(lengths)
        padded = batch.to_padded(batch_first=True, padding_value=10**9, total_length=batch.max_length + 2)
        with torch.no_grad():
            outputs, means = program(padded, torch.tensor(lengths, dtype=torch.int64))
            scores, wanted, _ = model.tagger(batch)
        assert_close(outputs, scores.to_padded(batch_first=True))
        assert_close(means, wanted)
    with pytest.raises(RuntimeError, match="`lengths` must be at most the time axis of `padded`"):
        program(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([4, 3]))


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_through_a_program(kind: str) -> None:
    model, made = tagger(kind)
    program: Any = made.module()
    weights = dict(program.named_parameters())
    for lengths in (PATTERNS | SMALL).values():
        batch = tokens(lengths)
        losses = [
            outputs.values.square().sum() + means.sin().sum() + state.last().sum()
            for outputs, means, state in (program(batch), model(batch))
        ]
        found = torch.autograd.grad(losses[0], [weights[name] for name, _ in model.named_parameters()])
        assert_close(found, torch.autograd.grad(losses[1], [*model.parameters()]))


def test_nothing_of_a_backward_pass_is_kept_by_a_program() -> None:
    for node in tagger("lstm")[1].graph.nodes:
        if "seqbatch.lstm" in str(node.target):
            assert True not in node.args[-1]


def test_an_example_that_is_too_small() -> None:
    for lengths in ([4], [0, 0]):
        with pytest.raises(UserError, match="Constraints violated"):
            export(Tagger("gru"), (tokens(lengths),), dynamic_shapes=([{0: STEPS}, {0: BATCH}],))


class Reduced(nn.Module):
    """A model from flat values and their lengths to all reductions of each sequence, and to rows at all its steps."""

    def forward(self, values: Tensor, lengths: Tensor) -> list[Tensor]:
        batch = SequenceBatch(values, lengths)
        found = [how.of(batch) for how in REDUCTIONS.values()]
        rows = batch.expand(batch.mean())
        return [one.values if isinstance(one, SequenceBatch) else one for one in [*found, rows]]


def test_a_program_of_reductions_serves_all_lengths() -> None:
    model, batch = Reduced(), signals([3, 0, 2])
    program = export(model, (batch.values, torch.tensor(batch.lengths)), dynamic_shapes=({0: STEPS}, {0: BATCH}))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    run = torch.export.load(file).module()
    for lengths in (PATTERNS | SMALL).values():
        given = signals(lengths).values, torch.tensor(lengths, dtype=torch.int64)
        assert_close([*run(*given)], model(*given), equal_nan=True)


PROGRAM = """
import sys
import torch
import seqbatch

folder = sys.argv[1]
given, found = torch.load(f"{folder}/given.pt"), {}
for kind in sys.argv[2:]:
    program = torch.export.load(f"{folder}/{kind}.pt2").module()
    found[kind] = [program(batch) for batch in given]
torch.save(
    {
        kind: [(outputs.values, outputs.lengths, means, state.to_torch()) for outputs, means, state in results]
        for kind, results in found.items()
    },
    f"{folder}/found.pt",
)
"""


def test_a_fresh_process_gives_the_same(tmp_path: Path) -> None:
    models = {kind: tagger(kind)[0] for kind in LAYERS}
    batches = [tokens(lengths) for lengths in (PATTERNS | SMALL).values()]
    for kind in models:
        torch.export.save(tagger(kind)[1], tmp_path / f"{kind}.pt2")
    torch.save(batches, tmp_path / "given.pt")
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path), *models], check=True, timeout=120)
    found: Any = torch.load(tmp_path / "found.pt")
    for kind, model in models.items():
        for batch, (values, lengths, means, state) in zip(batches, found[kind], strict=True):
            with torch.no_grad():
                outputs, wanted, end = model(batch)
            assert lengths == batch.lengths
            assert_close((values, means, state), (outputs.values, wanted, end.to_torch()))


class Summary(nn.Module):
    """A model from flat values and their lengths to one vector of each sequence, by all that its graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 3, bidirectional=True)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        outputs = encode(self.gru, SequenceBatch(values, lengths))
        centred = outputs.map(torch.sub, outputs.expand(outputs.mean()))
        return torch.cat([outputs.mean(), outputs.std(correction=0), centred.cumsum(reverse=True).max()], 1)


AHEAD_OF_TIME = """
import sys
import torch
import seqbatch

folder = sys.argv[1]
run = torch._inductor.aoti_load_package(f"{folder}/model.pt2")
with torch.no_grad():
    found = [run(values, lengths) for values, lengths in torch.load(f"{folder}/given.pt")]
torch.save(found, f"{folder}/found.pt")
"""


# Warnings about Inductor itself.
@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is")
def test_ahead_of_time_where_python_is(tmp_path: Path) -> None:
    """A program of AOTInductor runs where Python has imported seqbatch, because the operators are Python's."""
    model, batch = Summary().eval(), signals([3, 0, 2])
    dimensions = ({0: STEPS}, {0: BATCH})
    program = export(model, (batch.values, torch.tensor(batch.lengths)), dynamic_shapes=dimensions)
    inductor: Any = torch._inductor
    path = inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    batches = [signals(lengths) for lengths in (PATTERNS | SMALL).values()]
    given = [(batch.values, torch.tensor(batch.lengths, dtype=torch.int64)) for batch in batches]
    torch.save(given, tmp_path / "given.pt")
    subprocess.run([sys.executable, "-c", AHEAD_OF_TIME, str(tmp_path)], check=True, timeout=120)
    run, elsewhere = inductor.aoti_load_package(path), torch.load(tmp_path / "found.pt")
    for (values, lengths), there in zip(given, elsewhere, strict=True):
        with torch.no_grad():
            found, wanted = run(values, lengths), model(values, lengths)
        assert_close(found, wanted)
        assert_close(there, wanted)
