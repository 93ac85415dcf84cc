"""LockedDropout and WordDropout: dropout by one mask per sequence, and dropout of whole steps."""

import torch
from torch import Tensor, nn

from seqbatch._batch import SequenceBatch
from seqbatch._checks.arguments import integer, require_steps
from seqbatch._checks.grammar import complaint, describe
from seqbatch._encode.registry import register_encoder
from seqbatch._encoders._hooked_call import call_as_itself
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError
from seqbatch.layers._argument_checks import probability, refuse_own_forward, require_floating


class LockedDropout(nn.Module):
    """Variational dropout: one mask per sequence, shared by all its steps.

    While training, each feature of each sequence is set to zeros with probability `p`, by a mask drawn once for the
    sequence. The others are divided by `1 - p`, as in `nn.Dropout`. In evaluation mode the input is returned.

    Args:
        p: the probability that a feature is dropped, from 0 to 1.

    Raises:
        SeqbatchTypeError: it is not a number.
        SeqbatchValueError: it is not from 0 to 1.

    Source: Gal and Ghahramani, 2016, A Theoretically Grounded Application of Dropout in Recurrent Neural Networks.

    >>> xs, ys = encode(LockedDropout(0.5), [torch.ones(10, 4), torch.ones(7, 4)])
    >>> bool((xs == xs[0]).all()), bool((ys == ys[0]).all())
    (True, True)
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p: float = probability("p", p)

    def forward(self, sequence: Tensor) -> Tensor:
        """Run on one sequence, with one mask for it.

        Args:
            sequence: `(steps, *features)`, floating or complex.

        Returns:
            `(steps, *features)`, through which gradients flow; the input itself if nothing is dropped.

        Raises:
            SeqbatchTypeError: it is not a Tensor, or of another dtype.
            SeqbatchValueError: it has no dimension of steps.
        """
        values = require_steps("sequence", sequence)
        require_floating("sequence", values, self)
        mask = _draw_masks(self, 1, values)
        return values if mask is None else values * mask

    def extra_repr(self) -> str:
        """Return the arguments, which `repr` of the layer shows."""
        return f"p={self.p}"


def _draw_masks(layer: LockedDropout, number: int, values: Tensor) -> Tensor | None:
    """Draw the mask of each of a number of sequences; None if nothing is dropped."""
    if not layer.training or layer.p == 0:
        return None
    dtype = values.dtype.to_real() if values.is_complex() else values.dtype
    return nn.functional.dropout(values.new_ones(number, *values.shape[1:], dtype=dtype), layer.p)


@register_encoder(LockedDropout, stepwise=True)
def _(layer: LockedDropout, batch: SequenceBatch) -> SequenceBatch:
    refuse_own_forward(layer, LockedDropout)
    require_floating("sequences", batch.values, layer)

    def forward(values: Tensor) -> tuple[Tensor, None]:
        masks = _draw_masks(layer, batch.batch_size, values)
        return values if masks is None else values * masks.index_select(0, batch.segment_ids), None

    return batch.with_values(call_as_itself(layer, forward, batch.values)[0])


class WordDropout(nn.Module):
    """Drops whole steps, such as words of a sentence.

    While training, each step is dropped with probability `p`: all its features become 0, and the others are not
    rescaled. With a `token` the sequences are ids, and the id of a dropped step becomes the token, such as that of an
    unknown word. Lengths stay the same. In evaluation mode the input is returned.

    Args:
        p: the probability that a step is dropped, from 0 to 1.
        token: the id that stands for a dropped word; None for sequences of features.

    Raises:
        SeqbatchTypeError: `p` is not a number, or the token is not an integer.
        SeqbatchValueError: `p` is not from 0 to 1.

    Source: Iyyer et al., 2015, Deep Unordered Composition Rivals Syntactic Methods for Text Classification; with a
    token Bowman et al., 2016, Generating Sentences from a Continuous Space.

    >>> WordDropout(1.0, token=9)(torch.tensor([3, 1, 4]))
    tensor([9, 9, 9])
    """

    def __init__(self, p: float, *, token: int | None = None) -> None:
        super().__init__()
        self.p: float = probability("p", p)
        self.token: int | None = None if token is None else integer("token", token)

    def forward(self, sequence: Tensor) -> Tensor:
        """Run on one sequence, or on the flat values of several.

        Args:
            sequence: `(steps, *features)`, floating or complex, or integers if there is a token.

        Returns:
            `(steps, *features)`, through which gradients flow, except to dropped steps; the input itself if nothing
            is dropped.

        Raises:
            SeqbatchTypeError: it is not a Tensor, or of another dtype.
            SeqbatchValueError: it has no dimension of steps, or the token is out of the range of its dtype.
        """
        values = require_steps("sequence", sequence)
        _require_words("sequence", values, self)
        if not self.training or self.p == 0:
            return values
        # Not by an in-place draw, because `vmap` with randomness="different" refuses that.
        dropped = torch.rand(len(values), dtype=torch.float32, device=values.device) < self.p
        return values.masked_fill(dropped.view(-1, *(1 for _ in values.shape[1:])), self.token or 0)

    def extra_repr(self) -> str:
        """Return the arguments, which `repr` of the layer shows."""
        return f"p={self.p}" if self.token is None else f"p={self.p}, token={self.token}"


def _require_words(subject: str, values: Tensor, layer: WordDropout) -> None:
    """Raise unless a layer with a token gets ids, of a dtype that has the token, and one without gets features."""
    if layer.token is None:
        # Without the value of `p`, because a SymFloat cannot be formatted while tracing.
        remedy = "For ids pass the one that replaces a dropped word: WordDropout(p, token=unknown)."
        require_floating(subject, values, layer, remedy)
    elif values.is_floating_point() or values.is_complex() or values.dtype is torch.bool:
        must = f"have an integer dtype, for {describe(layer)}"
        raise complaint(SeqbatchTypeError, subject, must, values.dtype, "For features pass no token.")
    else:
        span = torch.iinfo(values.dtype)
        if not span.min <= layer.token <= span.max:
            must = f"be from {span.min} to {span.max}, for {values.dtype} of `{subject}`"
            raise complaint(SeqbatchValueError, "token", must, layer.token)


@register_encoder(WordDropout, stepwise=True)
def _(layer: WordDropout, batch: SequenceBatch) -> SequenceBatch:
    refuse_own_forward(layer, WordDropout)
    _require_words("sequences", batch.values, layer)
    return batch.map(layer)
