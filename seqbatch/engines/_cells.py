"""The cells of nn.LSTM, nn.GRU and nn.RNN, run over all steps forward and backward, without autograd.

In both passes only what recurs is done step by step; the rest is done for all steps at once. Names of one letter are
those of PyTorch's documentation: gates i, f, g, o and r, z, n, hidden state h, cell c. A `d` before is a gradient.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from seqbatch.engines._products import Product, product_by
from seqbatch.engines._steps import Steps

Tensors = tuple[Tensor, ...]


class Cell(ABC):
    """A way to go from step to step."""

    @abstractmethod
    def forward(self, steps: Steps, gates: Tensor, weight: Tensor, bias: Tensor | None, start: Tensors) -> Tensors:
        """Run over all steps.

        Args:
            steps: the steps.
            gates: `(directions, total_steps, gates * size)`: what input and biases add to each; overwritten.
            weight: `(directions, size, gates * size)`: from the hidden state to the gates.
            bias: `(directions, 1, gates * size)`: the hidden state's; already in `gates`, but for that of a GRU's n.
            start: hidden state, and cell for an LSTM, `(directions, batch, size)`.

        Returns:
            hidden states with room for the start as `Steps.make_room` makes it, for an LSTM the cells too, and then
            what else `backward` asks for.
        """

    @abstractmethod
    def backward(
        self, steps: Steps, weight: Tensor, saved: Tensors, *outside: Tensor
    ) -> tuple[Tensor, Tensors, Tensors]:
        """Run back over all steps.

        Args:
            steps: the steps.
            weight: `(directions, gates * size, size)`: as for `forward`, transposed.
            saved: what `forward` gave, all of it.
            outside: the gradient of the hidden state after each step, from outside, and for an LSTM that of the cell;
                overwritten.

        Returns:
            the gradients of what the input adds to the gates, as `gates`; of what the hidden state adds to them, as
            `gates` cut between columns; and of `start`.
        """


class LSTMCell(Cell):
    """Source: `torch.nn.LSTM`."""

    def forward(self, steps: Steps, gates: Tensor, weight: Tensor, bias: Tensor | None, start: Tensors) -> Tensors:
        size = start[0].shape[2]
        hs, cs = map(steps.make_room, start)
        tanh_cs = torch.empty_like(gates[..., :size])
        product = product_by(weight, len(steps.sizes))
        gate = (steps.split(part) for part in gates.split(size, 2))
        views = (steps.split(gates), steps.split(gates[..., : 2 * size]), *gate, steps.split(tanh_cs))
        for (part, i_f, i, f, g, o, tanh_c), (h, new_h), (c, new_c) in zip(
            zip(*views, strict=True), steps.pairs(hs), steps.pairs(cs), strict=True
        ):
            product(part, h, part)
            i_f.sigmoid_()
            g.tanh_()
            o.sigmoid_()
            torch.mul(i, g, out=new_c).addcmul_(f, c)
            torch.tanh(new_c, out=tanh_c)
            torch.mul(o, tanh_c, out=new_h)
        return hs, cs, gates, tanh_cs

    def backward(
        self, steps: Steps, weight: Tensor, saved: Tensors, *outside: Tensor
    ) -> tuple[Tensor, Tensors, Tensors]:
        dh, dc = outside
        _, cs, gates, tanh_cs = saved
        size = dh.shape[2]
        i, f, g, o = gates.split(size, 2)
        # How a change of c changes i, f and g, and a change of h changes c and o.
        from_c = torch.stack([g * i * (1 - i), cs.index_select(1, steps.before) * f * (1 - f), i * (1 - g * g)], 2)
        to_c, to_o = o * (1 - tanh_cs * tanh_cs), tanh_cs * o * (1 - o)
        dgates = torch.empty_like(gates)
        parts = dgates.unflatten(2, (4, size))
        rows = (dgates, dh, dc, f, from_c, to_c, to_o, parts[:, :, :3], parts[:, :, 3])
        product = product_by(weight, len(steps.sizes))
        later: list[Tensor] = []
        for part, dh_, dc_, f_, i_f_g, c_slope, o_slope, d_i_f_g, d_o in zip(*map(steps.split_back, rows), strict=True):
            if later:
                _add_product(dh_, later[0], product)
                dc_[:, : later[1].shape[1]].addcmul_(later[1], later[2])
            dc_.addcmul_(dh_, c_slope)
            torch.mul(dc_.unsqueeze(2), i_f_g, out=d_i_f_g)
            torch.mul(dh_, o_slope, out=d_o)
            later = [part, dc_, f_]
        return dgates, (dgates,), (torch.bmm(later[0], weight), later[1] * later[2])


class GRUCell(Cell):
    """Source: `torch.nn.GRU`."""

    def forward(self, steps: Steps, gates: Tensor, weight: Tensor, bias: Tensor | None, start: Tensors) -> Tensors:
        size = start[0].shape[2]
        hs = steps.make_room(start[0])
        from_h = torch.empty_like(gates[..., :size])
        to_rz, to_n = (product_by(part, len(steps.sizes)) for part in weight.split([2 * size, size], 2))
        b_n = gates.new_zeros(1, 1, 1) if bias is None else bias[..., 2 * size :]
        gate = (steps.split(part) for part in gates.split(size, 2))
        views = (steps.split(gates[..., : 2 * size]), *gate, steps.split(from_h))
        for (rz, r, z, n, h_n), (h, new_h) in zip(zip(*views, strict=True), steps.pairs(hs), strict=True):
            to_rz(rz, h, rz)
            rz.sigmoid_()
            to_n(b_n, h, h_n)
            n.addcmul_(r, h_n).tanh_()
            torch.lerp(n, h, z, out=new_h)
        return hs, gates, from_h

    def backward(
        self, steps: Steps, weight: Tensor, saved: Tensors, *outside: Tensor
    ) -> tuple[Tensor, Tensors, Tensors]:
        hs, gates, from_h = saved
        dh, size = outside[0], outside[0].shape[2]
        r, z, n = gates.split(size, 2)
        # How a change of h changes n before its tanh, and all that the earlier h adds to: side by side what that adds
        # to, n, r and z, and what the input adds to, r, z and n.
        slopes = gates.new_empty(*dh.shape[:2], 4, size)
        by_h, to_r, to_z, to_n = slopes.unbind(2)
        torch.mul(1 - z, (n * n).neg_().add_(1), out=to_n)
        torch.mul(to_n, r, out=by_h)
        torch.mul(by_h, from_h, out=to_r).mul_(1 - r)
        torch.sub(hs.index_select(1, steps.before), n, out=to_z).mul_(z).mul_(1 - z)
        dgates = torch.empty_like(slopes)
        dgates_h, dgates_x = dgates[:, :, :3].flatten(2), dgates[:, :, 1:].flatten(2)
        d_n, d_rz = dgates_h.split([size, 2 * size], 2)
        weight = weight.roll(size, 1)  # its rows in the order n, r, z too
        product = product_by(weight, len(steps.sizes))
        later: list[Tensor] = []
        for part, quarters, dh_, z_, slope in zip(
            *map(steps.split_back, (dgates_h, dgates, dh, z, slopes)), strict=True
        ):
            if later:
                dh_[:, : later[1].shape[1]].addcmul_(later[1], later[2])
                _add_product(dh_, later[0], product)
            torch.mul(dh_.unsqueeze(2), slope, out=quarters)
            later = [part, dh_, z_]
        return dgates_x, (d_rz, d_n), (torch.baddbmm(later[1] * later[2], later[0], weight),)


class RNNCell(Cell):
    """Source: `torch.nn.RNN`, of either nonlinearity."""

    def __init__(self, nonlinearity: str) -> None:
        self.is_tanh = nonlinearity == "tanh"

    def forward(self, steps: Steps, gates: Tensor, weight: Tensor, bias: Tensor | None, start: Tensors) -> Tensors:
        hs = torch.cat([start[0], gates], 1)  # as `make_room` does
        product = product_by(weight, len(steps.sizes))
        for h, new_h in steps.pairs(hs):
            product(new_h, h, new_h)
            if self.is_tanh:
                new_h.tanh_()
            else:
                new_h.relu_()
        return (hs,)

    def backward(
        self, steps: Steps, weight: Tensor, saved: Tensors, *outside: Tensor
    ) -> tuple[Tensor, Tensors, Tensors]:
        dh = outside[0]
        rows = saved[0][:, -dh.shape[1] :]
        # As in PyTorch, NaN is not below 0: its gradient must not look like one that is merely small.
        slopes = 1 - rows * rows if self.is_tanh else (~(rows <= 0)).to(rows.dtype)
        product = product_by(weight, len(steps.sizes))
        later: list[Tensor] = []
        for dh_, slope in zip(*map(steps.split_back, (dh, slopes)), strict=True):
            if later:
                _add_product(dh_, later[0], product)
            dh_.mul_(slope)  # from here on it is the gradient of the gate
            later = [dh_]
        return dh, (dh,), (torch.bmm(later[0], weight),)


def _add_product(rows: Tensor, later: Tensor, product: Product) -> None:
    """Add to the gradients of one step those that come back from the step after, which fewer sequences may have."""
    rows = rows[:, : later.shape[1]]
    product(rows, later, rows)
