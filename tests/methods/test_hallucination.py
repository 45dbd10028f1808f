"""Gradient ascent on images against one image at a time (BLT section 3.1), and against the released code's lists."""

import itertools
import math

import pytest
import torch
from torch import nn

from ltnotes.methods.hallucination import SCORES, augment_again, hallucinate, hallucinate_as_released

CLASSES, SIZE = 5, 12


def network(dtype=torch.float64):
    """A small convolutional network whose evaluation mode is another function than its training mode."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(54, CLASSES)
    ).to(dtype)
    with torch.no_grad():
        model[5].weight.mul_(4)  # so that images finish, and at different steps
    model[1].running_mean.uniform_(-0.5, 0.5)
    model[1].running_var.uniform_(0.5, 2.0)
    return model


def samples(dtype=torch.float64, size=SIZE):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, 7, 7, generator=generator, dtype=torch.float64).to(dtype)
    classes = torch.randint(CLASSES, (size,), generator=generator)
    return images, classes, torch.linspace(0.1, 0.9, size, dtype=torch.float64)


def probabilities(row):
    powers = [math.exp(z - max(row)) for z in row]
    return [power / math.fsum(powers) for power in powers]


def gradient_of(model, image, c, score):
    """The gradient of one image's score, and the probability of its class."""
    x = image[None].clone().requires_grad_()
    z = model(x)[0]
    value = z[c] if score == "logit" else z[c] - z.logsumexp(0)
    (value.exp() if score == "probability" else value).backward()
    return x.grad[0], probabilities(z.tolist())[c]


def climb_alone(model, image, c, threshold, step_size=0.7, max_steps=15, score="logit"):
    """One image, and how many steps it took."""
    for step in range(max_steps):
        gradient, probability = gradient_of(model, image, c, score)
        if probability >= threshold:
            return image, step
        image = image + step_size * gradient
    return image, max_steps


def reference(images, classes, thresholds, **options):
    model = network(images.dtype).eval()
    each = zip(images, classes.tolist(), thresholds.tolist(), strict=True)
    found = [climb_alone(model, *one, **options) for one in each]
    return torch.stack([image for image, _ in found]), [steps for _, steps in found]


class Flat(nn.Module):
    """Linear in the image: logit j is the sum of pixel times weight."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images):
        return images.flatten(1) @ self.weight.flatten(1).T


def linear():
    return Flat(torch.randn(CLASSES, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


OPTIONS = [
    {},
    {"step_size": 0.2},
    {"max_steps": 4},
    {"score": "log-probability"},
    {"score": "probability", "step_size": 3.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_one_image_at_a_time(options):
    images, classes, thresholds = samples()
    expected, steps = reference(images, classes, thresholds, **options)
    assert len(set(steps)) >= 3 and 0 in steps
    found = hallucinate(network(), images, classes, thresholds, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_equals_one_image_at_a_time_in_float32():
    images, classes, thresholds = samples(torch.float32)
    expected, _ = reference(images, classes, thresholds)
    torch.testing.assert_close(hallucinate(network(torch.float32), images, classes, thresholds), expected)


def test_one_confidence_is_that_of_all():
    images, classes, _ = samples()
    model = network()
    each = hallucinate(model, images, classes, torch.full((SIZE,), 0.4, dtype=torch.float64))
    assert hallucinate(model, images, classes, 0.4).equal(each)
    assert hallucinate(model, images, classes, torch.tensor(0.4, dtype=torch.float64)).equal(each)


@pytest.mark.parametrize("k", [0, 1, 5])
def test_a_linear_model_moves_k_steps_along_the_class(k):
    images, classes = torch.zeros(4, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 3, 3, 1])
    model = linear()
    found = hallucinate(model, images, classes, 1.0, step_size=0.1, max_steps=k)
    torch.testing.assert_close(found, k * 0.1 * model.weight.detach()[classes], rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_every_image_stays_in_its_row_whichever_finish_first(seed):
    images, classes, thresholds = samples()
    order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(seed))
    together = hallucinate(network(), images, classes, thresholds)
    permuted = hallucinate(network(), images[order], classes[order], thresholds[order])
    torch.testing.assert_close(permuted, together[order], rtol=0, atol=1e-12)


def test_an_image_that_is_there_already_returns_as_it_came():
    images, classes, _ = samples()
    for threshold in (0.0, torch.zeros(SIZE)):
        found = hallucinate(network(), images, classes, threshold)
        assert found.equal(images) and found is not images


def test_reaching_the_confidence_exactly_is_enough():
    images, classes = torch.zeros(2, 3, 2, 2), torch.tensor([0, 1])
    assert hallucinate(Flat(torch.ones(2, 3, 2, 2)), images, classes, 0.5).equal(images)


def test_confidence_is_read_in_float32():
    # A third is 0.33398 in bfloat16.
    images, classes = torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16), torch.tensor([0])
    model = Flat(torch.eye(3, 12, dtype=torch.bfloat16))
    assert not hallucinate(model, images, classes, 0.3335, max_steps=1).equal(images)


def test_images_that_finish_are_not_computed_again():
    images, classes, thresholds = samples()
    _, steps = reference(images, classes, thresholds)
    model, sizes = network(), []
    model.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    hallucinate(model, images, classes, thresholds)
    alive = [sum(taken >= step for taken in steps) for step in range(15)]
    assert sizes == [n for n in alive if n]


@pytest.mark.parametrize("climb", [hallucinate, hallucinate_as_released])
def test_no_norm_is_computed_in_evaluation_mode(climb, monkeypatch):
    images, classes, thresholds = samples()
    expected = climb(network(), images, classes, thresholds)
    monkeypatch.delattr(nn.functional, "batch_norm")
    assert climb(network(), images, classes, thresholds).equal(expected)


@pytest.mark.parametrize("climb", [hallucinate, hallucinate_as_released])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_the_model_is_left_as_it_was(climb, mode):
    images, classes, thresholds = samples()
    model = network()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    given = images.clone()
    with mode():
        found = climb(model, images, classes, thresholds)
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
    assert images.equal(given)
    assert not found.requires_grad and not found.equal(images)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == [False] + 5 * [True]


def test_modes_come_back_after_an_error():
    class Failing(nn.Module):
        def forward(self, images):
            raise RuntimeError("no")

    model = nn.Sequential(network(), Failing()).train()
    model[0][1].eval()
    images, classes, thresholds = samples()
    with pytest.raises(RuntimeError, match="no"):
        hallucinate(model, images, classes, thresholds)
    assert model.training and model[0].training and not model[0][1].training


def test_gradients_that_wait_in_parameters_stay():
    images, classes, thresholds = samples()
    model = network()
    model(images).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    hallucinate(model, images, classes, thresholds)
    assert all(parameter.grad.equal(grad) for parameter, grad in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_and_memory_format_stay(dtype, memory_format):
    images, classes, thresholds = samples(dtype)
    found = hallucinate(network(dtype), images.contiguous(memory_format=memory_format), classes, thresholds)
    assert found.dtype == dtype and found.is_contiguous(memory_format=memory_format)
    assert not found.equal(images)


@pytest.mark.parametrize("cache", [True, False])
def test_under_autocast_images_stay_float32_and_the_weights_still_learn(cache):
    images, classes, _ = samples(torch.float32)
    model = network(torch.float32)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
        with torch.no_grad():
            found = hallucinate(model, images, classes, 1.0, max_steps=2)
        loss = model(found).float().logsumexp(1).sum()
    loss.backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, hallucinate(model, images, classes, 1.0, max_steps=2), rtol=0, atol=0.03)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_empty_batch_stays_empty():
    images, classes, thresholds = samples(size=0)
    assert hallucinate(network(), images, classes, thresholds).shape == (0, 3, 7, 7)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_extreme_scores_stay_finite(scale):
    images, classes = torch.ones(3, 3, 2, 2), torch.tensor([0, 1, 2])
    model = Flat(scale * torch.eye(12).view(12, 3, 2, 2))
    for score in SCORES:
        assert hallucinate(model, images, classes, 0.99, step_size=1e-3, score=score).isfinite().all()


# --- as released ---


def as_released(images, classes, thresholds, accumulated, shifted, stale, step_size=0.7, max_steps=15):
    """The released procedure in lists, with each difference to be switched off."""
    model = network().eval()
    names = list(range(len(images)))  # whose labels the survivors carry
    live = [[image, torch.zeros_like(image)] for image in images]
    results = {}
    for step in range(max_steps):
        looked_at = [image for image, _ in live]
        confident = [
            gradient_of(model, image, classes[name].item(), "logit")[1]
            for image, name in zip(looked_at, names, strict=True)
        ]
        kept = [i for i, name in enumerate(names) if confident[i] < thresholds[name].item()]
        results |= {name: looked_at[i] for i, name in enumerate(names) if i not in kept}
        survivors = [names[i] for i in kept]
        climbs = dict(enumerate(survivors)) if shifted else dict(zip(kept, survivors, strict=True))
        for i, entry in enumerate(live):
            fresh = torch.zeros_like(entry[0])
            if i in climbs:
                fresh, _ = gradient_of(model, entry[0], classes[climbs[i]].item(), "logit")
            entry[1] = entry[1] + fresh if accumulated else fresh
            entry[0] = entry[0] + step_size * entry[1]
        live, names = [live[i] for i in kept], survivors
        if step == max_steps - 1:
            last = looked_at[: len(names)] if stale else [image for image, _ in live]
            results |= dict(zip(names, last, strict=True))
    return torch.stack([results[name] for name in range(len(images))])


@pytest.mark.parametrize("accumulated", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("stale", [True, False])
@pytest.mark.parametrize("max_steps", [1, 2, 6])
def test_as_released_equals_the_released_lists(accumulated, shifted, stale, max_steps):
    images, classes, thresholds = samples()
    flags = {"accumulated_gradients": accumulated, "shifted_classes": shifted, "stale_timeouts": stale}
    order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(4))
    images, classes, thresholds = images[order], classes[order], thresholds[order]
    found = hallucinate_as_released(network(), images, classes, thresholds, step_size=0.3, max_steps=max_steps, **flags)
    expected = as_released(images, classes, thresholds, accumulated, shifted, stale, 0.3, max_steps)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


FLAGS = ("accumulated_gradients", "shifted_classes", "stale_timeouts")


@pytest.mark.parametrize("score", SCORES)
def test_without_its_differences_the_released_ascent_is_that_of_the_paper(score):
    images, classes, thresholds = samples()
    found = hallucinate_as_released(network(), images, classes, thresholds, score=score, **dict.fromkeys(FLAGS, False))
    assert found.equal(hallucinate(network(), images, classes, thresholds, score=score))


@pytest.mark.parametrize("flags", list(itertools.combinations(FLAGS, 2)), ids=str)
def test_each_difference_alone_changes_the_images(flags):
    images, classes, thresholds = samples()
    options = {"max_steps": 4, "step_size": 0.3}
    other = hallucinate_as_released(network(), images, classes, thresholds, **options, **dict.fromkeys(flags, False))
    assert not other.allclose(hallucinate(network(), images, classes, thresholds, **options))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_as_released_k_steps_of_a_linear_model_move_half_k_times_k_plus_1(k):
    images, classes = torch.zeros(3, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 3, 1])
    model = linear()
    found = hallucinate_as_released(
        model, images, classes, 1.0, step_size=0.1, max_steps=k, shifted_classes=False, stale_timeouts=False
    )
    torch.testing.assert_close(found, k * (k + 1) / 2 * 0.1 * model.weight.detach()[classes], rtol=1e-12, atol=0)


def test_as_released_a_timed_out_image_comes_back_under_anothers_label():
    # Image 0 is done at the first look; image 1 times out, and row 0 of that look is returned for it.
    model = Flat(10 * torch.eye(2, 12).view(2, 3, 2, 2))
    images = torch.zeros(2, 3, 2, 2)
    images[0, 0, 0, 0] = 1
    found = hallucinate_as_released(model, images, torch.tensor([0, 1]), 0.9, step_size=0.001, max_steps=1)
    assert found[0].equal(images[0]) and found[1].equal(images[0])


# --- errors ---


@pytest.mark.parametrize("climb", [hallucinate, hallucinate_as_released])
@pytest.mark.parametrize(
    "wrong",
    [
        {"images": torch.zeros(SIZE, 3, 7)},
        {"images": torch.zeros(SIZE, 3, 7, 7, dtype=torch.uint8)},
        {"confusing_classes": torch.zeros(SIZE)},
        {"confusing_classes": torch.zeros(SIZE - 1, dtype=torch.int64)},
        {"confusing_classes": torch.full((SIZE,), CLASSES)},
        {"confusing_classes": torch.full((SIZE,), -1)},
        {"min_confidence": -0.1},
        {"min_confidence": math.nan},
        {"min_confidence": torch.zeros(SIZE - 1)},
        {"step_size": 0},
        {"step_size": -0.7},
        {"step_size": math.inf},
        {"max_steps": -1},
        {"max_steps": 2.0},
        {"score": "loss"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_bad_arguments_are_refused_by_name(climb, wrong):
    images, classes, thresholds = samples()
    given = {"images": images, "confusing_classes": classes, "min_confidence": thresholds} | wrong
    with pytest.raises(ValueError, match=rf"^{next(iter(wrong))}: got"):
        climb(network(), **given)


# --- plain augmentations ---

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def normalized(size=8):
    torch.manual_seed(2)
    pixels = torch.rand(size, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def again(images, flip=True, seed=0):
    torch.manual_seed(seed)
    return augment_again(images, MEAN, STD, flip)


def test_augmented_images_are_images_of_the_same_kind():
    images = normalized()
    new = again(images)
    pixels = new * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert new.shape == images.shape and new.dtype == images.dtype
    assert new.is_contiguous(memory_format=torch.channels_last)
    assert pixels.min() > -1e-6 and pixels.max() < 1 + 1e-6
    assert not new.isclose(images).all(dim=(1, 2, 3)).any()


def test_each_image_is_augmented_by_itself():
    images = normalized(1).expand(6, -1, -1, -1)
    new = again(images)
    assert len({tuple(image.flatten().tolist()) for image in new}) == 6


def test_images_are_mirrored_only_if_they_may_be():
    ramp = torch.linspace(-1, 1, 16).expand(40, 3, 16, 16)

    def rising(images):
        left, right = images[..., 4:12, 4:8].mean(dim=(1, 2, 3)), images[..., 4:12, 8:12].mean(dim=(1, 2, 3))
        return (right > left).float().mean()

    assert rising(again(ramp, flip=False)) == 1
    assert 0.2 < rising(again(ramp, flip=True)) < 0.8


def test_augmentation_is_not_coarser_under_autocast():
    images = normalized()
    with torch.autocast("cpu", torch.bfloat16):
        under = again(images)
    assert under.equal(again(images))
