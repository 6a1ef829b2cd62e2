"""What a piece of code allocates and which operators it calls, for tests that bound it."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Inside the ``with`` block, keep the shape of the largest tensor that any operation returns.

    Views count with the elements they show, so an expanded index counts as if it were written out.
    """

    def __init__(self):
        super().__init__()
        self.numel, self.shape = 0, ()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.numel() > self.numel:
                self.numel, self.shape = tensor.numel(), tuple(tensor.shape)
        return result


class OperatorCount(TorchDispatchMode):
    """Inside the ``with`` block, count the operators called: on a small tensor the call is the cost, and on an
    accelerator each is a kernel to launch.

    Attributes:
        calls: all of them.
        kernels: those that compute or copy; a view does neither.
        waits: those by which the host waits for a device, to know a number or how large a result is.
        names: how often each was called.
    """

    #: Besides these, an index by a mask; ``tolist`` of a CPU tensor calls no operator, see ``fake_cuda``.
    WAITING = frozenset(
        {"_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "bincount", "masked_select", "equal"}
    )

    def __init__(self):
        super().__init__()
        self.kernels, self.waits, self.names = 0, 0, Counter()

    @property
    def calls(self) -> int:
        return self.names.total()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.names[name] += 1
        self.kernels += not func.is_view
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        self.waits += name in self.WAITING or by_mask
        return func(*args, **(kwargs or {}))
