"""Are these prototypes one? For anybody's prototypes or sub-centroids, K of each of C classes.

Methods that give a class several vectors rarely look whether they stay several. Two readers found the ten prototypes
of each class alike in a public checkpoint of a prototype network (github.com/tfzhou/ProtoSeg, issue 15); another asks
the same of a training of his own (issue 9).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: Two vectors with a cosine above this point the same way: less than 8.2 degrees apart.
ALIKE = 0.99


@dataclass(frozen=True)
class Collapse:
    """How many different vectors a class has.

    Attributes:
        within_class_cosine: mean cosine between two vectors of a class; 1 where they are one.
        effective: mean over the classes of how many directions the K vectors span in effect, 1 to K: the exponential
            of the entropy of their Gram matrix's eigenvalues. 1 for copies of one vector, K for right angles.
        merged: share of the classes whose vectors are all alike (every cosine above :data:`ALIKE`).
        number: K.
    """

    within_class_cosine: float
    effective: float
    merged: float
    number: int

    def __str__(self) -> str:
        said = f"{self.number} vectors per class: {self.effective:.2f} directions in effect, "
        said += f"mean cosine within a class {self.within_class_cosine:.2f}"
        return f"{said}; in {self.merged:.0%} of the classes they are one"


def collapse(prototypes: Tensor) -> Collapse:
    """Whether the K vectors of a class are several or one.

    >>> print(collapse(torch.eye(6).view(3, 2, 6)))
    2 vectors per class: 2.00 directions in effect, mean cosine within a class 0.00; in 0% of the classes they are one

    Args:
        prototypes: (C, K, D), any length; only directions count.

    Raises:
        ValueError: for another shape, or vectors that are zero or not finite.
    """
    if prototypes.dim() != 3 or prototypes.numel() == 0:
        raise ValueError(f"prototypes must be (C, K, D), got {tuple(prototypes.shape)}")
    vectors = F.normalize(prototypes.detach().double(), dim=-1)
    if not (torch.isfinite(vectors).all() and vectors.any(-1).all()):
        raise ValueError("prototypes must be finite and none of them zero: such a vector has no direction")
    number = vectors.shape[1]
    gram = vectors @ vectors.transpose(1, 2)  # (C, K, K)
    shares = torch.linalg.eigvalsh(gram).clamp_min(0) / number  # (C, K), sum to 1
    entropy = -torch.xlogy(shares, shares).sum(1)
    merged = (gram.amin((1, 2)) > ALIKE).double().mean()
    return Collapse(within_class_cosine(vectors), float(entropy.exp().mean()), float(merged), number)


def within_class_cosine(vectors: Tensor) -> float:
    """Mean cosine between two of the K vectors of a class, mean over the classes; 1 for K = 1.

    Args:
        vectors: (C, K, D), unit length.
    """
    number = vectors.shape[1]
    if number == 1:
        return 1.0
    gram = vectors @ vectors.transpose(1, 2)  # (C, K, K)
    off = gram.sum((1, 2)) - gram.diagonal(dim1=1, dim2=2).sum(1)
    return float((off / (number * (number - 1))).mean())
