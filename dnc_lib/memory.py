"""First-in-first-out memory of past embeddings and their labels."""

import torch
from torch import Tensor, nn


class EmbeddingMemory(nn.Module):
    """The last ``size`` embeddings seen, in half precision, with their labels.

    A ring: once full, the oldest entry makes room for the newest. Everything is in the buffers, the write position
    too, so a memory read back from a ``state_dict`` goes on where it stopped. 256,000 embeddings of 2048 take
    1.05 GB.

    Args:
        size: number of samples kept; 0 keeps none.
        dim: D, width of the features.
    """

    def __init__(self, size: int, dim: int):
        super().__init__()
        if size < 0:
            raise ValueError(f"memory_size must be 0 or more, got {size}")
        self.size = size
        self.register_buffer("embeddings", torch.zeros(size, dim, dtype=torch.float16))
        self.register_buffer("labels", torch.full((size,), -1, dtype=torch.long))
        self.register_buffer("written", torch.zeros((), dtype=torch.long))  # samples ever pushed

    def __len__(self) -> int:
        return min(int(self.written), self.size)

    @torch.no_grad()
    def push(self, x: Tensor, labels: Tensor) -> None:
        """Append samples; of more than ``size`` the last ones stay.

        Args:
            x: (N, D) embeddings.
            labels: (N,).
        """
        if self.size == 0 or len(labels) == 0:
            return
        self.written += max(0, len(labels) - self.size)  # those of which nothing would remain
        x, labels = x[-self.size :], labels[-self.size :]
        start = int(self.written) % self.size
        room = self.size - start  # up to the end of the ring; the rest goes to its beginning
        for place, part in ((start, slice(None, room)), (0, slice(room, None))):
            count = len(labels[part])
            self.embeddings[place : place + count] = x[part]
            self.labels[place : place + count] = labels[part]
        self.written += len(labels)

    def stored(self) -> tuple[Tensor, Tensor]:
        """The valid entries: embeddings (M, D) in half precision, labels (M,); not in the order of arrival."""
        filled = len(self)
        return self.embeddings[:filled], self.labels[:filled]

    @torch.no_grad()
    def clear(self) -> None:
        """Forget everything."""
        self.labels.fill_(-1)
        self.written.zero_()

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.embeddings.shape[1]}"
