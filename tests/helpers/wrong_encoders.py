"""Encoders that are wrong, each in a way that one would not notice at once, and the layers they are for."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from seqbatch import RNNState, SeqbatchValueError, SequenceBatch
from seqbatch._encode import registry
from seqbatch._torch import HOOKS


class Scaled(nn.Module):
    """A layer that treats every step by itself, and is linear, so that a wrong gradient does not show in its size."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, 3.0], dtype=torch.float64))
        self.register_buffer("kept", torch.zeros(2, dtype=torch.float64))

    def forward(self, input: Tensor) -> Tensor:
        return self.weight * input


class Outer(nn.Module):
    """A layer with another one inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Scaled()

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.inner(input)
        return output


class MyGRU(nn.GRU):
    """A recurrent layer of which the reference knows how it runs."""


def my_gru() -> MyGRU:
    torch.manual_seed(0)
    return MyGRU(2, 2, num_layers=2, bidirectional=True, dtype=torch.float64)


def right(layer: nn.Module, batch: SequenceBatch) -> SequenceBatch:
    if batch.feature_shape != (2,):
        raise SeqbatchValueError("`sequences` must have features (2,)")
    return batch.map(layer)


def mixes_neighbours(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(lambda values: layer(values - values.mean(0)))


def reads_the_step_before_across_sequences(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(lambda values: layer(values) + 0.1 * values.roll(1, 0))


def doubles_the_first_step(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(lambda values: layer(values) * (1 + (batch.positions == 0))[:, None])


def detaches_the_input(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return batch.detach().map(layer)


def detaches_the_weights(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(lambda values: layer.weight.detach() * values)


def gives_the_gradient_to_a_neighbour_of_equal_length(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    other = batch.with_values(batch[[2, 1, 0, 3, 4]].values).map(layer).values
    return batch.map(lambda values: layer(values).detach() + (other - other.detach()))


def counts_the_sequences(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return SequenceBatch.from_sequences([i + layer(x) for i, x in enumerate(batch)])


def averages_over_padding(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    padded = batch.to_padded(batch_first=True)
    real = torch.cat([(x - x.mean(0)).expand_as(x) + mean for x, mean in zip(batch, padded.mean(1), strict=True)])
    return batch.with_values(layer(real))


def multiplies_neighbours_by_zero(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(lambda values: layer(values + 0 * values.sum(0)))


def multiplies_neighbours_by_zero_going_back(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    total = batch.values.detach().sum(0)
    return batch.map(lambda values: layer(values) + torch.where(total.isfinite(), 0 * total * values, 0))


def multiplies_infinite_neighbours_by_zero(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(lambda values: layer(values + 0 * values.nan_to_num(0, torch.inf).sum(0)))


def drops_the_last_step(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return SequenceBatch.from_sequences([layer(x[:-1]) for x in batch])


def pads_empty_sequences(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return SequenceBatch.from_sequences([layer(x if len(x) else x.new_zeros(1, 2)) for x in batch])


def forgets_the_features_of_empty_sequences(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(layer) if batch.total_steps else batch.with_values(batch.values[:, :1])


def forgets_the_dtype_of_empty_sequences(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(layer) if batch.total_steps else batch.with_values(batch.values.float())


def forgets_the_features_of_no_sequences(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(layer) if len(batch) else batch.with_values(batch.values[:, :1])


def gives_a_step_if_all_are_empty(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    if batch.total_steps:
        return batch.map(layer)
    return SequenceBatch(batch.values.new_zeros(len(batch), 2), [1] * len(batch))


def looks_up_empty_sequences(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    assert len(batch.values[batch.offsets[:-1]]) == len(batch)
    return batch.map(layer)


def pads(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    output = layer(batch.to_padded(batch_first=True))
    return SequenceBatch.from_padded(output, batch.lengths, batch_first=True)


def skips_hooks(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(layer.forward)


def skips_hooks_before(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    output = layer.forward(batch.values)
    for hook in layer._forward_hooks.values():
        output = hook(layer, (batch.values,), output)
    return batch.with_values(output)


def skips_hooks_after(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    for hook in layer._forward_pre_hooks.values():
        hook(layer, (batch.values,))
    return batch.map(layer.forward)


def ignores_what_hooks_return(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    layer(batch.values)
    return batch.map(layer.forward)


def skips_hooks_of_the_backward_pass(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(lambda values: _call_without_them(layer, values))


def counts_what_hooks_of_the_backward_pass_return_for_one_sequence(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    parts = [_call_without_them(layer, x) if i else layer(x) for i, x in enumerate(batch)]
    return SequenceBatch.from_sequences(parts)


def _call_without_them(layer: Any, values: Tensor) -> Tensor:
    for hook in layer._forward_pre_hooks.values():
        hook(layer, (values,))
    output: Tensor = layer.forward(values)
    for hook in layer._forward_hooks.values():
        output = hook(layer, (values,), output)
    return output


def counts_what_hooks_return_for_one_sequence(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return SequenceBatch.from_sequences([layer.forward(x) if i else layer(x) for i, x in enumerate(batch)])


def calls_sequence_by_sequence(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return SequenceBatch.from_sequences([layer(x) for x in batch])


def calls_a_copy(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(copy.copy(layer))


def skips_hooks_inside(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    shell = copy.copy(layer)
    shell.forward = layer.inner.forward
    return batch.map(shell)


def writes_to_the_input(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    with torch.no_grad():
        batch.values.mul_(1)
    return batch.map(layer)


def writes_to_the_input_unseen(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    batch.values.data.add_(1)
    return batch.map(layer)


def leaves_an_attribute(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    layer.seen = batch.lengths
    return batch.map(layer)


def leaves_eval_mode(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(layer.eval())


def leaves_eval_mode_inside(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    layer.inner.eval()
    return batch.map(layer)


def writes_to_a_buffer(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    layer.kept.add_(1)
    return batch.map(layer)


def writes_to_a_buffer_unseen(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    layer.kept.data.add_(1)
    return batch.map(layer)


def leaves_a_hook_inside(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    layer.inner.register_forward_hook(lambda module, args, output: output)
    return batch.map(layer)


def leaves_frozen_weights(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(layer.requires_grad_(False))


def replaces_the_weights_unseen(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    layer.weight.data = layer.weight.data.clamp(-0.1, 0.1)
    return batch.map(layer)


def leaves_one_hook(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    if not layer._forward_hooks:
        layer.register_forward_hook(lambda module, args, output: output)
    return batch.map(layer)


def forgets_steps_from_the_ninth(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    early = torch.cat([torch.arange(length) < 8 for length in (0, *batch.lengths)])
    return batch.map(lambda values: layer(values) * early[:, None])


def refuses_nothing(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(lambda values: values)


def leaves_it_to_torch(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(layer)


def refuses_after_the_layer_ran(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    layer(batch.values[:, :2])
    return right(layer, batch)


def refuses_after_writing(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    layer.seen = batch.lengths
    return right(layer, batch)


def refuses_with_another_message(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    raise SeqbatchValueError("no")


def run(layer: nn.Module, batch: SequenceBatch, state: RNNState | None) -> tuple[SequenceBatch, RNNState]:
    """Run the layer as the built-in encoder does."""
    outputs, final = registry._entries[nn.GRU].run(layer, batch, state)
    return outputs, final


Outcome = tuple[SequenceBatch, RNNState]


def rolls_the_state(layer: Any, batch: SequenceBatch, state: Any) -> Outcome:
    outputs, final = run(layer, batch, state)
    return outputs, RNNState(final.hidden.roll(1, 2))


def leaves_the_state_sorted(layer: Any, batch: SequenceBatch, state: Any) -> Outcome:
    outputs, final = run(layer, batch, state)
    return outputs, final.select(sorted(range(len(batch)), key=lambda i: -batch.lengths[i]))


def ignores_the_state(layer: Any, batch: SequenceBatch, state: Any) -> Outcome:
    return run(layer, batch, None)


def detaches_the_state(layer: Any, batch: SequenceBatch, state: Any) -> Outcome:
    outputs, final = run(layer, batch, state)
    return outputs, final.detach()


def moves_the_state_of_empty_sequences(layer: Any, batch: SequenceBatch, state: Any) -> Outcome:
    outputs, final = run(layer, batch, state)
    return outputs, RNNState(final.hidden + (torch.tensor(batch.lengths) == 0).view(-1, 1))


def moves_the_state_of_the_last_if_empty(layer: Any, batch: SequenceBatch, state: Any) -> Outcome:
    outputs, final = run(layer, batch, state)
    there = torch.tensor([i == len(batch) - 1 and not count for i, count in enumerate(batch.lengths)])
    return outputs, RNNState(final.hidden + there.view(-1, 1))


def forgets_the_size_of_the_state_of_nothing(layer: Any, batch: SequenceBatch, state: Any) -> Outcome:
    outputs, final = run(layer, batch, state)
    return outputs, final if batch.total_steps else RNNState(final.hidden[..., :1])


def forgets_the_dtype_of_the_state_of_no_sequences(layer: Any, batch: SequenceBatch, state: Any) -> Outcome:
    outputs, final = run(layer, batch, state)
    return outputs, final if len(batch) else final.to(torch.float32)


def adds_zero_times_other_states(layer: Any, batch: SequenceBatch, state: Any) -> Outcome:
    outputs, final = run(layer, batch, state)
    return outputs, RNNState(final.hidden + 0 * final.hidden.sum(2, keepdim=True))


def resets_the_state_of_empty_sequences(layer: Any, batch: SequenceBatch, state: Any) -> Outcome:
    outputs, final = run(layer, batch, state)
    return outputs, final.reset([length == 0 for length in batch.lengths])


def writes_to_the_state(layer: Any, batch: SequenceBatch, state: Any) -> Outcome:
    if state is not None:
        state.hidden.data.zero_()
    return run(layer, batch, state)


def right_outputs(layer: nn.Module, batch: SequenceBatch) -> SequenceBatch:
    """Run the layer as the built-in encoder does when only the outputs are needed."""
    return run(layer, batch, None)[0]


def _without_hooks(layer: Any) -> Any:
    shell = copy.copy(layer)
    for name in HOOKS:
        setattr(shell, name, {})
    return shell


def skips_hooks_for_the_state(layer: Any, batch: SequenceBatch, state: Any) -> Outcome:
    return run(_without_hooks(layer), batch, state)


def skips_hooks_for_the_outputs(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return right_outputs(_without_hooks(layer), batch)


def skips_hooks_from_a_state(layer: Any, batch: SequenceBatch, state: Any) -> Outcome:
    return run(layer if state is None else _without_hooks(layer), batch, state)


def _with_padding(batch: SequenceBatch) -> SequenceBatch:
    padded = batch.to_padded(batch_first=True).repeat(1, 1, 8)
    return batch.map(lambda values: values + 0 * padded.sum())


def pads_for_the_state(layer: Any, batch: SequenceBatch, state: Any) -> Outcome:
    outputs, final = run(layer, batch, state)
    return _with_padding(outputs), final


def pads_for_the_outputs(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return _with_padding(right_outputs(layer, batch))


def drops_the_last_step_for_the_state(layer: Any, batch: SequenceBatch, state: Any) -> Outcome:
    outputs, final = run(layer, batch, state)
    return SequenceBatch.from_sequences([x[:-1] for x in outputs]), final


def counts_the_sequences_for_the_outputs(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return SequenceBatch.from_sequences([i + x for i, x in enumerate(right_outputs(layer, batch))])


def multiplies_neighbours_by_zero_for_the_outputs(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return right_outputs(layer, batch).map(lambda values: values + 0 * values.sum(0))


def forgets_the_features_of_empty_sequences_for_the_outputs(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    outputs = right_outputs(layer, batch)
    return outputs if batch.total_steps else outputs.with_values(outputs.values[:, :1])


# The encoders below break the law Bits only: their results differ in the last bits.


def _rounds_if(layer: Any, batch: SequenceBatch, rounds: bool) -> SequenceBatch:
    outputs = right(layer, batch)
    return outputs.map(_rounded) if rounds else outputs


def _rounded(values: Tensor) -> Tensor:
    return values * (1 + 2**-50)


def _with_rounded_gradient(values: Tensor) -> Tensor:
    return values + 2**-50 * (values - values.detach())


def divides_by_the_longest(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    longest = max(batch.max_length, 1)
    return right(layer, batch.map(lambda values: values / longest * longest))


def rounds_if_the_first_of_several_is_longest(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return _rounds_if(layer, batch, len(batch) > 1 and batch.lengths[0] == batch.max_length)


def rounds_three_sequences(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return _rounds_if(layer, batch, len(batch) == 3)


def rounds_from_eight_sequences(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return _rounds_if(layer, batch, len(batch) >= 8)


def rounds_by_the_number_of_threads(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return _rounds_if(layer, batch, torch.get_num_threads() == 3)


def rounds_one_sequence_by_the_number_of_threads(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return _rounds_if(layer, batch, torch.get_num_threads() == 3 and len(batch) == 1)


def rounds_under_no_grad(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return _rounds_if(layer, batch, not (torch.is_grad_enabled() or torch.is_inference_mode_enabled()))


def rounds_in_inference_mode(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return _rounds_if(layer, batch, torch.is_inference_mode_enabled())


def rounds_inputs_without_gradients(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return _rounds_if(layer, batch, torch.is_grad_enabled() and not batch.values.requires_grad)


def rounds_the_gradients_of_several(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    outputs = right(layer, batch)
    return outputs.map(_with_rounded_gradient) if len(batch) > 1 else outputs


def rounds_from_a_state(layer: Any, batch: SequenceBatch, state: Any) -> Outcome:
    outputs, final = run(layer, batch, state)
    return (outputs if state is None else outputs.map(_rounded)), final


def rounds_the_states_of_several(layer: Any, batch: SequenceBatch, state: Any) -> Outcome:
    outputs, final = run(layer, batch, state)
    return outputs, RNNState(_rounded(final.hidden)) if len(batch) > 1 else final


def rounds_the_gradient_of_the_state_of_several(layer: Any, batch: SequenceBatch, state: Any) -> Outcome:
    if state is not None and len(batch) > 1:
        state = RNNState(_with_rounded_gradient(state.hidden))
    return run(layer, batch, state)


def rounds_for_the_outputs(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    return right_outputs(layer, batch).map(_rounded)
