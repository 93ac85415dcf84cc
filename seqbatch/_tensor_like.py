"""The methods of SequenceBatch that apply the Tensor method of the same name to its values."""

from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor

from seqbatch._modes import refuse_in_a_graph


class TensorLike(ABC):
    """The methods that a SequenceBatch shares with a Tensor; the lengths stay on the host."""

    __slots__ = ()
    values: Tensor

    @abstractmethod
    def with_values(self, values: Tensor) -> Self:
        """Build a batch of the same structure and other values."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Convert dtype or device, with the arguments of `torch.Tensor.to`; the lengths stay on the host.

        Returns:
            a batch of a copy, or of these very values where they are as asked; gradients flow.

        >>> SequenceBatch(torch.zeros(3), [2, 1]).to(torch.float64).dtype
        torch.float64
        """
        return self.with_values(self.values.to(*args, **kwargs))

    def float(self) -> Self:
        """Convert to float32, as `torch.Tensor.float`; integers too.

        Returns:
            a batch of a copy, or of these very values where they are float32; gradients flow.

        >>> SequenceBatch(torch.zeros(3).double(), [2, 1]).float().dtype
        torch.float32
        """
        return self.with_values(self.values.float())

    def double(self) -> Self:
        """Convert to float64, as `torch.Tensor.double`; integers too.

        Returns:
            a batch of a copy, or of these very values where they are float64; gradients flow.

        >>> SequenceBatch(torch.zeros(3), [2, 1]).double().dtype
        torch.float64
        """
        return self.with_values(self.values.double())

    def half(self) -> Self:
        """Convert to float16, as `torch.Tensor.half`; integers too.

        Returns:
            a batch of a copy, or of these very values where they are float16; gradients flow.

        >>> SequenceBatch(torch.zeros(3), [2, 1]).half().dtype
        torch.float16
        """
        return self.with_values(self.values.half())

    def bfloat16(self) -> Self:
        """Convert to bfloat16, as `torch.Tensor.bfloat16`; integers too.

        Returns:
            a batch of a copy, or of these very values where they are bfloat16; gradients flow.

        >>> SequenceBatch(torch.zeros(3), [2, 1]).bfloat16().dtype
        torch.bfloat16
        """
        return self.with_values(self.values.bfloat16())

    def cpu(self) -> Self:
        """Copy to the host, as `torch.Tensor.cpu`.

        Returns:
            a batch of a copy, or of these very values where they are there; gradients flow.

        >>> SequenceBatch(torch.zeros(3), [2, 1]).cpu().device
        device(type='cpu')
        """
        return self.with_values(self.values.cpu())

    def cuda(self, device: int | str | torch.device | None = None, *, non_blocking: bool = False) -> Self:
        """Copy to a CUDA device, as `torch.Tensor.cuda`.

        Args:
            device: the device; None for the current one.
            non_blocking: whether to copy asynchronously, which needs values in pinned memory.

        Returns:
            a batch of a copy, or of these very values where they are there; gradients flow.
        """
        return self.with_values(self.values.cuda(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Copy into page-locked memory, as `torch.Tensor.pin_memory`; `torch.utils.data.DataLoader` calls this.

        Returns:
            a batch of a copy, or of these very values where they are pinned.

        >>> batch = SequenceBatch(torch.zeros(3), [2, 1])
        >>> pinned = batch.pin_memory() if torch.cuda.is_available() else batch
        >>> pinned.lengths
        (2, 1)
        """
        refuse_in_a_graph("page-locked memory")
        return self.with_values(self.values.pin_memory())

    def detach(self) -> Self:
        """Share the values without their gradient graph, as `torch.Tensor.detach`.

        Returns:
            a batch that is a view of this one, through which no gradients flow.

        >>> SequenceBatch(torch.zeros(3, requires_grad=True), [2, 1]).detach().values.requires_grad
        False
        """
        return self.with_values(self.values.detach())

    def clone(self) -> Self:
        """Copy the values, as `torch.Tensor.clone`.

        Returns:
            a batch of a copy, through which gradients flow.

        >>> batch = SequenceBatch(torch.zeros(3), [2, 1])
        >>> batch.clone().values.add_(1), batch.values
        (tensor([1., 1., 1.]), tensor([0., 0., 0.]))
        """
        return self.with_values(self.values.clone())
