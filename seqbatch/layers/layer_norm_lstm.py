"""LayerNormLSTM: an LSTM with layer normalization, as an example of a custom recurrent layer."""

import torch
from torch import Tensor, nn

from seqbatch._batch import SequenceBatch
from seqbatch._checks.arguments import require_steps
from seqbatch._checks.tracing import outside_graphs
from seqbatch._encode import encode_with_state
from seqbatch._encode.registry import register_recurrent
from seqbatch._encoders._hooked_call import call_as_itself
from seqbatch._encoders._recurrent_checks import require_recurrent_input
from seqbatch._encoders.cells import register_cell
from seqbatch._state import LSTMState
from seqbatch.layers._argument_checks import refuse_own_forward, size

Pair = tuple[Tensor, Tensor]


class LayerNormLSTMCell(nn.LSTMCell):
    """An `nn.LSTMCell` whose gates and cell are normalized.

    The contributions of the input and of the hidden state to the gates are each normalized, and so is the cell before
    its tanh. The bias of `norm_input` is that of the gates.

    Args:
        input_size: the features of the input.
        hidden_size: the features of hidden state and cell.
        device: the device of the weights, as for layers of PyTorch.
        dtype: the dtype of the weights, as for layers of PyTorch.

    Raises:
        SeqbatchTypeError: a size is not an integer.
        SeqbatchValueError: a size is negative.

    Source: Ba, Kiros and Hinton, 2016, Layer Normalization, equations 20 to 22.

    >>> hidden, cell = LayerNormLSTMCell(5, 3)(torch.randn(2, 5))
    >>> hidden.shape, cell.shape
    (torch.Size([2, 3]), torch.Size([2, 3]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        input_size, hidden_size = size("input_size", input_size), size("hidden_size", hidden_size)
        super().__init__(input_size, hidden_size, bias=False, device=device, dtype=dtype)
        self.norm_input: nn.LayerNorm = nn.LayerNorm(4 * hidden_size, device=device, dtype=dtype)
        self.norm_hidden: nn.LayerNorm = nn.LayerNorm(4 * hidden_size, bias=False, device=device, dtype=dtype)
        self.norm_cell: nn.LayerNorm = nn.LayerNorm(hidden_size, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Initialize the weights, at random as those of `nn.LSTMCell`, and the norms to ones and zeros."""
        super().reset_parameters()
        for norm in self.children():  # not by name, because `nn.LSTMCell.__init__` calls this before they exist
            if isinstance(norm, nn.LayerNorm):
                norm.reset_parameters()

    def forward(self, input: Tensor, hx: Pair | None = None) -> Pair:  # noqa: A002  # as its base
        """Run one step.

        Args:
            input: `(batch, input_size)` or `(input_size,)`.
            hx: hidden state and cell, each `(batch, hidden_size)` or `(hidden_size,)`; zeros by default.

        Returns:
            hidden state and cell after the step, in the same shapes; gradients flow.
        """
        if hx is None:
            zeros = input.new_zeros(*input.shape[:-1], self.hidden_size)
            hx = zeros, zeros
        hidden, cell = hx
        from_input = nn.functional.linear(input, self.weight_ih)
        from_hidden = nn.functional.linear(hidden, self.weight_hh)
        i, f, g, o = (self.norm_input(from_input) + self.norm_hidden(from_hidden)).chunk(4, -1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * self.norm_cell(cell).tanh(), cell


register_cell(LayerNormLSTMCell, LSTMState)


class LayerNormLSTM(nn.Module):
    """An LSTM with layer normalization, of one layer and one direction, whose state is an LSTMState.

    For both directions use `TwoWay`, and for several layers `nn.Sequential`.

    Args:
        input_size: the features of the input.
        hidden_size: the features of the output.
        device: the device of the weights, as for layers of PyTorch.
        dtype: the dtype of the weights, as for layers of PyTorch.

    Raises:
        SeqbatchTypeError: a size is not an integer.
        SeqbatchValueError: a size is negative.

    Source: Ba, Kiros and Hinton, 2016, Layer Normalization.

    >>> outputs, state = encode_with_state(LayerNormLSTM(5, 3), [torch.randn(10, 5), torch.randn(7, 5)])
    >>> outputs[1].shape, state
    (torch.Size([7, 3]), LSTMState(2 sequences, 1 layer, 1 direction, size 3, torch.float32, cpu, requires_grad=True))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size: int = size("input_size", input_size)
        self.hidden_size: int = size("hidden_size", hidden_size)
        self.cell: LayerNormLSTMCell = LayerNormLSTMCell(input_size, hidden_size, device=device, dtype=dtype)

    def forward(self, sequence: Tensor, state: Pair | None = None) -> tuple[Tensor, Pair]:
        """Run on one sequence.

        Args:
            sequence: `(steps, input_size)`.
            state: hidden state and cell to start from, each `(hidden_size,)`; zeros by default.

        Returns:
            the outputs `(steps, hidden_size)`, and hidden state and cell after the last step; gradients flow.

        Raises:
            SeqbatchTypeError: the sequence is not a Tensor.
            SeqbatchValueError: it has no dimension of steps.
        """
        values = require_steps("sequence", sequence)
        zeros = values.new_zeros(self.hidden_size)
        current: Pair = (zeros, zeros) if state is None else state
        outputs = [values.new_zeros(0, self.hidden_size)]
        for step in values:
            current = self.cell(step, current)
            outputs.append(current[0][None])
        return torch.cat(outputs), current

    def extra_repr(self) -> str:
        """Return the arguments, which `repr` of the layer shows."""
        return f"{self.input_size}, {self.hidden_size}"


@register_recurrent(LayerNormLSTM)
@outside_graphs
def _(layer: LayerNormLSTM, batch: SequenceBatch, state: LSTMState | None) -> tuple[SequenceBatch, LSTMState]:
    refuse_own_forward(layer, LayerNormLSTM)
    require_recurrent_input(batch, layer)

    # Hooks of the layer see the result in the form that its own `forward` returns, but of flat values.
    def forward(values: Tensor) -> tuple[tuple[Tensor, Pair], None]:
        outputs, end = encode_with_state(layer.cell, batch.with_values(values), state)
        return (outputs.values, (end.hidden[0, 0], end.cell[0, 0])), None

    (values, (hidden, cell)), _ = call_as_itself(layer, forward, batch.values)
    return batch.with_values(values), LSTMState(hidden[None, None], cell[None, None])
