"""Models: a backbone and a head, and for pixels a decoder between them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import build_backbone, feature_width
from .decoders import RATES, Decoder, build_auxiliary, build_decoder
from .feature_maps import dense_settings, feature_maps, input_multiple, map_strides, map_widths, without_place
from .heads import Head, SoftmaxHead, SubCentroidHead, build_head
from .metrics import IGNORED
from .pixels import draw_pixels, labels_at
from .transfer import Source, Transfer, carry, read_source


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
        self.made_of: tuple[str, dict] | None = None  # name and settings of the backbone, where they are known
        self.transfer: Transfer | None = None  # what came from another classifier

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
        model = cls(backbone, build_head(head, feature_width(backbone), num_classes, **(head_settings or {})))
        model.made_of = name, settings
        return model

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
        with evaluating(self) as device:
            parts = ((self.features(images.to(device)), labels.to(device)) for images, labels in loader)
            _estimate(self.head, parts)


class Segmenter(nn.Module):
    """Normalised images (B, 3, H, W), of any size, to class scores of every pixel (B, C, H, W).

    The backbone is the one that classifies images, its parameters under the same names; the head scores the
    decoder's embedding of every place as it scores an image. Scores are made at the decoder's resolution and brought
    to that of the images, so that no tensor has C times K channels at full size.

    Args:
        backbone: see :func:`dnc_lib.feature_maps.feature_maps`. What it has learned and this path does not reach is
            frozen.
        decoder: feature maps to one embedding (B, D, h, w).
        head: (..., D) to scores, built with ``ignore_index=255``.
        auxiliary: a second decoder and its linear head, whose loss helps the training of deep backbones and which
            no exported model has (Zhao et al. 2017, section 3.3; in every public baseline).

    Attributes:
        multiple: images are padded to it, at the right and below.
        idle: names of the backbone's parameters that this path does not reach.
        transfer: what came from a classifier, where the model was made from one.
    """

    def __init__(self, backbone: nn.Module, decoder: Decoder, head: Head, auxiliary: nn.ModuleDict | None = None):
        super().__init__()
        self.backbone, self.decoder, self.head, self.auxiliary = backbone, decoder, head, auxiliary
        self.transfer: Transfer | None = None
        self.multiple = input_multiple(backbone)
        self.idle = tuple(without_place(backbone))
        for name in self.idle:
            backbone.get_parameter(name).requires_grad_(False)

    @classmethod
    def build(
        cls,
        name: str,
        decoder: str,
        num_classes: int,
        head: str = "dnc",
        *,
        pretrained: bool = False,
        output_stride: int | None = None,
        channels: int = 512,
        auxiliary: bool = False,
        head_settings: dict | None = None,
        **settings,
    ) -> "Segmenter":
        """A segmenter by the names of its parts.

        Args:
            name: of the backbone, see :func:`dnc_lib.backbones.build_backbone`.
            decoder: ``"fcn"``, ``"deeplabv3"`` or ``"upernet"``.
            num_classes: C, how many classes there are.
            head: ``"dnc"``, ``"softmax"``, ``"cosine"`` or ``"frozen"``.
            pretrained: load the backbone's ImageNet weights.
            output_stride: 8 or 16, where the backbone can dilate its convolutions; ``None`` leaves it as it is.
            channels: D, width of the decoder's embedding.
            auxiliary: with the auxiliary branch, for training.
            head_settings: of :class:`~dnc_lib.heads.SubCentroidHead`; K is 10 unless they say so.
            settings: for the backbone.

        Raises:
            ValueError: for an unknown part, or an output stride that the backbone cannot have.
        """
        backbone = build_backbone(name, pretrained=pretrained, **{**dense_settings(name, output_stride), **settings})
        widths = map_widths(backbone)
        rates = None
        if decoder == "deeplabv3":  # they reach as far in the image, whatever the stride
            rates = [max(rate * 8 // map_strides(backbone)[-1], 1) for rate in RATES]
        part = build_decoder(decoder, widths, channels=channels, rates=rates)
        head_settings = {"num_subcentroids": 10, "ignore_index": IGNORED, **(head_settings or {})}
        branch = None
        if auxiliary:
            side = build_auxiliary(widths)
            branch = nn.ModuleDict({"decoder": side, "head": SoftmaxHead(side.width, num_classes, IGNORED)})
        return cls(backbone, part, build_head(head, part.width, num_classes, **head_settings), branch)

    @classmethod
    def from_classifier(
        cls,
        classifier: ImageClassifier | str | Path,
        decoder: str,
        num_classes: int | None = None,
        head: str = "dnc",
        **settings,
    ) -> "Segmenter":
        """A segmenter that begins with all that a classifier has learned and the dense path can use.

        ``model.transfer`` tells what was carried, what is new, and, by name, what has no place.

        Args:
            classifier: a model, a run folder, or a file written by :func:`dnc_lib.checkpoints.save_model`.
            decoder: see :meth:`build`.
            num_classes: C; the classifier's if not given.
            head: see :meth:`build`.
            settings: of :meth:`build`.

        Raises:
            FileNotFoundError: where there is no such file.
            ValueError: for what is no classifier, or a model that does not tell how its backbone was made.
        """
        source = read_source(classifier) if isinstance(classifier, str | Path) else _source(classifier)
        settings = {**source.settings, **settings}
        num_classes = source.num_classes if num_classes is None else num_classes
        model = cls.build(source.backbone, decoder, num_classes, head, **settings)
        model.transfer = carry(source, model)
        return model

    def features(self, images: Tensor) -> Tensor:
        """Raw embedding of every place, before the head's normalisation: (B, 3, H, W) -> (B, D, h, w)."""
        return self.decoder(self._maps(images))

    def embed(self, images: Tensor) -> Tensor:
        """What the head compares: unit embeddings (B, D, h, w), or the raw features under a softmax head."""
        features = self.features(images)
        return self.head.embed(features.movedim(1, -1)).movedim(-1, 1) if hasattr(self.head, "embed") else features

    def forward(self, images: Tensor, return_features: bool = False):
        """Class scores (B, C, H, W); with ``return_features`` also the raw features (B, D, h, w) that the head's
        update takes labels for, and the auxiliary scores (B, C, H, W), ``None`` without that branch."""
        maps = self._maps(images)
        features = self.decoder(maps)
        scores = self._at_full_size(self.head(features.movedim(1, -1)), images)
        if not return_features:
            return scores
        beside = None
        if self.auxiliary is not None:
            side = self.auxiliary["decoder"](maps)
            beside = self._at_full_size(self.auxiliary["head"](side.movedim(1, -1)), images)
        return scores, features, beside

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps of images padded, at the right and below, to what the backbone can cut into patches."""
        height, width = images.shape[2:]
        missing = (-width % self.multiple, -height % self.multiple)
        return feature_maps(self.backbone, F.pad(images, (0, missing[0], 0, missing[1])) if any(missing) else images)

    def _at_full_size(self, scores: Tensor, images: Tensor) -> Tensor:
        """Scores (B, h, w, C) to (B, C, H, W), the images' size."""
        height, width = images.shape[2:]
        padded = [side + -side % self.multiple for side in (height, width)]
        scores = F.interpolate(scores.movedim(-1, 1).float(), padded, mode="bilinear", align_corners=False)
        return scores[:, :, :height, :width]

    @torch.no_grad()
    def refresh(self, loader: Iterable[tuple[Tensor, Tensor]], pixels: int = 20, most: int = 5000) -> None:
        """Estimate the sub-centroids anew from a data set, in evaluation mode, without a gradient.

        Args:
            loader: iterable of (images (B, 3, H, W) normalised, labels (B, H, W), 255 for no class).
            pixels: how many of each class and image take part, at most.
            most: a class that has so many takes no more from the images that follow: all are in memory at once.

        Raises:
            ValueError: for an empty loader, or a head that has no sub-centroids.
        """

        classes = self.head.num_classes

        def parts() -> Iterator[tuple[Tensor, Tensor]]:
            counts = torch.zeros(classes, dtype=torch.long, device=device)
            for number, (images, labels) in enumerate(loader):
                features = self.features(images.to(device))
                labels = labels_at(labels.to(device), features.shape[2:], self.multiple, images.shape[2:])
                drawn, labels = draw_pixels(features, labels, pixels, classes, seed=number)
                wanted = (labels != IGNORED) & (counts < most)[labels.where(labels != IGNORED, 0)]
                counts += labels[wanted].bincount(minlength=classes)
                yield drawn[wanted], labels[wanted]

        with evaluating(self) as device:
            _estimate(self.head, parts())


#: Either kind.
Model = ImageClassifier | Segmenter


def _estimate(head: Head, parts: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set the sub-centroids from raw features (..., D) and their labels."""
    if not isinstance(head, SubCentroidHead):
        raise ValueError(f"refresh needs a SubCentroidHead; a {type(head).__name__} has nothing to estimate")
    flat = [(x.float().flatten(0, -2), labels.flatten()) for x, labels in parts]
    if not flat:
        raise ValueError("the loader gave no batch: nothing to estimate sub-centroids from")
    features, labels = (torch.cat(part) for part in zip(*flat, strict=True))
    if not (labels != head.ignore_index).any():
        raise ValueError("the loader gave no label: nothing to estimate sub-centroids from")
    head.estimate(features, labels)


def _source(classifier: ImageClassifier) -> Source:
    """A classifier at hand, as :func:`~dnc_lib.transfer.read_source` gives one from a file."""
    if not isinstance(classifier, ImageClassifier):
        raise ValueError(
            f"from_classifier takes an ImageClassifier, a run folder or a file, got a {type(classifier).__name__}"
        )
    if classifier.made_of is None:
        raise ValueError(
            "this classifier does not tell how its backbone was made: make it with ImageClassifier.build or "
            "from_timm, or give its file"
        )
    name, settings = classifier.made_of
    return Source(name, settings, classifier.state_dict(), classifier.head.num_classes)
