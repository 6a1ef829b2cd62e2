"""Models: a backbone and a head."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .backbones import build_backbone, feature_width
from .heads import Head, SubCentroidHead, build_head


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode inside; afterwards every module is in the mode it was in. Gives the model's device."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield next(model.parameters()).device
    finally:
        for module, training in modes:
            module.training = training


class ImageClassifier(nn.Module):
    """Normalised images (B, 3, H, W) to class scores (B, C).

    Args:
        backbone: images to pooled features (B, D).
        head: features to scores, see :mod:`dnc_lib.heads`.
    """

    def __init__(self, backbone: nn.Module, head: Head):
        super().__init__()
        self.backbone, self.head = backbone, head

    @classmethod
    def build(
        cls,
        name: str,
        num_classes: int,
        head: str = "dnc",
        *,
        pretrained: bool = False,
        head_settings: dict | None = None,
        **settings,
    ) -> "ImageClassifier":
        """A classifier by the names of its backbone and head.

        Args:
            name: see :func:`dnc_lib.backbones.build_backbone`.
            num_classes: C, how many classes there are.
            head: ``"dnc"``, ``"softmax"``, ``"cosine"`` or ``"frozen"``.
            pretrained: load the backbone's ImageNet weights.
            head_settings: of :class:`~dnc_lib.heads.SubCentroidHead`.
            settings: for the backbone, for instance ``drop_path_rate=0.3``.

        Raises:
            ValueError: for an unknown backbone or head.
        """
        backbone = build_backbone(name, pretrained=pretrained, **settings)
        return cls(backbone, build_head(head, feature_width(backbone), num_classes, **(head_settings or {})))

    @classmethod
    def from_timm(
        cls,
        name: str,
        num_classes: int,
        head: str = "dnc",
        *,
        pretrained: bool = False,
        head_settings: dict | None = None,
        **settings,
    ) -> "ImageClassifier":
        """Any timm model as a deep nearest-centroid classifier: its classifier goes, sub-centroids come.

        ``ImageClassifier.from_timm("resnet50", num_classes=10)`` is all it takes. Train it, or, with pretrained
        weights, call :meth:`refresh` on labelled images and use it as it stands.

        Args:
            name: a timm model.
            num_classes: C, how many classes there are.
            head: ``"dnc"``, or a control, see :func:`dnc_lib.heads.build_head`.
            pretrained: load timm's weights.
            head_settings: of :class:`~dnc_lib.heads.SubCentroidHead`, for instance ``{"num_subcentroids": 8}``.
            settings: for timm.

        Raises:
            ValueError: for an unknown model or head.
        """
        return cls.build(name, num_classes, head, pretrained=pretrained, head_settings=head_settings, **settings)

    def features(self, images: Tensor) -> Tensor:
        """Raw features, before the head's normalisation: (B, 3, H, W) -> (B, D).

        Raises:
            ValueError: if the backbone does not end in one vector an image.
        """
        features = self.backbone(images)
        if not isinstance(features, Tensor) or features.dim() != 2:
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(
                f"the backbone must end in pooled features (B, {self.head.dim}), got {shape}: "
                f"leave its global pooling on (no global_pool='' or features_only=True)"
            )
        return features

    def embed(self, images: Tensor) -> Tensor:
        """What the head compares: unit embeddings (B, D), or the raw features under a softmax head."""
        features = self.features(images)
        return self.head.embed(features) if hasattr(self.head, "embed") else features

    def forward(self, images: Tensor, return_features: bool = False):
        """Class scores (B, C); with ``return_features`` also the raw features (B, D) that ``head.update`` takes."""
        features = self.features(images)
        scores = self.head(features)
        return (scores, features) if return_features else scores

    @torch.no_grad()
    def refresh(self, loader: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Estimate the sub-centroids anew from a data set, in evaluation mode, without a gradient.

        Args:
            loader: iterable of (images (B, 3, H, W) normalised, labels (B,)).

        Raises:
            ValueError: for an empty loader, or a head that has no sub-centroids.
        """
        if not isinstance(self.head, SubCentroidHead):
            raise ValueError(f"refresh needs a SubCentroidHead; a {type(self.head).__name__} has nothing to estimate")
        with evaluating(self) as device:
            parts = [(self.features(images.to(device)).float(), labels.to(device)) for images, labels in loader]
        if not parts:
            raise ValueError("the loader gave no batch: nothing to estimate sub-centroids from")
        features, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        self.head.estimate(features, labels)
