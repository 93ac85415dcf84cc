"""A small data set, in a file that worker processes can import too."""

import torch
from torch import Tensor


class Recordings(torch.utils.data.Dataset[Tensor]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((index % 4, 2), float(index))
