"""What errors advise: each remedy that is code is run, and gives what each sequence gives alone."""

import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close

from seqbatch import (
    SeqbatchValueError,
    SequenceBatch,
    UnsupportedLayerError,
    encode,
    encode_with_state,
    is_recurrent,
    register_cross_attention,
    register_encoder,
)
from seqbatch._encode import registry
from seqbatch.data import encode_chunks

XS = [torch.randn(n, 4) for n in (5, 2, 0, 4)]


class Positions(nn.Module):
    """A positional encoding, which `batch.map` would run across sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(99, 4))

    def forward(self, sequence: Tensor) -> Tensor:
        return sequence + self.get_buffer("table")[: len(sequence)]


class UsersModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 3), nn.Linear(3, 2)

    def forward(self, sequence: Tensor) -> Any:
        return self.head(self.lstm(sequence)[0])


class Around(nn.Module):
    """A module whose `forward` calls encode, as errors advise."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, batch: SequenceBatch) -> SequenceBatch:
        return encode(self.layer, batch)


@pytest.fixture
def one_process(tmp_path: Any) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def refusal(layer: nn.Module) -> str:
    """Return the message that every call has for a layer."""
    messages = set()
    for call in (encode, encode_with_state, lambda layer, _: is_recurrent(layer)):
        with pytest.raises(UnsupportedLayerError) as caught:
            call(layer, XS)
        messages.add(str(caught.value))
    (message,) = messages
    assert "batch.map(layer)" not in message
    return message


WRAP = (
    r"Wrap a module whose `forward` takes a SequenceBatch and calls encode on the layer, and call the wrapper itself\."
)
MADE_OF_LAYERS = (
    r"If it is made of layers, let its `forward` take and return a SequenceBatch and call encode on each of them "
    r"\({}\); then call the module itself, and not encode\. Otherwise: Register an encoder:\n\n"
)


def test_the_error_for_a_model_made_of_layers_says_to_call_encode_on_each() -> None:
    message = refusal(UsersModel())
    found = r"^`layer` must have an encoder; got a \S+UsersModel: none is registered for it or its bases\. "
    assert re.match(found + MADE_OF_LAYERS.format("`lstm`, `head`"), message)


def test_the_error_for_a_container_with_its_own_forward_says_so_too() -> None:
    class Own(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return -input

    found = r"^`layer` must have an encoder; got a \S+Own: it has a forward of its own\. "
    assert re.match(found + MADE_OF_LAYERS.format("`0`"), refusal(Own(nn.Linear(4, 3))))


def paste(code: str, kind: type[nn.Module]) -> None:
    """Run code from an error, as a user would paste it beside a class of their own."""
    functions = (register_encoder, register_cross_attention)
    names = {one.__name__: one for one in (*functions, SequenceBatch, kind)}
    exec(textwrap.dedent(code), names)


class UsersDecoder(nn.Module):
    def forward(self, query: Tensor, source: Tensor) -> Tensor:
        return query + source.sum(0)


def test_the_plug_in_over_memory_that_the_error_shows_does_nothing_until_it_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "_cross_attentions", dict(registry._cross_attentions))
    layer = UsersDecoder()
    with pytest.raises(UnsupportedLayerError) as caught:
        encode(layer, XS, XS)
    message, _, code = str(caught.value).partition(" Register an encoder:\n\n")
    found = "UsersDecoder: none is registered for it or its bases."
    assert re.fullmatch(rf"`layer` must have an encoder that takes memory; got a \S*{found}", message)
    paste(code, UsersDecoder)
    with pytest.raises(NotImplementedError):
        encode(layer, XS, XS)
    assert "# For example, if it takes two sequences of shape (steps, *features):\n" in code
    paste(code.replace("# sources", "sources").replace("# return", "return"), UsersDecoder)
    assert_close(encode(layer, XS, XS), [layer(x, x) for x in XS])
    nothing = SequenceBatch(torch.zeros(0, 4), [])
    assert encode(layer, nothing, nothing).values.shape == (0, 4)


@pytest.mark.parametrize("kind", [Positions, UsersModel])
def test_the_plug_in_that_the_error_shows_does_nothing_until_it_is_written(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    layer = kind()
    *_, template = refusal(layer).partition("Register an encoder:\n\n")
    code, _, ending = template.partition("\n\nor ")
    assert ending == f"by @register_recurrent({kind.__name__}) if it carries a state."
    paste(code, kind)
    with pytest.raises(NotImplementedError):
        encode(layer, XS)
    (example,) = re.findall(r"# For example (.*), if it takes one sequence of shape \(steps, \*features\)\.", code)
    paste(code.replace("raise NotImplementedError", f"return {example}"), kind)
    xs = [x for x in XS if len(x)]
    assert_close(encode(layer, xs), [layer(x) for x in xs])


# Layers of PyTorch without an encoder, with the axes of features that a step has beside the channels.
CHANNELS_FIRST: list[tuple[nn.Module, int]] = [
    (nn.AdaptiveAvgPool1d(3), 0),
    (nn.AdaptiveAvgPool2d((3, 2)), 1),
    (nn.AdaptiveAvgPool3d(2), 2),
    (nn.AdaptiveMaxPool1d(2), 0),
    (nn.AdaptiveMaxPool2d(2), 1),
    (nn.AdaptiveMaxPool3d(2), 2),
    (nn.AvgPool3d(2), 2),
    (nn.BatchNorm3d(4), 2),
    (nn.ChannelShuffle(2), 0),
    (nn.ChannelShuffle(2), 1),
    (nn.CircularPad3d(1), 2),
    (nn.ConstantPad3d(1, 2.0), 2),
    (nn.Conv3d(4, 3, 2), 2),
    (nn.ConvTranspose1d(4, 3, 2, 2), 0),
    (nn.ConvTranspose2d(4, 3, 2, 2), 1),
    (nn.ConvTranspose3d(4, 3, 2), 2),
    (nn.CrossMapLRN2d(2), 1),
    (nn.Dropout3d().eval(), 2),
    (nn.Fold((2, 3), 2), 0),
    (nn.FractionalMaxPool2d(2, output_size=2, _random_samples=torch.rand(1, 4, 2)), 1),
    (nn.FractionalMaxPool3d(2, output_size=2, _random_samples=torch.rand(1, 4, 3)), 2),
    (nn.InstanceNorm2d(4), 1),
    (nn.InstanceNorm3d(4), 2),
    (nn.LPPool3d(2, 2), 2),
    (nn.LazyBatchNorm3d(), 2),
    (nn.LazyConv3d(3, 2), 2),
    (nn.LazyConvTranspose1d(3, 2), 0),
    (nn.LazyConvTranspose2d(3, 2), 1),
    (nn.LazyConvTranspose3d(3, 2), 2),
    (nn.LazyInstanceNorm1d(), 0),
    (nn.LazyInstanceNorm2d(), 1),
    (nn.LazyInstanceNorm3d(), 2),
    (nn.LocalResponseNorm(2), 0),
    (nn.LocalResponseNorm(2), 1),
    (nn.MaxPool3d(2), 2),
    (nn.PixelShuffle(2), 1),
    (nn.PixelUnshuffle(2), 1),
    (nn.ReflectionPad3d(1), 2),
    (nn.ReplicationPad3d(1), 2),
    (nn.Softmax2d(), 1),
    (nn.Unfold(2), 1),
    (nn.Upsample(scale_factor=2), 0),
    (nn.Upsample(scale_factor=2), 1),
    (nn.UpsamplingBilinear2d(scale_factor=2), 1),
    (nn.UpsamplingNearest2d(scale_factor=2), 1),
    (nn.ZeroPad3d(1), 2),
]
# These take several Tensors, so that their example, of one, raises.
OF_SEVERAL_TENSORS = {"MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d", "NLLLoss2d"}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of lazy layers
@pytest.mark.parametrize(("layer", "features"), CHANNELS_FIRST, ids=lambda one: type(one).__name__)
def test_the_example_for_a_layer_that_takes_channels_first(layer: nn.Module, features: int) -> None:
    axes = [", \\*features" if type(layer).__name__ in ("ChannelShuffle", "LocalResponseNorm", "Upsample") else ""]
    axes += [", features", ", height, width"]
    named = axes[0] or axes[features]
    condition = rf"for sequences \(steps, channels{named}\), if it takes \(batch, channels, steps{named}\)\.\n"
    (example,) = re.findall(rf"# For example (.*),\n +# {condition}", refusal(layer))
    lengths = (2, 2) if isinstance(layer, nn.Fold) else (4, 6)  # the blocks are the steps, and the options fix them
    batch = SequenceBatch([torch.randn(n, 4, *[4] * features) for n in lengths])
    found = eval(example, {"batch": batch, "layer": layer})
    assert_close(list(found), [layer(x.movedim(0, 1)[None])[0].movedim(1, 0) for x in batch])
    if not axes[0]:
        for other in {0, 1, 2} - {features}:
            wrong = SequenceBatch([torch.randn(n, 4, *[4] * other) for n in lengths])
            with pytest.raises(RuntimeError, match="permute"):
                eval(example, {"batch": wrong, "layer": layer})


def test_every_layer_that_takes_channels_first_has_such_an_example() -> None:
    tested = {getattr(type(layer), "cls_to_become", None) or type(layer) for layer, _ in CHANNELS_FIRST}
    for name, layer_type in vars(nn).items():
        if re.search("[123]d$", name) and name not in OF_SEVERAL_TENSORS and not name.startswith("Lazy"):
            assert layer_type in tested or any(base in registry._entries for base in layer_type.__mro__), name
    for layer in (nn.MaxUnpool1d(2), nn.MaxUnpool2d(2), nn.Bilinear(4, 4, 3)):
        assert "# For example batch.map_sequences(layer), if it takes one sequence of" in refusal(layer)


def test_a_container_whose_forward_accelerate_has_replaced() -> None:
    layer: Any = nn.Sequential(nn.Linear(4, 3))
    layer._old_forward, layer.forward = layer.forward, lambda *given: layer._old_forward(*given)  # as accelerate does
    message = refusal(layer)
    assert message.startswith(
        "`layer` must have the `forward` of its class, and not one of accelerate; got a torch.nn."
    )
    assert message.endswith(
        "Prepare a module whose `forward` takes a SequenceBatch and calls encode on the layer, and call what you get."
    )


def test_an_averaged_model() -> None:
    averaged = AveragedModel(nn.LSTM(4, 3))
    message = refusal(averaged)
    found = (
        r"^`layer` must be a layer itself, and not a wrapper of one; got a torch\.optim\.swa_utils\.AveragedModel: none"
    )
    assert re.match(found, message)
    (advised,) = re.findall(r"Pass the averaged layer itself, (.*)\.$", message)
    wanted = [averaged(x)[0] for x in XS if len(x)]
    assert_close([one for one in encode(eval(advised, {"layer": averaged}), XS) if len(one)], wanted)


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "CheckpointWrapper": checkpoint_wrapper,
    "DataParallel": DataParallel,
    "DistributedDataParallel": DistributedDataParallel,
}


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_go_around_what_calls_encode(name: str) -> None:
    wrap, layer = WRAPPERS[name], nn.LSTM(4, 3)
    message = refusal(wrap(layer))
    assert re.match(rf"^`layer` must be a layer itself, and not a wrapper of one; got a torch\..*\.{name}: ", message)
    assert re.search(WRAP + "$", message)
    batch = SequenceBatch.from_sequences(XS)
    around = (DistributedDataParallel if "DistributedDataParallel" in message else wrap)(Around(layer))
    outputs = around(batch)
    assert_close(outputs.values, encode(layer, batch).values)
    outputs.values.sum().backward()
    assert layer.weight_ih_l0.grad is not None


def test_what_was_made_of_a_layer() -> None:
    layer = nn.Linear(4, 3)
    for made in (torch.jit.script(layer), torch.fx.symbolic_trace(layer)):
        message = refusal(made)
        assert message.startswith("`layer` must be a layer itself, and not a wrapper of one; got a torch.")
        assert message.endswith("Pass the layer that it was made from.")


SOFTMAXES = {
    nn.LogSoftmax: "batch.log_softmax()",
    nn.Softmax: "batch.softmax()",
    nn.Softmin: "batch.map(torch.neg).softmax()",
}


@pytest.mark.parametrize("kind", SOFTMAXES)
def test_what_is_advised_for_a_softmax_over_the_steps(kind: Any) -> None:
    for scale in (1.0, 1000.0):
        xs = [scale * torch.randn(n, 2) for n in (5, 1, 0, 3)]
        batch = SequenceBatch.from_sequences(xs)
        for layer, given in ((kind(0), batch), (kind(-1), batch.map(lambda values: values[:, 0]))):
            with pytest.raises(SeqbatchValueError) as caught:
                encode(layer, given)
            (advised,) = re.findall(r"over the steps call (.*)\.$", str(caught.value).splitlines()[0])
            assert advised == SOFTMAXES[kind]
            found = eval(advised, {"batch": given, "torch": torch})
            assert_close(list(found), [kind(0)(x) for x in given])


def test_an_embedding_bag_with_padding() -> None:
    bag = nn.EmbeddingBag(9, 4, mode="mean", padding_idx=0)
    message = r"Leave out the steps of padding_idx, which are in no mean\. Encode by nn.Embedding, and call mean\(\) on"
    ids = [torch.tensor([3, 0, 4]), torch.tensor([0]), torch.tensor([5, 5])]
    with pytest.raises(UnsupportedLayerError, match=message):
        encode(bag, ids)
    embedding = nn.Embedding.from_pretrained(bag.weight)
    found = SequenceBatch.from_sequences(encode(embedding, [one[one != 0] for one in ids])).mean()
    assert_close(found, torch.cat([bag(one[None]) for one in ids]))


def test_chunks_of_a_layer_without_a_state() -> None:
    message = r"which keeps none\. Call encode on the whole, or on each chunk if it treats every step by itself\."
    for layer in (nn.Conv1d(4, 3, 3), nn.Linear(4, 3)):
        with pytest.raises(UnsupportedLayerError, match=message):
            encode_chunks(layer, XS[0].split(2))


def test_an_encoder_that_returns_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    register_encoder(Positions)(lambda layer, batch: batch.values)  # type: ignore[arg-type, return-value]  # wrong
    message = r"must be a SequenceBatch; got a torch\.Tensor\. Return batch\.with_values\(values\), or SequenceBatch\("
    with pytest.raises(TypeError, match=message):
        encode(Positions(), XS)
