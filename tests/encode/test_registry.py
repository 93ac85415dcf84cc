"""Registering encoders: dispatch by type and bases, what keeps a state, refusals, and plug-ins by entry point."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.testing import assert_close

import seqbatch
from seqbatch import (
    SeqbatchError,
    SeqbatchTypeError,
    SequenceBatch,
    UnsupportedLayerError,
    encode,
    encode_with_state,
    is_recurrent,
    register_cross_attention,
    register_encoder,
    register_recurrent,
)
from seqbatch._encode import registry


@pytest.fixture(autouse=True)
def _registry_is_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the registry after each test, and let it search for plug-ins again."""
    for table in ("_entries", "_cross_attentions"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    registry._load_plugins.cache_clear()
    yield
    registry._load_plugins.cache_clear()
    for name in ("doubling_layers", "doubling_encoders"):
        sys.modules.pop(name, None)


class Base(nn.Module):
    pass


class Middle(Base):
    pass


class Leaf(Middle):
    pass


class Other(nn.Module):
    pass


class Both(Other, Middle):
    pass


XS = [torch.tensor([1.0, 2.0]), torch.tensor([]), torch.tensor([3.0])]


def adding(number: int) -> Any:
    """Return an encoder that adds a number, so that a result shows which one ran."""
    return lambda layer, batch: batch.map(lambda values: values + number)


def added(layer: nn.Module) -> int:
    """Return the number of the encoder that handles a layer."""
    outputs = encode(layer, XS)
    assert_close([output - outputs[0][0] + 1 for output in outputs], XS)
    return int(outputs[0][0] - 1)


def test_the_nearest_base_wins_whatever_the_order() -> None:
    register_encoder(Middle)(adding(2))
    register_encoder(Base)(adding(1))
    assert [added(layer) for layer in (Base(), Middle(), Leaf())] == [1, 2, 2]
    register_encoder(Leaf)(adding(3))
    assert [added(layer) for layer in (Base(), Middle(), Leaf())] == [1, 2, 3]
    register_encoder(nn.Module)(adding(9))
    assert [added(layer) for layer in (Base(), Other(), nn.Bilinear(1, 1, 1))] == [1, 9, 9]


def test_of_several_bases_the_first_wins() -> None:
    register_encoder(Base)(adding(1))
    assert added(Both()) == 1
    register_encoder(Other)(adding(2))
    assert added(Both()) == 2


def test_a_later_registration_replaces_an_earlier_one_also_a_built_in_one() -> None:
    for number in (1, 2):
        register_encoder(Base)(adding(number))
        register_encoder(nn.LSTM)(adding(number))
        assert added(Base()) == added(nn.LSTM(5, 3)) == number
    assert not is_recurrent(nn.LSTM(5, 3))
    assert is_recurrent(nn.GRU(5, 3))


def test_registrations_here_do_not_outlive_their_test() -> None:
    assert is_recurrent(nn.LSTM(5, 3))
    with pytest.raises(UnsupportedLayerError):
        encode(Base(), XS)


def test_types_with_one_function_are_run_as_different_types() -> None:
    encoder: Any = adding(1)
    for layer_type in (Base, Other):
        register_encoder(layer_type)(encoder)
    assert registry.is_run_as(Leaf(), Base)
    assert not registry.is_run_as(Leaf(), Other)


def test_a_decorator_returns_the_function_as_it_is() -> None:
    encoder: Any = adding(1)
    decorated: list[Any] = [register_encoder(Base)(encoder), register_recurrent(Base)(encoder)]
    assert decorated == [encoder, encoder]


def test_a_layer_that_carries_a_state_of_any_kind() -> None:
    @register_recurrent(Base)
    def _(layer: Base, batch: SequenceBatch, state: str | None) -> tuple[SequenceBatch, str]:
        return batch.map(torch.neg), f"{state} and {batch.batch_size}"

    assert is_recurrent(Leaf())
    outputs, state = encode_with_state(Leaf(), XS)
    assert_close(outputs, [-x for x in XS])
    assert state == "None and 3"
    assert encode_with_state(Leaf(), XS, state)[1] == "None and 3 and 3"
    assert_close(encode(Leaf(), XS), outputs)


def over_memory(number: int) -> Any:
    """Return an encoder over memory that adds a number and the batch size of memory."""
    return lambda layer, queries, memory: queries.map(lambda values: values + number + memory.batch_size)


def test_an_encoder_over_memory() -> None:
    decorated: Any = over_memory(1)
    assert register_cross_attention(Middle)(decorated) is decorated
    assert_close(encode(Leaf(), XS, XS), [x + 4 for x in XS])
    register_cross_attention(Leaf)(over_memory(2))
    assert_close(encode(Leaf(), XS, XS), [x + 5 for x in XS])
    assert_close(encode(Both(), XS, XS), [x + 4 for x in XS])
    assert not is_recurrent(Leaf())
    with pytest.raises(SeqbatchTypeError, match=r"`memory` must be given, for Leaf\(\); got None\."):
        encode(Leaf(), XS)
    with pytest.raises(UnsupportedLayerError, match=r"`layer` must have an encoder that takes memory; got .*Base: no"):
        encode(Base(), XS, XS)
    register_encoder(Base)(adding(1))
    assert added(Leaf()) == 1
    with pytest.raises(UnsupportedLayerError, match=r"`layer` must attend to memory; got .*Base, which takes none\."):
        encode(Base(), XS, XS)
    register_cross_attention(nn.LSTM)(over_memory(3))
    assert_close(encode(nn.LSTM(5, 3), XS, XS), [x + 6 for x in XS])


def test_an_encoder_over_memory_of_which_no_features_are_known() -> None:
    calls = []

    @register_cross_attention(Base)
    def _(layer: Base, queries: SequenceBatch, memory: SequenceBatch) -> SequenceBatch:
        calls.append((queries, memory))
        return queries.map(torch.neg)

    nothing, known = SequenceBatch.from_sequences([]), SequenceBatch(torch.zeros(0, 3), [])
    assert encode(Base(), [], []) == []
    for queries, memory in ((nothing, nothing), (nothing, known), (known, nothing)):
        assert encode(Base(), queries, memory) is queries
    assert calls == []
    assert encode(Base(), known, known).feature_shape == (3,)
    assert calls == [(known, known)]


def running_sums(layer: nn.Module, batch: SequenceBatch, state: Any) -> tuple[SequenceBatch, Tensor]:
    """Return the sum so far at each step; the state is one number for each sequence."""
    start = batch.values.new_zeros(batch.batch_size) if state is None else state
    parts = [one.cumsum(0) + begin for one, begin in zip(batch, start, strict=True)]
    return batch.with_values(torch.cat(parts)), start + batch.sum()


def test_encode_runs_outputs_without_the_state() -> None:
    calls = []

    def outputs(layer: nn.Module, batch: SequenceBatch) -> SequenceBatch:
        calls.append(batch.lengths)
        return running_sums(layer, batch, None)[0]

    register_recurrent(Base, outputs=outputs)(running_sums)
    xs = [torch.tensor([1.0, 2.0]), torch.tensor([4.0])]
    wanted, state = encode_with_state(Base(), xs)
    assert calls == []
    assert_close(state, torch.tensor([3.0, 4.0]))
    for layer in (Base(), nn.Sequential(Base())):
        assert_close(encode(layer, xs), wanted)
    assert calls == [(2, 1), (2, 1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch[:1], r"`outputs\(layer, batch\)` must have 3 sequences, as many as `batch`; got 1\."),
        (lambda batch: (batch, None), r"`outputs\(layer, batch\)` must be a SequenceBatch; got a tuple\. Return"),
    ],
)
def test_what_outputs_returns_is_checked(change: Any, message: str) -> None:
    register_recurrent(Base, outputs=lambda layer, batch: change(batch))(running_sums)
    with pytest.raises(SeqbatchError, match=message):
        encode(Base(), XS)


def test_outputs_is_a_function() -> None:
    not_a_function: Any = 3
    with pytest.raises(SeqbatchTypeError, match=r"`outputs` must be a function; got an int\."):
        register_recurrent(Base, outputs=not_a_function)


def test_when_tells_whether_a_layer_keeps_a_state() -> None:
    @register_recurrent(Base, when=lambda layer: isinstance(layer, Leaf))
    def _(layer: Base, batch: SequenceBatch, state: int | None) -> tuple[SequenceBatch, int]:
        return batch, 1 + (state or 0)

    assert [is_recurrent(layer) for layer in (Base(), Middle(), Leaf())] == [False, False, True]
    assert encode_with_state(Leaf(), XS, 4)[1] == 5
    assert_close(encode(Base(), XS), XS)
    with pytest.raises(UnsupportedLayerError, match=r"`layer` must keep a state; got a .*Middle, which keeps none\."):
        encode_with_state(Middle(), XS)
    assert is_recurrent(nn.Sequential(nn.Tanh(), Leaf()))
    assert not is_recurrent(nn.Sequential(nn.Tanh(), Base()))


def test_an_encoder_that_changes_the_lengths_gives_every_kind() -> None:
    @register_encoder(Base)
    def _(layer: Base, batch: SequenceBatch) -> SequenceBatch:
        return SequenceBatch.from_sequences(x[::2] for x in batch)

    xs = [torch.randn(n, 2) for n in (1, 4, 3)]
    wanted = [x[::2] for x in xs]
    assert_close(encode(Base(), xs), wanted)
    assert_close(encode(Base(), xs[1]), wanted[1])
    batch = SequenceBatch.from_sequences(xs)
    assert encode(Base(), batch).lengths == (1, 2, 2)
    packed = encode(Base(), pack_sequence(xs, enforce_sorted=False))
    assert isinstance(packed, PackedSequence)
    assert_close(SequenceBatch.from_packed(packed).to_sequences(), wanted)
    assert_close(SequenceBatch.from_nested(encode(Base(), batch.to_nested())).to_sequences(), wanted)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.zeros(3), r"must be a SequenceBatch; got a torch\.Tensor\. Return queries\.with_values\(values\), or"),
        (SequenceBatch(torch.zeros(3), [3]), r"must have 2 sequences, as many as `queries`; got 1\."),
    ],
)
def test_what_an_encoder_over_memory_returns_is_checked(result: Any, message: str) -> None:
    register_cross_attention(Base)(lambda *arguments: result)
    with pytest.raises(SeqbatchError, match=rf"^`encoder\(layer, queries, memory\)` {message}"):
        encode(Base(), [torch.zeros(2), torch.zeros(1)], [torch.zeros(2), torch.zeros(1)])


@pytest.mark.parametrize(
    ("register", "result", "message"),
    [
        (
            register_encoder,
            torch.zeros(3),
            r"`encoder\(layer, batch\)` must be a SequenceBatch; got a torch\.Tensor\. ",
        ),
        (register_recurrent, SequenceBatch(torch.zeros(3), [3]), r"must return a pair \(batch, state\); got a seqba"),
        (
            register_recurrent,
            (torch.zeros(3), None),
            r"`encoder\(layer, batch, state\)\[0\]` must be a SequenceBatch; got a torch",
        ),
        (
            register_encoder,
            SequenceBatch(torch.zeros(3), [3]),
            r"`encoder\(layer, batch\)` must have 2 sequences, as many as `batch`; got 1\.",
        ),
        (
            register_recurrent,
            (SequenceBatch(torch.zeros(3), [3]), None),
            r"`encoder\(layer, batch, state\)\[0\]` must have 2 sequences, as many as `batch`; got 1\.",
        ),
    ],
)
def test_what_an_encoder_returns_is_checked(register: Any, result: Any, message: str) -> None:
    register(Base)(lambda *arguments: result)
    with pytest.raises(SeqbatchError, match=message):
        encode(Base(), [torch.zeros(2), torch.zeros(1)])


@pytest.mark.parametrize("register", [register_encoder, register_recurrent, register_cross_attention])
@pytest.mark.parametrize(
    ("layer_type", "found"),
    [
        (int, r"<class 'int'>"),
        (Tensor, r"<class 'torch\.Tensor'>"),
        (nn.Linear(2, 2), r"a torch\.nn\.modules\.linear\.Linear"),
        ("LSTM", r"a str"),
        (None, r"None"),
    ],
)
def test_wrong_layer_type(register: Any, layer_type: Any, found: str) -> None:
    with pytest.raises(SeqbatchTypeError, match=rf"`layer_type` must be a subclass of nn\.Module; got {found}\."):
        register(layer_type)


@pytest.mark.parametrize("register", [register_encoder, register_recurrent, register_cross_attention])
@pytest.mark.parametrize(("wrong", "found"), [("x", "a str"), (None, "None"), (3, "an int")])
def test_what_is_registered_must_be_a_function(register: Any, wrong: Any, found: str) -> None:
    with pytest.raises(SeqbatchTypeError, match=rf"`encoder` must be a function; got {found}\."):
        register(Base)(wrong)
    with pytest.raises(UnsupportedLayerError):
        encode(Base(), XS)


def test_stepwise_is_a_bool() -> None:
    wrong: Any = 1
    with pytest.raises(SeqbatchTypeError, match=r"`stepwise` must be True or False; got 1\."):
        register_encoder(Base, stepwise=wrong)


@pytest.mark.parametrize(("wrong", "found"), [(3, "an int"), (True, "a bool")])
def test_when_must_be_a_function(wrong: Any, found: str) -> None:
    with pytest.raises(SeqbatchTypeError, match=rf"`when` must be a function; got {found}\."):
        register_recurrent(Base, when=wrong)


def test_is_recurrent_refuses_other_objects_and_unsupported_layers() -> None:
    with pytest.raises(SeqbatchTypeError, match=r"`layer` must be an nn\.Module; got a type\. Pass a layer, not its"):
        is_recurrent(nn.LSTM)  # type: ignore[arg-type]  # wrong
    with pytest.raises(UnsupportedLayerError, match=r"`layer` must have an encoder; got a .*Base: none is registered"):
        is_recurrent(Base())


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the package in tests/encode/plugin, and give the folder it is in."""
    target = tmp_path_factory.mktemp("installed")
    source = Path(__file__).with_name("plugin")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--quiet", "--no-input"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", target, source], check=True)
    return target


def test_plugins_are_found_by_their_entry_point(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(plugin)
    layers = importlib.import_module("doubling_layers")
    assert_close(encode(layers.Doubling(), XS), [2 * x for x in XS])
    assert not is_recurrent(layers.Doubling())
    message = r"\nThe plug-in broken = doubling_that_is_not_there could not be imported: ModuleNotFoundError\(.*\)$"
    with pytest.raises(UnsupportedLayerError, match=message):
        encode(Base(), XS)


PROGRAM = """
import sys

import torch
from doubling_layers import Doubling
from torch import nn

import seqbatch

assert seqbatch.__file__ == sys.argv[1], seqbatch.__file__
xs = [torch.ones(3, 2), torch.ones(1, 2)]
seqbatch.encode(nn.Sequential(nn.LSTM(2, 3), nn.Linear(3, 2)), xs)
assert "doubling_encoders" not in sys.modules, "imported before it was needed"
outputs = seqbatch.encode(Doubling(), xs)
assert "doubling_encoders" in sys.modules
assert all(output.equal(2 * x) for output, x in zip(outputs, xs))
try:
    seqbatch.encode(nn.Bilinear(2, 2, 2), xs)
except seqbatch.UnsupportedLayerError as error:
    assert "The plug-in broken = doubling_that_is_not_there could not be imported" in str(error), error
    print("all is well")
"""


def test_plugins_are_imported_when_a_layer_is_met_that_nothing_else_handles(plugin: Path, tmp_path: Path) -> None:
    path = [str(plugin), str(Path(seqbatch.__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-c", PROGRAM, seqbatch.__file__]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "all is well\n", done.stderr
