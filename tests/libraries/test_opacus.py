"""opacus: gradients per sample are those of each sequence alone, by the remedy of the error that `encode` raises."""

import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any

import pytest
import torch
from opacus import PrivacyEngine
from opacus.grad_sample import (
    GradSampleHooks,
    GradSampleModule,
    GradSampleModuleExpandedWeights,
    GradSampleModuleFastGradientClipping,
    GradSampleModuleNoOp,
)
from opacus.layers import DPGRU, DPLSTM, DPRNN
from torch import Tensor, func, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.testing import assert_close
from torch.utils.data import DataLoader

from seqbatch import SequenceBatch, UnsupportedLayerError, encode, encode_with_state, register_encoder, scan
from seqbatch._torch import has_global_hooks
from seqbatch.data import encode_chunks
from seqbatch.layers import AdditiveAttention, AttentionPool, Causal, LayerNormLSTM, Residual, TwoWay

pytestmark = [
    # Warnings about opacus itself, its hooks and its engine.
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
    pytest.mark.filterwarnings("ignore:Secure RNG turned off:UserWarning"),
    pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha:UserWarning"),
    # By functorch it takes ids for values in half precision.
    pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype is not supported:UserWarning"),
]
LENGTHS = [3, 1, 4, 2]
REFUSED = (
    r"^`{subject}` must not have gradients per sample, such as those of opacus, because each step would count as a "
    r"sample; got {found}\. If it treats every step by itself, call it on batch\.to_padded\(batch_first=True\), and go "
    r"back by SequenceBatch\.from_padded\(outputs, batch\.lengths, batch_first=True\)\. In place of nn\.LSTM, nn\.GRU "
    r"or nn\.RNN call opacus\.layers\.DPLSTM, DPGRU or DPRNN, of one direction and batch_first=True, on the same\."
    r"(\n|$)"
)


def refused(found: str = ".*", subject: str = "layer") -> Any:
    return pytest.raises(UnsupportedLayerError, match=REFUSED.format(subject=subject, found=found))


def sequences() -> list[Tensor]:
    return [torch.randn(length, 4) for length in LENGTHS]


class Scale(nn.Module):
    """A layer of a user, with an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


@register_encoder(Scale)
def _(layer: Scale, batch: SequenceBatch) -> SequenceBatch:
    return batch.with_values(layer(batch.values))


LAYERS: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(4, 4),
    lambda: nn.LayerNorm(4),
    lambda: nn.RMSNorm(4),
    lambda: nn.GroupNorm(2, 4),
    lambda: nn.InstanceNorm1d(4, affine=True),
    lambda: nn.PReLU(),
    lambda: nn.Conv1d(4, 4, 1),
    lambda: nn.Conv2d(1, 4, 1),
    lambda: nn.LSTM(4, 4),
    lambda: nn.GRU(4, 4, bidirectional=True),
    lambda: nn.RNN(4, 4),
    lambda: nn.LSTMCell(4, 4),
    lambda: nn.GRUCell(4, 4),
    lambda: nn.MultiheadAttention(4, 2),
    lambda: nn.TransformerEncoderLayer(4, 2),
    lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2), 2, enable_nested_tensor=False),
    lambda: nn.Sequential(nn.ReLU(), nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4))),
    lambda: nn.ModuleList([nn.ReLU(), nn.Linear(4, 4)]),
    lambda: Residual(nn.Sequential(nn.ReLU(), nn.Linear(4, 4))),
    lambda: TwoWay(nn.LSTM(4, 2), nn.LSTM(4, 2)),
    lambda: Causal(nn.MultiheadAttention(4, 2)),
    lambda: AttentionPool(4),
    lambda: LayerNormLSTM(4, 4),
    Scale,
]
KINDS: list[Callable[[nn.Module], Any]] = [
    GradSampleModule,
    GradSampleHooks,
    lambda layer: GradSampleModule(layer, force_functorch=True),
    GradSampleModuleFastGradientClipping,
    lambda layer: GradSampleModuleFastGradientClipping(layer, use_ghost_clipping=False),
]


def calls(layer: nn.Module, batch: Any) -> list[Callable[[], Any]]:
    return [
        lambda: encode(layer, batch),
        lambda: encode_with_state(layer, batch),
        lambda: next(encode_chunks(layer, [batch])),
    ]


def test_what_opacus_would_clip_without_the_error() -> None:
    layer = nn.Linear(4, 2)
    hooked = GradSampleModule(layer)
    batch = SequenceBatch.from_sequences(sequences())
    batch.with_values(layer(batch.values)).mean().sum().backward()
    weight: Any = layer.weight
    assert weight.grad_sample.shape == (sum(LENGTHS), 2, 4)  # ten samples, of four sequences
    hooked.remove_hooks()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", LAYERS)
def test_every_layer_is_refused_in_training(build: Callable[[], nn.Module], kind: Callable[[nn.Module], Any]) -> None:
    layer, batch = build(), SequenceBatch(torch.randn(7, 4), [3, 2, 2])
    entered: list[nn.Module] = []
    for module in layer.modules():
        module.register_forward_pre_hook(lambda module, args: entered.append(module))
    hooked = kind(layer)
    with refused():
        encode(layer, batch)
    assert not entered  # before any work
    hooked.remove_hooks()
    encode(layer, batch)
    assert entered


def test_attention_to_memory_is_refused_in_training() -> None:
    for layer in (nn.TransformerDecoderLayer(4, 2, 8), AdditiveAttention(4, 4, 3)):
        hooked = GradSampleModule(layer, strict=False)
        with refused():
            encode(layer, sequences(), sequences())
        if isinstance(layer, AdditiveAttention):
            with refused():
                layer.attend(sequences(), sequences())
        hooked.remove_hooks()
        encode(layer, sequences(), sequences())


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_refused(kind: Callable[[nn.Module], Any]) -> None:
    layer = nn.Linear(4, 4)

    def step(inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        output = layer(inputs)
        return output, state

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            return step(inputs, state)

    hooked = kind(layer)
    for one in (step, Step()):
        with refused(r"Linear\(.*\)", "step"):
            scan(one, sequences(), torch.zeros(4, 4))
    hooked.remove_hooks()
    assert scan(step, sequences(), torch.zeros(4, 4))[0][0].shape == (3, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_refused(kind: Callable[[nn.Module], Any]) -> None:
    layer = nn.Embedding(9, 4)
    hooked = kind(layer)
    with refused(r"Embedding\(9, 4\)"):
        encode(layer, [torch.tensor([1, 2])])
    hooked.remove_hooks()
    assert encode(layer, [torch.tensor([1, 2])])[0].shape == (2, 4)


def test_every_way_to_run_a_layer_is_refused() -> None:
    gru, linear = nn.GRU(4, 4), nn.Linear(4, 4)
    GradSampleModule(nn.ModuleList([gru, linear]))
    for call in calls(gru, sequences()):
        with refused(r"GRU\(4, 4\)"):
            call()
    batch = SequenceBatch.from_sequences(sequences())
    with refused(r"Linear\(.*\)", "function"):
        batch.map(linear)
    with refused(r"Linear\(.*\)"):
        encode(GradSampleModule(nn.Linear(4, 4)), batch)
    assert batch.map(torch.relu).lengths == batch.lengths


class Head(nn.Module):
    """A layer that calls another, which `map` cannot see in a lambda."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x).tanh()
        return outputs


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_the_function_of_map_calls_is_refused(kind: Callable[[nn.Module], Any]) -> None:
    layer, batch = nn.Linear(4, 4), SequenceBatch.from_sequences(sequences())
    head = Head(layer)
    wanted = batch.map(head)
    entered: list[nn.Module] = []
    layer.register_forward_pre_hook(lambda module, args: entered.append(module))
    hooked = kind(layer)
    for function in (lambda values: layer(values) * 2, lambda values: head(values[None])[0], head.forward, head):
        with refused(r"Linear\(.*\)", "function"):
            batch.map(function)
    assert not entered  # so opacus has captured nothing either
    assert not hasattr(layer, "activations")
    with torch.no_grad():
        assert_close(batch.map(head.forward).values, wanted.values)
    hooked.remove_hooks()
    assert_close(batch.map(head.forward).values, wanted.values)


def test_a_layer_that_the_function_of_map_sequences_calls_is_refused() -> None:
    layer, batch = nn.Linear(4, 4), SequenceBatch.from_sequences(sequences())
    GradSampleModule(layer)
    for function in (layer, lambda sequence: layer(sequence) * 2):
        for some in (batch, batch[:0]):
            with refused(r"Linear\(.*\)", "function"):
                some.map_sequences(function)
    assert_close(batch.map_sequences(torch.relu).values, batch.map(torch.relu).values)


def test_outside_of_map_the_layer_runs() -> None:
    """Only the thread that maps is watched, and only while the function runs."""
    layer, plain, batch = nn.Linear(4, 4), nn.Linear(4, 4), SequenceBatch.from_sequences(sequences())
    GradSampleModule(layer)
    in_other: list[Any] = []

    def function(values: Tensor) -> Tensor:
        thread = Thread(target=lambda: in_other.append((layer(batch.to_padded(batch_first=True)), has_global_hooks())))
        thread.start()
        thread.join()
        outputs: Tensor = plain(values)
        return outputs

    assert_close(batch.map(function).values, plain(batch.values))
    ((outputs, hooked),) = in_other
    assert outputs.shape == (4, 4, 4)
    assert not hooked  # so that `encode` in other threads runs as ever
    with pytest.raises(ZeroDivisionError):
        batch.map(lambda values: values + 1 // 0)
    with refused(r"Linear\(.*\)", "function"):
        batch.map(lambda values: layer(values))
    assert not nn.modules.module._global_forward_pre_hooks
    outputs.sum().backward()
    weight: Any = layer.weight
    assert weight.grad_sample.shape == (4, 4, 4)


def test_nothing_is_registered_where_opacus_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[int] = []

    def function(values: Tensor) -> Tensor:
        registered.append(len(nn.modules.module._global_forward_pre_hooks))
        return values

    batch = SequenceBatch.from_sequences(sequences())
    batch.map(function)
    for name in ("opacus", "torch.nn.utils._expanded_weights"):
        monkeypatch.delitem(sys.modules, name)
    batch.map(function)
    assert registered == [1, 0]


def test_many_threads_map_at_once() -> None:
    layer, plain, batch = nn.Linear(4, 4), nn.Linear(4, 4), SequenceBatch.from_sequences(sequences())
    GradSampleModule(layer)

    def right_or_refused(number: int) -> bool:
        if number % 2:
            return batch.map(lambda values: plain(values)).total_steps == batch.total_steps
        with refused(r"Linear\(.*\)", "function"):
            batch.map(lambda values: layer(values))
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(right_or_refused, range(400)))
    assert not nn.modules.module._global_forward_pre_hooks


@pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks:UserWarning")
def test_a_compiled_function_in_map() -> None:
    torch._dynamo.reset()
    mlp, batch = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), SequenceBatch.from_sequences(sequences())
    compiled: Any = torch.compile(mlp, backend="eager", fullgraph=True)
    assert_close(batch.map(compiled).values, mlp(batch.values))


def test_where_opacus_keeps_nothing_encode_runs() -> None:
    """In evaluation, without gradients, with its hooks switched off, and in a layer that is frozen."""
    layer: Any = nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 3))
    wanted = encode(layer, xs := sequences())
    hooked = GradSampleModule(layer)
    with torch.no_grad():
        assert_close(encode(layer, xs), wanted)
    hooked.disable_hooks()
    assert_close(encode(layer, xs), wanted)
    hooked.enable_hooks()
    assert_close(encode(layer.eval(), xs), wanted)
    layer.train()
    with refused():
        encode(layer, xs)
    layer[0].requires_grad_(False)
    assert_close(encode(layer[0], xs), [layer[0](x) for x in xs])
    with refused(r"GRU\(4, 3\)"):
        encode(layer, xs)
    assert hooked.to_standard_module() is layer
    assert_close(encode(layer, xs), wanted)


def test_frozen_layers_get_no_hooks() -> None:
    frozen, linear = nn.GRU(4, 4).requires_grad_(False), nn.Linear(4, 2)
    GradSampleModule(nn.ModuleList([frozen, linear]))
    batch = encode(frozen, SequenceBatch.from_sequences(sequences()))
    linear(batch.mean()).sum().backward()
    weight: Any = linear.weight
    assert weight.grad_sample.shape == (len(LENGTHS), 2, 4)
    with refused(r"Linear\(.*\)"):
        encode(linear, batch)


def test_hooks_and_marks_of_others_are_allowed() -> None:
    layer = nn.Linear(4, 4)
    GradSampleModule(layer).remove_hooks()  # which leaves marks on the weights
    seen: list[int] = []
    layer.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    layer.register_forward_hook(Recorder(seen).record)
    encode(layer, sequences())
    assert seen == [sum(LENGTHS)] * 2


class Recorder:
    def __init__(self, seen: list[int]) -> None:
        self.hooks_enabled, self.seen = True, seen

    def record(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen.append(len(output))


class OnPadded(nn.Module):
    """Runs a layer on padded sequences, as the remedy says, and gives for each sequence the mean of what it gives."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, padded: Tensor, lengths: Tensor) -> Tensor:
        batch = SequenceBatch.from_padded(padded, lengths, batch_first=True)
        outputs = self.layer(batch.to_padded(batch_first=True))
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        return SequenceBatch.from_padded(outputs, batch.lengths, batch_first=True).mean()


class Tagger(nn.Module):
    """Ids to a label, by a layer of each kind that the error names."""

    def __init__(self, kind: Callable[..., nn.Module] = DPLSTM, **options: bool) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(9, 5), nn.LayerNorm(5)
        self.recurrent = kind(5, 4, batch_first=True, **options)
        self.head = nn.Linear(8 if options else 4, 3)

    def forward(self, padded: Tensor, lengths: Tensor) -> Any:
        outputs, _ = self.recurrent(self.norm(self.embedding(padded)))
        return self.head(SequenceBatch.from_padded(outputs, lengths, batch_first=True).mean())


class PackedTagger(Tagger):
    """Bidirectional, so that its recurrent layer must not read padding."""

    def __init__(self) -> None:
        super().__init__(bidirectional=True)

    def forward(self, padded: Tensor, lengths: Tensor) -> Any:
        batch = SequenceBatch.from_padded(self.norm(self.embedding(padded)), lengths, batch_first=True)
        outputs, _ = self.recurrent(batch.to_packed())
        return self.head(SequenceBatch.from_packed(outputs).mean())


def padded_ids(numbers: list[int]) -> tuple[Tensor, Tensor, list[Tensor]]:
    xs = [torch.randint(0, 9, (length,)) for length in numbers]
    return pad_sequence(xs, batch_first=True), torch.tensor(numbers), xs


ALONE = {DPLSTM: nn.LSTM, DPGRU: nn.GRU, DPRNN: nn.RNN}
LABELS = torch.tensor([0, 1, 2, 0])


def gradients_alone(model: Tagger, xs: list[Tensor]) -> list[dict[str, Tensor]]:
    """The oracle: plain layers of PyTorch, on each sequence alone; gradients by the names that these have."""
    recurrent: Any = model.recurrent
    layer = ALONE[type(recurrent)](5, 4, bidirectional=recurrent.bidirectional)
    layer.load_state_dict(recurrent.state_dict())  # where opacus has the names of PyTorch
    plain = nn.ModuleDict({"embedding": model.embedding, "norm": model.norm, "recurrent": layer, "head": model.head})
    found = []
    for x, label in zip(xs, LABELS, strict=True):
        outputs, _ = layer(model.norm(model.embedding(x)))
        loss = cross_entropy(model.head(outputs.mean(0)), label)
        names, weights = zip(*plain.named_parameters(), strict=True)
        found.append(dict(zip(names, torch.autograd.grad(loss, weights), strict=True)))
    return found


def named(model: Tagger) -> dict[str, Any]:
    """Return the weights by the names of plain layers, because opacus keeps those of a cell in its own layers."""
    name = re.compile(r"recurrent\.(l0)(_reverse)?\.(ih|hh)\.(weight|bias)")
    return {name.sub(r"recurrent.\4_\3_\1\2", key): weight for key, weight in model.named_parameters()}


def samples_of(model: Tagger, numbers: list[int], **mode: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the gradients per sample that opacus computes for a model, and those of each sequence alone."""
    padded, lengths, xs = padded_ids(numbers)
    alone = gradients_alone(model, xs)
    hooked = GradSampleModule(model, **mode)
    cross_entropy(hooked(padded, lengths), LABELS).backward()
    found = {name: weight.grad_sample for name, weight in named(model).items()}
    return found, {name: torch.stack([one[name] for one in alone]) for name in alone[0]}


@pytest.mark.parametrize("mode", [{}, {"force_functorch": True}])
@pytest.mark.parametrize("kind", [DPLSTM, DPGRU, DPRNN])
def test_the_remedy_gives_the_gradients_of_each_sequence_alone(kind: Any, mode: dict[str, bool]) -> None:
    found, wanted = samples_of(Tagger(kind), LENGTHS, **mode)
    assert_close(found, wanted)


def test_two_directions_need_packed_sequences_the_longest_first() -> None:
    found, wanted = samples_of(PackedTagger(), sorted(LENGTHS, reverse=True))
    assert_close(found, wanted)
    # In another order opacus adds the norm of one sequence in the recurrent layer to that of another in the rest.
    found, wanted = samples_of(PackedTagger(), LENGTHS)
    order = torch.tensor(LENGTHS).argsort(descending=True)
    for name, samples in found.items():
        assert_close(samples, wanted[name][order] if name.startswith("recurrent") else wanted[name])
    # And from padded ones the backward direction begins in padding.
    found, wanted = samples_of(Tagger(bidirectional=True), LENGTHS)
    assert not torch.allclose(found["head.weight"], wanted["head.weight"], atol=1e-4)


@pytest.mark.parametrize(
    "build", [lambda: nn.Linear(4, 3), lambda: nn.LayerNorm(4), lambda: DPLSTM(4, 3, batch_first=True)]
)
def test_norms_by_ghost_clipping_are_those_of_each_sequence_alone(build: Callable[[], nn.Module]) -> None:
    xs, model = sequences(), OnPadded(build())
    norms = []
    for x in xs:
        model.zero_grad()
        model(x[None], torch.tensor([len(x)])).square().sum().backward()
        norms.append(torch.stack([weight.grad.norm() for weight in model.parameters() if weight.grad is not None]))
    hooked = GradSampleModuleFastGradientClipping(model, loss_reduction="sum")
    hooked(pad_sequence(xs, batch_first=True), torch.tensor(LENGTHS)).square().sum().backward()
    found: list[Any] = [*model.parameters()]
    assert_close(torch.stack([one._norm_sample for one in found], 1), torch.stack(norms))


def test_expanded_weights() -> None:
    """Where there are as many steps as sequences PyTorch would not notice, and be wrong: so `encode` raises."""
    xs, linear = sequences(), nn.Linear(4, 3)

    class Encoding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, padded: Tensor, lengths: Tensor) -> Tensor:
            return encode(self.linear, SequenceBatch.from_padded(padded, lengths, batch_first=True)).mean()

    for lengths in ([3, 1, 4, 2], [4, 0, 0, 0], [1, 1, 1, 1]):
        with refused(r"Linear\(.*\)"):
            GradSampleModuleExpandedWeights(Encoding())(pad_sequence(xs, batch_first=True), torch.tensor(lengths))
    model = GradSampleModuleExpandedWeights(OnPadded(linear), loss_reduction="sum")
    model(pad_sequence(xs, batch_first=True), torch.tensor(LENGTHS)).square().sum().backward()
    weight: Any = linear.weight
    for x, found in zip(xs, weight.grad_sample, strict=True):
        assert_close(found, torch.autograd.grad(linear(x).mean(0).square().sum(), linear.weight)[0])
    encode(linear, xs)  # the layer itself has its own weights


def test_expanded_weights_in_a_function_of_map() -> None:
    linear = nn.Linear(4, 3)

    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, values: Tensor) -> Tensor:
            return SequenceBatch(values, [3, 1]).map(lambda steps: self.linear(steps)).mean()

    with refused(r"Linear\(.*\)", "function"):
        GradSampleModuleExpandedWeights(Mapped())(torch.randn(4, 4))


@pytest.mark.parametrize("kind", [nn.Linear, nn.GRU, nn.LSTM])
def test_gradients_by_vmap_are_those_of_each_sequence_alone(kind: Any) -> None:
    """By PyTorch, as where opacus leaves it to its user (`no_op`): for equal lengths, or else an error."""
    layer = kind(4, 3)
    GradSampleModuleNoOp(layer)
    padded = torch.randn(5, 6, 4)
    transforms: Any = func

    def loss(weights: dict[str, Tensor], x: Tensor, length: Any) -> Tensor:
        batch = SequenceBatch.from_padded(x[None], length, batch_first=True)
        # As a function of the weights, `functional_call` does what it does around any module.
        found: Tensor = transforms.functional_call(Encoded(layer), {f"layer.{k}": v for k, v in weights.items()}, batch)
        return found.square().sum()

    weights = {name: weight.detach() for name, weight in layer.named_parameters()}
    found = transforms.vmap(transforms.grad(loss), (None, 0, None))(weights, padded, [6])
    for i, x in enumerate(padded):
        alone = layer(x)[0] if isinstance(layer, nn.RNNBase) else layer(x)
        wanted = torch.autograd.grad(alone.mean(0).square().sum(), [*layer.parameters()])
        assert_close([one[i] for one in found.values()], list(wanted))
    with pytest.raises(ValueError, match=r"`lengths` must be one for all that torch\.func\.vmap maps over"):
        transforms.vmap(transforms.grad(loss), (None, 0, 0))(weights, padded, torch.full((5, 1), 6))


class Encoded(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, batch: SequenceBatch) -> Tensor:
        return encode(self.layer, batch).mean()


def collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Padded ids, as opacus knows how to make an empty batch of Tensors, and of no SequenceBatch."""
    batch = SequenceBatch.from_sequences([ids for ids, _ in samples])
    labels = torch.tensor([label for _, label in samples])
    return batch.to_padded(batch_first=True, padding_value=0), torch.tensor(batch.lengths), labels


@pytest.mark.parametrize("mode", ["hooks", "functorch"])
def test_a_private_step(mode: str) -> None:
    """One step of the engine, without noise: the mean of what each sequence gives alone, clipped by its own norm."""
    padded, _, xs = padded_ids(LENGTHS)
    samples: Any = [*zip(xs, LABELS.tolist(), strict=True)]
    model, limit = Tagger(), 0.7
    before = {name: weight.detach().clone() for name, weight in named(model).items()}
    wanted = gradients_alone(model, xs)
    norms = [torch.cat([part.flatten() for part in one.values()]).norm() for one in wanted]
    assert min(norms) < max(norms)
    engine: Any = PrivacyEngine()
    private, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), 1.0),
        data_loader=DataLoader(samples, batch_size=4, collate_fn=collate),
        noise_multiplier=0.0,
        max_grad_norm=limit,
        poisson_sampling=False,
        grad_sample_mode=mode,
    )
    ((ids, lengths, targets),) = loader
    assert_close(ids, padded)
    cross_entropy(private(ids, lengths), targets).backward()
    optimizer.step()
    for name, weight in named(model).items():
        clipped = [one[name] * min(1.0, limit / norm) for one, norm in zip(wanted, norms, strict=True)]
        assert_close(weight.detach(), before[name] - torch.stack(clipped).mean(0))


def test_a_private_training_with_batches_of_none() -> None:
    """Poisson sampling draws batches of any size, 0 included; after training `encode` runs the model's layers."""
    data: Any = [(torch.randint(0, 9, (1 + i % 5,)), i % 3) for i in range(12)]
    model: Any = Tagger()
    engine: Any = PrivacyEngine()
    private, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        data_loader=DataLoader(data, batch_size=1, collate_fn=collate, generator=torch.Generator().manual_seed(1)),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        loss_reduction="sum",
    )
    sizes = []
    for _ in range(3):
        for ids, lengths, labels in loader:
            optimizer.zero_grad()
            cross_entropy(private(ids, lengths), labels, reduction="sum").backward()
            optimizer.step()
            sizes.append(len(ids))
    assert {0, 1, 2} <= {*sizes}
    lstm = nn.LSTM(5, 4)
    lstm.load_state_dict(model.recurrent.state_dict())
    ids, lengths, _ = collate(data)
    private.eval()
    batch = encode(model.norm, encode(model.embedding, SequenceBatch.from_padded(ids, lengths, batch_first=True)))
    assert_close(private(ids, lengths), model.head(encode(lstm, batch).mean()))
