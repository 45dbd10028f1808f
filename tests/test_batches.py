"""Drawing, cropping, flipping and normalising, against loops and torchvision."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torchvision import transforms

from ltnotes.batches import Augmenter, Normalizer, draw_images
from ltnotes.methods import balancers

COUNTS = [400, 50, 1, 149]


@pytest.fixture
def labels():
    generator = torch.Generator().manual_seed(0)
    ordered = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
    return ordered[torch.randperm(len(ordered), generator=generator)]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_instance_balanced_drawing_is_a_shuffle(labels):
    drawn = draw_images(balancers.instance_balanced(COUNTS), labels)
    assert drawn.sort().values.tolist() == list(range(len(labels)))
    assert drawn.tolist() != list(range(len(labels)))


@pytest.mark.parametrize(
    "probabilities",
    [
        balancers.class_balanced(COUNTS),
        balancers.square_root(COUNTS),
        balancers.progressively_balanced(COUNTS, 0.01),
        torch.tensor([0.0, 0.9, 0.1, 0.0], dtype=torch.float64),
    ],
    ids=["class", "square-root", "nearly instance", "zeros"],
)
def test_classes_are_drawn_by_their_probability(probabilities, labels):
    drawn = torch.cat([draw_images(probabilities, labels) for _ in range(50)])
    size = len(drawn)
    observed = labels[drawn].bincount(minlength=len(COUNTS)).double()
    deviation = (size * probabilities * (1 - probabilities)).sqrt()
    assert len(drawn) == 50 * len(labels)
    assert ((observed - size * probabilities).abs() <= 4 * deviation).all()


def test_the_images_of_a_class_are_drawn_equally_often(labels):
    drawn = torch.cat([draw_images(balancers.class_balanced(COUNTS), labels) for _ in range(200)])
    times = drawn.bincount(minlength=len(labels)).double()[labels == 1]
    chi_square = ((times - times.mean()) ** 2 / times.mean()).sum().item()
    assert chi_square < 85  # 49 degrees of freedom: exceeded by chance once in a thousand


def test_drawing_follows_the_seed(labels):
    def draw(seed):
        torch.manual_seed(seed)
        return draw_images(balancers.class_balanced(COUNTS), labels)

    assert draw(1).equal(draw(1))
    assert not draw(1).equal(draw(2))


# --- crop and flip ---


def crop_by_hand(image, pad, down, right, mirrored):
    """A window of the zero-padded image, pixel by pixel."""
    size = image.shape[0]
    out = torch.zeros_like(image)
    for row in range(size):
        for column in range(size):
            source_row = row + down - pad
            source_column = (size - 1 - column if mirrored else column) + right - pad
            if 0 <= source_row < size and 0 <= source_column < size:
                out[row, column] = image[source_row, source_column]
    return out


def test_a_shift_of_its_own_comes_before_the_set_s(digits):
    assert digits.pad == 2 and Augmenter(digits).pad == 2
    still = Augmenter(digits, pad=0)
    assert still.crop(torch.arange(5)).equal(digits.train.images[:5])


@pytest.mark.parametrize(("pad", "flip"), [(4, True), (2, False), (0, True), (0, False)])
def test_crop_equals_a_loop_over_the_padded_image(digits, pad, flip):
    augment = Augmenter(replace(digits, pad=pad, flip=flip))
    indices = torch.tensor([5, 0, 17, 5, 100, 3])
    torch.manual_seed(4)
    cropped = augment.crop(indices)[..., :3]
    torch.manual_seed(4)
    down, right = torch.randint(0, 2 * pad + 1, (2, len(indices), 1)).squeeze(-1).tolist()
    mirrored = (torch.rand(len(indices), 1) < 0.5).squeeze(1).tolist() if flip else [False] * len(indices)
    for k, index in enumerate(indices):
        by_hand = crop_by_hand(digits.train.images[index], pad, down[k], right[k], mirrored[k])
        assert cropped[k].equal(by_hand)


def test_every_shift_and_both_mirrorings_are_drawn(digits):
    augment = Augmenter(replace(digits, pad=1, flip=True))
    image = digits.train.images[3]
    seen = {tuple(crop[..., :3].flatten().tolist()) for crop in augment.crop(torch.full((400,), 3))}
    possible = {
        tuple(crop_by_hand(image, 1, down, right, mirrored).flatten().tolist())
        for down in range(3)
        for right in range(3)
        for mirrored in (False, True)
    }
    assert seen == possible


def test_without_pad_and_flip_nothing_changes(digits):
    indices = torch.arange(20)
    unchanged = Augmenter(replace(digits, pad=0, flip=False)).crop(indices)[..., :3]
    assert unchanged.equal(digits.train.images[:20])


def test_half_of_the_images_are_flipped_only_when_flip_is_set(digits):
    indices = torch.full((1000,), 3)
    image = digits.train.images[3]
    for flip, low, high in ((True, 430, 570), (False, 0, 0)):
        crops = Augmenter(replace(digits, pad=0, flip=flip)).crop(indices)[..., :3]
        flipped = (crops != image).flatten(1).any(1)
        assert low <= flipped.sum() <= high
        assert crops[flipped].equal(image.flip(1).expand_as(crops[flipped]))


def test_augmented_batches_are_normalised_and_channels_last(digits):
    indices = torch.arange(16)
    torch.manual_seed(7)
    batch = Augmenter(digits)(indices)
    torch.manual_seed(7)
    cropped = Augmenter(digits).crop(indices)[..., :3].permute(0, 3, 1, 2) / 255
    expected = (cropped - torch.tensor(digits.mean)[:, None, None]) / torch.tensor(digits.std)[:, None, None]
    assert batch.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(batch, expected, rtol=0, atol=1e-5)


def test_normalising_equals_torchvision():
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    images = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8)
    images[0], images[1] = 0, 255
    path = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    expected = torch.stack([path(Image.fromarray(image.numpy())) for image in images])
    torch.testing.assert_close(Normalizer(mean, std, "cpu")(images), expected, rtol=0, atol=1e-6)
