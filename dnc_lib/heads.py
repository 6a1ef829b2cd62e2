"""Heads: raw features (..., D) to class scores (..., C), by sub-centroids, a linear layer or learned prototypes.

All three keep one contract, so a network, a training loop or a chapter swaps them freely:

* ``head(x)`` gives scores; leading dimensions are free, so pixels come for nothing;
* ``head.update(x, labels)`` is called after each optimiser step; it moves sub-centroids and does nothing elsewhere;
* ``head.estimate(x, labels)`` sets the sub-centroids from scratch, where there are any;
* ``head.diagnostics()`` gives a few numbers worth logging.
"""

import difflib
import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .collapse import within_class_cosine
from .grouping import ClassRows, ClassTiles, block_length, block_size, few_rows, group_rows
from .memory import EmbeddingMemory
from .nearest_scores import nearest_scores
from .sinkhorn import ASSIGNMENTS, assign, check_integers, check_range
from .spreading import check_spread, spread_out

#: Rows scored at a time where every class is needed and no gradient is: bounds the (rows, C K) scores.
CHUNK = 2048

#: How similarities become scores: divided by a constant, or through a LayerNorm over the classes, which learns.
SCALES = ("temperature", "layernorm")

#: After the LayerNorm a row has length sqrt(D), unless its features are all but equal; below this, no direction.
NO_DIRECTION = 1e-6


def random_unit_vectors(*shape: int, generator: torch.Generator | None = None) -> Tensor:
    """Directions drawn evenly from the sphere, (..., D), unit length."""
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def unit_length(x: Tensor) -> Tensor:
    """Rows (..., D) divided by their length; a row of zeros, which has no direction, stays one.

    ``F.normalize`` would multiply the gradient of such a row by 1e12, and one blank image in a batch would wreck the
    network.
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / (length + (length < NO_DIRECTION))


class Head(nn.Module):
    """What every head has: a width, a number of classes, and an update that may do nothing.

    Args:
        dim: D, width of the raw features.
        num_classes: C, how many classes there are.
        ignore_index: label left out of updates (255 and -100 are usual).
    """

    def __init__(self, dim: int, num_classes: int, ignore_index: int = -100):
        super().__init__()
        if dim < 1 or num_classes < 1:
            raise ValueError(f"dim and num_classes must be 1 or more, got {dim} and {num_classes}")
        self.dim, self.num_classes, self.ignore_index = dim, num_classes, ignore_index

    def check_width(self, x: Tensor) -> None:
        """Raise ``ValueError`` if the last dimension is not D."""
        if x.dim() == 0 or x.shape[-1] != self.dim:
            raise ValueError(
                f"features must be (..., {self.dim}), got {tuple(x.shape)}: "
                f"the last dimension must be the head's dim={self.dim}"
            )

    def flat(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Flatten (..., D) and (...) to (N, D) and (N,), and check shapes and types.

        Raises:
            ValueError: for shapes that do not fit, labels that are no integers.
        """
        self.check_width(x)
        if labels.shape != x.shape[:-1]:
            raise ValueError(
                f"labels must have the features' leading shape {tuple(x.shape[:-1])}, got {tuple(labels.shape)}"
            )
        check_integers(labels)
        return x.reshape(-1, self.dim), labels.reshape(-1).long()

    def update(self, x: Tensor, labels: Tensor) -> None:
        """Nothing to move."""

    def estimate(self, x: Tensor, labels: Tensor) -> None:
        """Nothing to estimate."""

    def class_vectors(self) -> Tensor | None:
        """The vectors that stand for the classes, by direction: (C, K, D), unit length; none of a linear layer."""
        return None

    def diagnostics(self) -> dict[str, float]:
        """Numbers worth logging; none here."""
        return {}

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_classes={self.num_classes}"


class SoftmaxHead(Head):
    """A learned matrix: the usual last layer, the twin that DNC is compared with.

    Args:
        dim: D, width of the features.
        num_classes: C, how many classes there are.
        ignore_index: label left out.
    """

    def __init__(self, dim: int, num_classes: int, ignore_index: int = -100):
        super().__init__(dim, num_classes, ignore_index)
        self.linear = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., C)."""
        self.check_width(x)
        return self.linear(x)


class NormalizedHead(Head):
    """A head that compares directions: LayerNorm, unit length, and scores divided by a constant temperature.

    Args:
        dim: D, width of the features.
        num_classes: C, how many classes there are.
        temperature: the scores are similarities in [-1, 1] divided by this; a constant, not learned.
        ignore_index: label left out.
    """

    def __init__(self, dim: int, num_classes: int, temperature: float = 0.1, ignore_index: int = -100):
        super().__init__(dim, num_classes, ignore_index)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature = temperature
        self.norm = nn.LayerNorm(dim)

    def embed(self, x: Tensor) -> Tensor:
        """Raw features to unit embeddings, in float32 under autocast too: (..., D) -> (..., D)."""
        self.check_width(x)
        with torch.autocast(x.device.type, enabled=False):
            return unit_length(self._layer_norm(x))

    def _layer_norm(self, x: Tensor) -> Tensor:
        weight = self.norm.weight
        return F.layer_norm(x.to(weight.dtype), (self.dim,), weight, self.norm.bias, self.norm.eps)


class CosineHead(NormalizedHead):
    """K *learned* prototypes of each class, with DNC's normalisation and temperature.

    The control for who moves the vectors: everything as in :class:`SubCentroidHead`, the largest similarity of a
    class included, but the vectors are parameters, moved by the gradient. With one per class it is the cosine
    classifier; with several it has the vectors of SoftTriple (Qian et al. 2019) and the maximum over them of
    sub-center ArcFace (Deng et al. 2020).

    Args:
        dim: D, width of the features.
        num_classes: C, how many classes there are.
        temperature: see :class:`NormalizedHead`.
        ignore_index: label left out.
        num_prototypes: K, learned vectors of each class.

    Attributes:
        prototypes: parameter (C K, D), the K of a class one after another; any length.

    Raises:
        ValueError: for fewer than one prototype per class.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        temperature: float = 0.1,
        ignore_index: int = -100,
        num_prototypes: int = 1,
    ):
        super().__init__(dim, num_classes, temperature, ignore_index)
        if num_prototypes < 1:
            raise ValueError(f"num_prototypes must be 1 or more, got {num_prototypes}")
        self.num_prototypes = num_prototypes
        self.prototypes = nn.Parameter(random_unit_vectors(num_classes * num_prototypes, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., C), similarity to the nearest prototype of each class over the temperature."""
        x = self.embed(x)
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(x, F.normalize(self.prototypes, dim=-1)) / self.temperature  # (..., C K)
        if self.num_prototypes == 1:
            return scores
        return scores.unflatten(-1, (self.num_classes, self.num_prototypes)).amax(-1)

    def class_vectors(self) -> Tensor:
        """The prototypes as directions: (C, K, D), unit length."""
        return F.normalize(self.prototypes.detach(), dim=-1).unflatten(0, (self.num_classes, self.num_prototypes))

    def diagnostics(self) -> dict[str, float]:
        """``within_class_cosine``, where there are several: mean cosine between two of a class (1: they are one)."""
        return {"within_class_cosine": within_class_cosine(self.class_vectors())} if self.num_prototypes > 1 else {}

    def extra_repr(self) -> str:
        parts = f"{super().extra_repr()}, num_prototypes={self.num_prototypes}"
        return f"{parts}, temperature={self.temperature}"


class SubCentroidHead(NormalizedHead):
    """Deep nearest centroids: a class is K sub-centroids of its own samples, and nothing here is learned by class.

    The score of a class is the cosine similarity to its nearest sub-centroid over the temperature, so the argmax
    of the scores is the class of the nearest sub-centroid (DNC, section 3). After each optimiser step
    :meth:`update` assigns the batch and the memory to the sub-centroids of their class and moves each towards
    the mean of what it got::

        p <- normalise(momentum * p + (1 - momentum) * normalise(mean of its embeddings))

    Parameters are those of the LayerNorm alone, which belongs to the embedding and does not know the classes.

    Args:
        dim: D, width of the raw features.
        num_classes: C, how many classes there are.
        num_subcentroids: K, sub-centroids of a class.
        momentum: share of the old sub-centroid kept at an update.
        temperature: similarities are divided by it.
        memory_size: past samples that take part in the update, besides the batch; 0 for none.
        assignment: ``"sinkhorn"``, ``"nearest"`` or ``"random"``, see :func:`dnc_lib.sinkhorn.assign`.
        epsilon: entropy of the Sinkhorn assignment.
        iterations: Sinkhorn iterations.
        correct_only: only samples that the head classifies correctly enter the update and the memory.
        frozen: the sub-centroids never move: the control for whether moving them is worth anything.
        start: ``"random"`` directions, or ``"data"``: each sub-centroid takes the mean of the first samples
            assigned to it whole, and moves by momentum from then on.
        spread: ``"centred"`` or ``"frame"`` keeps the sub-centroids apart after each update, see
            :func:`dnc_lib.spreading.spread_out`; ``"none"`` leaves them where they are.
        scale_by: ``"temperature"``, or ``"layernorm"``: the C similarities go through a LayerNorm with a learned gain
            and bias, as in the released code. That learns 2C numbers of the classes, and the prediction need no
            longer be the class of the nearest sub-centroid.
        ignore_index: label left out of updates.
        seed: of the random start and of random assignment, so that ranks and runs agree.

    Attributes:
        subcentroids: buffer (C, K, D), unit length.
        memory: :class:`~dnc_lib.memory.EmbeddingMemory`.

    Raises:
        ValueError: for settings out of range.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        num_subcentroids: int = 4,
        momentum: float = 0.999,
        temperature: float = 0.1,
        memory_size: int = 12_800,
        *,
        assignment: str = "sinkhorn",
        epsilon: float = 0.05,
        iterations: int = 3,
        correct_only: bool = False,
        frozen: bool = False,
        start: str = "random",
        spread: str = "none",
        scale_by: str = "temperature",
        ignore_index: int = -100,
        seed: int = 0,
    ):
        super().__init__(dim, num_classes, temperature, ignore_index)
        if num_subcentroids < 1:
            raise ValueError(f"num_subcentroids must be 1 or more, got {num_subcentroids}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}; to stand still use frozen=True")
        if assignment not in ASSIGNMENTS:
            raise ValueError(f"assignment must be one of {', '.join(ASSIGNMENTS)}, got {assignment!r}")
        if start not in ("random", "data"):
            raise ValueError(f"start must be 'random' or 'data', got {start!r}")
        if not epsilon > 0 or iterations < 1:
            raise ValueError(f"epsilon must be positive and iterations 1 or more, got {epsilon} and {iterations}")
        if scale_by not in SCALES:
            raise ValueError(f"scale_by must be one of {', '.join(SCALES)}, got {scale_by!r}")
        check_spread(spread, num_classes, num_subcentroids, dim)
        self.num_subcentroids, self.momentum = num_subcentroids, momentum
        self.assignment, self.epsilon, self.iterations = assignment, epsilon, iterations
        self.correct_only, self.frozen, self.start, self.seed = correct_only, frozen, start, seed
        self.spread, self.class_norm = spread, nn.LayerNorm(num_classes) if scale_by == "layernorm" else None
        self.memory = EmbeddingMemory(0 if frozen else memory_size, dim)
        generator = torch.Generator().manual_seed(seed)
        origin = random_unit_vectors(num_classes, num_subcentroids, dim, generator=generator)
        self.register_buffer("subcentroids", origin)
        self.register_buffer("origin", origin.clone())  # where they started, for the drift
        self.register_buffer("moved", torch.zeros(num_classes, num_subcentroids, dtype=torch.bool))
        self.register_buffer("wins", torch.zeros(num_classes, num_subcentroids, dtype=torch.long))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def similarities(self, x: Tensor) -> Tensor:
        """Cosine similarity of raw features to every sub-centroid: (..., D) -> (..., C, K), in float32."""
        x = self.embed(x)
        with torch.autocast(x.device.type, enabled=False):
            vectors = self.subcentroids.flatten(0, 1).to(x.dtype)
            if x.requires_grad:
                vectors = vectors.clone()  # an update before the backward pass must not reach into its graph
            scores = F.linear(x, vectors)
        return scores.unflatten(-1, (self.num_classes, self.num_subcentroids))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores: (..., D) -> (..., C), similarity to the nearest sub-centroid over the temperature."""
        x = self.embed(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._scaled(nearest_scores(x, self.subcentroids.to(x.dtype)))

    def _scaled(self, nearest: Tensor) -> Tensor:
        """Similarities (..., C) to each class's nearest sub-centroid, as scores."""
        return nearest / self.temperature if self.class_norm is None else self.class_norm(nearest)

    def class_vectors(self) -> Tensor:
        """The sub-centroids: (C, K, D), unit length."""
        return self.subcentroids

    @torch.no_grad()
    def update(self, x: Tensor, labels: Tensor) -> None:
        """Move the sub-centroids towards the samples, and remember the samples.

        Call it after the optimiser's step, never with mixed (Mixup, CutMix) images. A sub-centroid that got
        nothing stays as it is; without samples, or with all labels ignored, nothing changes.

        Args:
            x: raw features (..., D); no gradient is used.
            labels: (...), class indices; those equal to ``ignore_index`` are left out.

        Raises:
            ValueError: for shapes that do not fit, labels out of range, NaN or infinity in the features.
        """
        with torch.autocast(x.device.type, enabled=False):
            x, labels = self._samples(x, labels)
            if len(labels) > 0:
                self._learn(x, labels)

    def _samples(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings (N, D) and labels (N,) of raw features (..., D) and labels (...), without those ignored.

        Raises:
            ValueError: for shapes that do not fit, labels out of range, NaN or infinity in the features.
        """
        x, labels = self.flat(x, labels)
        if len(labels) == 0:
            return x, labels
        kept, unit = labels != self.ignore_index, self._embed_rows(x)
        counted = torch.where(kept, labels, 0)
        # LayerNorm spreads what is not finite over its whole row as NaN; what is ignored may hold anything.
        probe = torch.where(kept, unit[:, 0], 0).sum()
        # All that must be known before anything is changed, fetched together: each time, the host waits for a device.
        low, high, all_kept, finite = torch.stack([*torch.aminmax(counted), kept.all(), probe == probe]).tolist()
        check_range(low, high, self.num_classes)
        if not finite:
            raise ValueError(
                "features contain NaN or infinity; has the training diverged, or mixed precision overflowed?"
            )
        return (unit, labels) if all_kept else _rows(kept, unit, labels)

    def _embed_rows(self, x: Tensor) -> Tensor:
        """:meth:`embed` of (N, D), a block of rows at a time, so that what lies between stays in the cache."""
        unit = x.new_empty(x.shape, dtype=self.norm.weight.dtype)
        length = block_length(self.dim, x.device)
        for raw, embedded in zip(x.split(length), unit.split(length), strict=True):
            F.normalize(self._layer_norm(raw), dim=-1, out=embedded)
        return unit

    def _learn(self, x: Tensor, labels: Tensor) -> None:
        """:meth:`update` on unit embeddings (N, D)."""
        if self.correct_only:
            x, labels = _rows(self._predicted(x) == labels, x, labels)
            if len(labels) == 0:
                return
        remembered, their_labels = self.memory.stored()
        self.updates += 1
        # A few sub-centroids are all walked at less cost than it takes to look which have samples.
        few = 8 * self.subcentroids.numel() <= block_size(x.device)
        if few or len(labels) + len(their_labels) >= self.num_classes:
            self._update_classes(slice(None), (x, labels), (remembered, their_labels))
        else:  # most of many classes have no sample here, and need not be walked
            present, index = torch.cat([labels, their_labels]).unique(return_inverse=True)
            ours, theirs = index.split([len(labels), len(their_labels)])
            self._update_classes(present, (x, ours), (remembered, theirs))
        if not self.frozen:
            if self.spread != "none":
                self.subcentroids.copy_(spread_out(self.subcentroids, self.spread))
            self.memory.push(x, labels)

    def _update_classes(
        self, classes: Tensor | slice, batch: tuple[Tensor, Tensor], memory: tuple[Tensor, Tensor]
    ) -> None:
        """Count, assign and move for some classes.

        Args:
            classes: which; all, or their numbers (C',).
            batch: unit embeddings (N, D) and labels (N,) that count within ``classes``.
            memory: the same of the past, (M, D) and (M,).
        """
        p, moved, wins = self.subcentroids, self.moved, self.wins
        if not isinstance(classes, slice):
            p, moved, wins = p[classes], moved[classes], wins[classes]
        number = len(batch[1])
        groups = _groups(batch, memory, p.shape)
        scores = [group.own_scores(p) for group in groups]
        nearest = batch[1] * self.num_subcentroids + scores[0][:number].argmax(1)
        wins.view(-1).scatter_add_(0, nearest, torch.ones_like(nearest))
        if not self.frozen:
            keep = self.momentum if self.start == "random" else torch.where(moved, self.momentum, 0.0)
            _move(p, moved, *self._assigned_sums(groups, scores, p), keep)
        if not isinstance(classes, slice):  # of some classes they are copies
            self.subcentroids[classes], self.moved[classes], self.wins[classes] = p, moved, wins

    @torch.no_grad()
    def estimate(self, x: Tensor, labels: Tensor, rounds: int = 10) -> None:
        """Set the sub-centroids from scratch: balanced k-means on the sphere over the given samples.

        New classes need no more than this: no gradient, no step. Each class starts from samples of its own, far from
        one another; then assignment and means alternate. A class without samples, and a sub-centroid beyond the
        number of its samples, stays as it is. The memory is cleared: it spoke of other embeddings.

        Args:
            x: raw features (..., D).
            labels: (...), class indices.
            rounds: how often samples are assigned and the means taken.

        Raises:
            ValueError: as in :meth:`update`.
        """
        with torch.autocast(x.device.type, enabled=False):
            x, labels = self._samples(x, labels)
            if len(labels) > 0:
                self._fit(x, labels, rounds)

    def _fit(self, x: Tensor, labels: Tensor, rounds: int) -> None:
        """:meth:`estimate` on unit embeddings (N, D) in any floating type."""
        tiles = ClassTiles(x, labels, self.num_classes)
        available = torch.bincount(labels, minlength=self.num_classes)  # (C,)
        self._start_from_samples(tiles, available)
        settled = (available <= self.num_subcentroids).unsqueeze(1)  # each sample is a sub-centroid already
        for _ in range(rounds):
            sums, counts = self._assigned_sums([tiles], [tiles.own_scores(self.subcentroids)], self.subcentroids)
            _move(self.subcentroids, self.moved, sums, counts.masked_fill(settled, 0), 0.0)
        self.memory.clear()

    def _start_from_samples(self, tiles: ClassTiles, available: Tensor) -> None:
        """Put the sub-centroids at samples of their class: the one nearest to its mean, then always the one farthest
        from those taken, so that clusters apart get one each. Balance keeps outliers from holding a sub-centroid."""
        vectors = torch.zeros_like(self.subcentroids[:, :1], dtype=torch.promote_types(tiles.x.dtype, torch.float32))
        tiles.add_sums(torch.zeros_like(tiles.labels), vectors, vectors.new_zeros(self.num_classes, 1))
        wanted = tiles.own_scores(vectors).squeeze(1)  # (N,): in each class the sample with the largest comes next
        nearest = torch.full_like(wanted, -torch.inf)  # similarity to the nearest sub-centroid taken
        for k in range(self.num_subcentroids):
            best = wanted.new_full((self.num_classes,), -torch.inf).scatter_reduce_(0, tiles.labels, wanted, "amax")
            winners = (wanted == best[tiles.labels]).nonzero().squeeze(1)
            index = torch.zeros_like(available).scatter_(0, tiles.labels[winners], winners)  # (C,), one if they tie
            start = F.normalize(tiles.x[index].to(vectors.dtype), dim=-1)  # (C, D)
            taken = (available > k) & start.any(-1)
            self.subcentroids[:, k] = torch.where(
                taken.unsqueeze(1), start.to(self.subcentroids.dtype), self.subcentroids[:, k]
            )
            self.moved[:, k] |= taken
            nearest = torch.maximum(nearest, tiles.own_scores(start.unsqueeze(1)).squeeze(1))
            wanted = (-nearest).index_fill_(0, index[available > 0], -torch.inf)

    def _assigned_sums(
        self, groups: list[ClassRows | ClassTiles], scores: list[Tensor], subcentroids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Assign all groups together, by their own-class scores (N, K); sum (C, K, D) and number (C, K) of the
        embeddings that each of these sub-centroids (C, K, D) got."""
        labels, together = groups[0].labels, scores[0]
        if len(groups) > 1:
            labels, together = torch.cat([group.labels for group in groups]), torch.cat(scores)
        generator = None
        if self.assignment == "random":  # by seed and update: all ranks draw the same, and so does a resumed run
            generator = torch.Generator(labels.device).manual_seed(self.seed * 1_000_003 + int(self.updates))
        settings = (self.assignment, self.epsilon, self.iterations, generator)
        chosen = assign(together, labels, len(subcentroids), *settings, cosines=True)
        sums = torch.zeros_like(subcentroids, dtype=together.dtype)
        counts = sums.new_zeros(sums.shape[:2])
        for group, part in zip(groups, chosen.split([len(group) for group in groups]), strict=True):
            group.add_sums(part, sums, counts)
        return sums, counts

    def _predicted(self, x: Tensor) -> Tensor:
        """Predicted class of unit embeddings (N, D) -> (N,), a chunk of rows at a time."""
        vectors = self.subcentroids.flatten(0, 1)
        if self.class_norm is None:
            nearest = [F.linear(part, vectors).argmax(1) for part in x.split(CHUNK)]
            return torch.cat(nearest) // self.num_subcentroids
        return torch.cat([self._scaled(nearest_scores(part, self.subcentroids)).argmax(1) for part in x.split(CHUNK)])

    def usage(self) -> Tensor:
        """Share of a class's training samples whose nearest own sub-centroid this is: (C, K), counted since the
        last :meth:`reset_usage`; rows of classes not seen are zero."""
        return self.wins / self.wins.sum(1, keepdim=True).clamp_min(1)

    def reset_usage(self) -> None:
        """Start counting anew, say once an epoch."""
        self.wins.zero_()

    def diagnostics(self) -> dict[str, float]:
        """Whether the sub-centroids live: three numbers.

        Returns:
            ``drift``: 1 minus the mean cosine with the start (0 never moved, about 1 forgot it);
            ``usage``: effective share of the K sub-centroids in use, exp(entropy) / K, mean over classes seen;
            ``within_class_cosine``: mean cosine between two sub-centroids of a class (1: they merged; 1 for K = 1).
        """
        drift = 1 - (self.subcentroids * self.origin).sum(-1).mean()
        usage = self.usage()
        seen = usage.sum(1) > 0
        entropy = -(usage[seen] * usage[seen].clamp_min(1e-12).log()).sum(1)
        effective = entropy.exp().mean() / self.num_subcentroids if seen.any() else usage.new_zeros(())
        within = within_class_cosine(self.subcentroids)
        return {"drift": drift.item(), "usage": effective.item(), "within_class_cosine": within}

    def extra_repr(self) -> str:
        parts = [super().extra_repr(), f"num_subcentroids={self.num_subcentroids}", f"momentum={self.momentum}"]
        parts += [f"temperature={self.temperature}", f"assignment={self.assignment!r}"]
        parts += ["correct_only=True"] * self.correct_only + ["frozen=True"] * self.frozen
        parts += [f"spread={self.spread!r}"] * (self.spread != "none")
        return ", ".join(parts)


def _rows(kept: Tensor, *parts: Tensor) -> list[Tensor]:
    """The rows of each part that a mask (N,) keeps; how many they are is asked once of the device."""
    index = kept.nonzero().squeeze(1)
    return [part.index_select(0, index) for part in parts]


def _groups(
    batch: tuple[Tensor, Tensor], memory: tuple[Tensor, Tensor], shape: tuple[int, int, int]
) -> list[ClassRows | ClassTiles]:
    """Batch and memory, each rows and labels, for products with vectors (C, K, D); if few, as one group."""
    number, past = len(batch[1]), len(memory[1])
    if past == 0:
        return [group_rows(*batch, shape)]
    if few_rows(number + past, shape, batch[0].device):
        return [ClassRows(*(torch.cat(each) for each in zip(batch, memory, strict=True)))]
    return [group_rows(*each, shape) for each in (batch, memory)]


def _move(subcentroids: Tensor, moved: Tensor, sums: Tensor, counts: Tensor, keep: Tensor | float) -> None:
    """p <- normalise(keep * p + (1 - keep) * normalise(sum)), in place, for every sub-centroid that got samples.

    Where the samples cancel out there is no direction to move in. A block of classes at a time, so that what
    lies between stays in the cache. subcentroids and sums (C, K, D); moved, counts and keep (C, K), or keep one for
    all.
    """
    length = block_length(sums[0].numel(), sums.device)
    parts = [each.split(length) for each in (subcentroids, moved, sums, counts)]
    shares = keep.to(sums.dtype).split(length) if isinstance(keep, Tensor) else [keep] * len(parts[0])
    for p, has_moved, total, count, kept in zip(*parts, shares, strict=True):
        weight = 1 - (kept.unsqueeze(-1) if isinstance(kept, Tensor) else kept)
        target = p.to(total.dtype).lerp(F.normalize(total, dim=-1), weight)
        norm = torch.linalg.vector_norm(target, dim=-1)  # (classes, K)
        moves = (count > 0) & (norm > 0)
        p.copy_(torch.where(moves.unsqueeze(-1), target / norm.unsqueeze(-1), p))
        has_moved |= moves


HEADS = ("softmax", "cosine", "frozen", "dnc")

#: Settings that a head takes besides its width and its number of classes, by the name of its arm.
_SETTINGS = {
    name: tuple(inspect.signature(kind).parameters)[2:]
    for name, kind in {
        "softmax": SoftmaxHead, "cosine": CosineHead, "frozen": SubCentroidHead, "dnc": SubCentroidHead
    }.items()
}  # fmt: skip


def build_head(name: str, dim: int, num_classes: int, **settings) -> Head:
    """A head by the name of its arm.

    Args:
        name: ``"softmax"``, ``"cosine"`` (learned prototypes), ``"frozen"`` (sub-centroids at random, never moved) or
            ``"dnc"``.
        dim: D, width of the features.
        num_classes: C, how many classes there are.
        settings: of any of these heads; each takes those that concern it, so that arms share one set.

    Raises:
        ValueError: for an unknown name, or settings that no head has, with the nearest one.
    """
    if name not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}, got {name!r}")
    known = sorted({setting for each in _SETTINGS.values() for setting in each})
    if unknown := sorted(set(settings) - set(known)):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"no head has a setting {unknown[0]!r}.{hint} There are: {', '.join(known)}")
    own = {key: value for key, value in settings.items() if key in _SETTINGS[name]}
    if name == "softmax":
        return SoftmaxHead(dim, num_classes, **own)
    if name == "cosine":
        return CosineHead(dim, num_classes, **own)
    return SubCentroidHead(dim, num_classes, **(own | {"frozen": True} if name == "frozen" else own))
