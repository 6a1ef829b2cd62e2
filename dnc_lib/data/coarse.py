"""Coarse labels: a data set's classes merged into a few, so that one may ask whether the hidden ones are found."""

from dataclasses import replace

import torch

from .arrays import LabelledImages

#: Name of a coarse data set to the fine one, and its classes to those that they hide.
COARSE = {
    "cifar10_coarse": (
        "cifar10",
        {
            "vehicle": ("airplane", "automobile", "ship", "truck"),
            "animal": ("bird", "cat", "deer", "dog", "frog", "horse"),
        },
    ),
    # The 20 superclasses that CIFAR-100's authors publish beside its 100 classes (Krizhevsky 2009).
    "cifar100_coarse": (
        "cifar100",
        {
            "aquatic mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
            "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
            "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
            "food containers": ("bottle", "bowl", "can", "cup", "plate"),
            "fruit and vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
            "household electrical devices": ("clock", "keyboard", "lamp", "telephone", "television"),
            "household furniture": ("bed", "chair", "couch", "table", "wardrobe"),
            "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
            "large carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
            "large man-made outdoor things": ("bridge", "castle", "house", "road", "skyscraper"),
            "large natural outdoor scenes": ("cloud", "forest", "mountain", "plain", "sea"),
            "large omnivores and herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
            "medium-sized mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
            "non-insect invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
            "people": ("baby", "boy", "girl", "man", "woman"),
            "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
            "small mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
            "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
            "vehicles 1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
            "vehicles 2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
        },
    ),
}


def merged(data: LabelledImages, groups: dict[str, tuple[str, ...]]) -> LabelledImages:
    """The same images in the same order, their classes merged.

    Args:
        data: with its fine labels.
        groups: name of a coarse class to the fine ones that it hides.

    Raises:
        ValueError: for a class that is in no group, or in two.
    """
    homes = {fine: [c for c, group in enumerate(groups.values()) if fine in group] for fine in data.classes}
    for fine, coarse in homes.items():
        if len(coarse) != 1:
            raise ValueError(
                f"{data.name}: class {fine!r} is in {len(coarse)} of the coarse classes {', '.join(groups)}; it must "
                f"be in one"
            )
    table = torch.tensor([homes[fine][0] for fine in data.classes])
    return replace(data, labels=table[data.labels], classes=tuple(groups), name=f"{data.name}, coarse")
