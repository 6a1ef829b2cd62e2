"""What the authors' released code computes in the place of a balanced assignment, written afresh from a description.

Nothing in training uses this: it is here to be taken apart. Three switches, off as released, repair one thing each.
"""

import math

import torch
from torch import Tensor

#: The accuracy that the solver is called with, and its rounds.
ACCURACY = 0.05
ROUNDS = 19


def entropy_weight(samples: int, accuracy: float = ACCURACY) -> float:
    """Strength of the plan's entropy, in units of the scores: accuracy / (3 ln N), as described.

    Args:
        samples: N, of one class.
        accuracy: wanted of the plan's cost.

    Raises:
        ZeroDivisionError: for one sample, whose logarithm is 0. That is a finding, not a slip of this function.
    """
    return accuracy / (3 * math.log(samples))


@torch.no_grad()
def plan(scores: Tensor, *, carry: bool = False, as_cost: bool = True, rounds: int = ROUNDS) -> Tensor:
    """The solver's plan for the samples of one class, by its dual variables: one number a sample, one a sub-centroid.

    A plan follows from the dual variables, ``exp((-cost - duals) / weight)`` divided by its sum, and a round moves
    them so that masses come nearer to what is wanted: 1 / N for a sample, 1 / K for a sub-centroid. In the released
    code every round computes new ones and none keeps them, so they are 0 in every round. *Which* step a round
    computes cannot matter then; here it is Sinkhorn's, which brings the masses of a side to their value exactly.

    Args:
        scores: (N, K) similarities to the sub-centroids of the class, N 2 or more.
        carry: keep the new dual variables from round to round; as released, they are dropped.
        as_cost: the similarity stands where the cost belongs, as released; else the cost is minus the similarity.
        rounds: how many.

    Returns:
        (N, K) float64, mass 1 in all.

    Raises:
        ZeroDivisionError: for one sample, see :func:`entropy_weight`.
    """
    cost = scores.double() * (1 if as_cost else -1)
    logits = -cost / entropy_weight(len(scores))
    samples, subcentroids = logits.new_zeros(len(scores), 1), logits.new_zeros(1, scores.shape[1])
    for _ in range(rounds):
        trial_subcentroids = subcentroids + _missing(logits - samples - subcentroids, dim=0)
        trial_samples = samples + _missing(logits - samples - trial_subcentroids, dim=1)
        if carry:
            samples, subcentroids = trial_samples, trial_subcentroids
    return (logits - samples - subcentroids).flatten().softmax(0).view_as(logits)


def _missing(log_plan: Tensor, dim: int) -> Tensor:
    """Logarithm of mass over wanted mass, along one side of a plan that is not normalised: the step of that side."""
    return log_plan.logsumexp(dim, keepdim=True) + math.log(log_plan.shape[1 - dim])


@torch.no_grad()
def draw(plan: Tensor, generator: torch.Generator | None = None, *, logarithm: bool = False) -> Tensor:
    """One sub-centroid a sample, drawn by Gumbel's rule: the largest of value plus noise. It drives the update.

    The rule draws from a distribution when the values are *logarithms* of probabilities. As released, the plan itself
    is put there.

    Args:
        plan: (N, K), of :func:`plan`.
        generator: of the noise.
        logarithm: take the plan's logarithm, as the rule wants it.

    Returns:
        (N,) index of the sub-centroid.
    """
    values = plan.log() if logarithm else plan
    noise = -torch.empty_like(plan).exponential_(generator=generator).log()
    return (values + noise).argmax(1)
