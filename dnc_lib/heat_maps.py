"""Where a similarity comes from: a map over the places of an image whose mean is the similarity.

A classifier's feature f is pooled from a last map g of h x w places. Hold the norm's spread and length at f's own,
and the similarity to a unit vector is affine in f: ``s = a . f + c``. Pull a back through the pooling, and each place
has its share (Zhou et al. 2016 weigh the same map by a class's row; here the weights are those of one case)::

    m[i, j] = h * w * sum over d of g[d, i, j] * v[d, i, j] + c,    v = (df / dg)^T a

Where the pooling is homogeneous, as an average, a maximum, and linear layers without a bias are, Euler's theorem says
that g . v is a . f: the mean of m *is* s. Elsewhere (layers with a bias or another norm after the pooling) it is a
first-order map, and the gap between its mean and s is told.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import CifarResNet
from .feature_maps import feature_maps
from .heads import NO_DIRECTION, NormalizedHead
from .models import ImageClassifier, Segmenter, evaluating

#: A map whose mean lies within this of the similarity is exact: what is left is rounding in float32.
TOLERANCE = 1e-5

#: As lists, maps with a longer side are averaged down to it.
LISTED = 32


class NoPlaces(ValueError):
    """A network that does not pool places has no heat map."""


class Maps(NamedTuple):
    """Heat maps of a batch.

    Attributes:
        values: (N, h, w).
        similarity: (N,), of image and target.
        gap: (N,), mean of the map minus similarity.
    """

    values: Tensor
    similarity: Tensor
    gap: Tensor


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Which places of one image carry a similarity.

    Attributes:
        values: (h, w) float32. Of an image their mean is the similarity; of a scene each is the similarity of one
            place's own embedding.
        similarity: to the target, of the whole image; of a scene, of the place that lies nearest.
        gap: mean of the map minus similarity; 0 for scenes.
        seen: (H, W) of what the network is given, in pixels.
        padded: (H, W) with what the network adds below and at the right, which the map covers too.
        of_scene: whether each value is a place's own similarity.
    """

    values: Tensor
    similarity: float
    gap: float
    seen: tuple[int, int]
    padded: tuple[int, int]
    of_scene: bool = False

    @property
    def exact(self) -> bool:
        """Whether the mean of the map is the similarity, up to rounding."""
        return abs(self.gap) < TOLERANCE

    @property
    def note(self) -> str:
        """What the values are."""
        if self.of_scene:
            return "each place's own similarity to the case"
        if self.exact:
            return "what each place adds; the mean over the places is the similarity"
        return f"what each place adds, to first order: the mean over the places misses it by {abs(self.gap):.3f}"

    def on_pixels(self) -> Tensor:
        """The map on the pixels that the network sees, (H, W): see :func:`enlarged`."""
        return enlarged(self.values[None], self.padded)[0, : self.seen[0], : self.seen[1]]

    def to_dict(self) -> dict:
        """Plain values, for a JSON file: rounded to 4 places, 32 x 32 numbers at most."""
        grid = tuple(self.values.shape)
        values = self.values
        if max(grid) > LISTED:
            values = F.adaptive_avg_pool2d(values[None, None], [min(side, LISTED) for side in grid])[0, 0]
        rounded = [[round(value, 4) for value in row] for row in values.tolist()]
        head = {"similarity": self.similarity, "exact": self.exact, "gap": self.gap, "note": self.note}
        return {**head, "places": list(grid), "values": rounded}


def enlarged(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (N, h, w) to the pixels of their image, (N, H, W), straight lines between the middles of the places."""
    return F.interpolate(values[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def held_norm(head: NormalizedHead, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The similarity as an affine function of the feature, the norm's spread and length held at this feature's own.

    Held they must be: with all of the norm free, a longer feature has the same similarity, so by Euler's theorem the
    gradient times the feature is 0 and would explain nothing.

    Args:
        head: whose LayerNorm it is.
        features: (N, D), raw.
        targets: (N, D), unit length.

    Returns:
        weights a (N, D), each row with the sum 0, since the norm takes away the mean; constant c (N,); similarity
        a . f + c (N,).
    """
    norm = head.norm
    centred = features - features.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    embedded = centred / spread * norm.weight + norm.bias
    length = torch.linalg.vector_norm(embedded, dim=-1, keepdim=True)
    length = length + (length < NO_DIRECTION)  # as in the head: what has no direction is similar to nothing
    weights = norm.weight * targets / (spread * length)
    weights = weights - weights.mean(-1, keepdim=True)
    constant = (norm.bias * targets / length).sum(-1)
    return weights, constant, (embedded * targets / length).sum(-1)


def similarity_maps(model: ImageClassifier, images: Tensor, targets: Tensor) -> Maps:
    """Heat maps of images against unit vectors: a sub-centroid, or another image's embedding.

    Args:
        model: with a head that normalises.
        images: (N, 3, H, W), normalised; or (1, 3, H, W), the same for all targets.
        targets: (N, D), unit length.

    Raises:
        NoPlaces: for a network that does not pool places, a vision transformer with a class token for instance.
        ValueError: for a head that does not compare directions, or shapes that do not fit.
    """
    head = model.head
    if not isinstance(head, NormalizedHead):
        raise ValueError(f"a {type(head).__name__} compares no directions: there is no similarity to map")
    if targets.dim() != 2 or targets.shape[1] != head.dim or len(images) not in (1, len(targets)):
        raise ValueError(
            f"targets must be (N, {head.dim}) for images (N, 3, H, W) or (1, 3, H, W), "
            f"got {tuple(targets.shape)} for {tuple(images.shape)}"
        )
    with evaluating(model) as device:
        with torch.no_grad():
            last = _last_map(model.backbone, images.to(device))
        targets = targets.to(last)
        last = last.expand(len(targets), *last.shape[1:]).contiguous().requires_grad_()
        with torch.enable_grad():
            features = _pooled(model.backbone, last.clone())  # a layer may work in place
        with torch.no_grad():
            weights, constant, similarity = held_norm(head, features, targets)
        (pulled,) = torch.autograd.grad(features, last, weights)
    with torch.no_grad():
        shares = _over_places(model.backbone, last * pulled, pulled)  # (N, h, w)
        values = shares * shares[0].numel() + constant[:, None, None]
        return Maps(values, similarity, values.mean((1, 2)) - similarity)


def heat_maps(model: ImageClassifier, images: Tensor, targets: Tensor) -> list[HeatMap]:
    """:func:`similarity_maps`, one by one, on the CPU."""
    values, *numbers = similarity_maps(model, images, targets)
    size = tuple(images.shape[2:])
    rows = zip(values.float().cpu(), *(each.tolist() for each in numbers), strict=True)
    return [HeatMap(value, similarity, gap, size, size) for value, similarity, gap in rows]


@torch.no_grad()
def scene_maps(model: Segmenter, image: Tensor, targets: Tensor) -> list[HeatMap]:
    """Of a scene, the similarity of each place's embedding to unit vectors.

    Pixels are not pooled, so nothing is shared out: a place has a similarity of its own.

    Args:
        model: with a head that normalises.
        image: (3, H, W), normalised.
        targets: (N, D), unit length.
    """
    with evaluating(model) as device:
        embedded = model.embed(image[None].to(device))[0].float()  # (D, h, w)
    values = torch.einsum("nd,dhw->nhw", targets.to(embedded), embedded).cpu()
    seen = tuple(image.shape[1:])
    padded = tuple(side + -side % model.multiple for side in seen)
    return [HeatMap(value, float(value.max()), 0.0, seen, padded, of_scene=True) for value in values]


def _last_map(backbone: nn.Module, images: Tensor) -> Tensor:
    """What the backbone pools, in its own layout: (N, D, h, w), (N, h, w, D) or tokens (N, places, D)."""
    if isinstance(backbone, CifarResNet):
        return feature_maps(backbone, images)[-1]
    if not (hasattr(backbone, "forward_features") and hasattr(backbone, "forward_head")):
        raise NoPlaces(
            f"{type(backbone).__name__} does not tell what it pools: give it timm's forward_features and forward_head"
        )
    last = backbone.forward_features(images)
    if not isinstance(last, Tensor) or last.dim() not in (3, 4):
        raise NoPlaces(f"{type(backbone).__name__} ends in no map over places: there is nothing to show where")
    return last


def _pooled(backbone: nn.Module, last: Tensor) -> Tensor:
    """The feature (N, D) that the classifier makes of its last map."""
    if isinstance(backbone, CifarResNet):
        return last.mean((2, 3))
    return backbone.forward_head(last, pre_logits=True)


def _over_places(backbone: nn.Module, product: Tensor, pulled: Tensor) -> Tensor:
    """Sum over channels, (N, h, w), whatever the layout."""
    name = type(backbone).__name__
    if product.dim() == 4:
        width = getattr(backbone, "num_features", None)
        last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        last |= product.shape[1] != width and product.shape[3] == width
        return product.sum(-1 if last else 1)
    before = getattr(backbone, "num_prefix_tokens", 0)
    if not pulled[:, before:].any():
        raise NoPlaces(
            f"{name} classifies by its class token and pools no places: there is no map of where its similarity "
            f"comes from"
        )
    tokens = product[:, before:].sum(-1)  # (N, places)
    places = tokens.shape[1]
    height, width = getattr(getattr(backbone, "patch_embed", None), "grid_size", None) or (0, 0)
    if height * width != places:
        height = width = round(places**0.5)
    if height * width != places:
        raise NoPlaces(f"{name} gives {places} tokens in no grid that it tells: there is no map of them")
    return tokens.unflatten(1, (height, width))
