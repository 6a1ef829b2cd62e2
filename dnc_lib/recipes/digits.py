"""Handwritten digits: seconds on any machine."""

from .base import Recipe

__all__ = ["digit_scenes_fcn", "digits_resnet8"]


def digits_resnet8(**changes) -> Recipe:
    """An 8-layer ResNet on scikit-learn's digits: a check that everything runs.

    Expect: 97 to 99 %, whatever the head. Time: 15 s on two CPU cores. Data: embedded.
    """
    recipe = Recipe(
        name="digits_resnet8",
        dataset="digits",
        backbone="tiny_resnet8",
        epochs=10,
        batch_size=64,
        learning_rate=0.1,
        nesterov=True,
        weight_decay=5e-4,
        schedule="one_cycle",
        pad=1,
        flip=False,
        image_size=8,
        momentum=0.98,
        memory_size=1024,
    )
    return recipe.replace(**changes)


def digit_scenes_fcn(**changes) -> Recipe:
    """FCN on an 8-layer residual network: digits found on textures.

    Data: digit_scenes, embedded. Time: under a minute on two CPU cores. Expect: not run here yet.
    """
    recipe = Recipe(
        name="digit_scenes_fcn",
        dataset="digit_scenes",
        backbone="tiny_resnet8",
        decoder="fcn",
        channels=64,
        epochs=8,
        batch_size=16,
        learning_rate=0.1,
        nesterov=True,
        weight_decay=5e-4,
        crop_size=(64, 64),
        scale=(0.8, 1.25),
        class_share=0.98,
        flip=False,
        memory_size=4000,
        momentum=0.95,
        update_after=31,
        reader="scenes",
        image_size=0,
        num_subcentroids=10,
        schedule="poly",
        correct_only=True,
    )
    return recipe.replace(**changes)
