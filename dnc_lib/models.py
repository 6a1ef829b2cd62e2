"""Models: a backbone and a head."""

import torch
from torch import Tensor, nn

from .backbones import build_backbone, feature_width
from .heads import Head, SubCentroidHead, build_head


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
        cls, name: str, num_classes: int, head: str = "dnc", *, pretrained: bool = False,
        head_settings: dict | None = None, **settings,
    ) -> "ImageClassifier":
        """A classifier by the names of its backbone and head.

        Args:
            name: see :func:`dnc_lib.backbones.build_backbone`.
            num_classes: C.
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
        cls, name: str, num_classes: int, head: str = "dnc", *, pretrained: bool = False,
        head_settings: dict | None = None, **settings,
    ) -> "ImageClassifier":
        """Any timm model as a deep nearest-centroid classifier: its classifier goes, sub-centroids come.

        ``ImageClassifier.from_timm("resnet50", num_classes=10)`` is all it takes. Train it, or, with pretrained
        weights, call :meth:`refresh` on labelled images and use it as it stands.

        Args:
            name: a timm model.
            num_classes: C.
            head: ``"dnc"``, or a control, see :func:`dnc_lib.heads.build_head`.
            pretrained: load timm's weights.
            head_settings: of :class:`~dnc_lib.heads.SubCentroidHead`, for instance ``{"num_subcentroids": 8}``.
            settings: for timm.

        Raises:
            ValueError: for an unknown model or head.
        """
        return cls.build(name, num_classes, head, pretrained=pretrained, head_settings=head_settings, **settings)

    def features(self, images: Tensor) -> Tensor:
        """Raw features, before the head's normalisation: (B, 3, H, W) -> (B, D)."""
        return self.backbone(images)

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
    def refresh(self, loader) -> None:
        """Estimate the sub-centroids anew from a data set, in evaluation mode, without a gradient.

        Args:
            loader: iterable of (images (B, 3, H, W) normalised, labels (B,)).

        Raises:
            ValueError: for an empty loader, or a head that has no sub-centroids.
        """
        if not isinstance(self.head, SubCentroidHead):
            raise ValueError(f"refresh needs a SubCentroidHead; a {type(self.head).__name__} has nothing to estimate")
        training = self.training
        self.eval()
        try:
            device = next(self.parameters()).device
            parts = [(self.features(images.to(device)).float(), labels) for images, labels in loader]
        finally:
            self.train(training)
        if not parts:
            raise ValueError("the loader gave no batch: nothing to estimate sub-centroids from")
        features = torch.cat([part for part, _ in parts])
        self.head.estimate(features, torch.cat([labels for _, labels in parts]).to(features.device))
