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

    The scenes of 96 x 96 are brought to 64 x 64, so that a place of the last map, one every 4 pixels there, sees a
    whole digit; crops of 48 x 48 make a step cheaper and few scenes go further. That coarse grid also sets a bound:
    a perfect answer on it, enlarged, has 73 mIoU. K is 4, not the 10 of real scenes: with 10 (and whole scenes) it
    learned more slowly.

    Expect: about 59 mIoU with dnc, 58 with frozen, 62 with softmax and cosine (means of 3 seeds each).
    Time: 40 to 50 s of one core's time on a machine that had other work too. Data: digit_scenes, embedded.
    """
    recipe = Recipe(
        name="digit_scenes_fcn",
        dataset="digit_scenes",
        backbone="cifar_resnet8",
        decoder="fcn",
        channels=64,
        epochs=8,
        evaluate_every=2,
        batch_size=4,
        optimizer="adamw",
        learning_rate=5e-3,
        weight_decay=0.01,
        schedule="one_cycle",
        image_size=64,
        crop_size=(48, 48),
        scale=(1.0, 1.0),
        class_share=1.0,
        flip=False,
        memory_size=2000,
        momentum=0.995,
        update_after=200,
        reader="scenes",
        num_subcentroids=4,
        pixels=10,
        correct_only=True,
    )
    return recipe.replace(**changes)
