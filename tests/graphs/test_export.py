"""torch.export: one program for any number of sequences and steps, as it is and in another process."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from graph_models import LAYERS, PATTERNS, SMALL, Tagger, check_alone, signals, tokens
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.testing import assert_close

from seqbatch import SequenceBatch, encode

STEPS, BATCH, TIME = Dim("steps", min=0), Dim("batch", min=0), Dim("time", min=0)


def exported(model: nn.Module) -> ExportedProgram:
    """Export a model that takes a batch; its values and its lengths may have any number of rows."""
    return export(model.eval(), (tokens([3, 2, 4]),), dynamic_shapes=([{0: STEPS}, {0: BATCH}],))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_program_serves_all_lengths(kind: str) -> None:
    model = Tagger(kind)
    file = io.BytesIO()
    torch.export.save(exported(model), file)
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


def test_nothing_of_a_backward_pass_is_exported() -> None:
    for node in exported(Tagger("lstm")).graph.nodes:
        if "seqbatch" in str(node.target):
            assert True not in node.args[-1]


PROGRAM = """
import sys
import torch
import seqbatch

program = torch.export.load(sys.argv[1]).module()
given = torch.load(sys.argv[2])
results = [program(batch)[:2] for batch in given]
torch.save([(outputs.values, outputs.lengths, means) for outputs, means in results], sys.argv[3])
"""


def test_a_fresh_process_gives_the_same(tmp_path: Path) -> None:
    model = Tagger("lstm")
    batches = [tokens(lengths) for lengths in (PATTERNS | SMALL).values()]
    program, given, found = (str(tmp_path / name) for name in ("program.pt2", "given.pt", "found.pt"))
    torch.export.save(exported(model), program)
    torch.save(batches, given)
    subprocess.run([sys.executable, "-c", PROGRAM, program, given, found], check=True, timeout=120)
    results: Any = torch.load(found)
    for batch, (values, lengths, means) in zip(batches, results, strict=True):
        with torch.no_grad():
            outputs, wanted, _ = model(batch)
        assert lengths == batch.lengths
        assert_close(values, outputs.values)
        assert_close(means, wanted)


class Summary(nn.Module):
    """A model from flat values and their lengths to one vector of each sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 3, bidirectional=True)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        return encode(self.gru, SequenceBatch(values, lengths)).mean()


# Of what Inductor does itself.
@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated", r"ignore:`isinstance\(treespec, LeafSpec\)` is")
def test_ahead_of_time_where_python_is(tmp_path: Path) -> None:
    """What AOTInductor makes runs where Python has imported seqbatch, for the operators are Python's."""
    model, batch = Summary().eval(), signals([3, 0, 2])
    dimensions = ({0: STEPS}, {0: BATCH})
    program = export(model, (batch.values, torch.tensor(batch.lengths)), dynamic_shapes=dimensions)
    inductor: Any = torch._inductor
    path = inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    run = inductor.aoti_load_package(path)
    for lengths in PATTERNS.values():
        batch = signals(lengths)
        with torch.no_grad():
            assert_close(run(batch.values, torch.tensor(lengths)), encode(model.gru, batch).mean())
