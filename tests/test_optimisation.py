import pytest
import torch
from torch import nn

from dnc_lib.models import ImageClassifier
from dnc_lib.optimisation import make_optimizer, make_schedule, parameter_groups
from dnc_lib.recipes import digits_resnet8


@pytest.mark.parametrize("schedule", ["step", "one_cycle", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 18])
def test_schedules_of_any_length(schedule, steps):
    recipe = digits_resnet8(schedule=schedule, epochs=1, milestones=(1,))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], recipe.learning_rate)
    scheduler = make_schedule(recipe, optimizer, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert all(0 <= rate <= recipe.learning_rate * 1.0001 for rate in rates)
    if schedule in ("step", "constant"):
        assert rates == [recipe.learning_rate] * steps
    if schedule == "one_cycle" and steps == 18:
        assert rates[0] == pytest.approx(recipe.learning_rate / 10)
        assert max(rates) > 0.9 * recipe.learning_rate
        assert rates[-1] < 0.01 * recipe.learning_rate


def test_the_step_schedule_falls_at_its_milestones():
    recipe = digits_resnet8(schedule="step", epochs=5, milestones=(2, 4), decay=0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], recipe.learning_rate)
    scheduler = make_schedule(recipe, optimizer, 3)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        for _ in range(3):
            optimizer.step()
            scheduler.step()
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


def rates(recipe, steps, momentum=0.0):
    """The learning rate of every optimiser step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], recipe.learning_rate, momentum)
    scheduler, seen = make_schedule(recipe, optimizer, steps), []
    for _ in range(steps * recipe.epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_poly_falls_by_its_power_to_its_floor():
    recipe = digits_resnet8(schedule="poly", epochs=4, power=0.9, min_learning_rate=0.01, learning_rate=0.1)
    expected = [0.01 + 0.09 * (1 - step / 20) ** 0.9 for step in range(20)]
    assert rates(recipe, 5) == pytest.approx(expected)


def test_cosine_ends_at_its_floor():
    recipe = digits_resnet8(schedule="cosine", epochs=3, min_learning_rate=0.02)
    seen = rates(recipe, 10)
    assert seen[0] == recipe.learning_rate
    assert seen == sorted(seen, reverse=True)
    assert 0.02 < seen[-1] < 0.0205


@pytest.mark.parametrize("schedule", ["step", "cosine", "poly", "constant"])
def test_warm_up_rises_in_a_line_and_hands_over(schedule):
    recipe = digits_resnet8(schedule=schedule, epochs=6, warmup_epochs=2, milestones=(4,), learning_rate=1.0)
    seen = rates(recipe, 5)
    assert seen[:10] == pytest.approx([1e-3 + (1 - 1e-3) * step / 10 for step in range(10)])
    assert seen[10] == pytest.approx(1.0)
    if schedule == "step":  # milestones count from the beginning of the training
        assert seen[10:20] == pytest.approx([1.0] * 10)
        assert seen[20:] == pytest.approx([0.1] * 10)
    if schedule in ("cosine", "poly"):
        assert seen[10:] == sorted(seen[10:], reverse=True)
        assert seen[-1] < 0.2


def test_a_schedule_goes_on_from_its_state():
    recipe = digits_resnet8(schedule="step", epochs=6, warmup_epochs=2, milestones=(3, 5))
    whole = rates(recipe, 4)
    first = torch.optim.SGD([nn.Parameter(torch.zeros(1))], recipe.learning_rate)
    schedule = make_schedule(recipe, first, 4)
    for _ in range(13):
        first.step()
        schedule.step()
    second = torch.optim.SGD([nn.Parameter(torch.zeros(1))], recipe.learning_rate)
    resumed = make_schedule(recipe, second, 4)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    seen = []
    for _ in range(13, 24):
        seen.append(second.param_groups[0]["lr"])
        second.step()
        resumed.step()
    assert seen == whole[13:]


def names(model, groups):
    """The names of the parameters of each group."""
    of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [{of[id(parameter)] for parameter in group["params"]} for group in groups]


def test_one_group_holds_everything_where_nothing_is_spared():
    model = ImageClassifier.build("tiny_resnet8", 10, "softmax")
    (group,) = parameter_groups(digits_resnet8(), model)
    assert len(group["params"]) == len(list(model.parameters()))
    assert group["weight_decay"] == 5e-4


def test_norms_biases_and_position_tables_of_swin_are_not_decayed():
    model = ImageClassifier.build("swin_tiny_patch4_window7_224", 5, "dnc", head_settings={"memory_size": 0})
    recipe = digits_resnet8(decay_norms=False, optimizer="adamw", weight_decay=0.05)
    groups = parameter_groups(recipe, model)
    decayed, free = names(model, groups)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert decayed | free == {name for name, _ in model.named_parameters()}
    assert not decayed & free
    assert sum(name.endswith("relative_position_bias_table") for name in free) == 12
    assert all(name in free for name in names(model, [{"params": list(model.head.parameters())}])[0])
    assert all(name.endswith("weight") for name in decayed)
    assert not any("norm" in name for name in decayed)


def test_biases_of_batch_norm_learn_faster_and_shrink_alike():
    model = ImageClassifier.build("cifar_fast_narrow", 10, "softmax")
    recipe = digits_resnet8(norm_bias_rate=8.0, learning_rate=0.5, weight_decay=0.01)
    optimizer = make_optimizer(recipe, model)
    rest, biases = optimizer.param_groups
    assert (rest["lr"], biases["lr"]) == (0.5, 4.0)
    assert biases["lr"] * biases["weight_decay"] == pytest.approx(rest["lr"] * rest["weight_decay"])
    assert len(biases["params"]) == 6
    assert not any(parameter is model.backbone.whitening.weight for parameter in rest["params"])  # it is not learned
    schedule = make_schedule(recipe.replace(schedule="one_cycle", epochs=2), optimizer, 10)
    optimizer.step()
    schedule.step()
    assert biases["lr"] == pytest.approx(8 * rest["lr"])


def test_the_optimisers_are_torchs_own():
    model = ImageClassifier.build("tiny_resnet8", 10, "softmax")
    sgd, adamw = (make_optimizer(digits_resnet8(optimizer=name), model) for name in ("sgd", "adamw"))
    assert type(sgd) is torch.optim.SGD
    assert sgd.param_groups[0]["nesterov"]
    assert sgd.param_groups[0]["momentum"] == 0.9
    assert type(adamw) is torch.optim.AdamW
