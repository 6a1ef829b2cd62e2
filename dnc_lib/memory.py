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
        self._known: tuple[Tensor, int, int] | None = None

    def __len__(self) -> int:
        return min(self._count(), self.size) if self.size else 0

    def _count(self) -> int:
        """``written`` as an int, read from the device only after somebody else changed it (a file was loaded, the
        module moved): reading makes the host wait for the device, and an update asks at each step."""
        known, written = self._known, self.written
        if known is None or known[0] is not written or written.is_inference() or known[1] != written._version:
            self._note(int(written))
        return self._known[2]

    def _note(self, count: int) -> None:
        """Remember what ``written`` holds, and which tensor in which version it is: each change in place counts one
        up, and nobody counts for a tensor made in inference mode."""
        self._known = self.written, 0 if self.written.is_inference() else self.written._version, count

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_known": None}  # versions of a copy begin anew

    @torch.no_grad()
    def push(self, x: Tensor, labels: Tensor) -> None:
        """Append samples; of more than ``size`` the last ones stay.

        Args:
            x: (N, D) embeddings.
            labels: (N,).
        """
        if self.size == 0 or len(labels) == 0:
            return
        count, pushed = self._count(), len(labels)
        if pushed > self.size:
            x, labels = x[-self.size :], labels[-self.size :]
        start = (count + pushed - len(labels)) % self.size  # as if those of which nothing remains had been written
        room = self.size - start  # up to the end of the ring; the rest goes to its beginning
        for ring, values in ((self.embeddings, x), (self.labels, labels)):
            ring[start : start + len(values)] = values[:room]
            if len(values) > room:
                ring[: len(values) - room] = values[room:]
        self.written += pushed
        self._note(count + pushed)

    def stored(self) -> tuple[Tensor, Tensor]:
        """The valid entries: embeddings (M, D) in half precision, labels (M,); not in the order of arrival."""
        filled = len(self)
        if filled == self.size:
            return self.embeddings, self.labels
        return self.embeddings[:filled], self.labels[:filled]

    @torch.no_grad()
    def clear(self) -> None:
        """Forget everything."""
        self.labels.fill_(-1)
        self.written.zero_()
        self._note(0)

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.embeddings.shape[1]}"
