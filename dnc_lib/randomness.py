"""Random numbers that depend on what is done alone, lent to code that draws from the global generators."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """The random numbers of Python, NumPy and torch (on the CPU) depend inside on ``numbers`` alone.

    Outside they go on as if nothing had been drawn. timm and torchvision draw from the global generators of all
    three; with ``seeded(seed, epoch, image)`` around them, their result is the same in any process and any order.

    Args:
        numbers: what the random numbers depend on, such as seed, epoch and image; taken modulo 2 ** 64.
    """
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    first, second, third = np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(3)
    random.seed(int(first))
    np.random.seed(second)  # noqa: NPY002
    torch.default_generator.manual_seed(int(third))  # torch.manual_seed would reach the GPU's generator too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.default_generator.set_state(states[2])
