"""CAM fusion: maps drawn by hand, plain-Python references of FSA Eq. 1 and Algorithm 1, and batches of digits."""

import copy
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ltnotes import training
from ltnotes.counts import exponential_counts
from ltnotes.data import Split
from ltnotes.methods.cam_fusion import CAMFusion, class_activation_map, fuse, head_classes, most_confusing
from ltnotes.methods.common import part
from ltnotes.recipes import Recipe, Stage
from tests import toys
from tests.methods.test_baselines import COUNTS
from tests.test_counts import BAD_COUNTS


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# --- activation maps ---


def maps(batch=3, channels=5, height=4, width=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return draw(batch, channels, height, width), draw(batch, channels)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_activation_map_equals_the_equation(dtype, tolerance):
    f, w = maps(dtype=dtype)
    cam = class_activation_map(f, w)
    assert cam.shape == (3, 4, 6) and cam.dtype == dtype
    for image, weight, got in zip(f.double().tolist(), w.double().tolist(), cam.tolist(), strict=True):
        raw = [
            [math.fsum(w_k * f_k[y][x] for w_k, f_k in zip(weight, image, strict=True)) for x in range(6)]
            for y in range(4)
        ]
        low, high = min(map(min, raw)), max(map(max, raw))
        for row, expected in zip(got, raw, strict=True):
            assert row == pytest.approx([(value - low) / (high - low) for value in expected], abs=tolerance)


def test_a_map_drawn_by_hand():
    f = torch.tensor([[[[1.0, 0.0], [2.0, -1.0]], [[0.0, 1.0], [1.0, 1.0]]]])
    # 2 f_1 - f_2 is [[2, -1], [3, -3]]: negative values stay, they are not cut off.
    assert class_activation_map(f, torch.tensor([[2.0, -1.0]])).tolist() == [
        [[pytest.approx(5 / 6), pytest.approx(2 / 6)], [1, 0]]
    ]


def test_permuting_the_channels_changes_nothing_and_negating_the_weights_turns_the_map_round():
    f, w = maps()
    order = torch.tensor([4, 2, 0, 1, 3])
    cam = class_activation_map(f, w)
    torch.testing.assert_close(class_activation_map(f[:, order], w[:, order]), cam)
    torch.testing.assert_close(class_activation_map(f, -w), 1 - cam)
    torch.testing.assert_close(class_activation_map(7 * f, w), cam)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 3, 1, 1)], ids=str)
def test_a_constant_map_is_zeros(shape):
    assert class_activation_map(torch.full(shape, 3.0), torch.ones(shape[:2])).eq(0).all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_maps_reach_from_0_to_1(scale):
    f, w = maps(dtype=torch.float32)
    cam = class_activation_map(scale * f, w)
    assert cam.amin((1, 2)).eq(0).all() and cam.amax((1, 2)).eq(1).all()


def test_under_autocast_the_map_is_as_exact_as_the_weights():
    f, w = maps(dtype=torch.float32)
    half = f.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cam = class_activation_map(half, w)
    torch.testing.assert_close(cam, class_activation_map(half.float(), w))


@pytest.mark.parametrize(("f", "w"), [((2, 3, 4), (2, 3)), ((2, 3, 4, 4), (2, 4)), ((2, 3, 4, 4), (3,))], ids=str)
def test_maps_and_weights_that_do_not_fit_are_refused(f, w):
    with pytest.raises(ValueError, match="feature_map, class_weight: got shapes"):
        class_activation_map(torch.zeros(f), torch.zeros(w))


# --- head classes ---


@pytest.mark.parametrize(("imbalance", "head"), [(10, 7), (20, 7), (50, 6), (100, 5), (200, 4)])
def test_head_of_cifar10(imbalance, head):
    assert head_classes(exponential_counts(5000, 10, imbalance)) == list(range(head))


@pytest.mark.parametrize(
    ("counts", "ratio", "head"),
    [
        ([1, 9], 0.9, [1]),  # exactly nine tenths
        ([10, 89, 1], 0.9, [1, 0]),
        (COUNTS, 0.9, [1]),
        (COUNTS, 0.98, [1, 2]),
        (COUNTS, 1, [1, 2, 0, 4, 3]),
        ([5, 5, 5, 5], 0.5, [0, 1]),
        ([7, 7, 9], 0.6, [2, 0]),
        ([3], 0.1, [0]),
        ([45, 55], 0.55, [1]),  # in floats 0.55 * 100 is above 55
        ([1] * 8142, 0.25, list(range(2036))),  # 2035.5 images
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_fewest_largest_classes_that_hold_the_share(counts, ratio, head):
    assert head_classes(counts, ratio) == head


@pytest.mark.parametrize("counts", BAD_COUNTS.values(), ids=BAD_COUNTS)
def test_bad_counts_are_refused_by_name(counts):
    with pytest.raises(ValueError, match="counts: got"):
        head_classes(counts)


@pytest.mark.parametrize("ratio", [0, -0.1, 1.1, math.nan])
def test_a_bad_head_share_is_refused(ratio):
    with pytest.raises(ValueError, match=r"^ratio: got"):
        head_classes(COUNTS, ratio)


# --- confusing classes ---


def scored(samples=60, classes=6):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(samples) % classes
    return torch.rand(samples, classes, generator=generator, dtype=torch.float64), labels[torch.randperm(samples)]


def rank(scores, labels, top):
    classes = len(scores[0])
    ranking = []
    for c in range(classes):
        own = [row for row, label in zip(scores, labels, strict=True) if label == c]
        mean = [sum(row[j] for row in own) / len(own) for j in range(classes)]
        ranking.append(sorted((j for j in range(classes) if j != c), key=lambda j: (-mean[j], j))[:top])
    return ranking


@pytest.mark.parametrize("top", [1, 3, 5])
def test_the_most_confusing_are_ranked_by_their_mean_score(top):
    scores, labels = scored()
    expected = rank(scores.tolist(), labels.tolist(), top)
    assert most_confusing(scores, labels, top).tolist() == expected
    assert most_confusing(scores.numpy(), labels, top).tolist() == expected


def test_it_is_the_scores_of_the_classes_own_samples_that_count():
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.1, 0.9, 0.0]])
    assert most_confusing(scores, torch.tensor([0, 1, 2, 1]), 2).tolist() == [[1, 2], [0, 2], [0, 1]]


def test_classes_that_are_as_confusing_are_ranked_by_id():
    assert most_confusing(torch.zeros(40, 40), torch.arange(40), 39)[1].tolist() == [0, *range(2, 40)]


def test_permuting_the_classes_permutes_the_confusing_ones():
    scores, labels = scored()
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    permuted = most_confusing(scores[:, order], order.argsort()[labels], 3)
    assert order[permuted].equal(most_confusing(scores, labels, 3)[order])


@pytest.mark.parametrize(
    ("scores", "labels", "top", "name"),
    [
        (torch.zeros(4, 2), torch.tensor([0, 1, 0]), 1, "scores, labels"),
        (torch.zeros(4), torch.tensor([0, 1, 0, 1]), 1, "scores, labels"),
        (torch.zeros(3, 3), torch.tensor([0, 1, 0]), 1, "labels"),
        (torch.zeros(3, 3), torch.tensor([0, 1, 3]), 1, "labels"),
        (torch.zeros(3, 3), torch.tensor([0, 1, -1]), 1, "labels"),
        (torch.zeros(3, 3), torch.tensor([0, 1, 2]), 3, "top"),
        (torch.zeros(3, 3), torch.tensor([0, 1, 2]), 0, "top"),
    ],
    ids=str,
)
def test_bad_scores_are_refused_by_name(scores, labels, top, name):
    with pytest.raises(ValueError, match=f"^{name}: got"):
        most_confusing(scores, labels, top)


# --- fusion ---

TAU = {"tau_specific": 0.8, "tau_generic": 0.2}


def numbered(batch=1, height=4, width=5):
    """Two maps whose vectors are (map, image, location), so that a fused map tells where each came from."""
    image, location = torch.meshgrid(torch.arange(batch), torch.arange(height * width), indexing="ij")
    both = [torch.stack([torch.full_like(image, source), image, location], 1) for source in (0, 1)]
    return [x.double().unflatten(2, (height, width)) for x in both]


def activations(batch=1, height=4, width=5, seed=0):
    draw = torch.rand(2, batch, height * width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low, high = draw.amin(2, keepdim=True), draw.amax(2, keepdim=True)
    return [cam.unflatten(1, (height, width)) for cam in (draw - low) / (high - low)]


def read(fused):
    """Of each image of a fused map: the (map, location) of its vectors, in order."""
    result = []
    for i, (source, image, location) in enumerate(fused.flatten(2).long().tolist()):
        assert image == [i] * len(image)
        result.append(list(zip(source, location, strict=True)))
    return result


def allowed(tail_cam, other_cam, tau_specific=0.8, tau_generic=0.2):
    specific = [at for at, value in enumerate(tail_cam.flatten().tolist()) if value >= tau_specific]
    generic = [at for at, value in enumerate(other_cam.flatten().tolist()) if value <= tau_generic]
    return specific, generic


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("ratio", [0, 0.07, 0.35, 0.5, 0.98, 1])
def test_every_vector_is_from_its_set_and_the_numbers_follow_the_ratio(ratio, spatial):
    (tail_map, other_map), (tail_cam, other_cam) = numbered(16), activations(16)
    fused = fuse(tail_map, tail_cam, other_map, other_cam, **TAU, ratio=ratio, spatial=spatial)
    assert fused.shape == tail_map.shape and fused.dtype == tail_map.dtype
    for image, vectors in enumerate(read(fused)):
        specific, generic = allowed(tail_cam[image], other_cam[image])
        from_tail = [location for source, location in vectors if source == 0]
        from_other = [location for source, location in vectors if source == 1]
        assert len(from_tail) == round(ratio * 20)
        assert set(from_tail) <= set(specific) and set(from_other) <= set(generic)
        used = Counter(from_tail)  # none twice before all are used once
        assert max(used[at] for at in specific) - min(used[at] for at in specific) <= 1
        if not spatial:
            used = Counter(from_other)
            assert max(used[at] for at in generic) - min(used[at] for at in generic) <= 1


def test_in_place_generic_vectors_stay_and_the_tail_first_goes_where_they_are_not():
    (tail_map, other_map), (tail_cam, other_cam) = numbered(16), activations(16)
    ratios = torch.linspace(0, 1, 16)
    fused = fuse(tail_map, tail_cam, other_map, other_cam, 0.8, 0.4, ratios, spatial=True)
    partly = 0
    for image, vectors in enumerate(read(fused)):
        _, generic = allowed(tail_cam[image], other_cam[image], tau_generic=0.4)
        by_tail = [location for location, (source, _) in enumerate(vectors) if source == 0]
        assert len(by_tail) == round(ratios[image].item() * 20)
        for location in generic:
            assert location in by_tail or vectors[location] == (1, location)
        free = set(range(20)) - set(generic)
        assert free <= set(by_tail) or set(by_tail) <= free
        partly += 0 < len(by_tail) < len(free)
    assert partly > 2


def test_the_ratio_can_differ_from_image_to_image():
    ratios = [0.0, 0.25, 0.5, 1.0]
    fused = fuse(*interleaved(numbered(4), activations(4)), **TAU, ratio=torch.tensor(ratios))
    assert [sum(source == 0 for source, _ in vectors) for vectors in read(fused)] == [0, 5, 10, 20]


def interleaved(both_maps, both_cams):
    return both_maps[0], both_cams[0], both_maps[1], both_cams[1]


def test_fused_maps_drawn_by_hand():
    # One specific and one generic vector: whatever is drawn, the result is the same.
    tail_map = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    tail_cam = torch.tensor([[[0.1, 0.9], [0.0, 0.5]]])
    other_map, other_cam = 10 * tail_map, torch.tensor([[[0.3, 1.0], [0.2, 0.8]]])
    inputs = (tail_map, tail_cam, other_map, other_cam, 0.8, 0.2)
    assert fuse(*inputs, ratio=0.5).tolist() == [[[[2, 2], [30, 30]]]]
    assert fuse(*inputs, ratio=1.0).tolist() == [[[[2, 2], [2, 2]]]]
    assert fuse(*inputs, ratio=0.0).tolist() == [[[[30, 30], [30, 30]]]]
    assert fuse(*inputs, ratio=0.75, spatial=True).tolist() == [[[[2, 2], [30, 2]]]]
    torch.testing.assert_close(fuse(*inputs, ratio=0.5, weighted=True), torch.tensor([[[[1.8, 1.8], [6.0, 6.0]]]]))


def test_thresholds_belong_to_the_set():
    tail_map, other_map = numbered(1, 1, 2)
    cam = torch.tensor([[[0.2, 0.8]]])
    drawn = read(fuse(tail_map, cam, other_map, cam, 0.8, 0.2, 0.5))
    assert drawn == [[(0, 1), (1, 0)]]


@pytest.mark.parametrize("spatial", [False, True])
def test_a_set_that_no_location_reaches_is_of_the_closest(spatial):
    (tail_map, other_map), shape = numbered(32, 2, 3), (32, 2, 3)
    low, high = torch.zeros(shape), torch.ones(shape)
    low[:, 1, 2], high[:, 0, 1] = 0.5, 0.6  # locations 5 and 1
    for vectors in read(fuse(tail_map, low, other_map, high, **TAU, ratio=0.5, spatial=spatial)):
        assert Counter(vectors) == {(0, 5): 3, (1, 1): 3}
    constant = torch.full(shape, 0.5)
    fused = read(fuse(tail_map, constant, other_map, constant, **TAU, ratio=0.5, spatial=spatial))
    assert len({location for vectors in fused for source, location in vectors if source == 0}) == 6


def test_activations_that_are_not_finite_still_give_a_shape():
    (tail_map, other_map), nan = numbered(2), torch.full((2, 4, 5), math.nan)
    assert fuse(tail_map, nan, other_map, nan, **TAU, ratio=0.5).shape == tail_map.shape


def test_every_vector_of_a_set_is_drawn_as_often():
    (tail_map, other_map), (tail_cam, other_cam) = numbered(), activations()
    specific, generic = allowed(tail_cam, other_cam, 0.5, 0.5)
    assert len(specific) > 5 and len(generic) > 5
    draws = 4000
    torch.manual_seed(0)
    inputs = [x.expand(draws, *x.shape[1:]) for x in (tail_map, tail_cam, other_map, other_cam)]
    drawn = fuse(*inputs, 0.5, 0.5, 0.1)[:, 2].long().flatten(1)
    for own, chosen in ((specific, drawn[:, :2]), (generic, drawn[:, 2:4])):
        used = Counter(chosen.flatten().tolist())
        assert set(used) == set(own)
        expected = 2 * draws / len(own)
        assert all(abs(n - expected) < 5 * math.sqrt(expected) for n in used.values())


@pytest.mark.parametrize(
    "change",
    [{"ratio": 0.3}, {"tau_specific": 0.4}, {"tau_generic": 0.5}, {"spatial": True}, {"weighted": True}],
    ids=str,
)
def test_every_argument_changes_the_fused_map(change):
    results = []
    for changed in ({}, change):
        torch.manual_seed(0)
        inputs = interleaved(numbered(4), activations(4))
        results.append(fuse(*inputs, **{**TAU, "ratio": 0.5, **changed}))
    assert not results[0].equal(results[1])


def test_the_gradient_reaches_both_maps():
    both, cams = numbered(2), activations(2)
    tail_map, other_map = (x.requires_grad_() for x in both)
    fuse(tail_map, cams[0], other_map, cams[1], **TAU, ratio=0.5).sum().backward()
    for x, cam in ((tail_map, cams[0] >= 0.8), (other_map, cams[1] <= 0.2)):
        assert x.grad.abs().sum((1, 2, 3)).eq(3 * 10).all()
        assert x.grad.abs().sum(1)[~cam].eq(0).all()


@pytest.mark.parametrize("spatial", [False, True])
def test_no_step_of_the_fusion_looks_at_values(spatial):
    f, w = (x.to("meta") for x in maps())  # a tensor without values fails where the host would read one
    cam = class_activation_map(f, w)
    ratio = torch.rand(len(f), device="meta")
    assert fuse(f, cam, f, cam, **TAU, ratio=ratio, spatial=spatial, weighted=True).shape == f.shape


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"tau_specific": 1.1}, "tau_specific"),
        ({"tau_generic": -0.1}, "tau_generic"),
        ({"ratio": 1.5}, "ratio"),
        ({"ratio": math.nan}, "ratio"),
        ({"tail_cam": torch.zeros(2, 4, 4)}, "tail_map, tail_cam, other_map, other_cam"),
        ({"other_map": torch.zeros(2, 2, 4, 5)}, "tail_map, tail_cam, other_map, other_cam"),
        ({"tail_map": torch.zeros(2, 3, 20)}, "tail_map, tail_cam, other_map, other_cam"),
    ],
    ids=str,
)
def test_bad_fusion_is_refused_by_name(change, name):
    (tail_map, other_map), (tail_cam, other_cam) = numbered(2), activations(2)
    given = {"tail_map": tail_map, "tail_cam": tail_cam, "other_map": other_map, "other_cam": other_cam, "ratio": 0.5}
    with pytest.raises(ValueError, match=f"^{name}: got"):
        fuse(**{**given, **TAU, **change})


# --- the transform ---

PARTNERS = [[(c + k) % 10 for k in (1, 3, 6)] for c in range(10)]
"""Of each class, the three that the model below confuses it with most."""


def predicted(split):
    """Class probabilities of a model that takes class c for c + 1, c + 3, c + 6, c + 2, ... in this order."""
    order = [0, 1, 3, 6, 2, 4, 5, 7, 8, 9]
    scores = torch.zeros(10, 10)
    for c in range(10):
        for place, k in enumerate(order):
            scores[c, (c + k) % 10] = 10 - place
    return scores.softmax(1)[split.labels].numpy()


def model(channels=3):
    """Blocks that halve the map, and weights that are no two classes' the same."""
    blocks = nn.Sequential(nn.AvgPool2d(2), nn.AvgPool2d(2), nn.AvgPool2d(2))
    weight = nn.Parameter(torch.randn(10, channels, generator=torch.Generator().manual_seed(2)))
    return SimpleNamespace(backbone=blocks, class_weight=weight)


def transform(digits, **options):
    made = CAMFusion(model(), digits, digits.counts, predicted, **options)
    made.start_stage()
    return made


def compose(digits, batch=128, seed=0, **options):
    torch.manual_seed(seed)
    made = transform(digits, **options)
    return made, made.on_indices(torch.arange(batch))


TAIL = [7, 8, 9]
"""Of digits-lt at a ratio of 20; the order of sizes is that of the ids."""


def test_the_tail_of_the_digits(digits):
    assert sorted(set(range(10)) - set(head_classes(digits.counts))) == TAIL


@pytest.mark.parametrize(("batch", "tails"), [(128, 16), (127, 15), (64, 8), (8, 1), (5, 1)])
def test_a_batch_has_the_numbers_of_algorithm_1(digits, batch, tails):
    _, indices = compose(digits, batch)
    assert indices.shape == (8 * tails,) and indices.dtype == torch.int64
    classes = digits.train.labels[indices].tolist()
    tail, partners, head = classes[:tails], classes[tails : 4 * tails], classes[4 * tails :]
    assert set(tail) <= set(TAIL) and not set(head) & set(TAIL)
    for i, c in enumerate(tail):
        assert sorted(partners[3 * i : 3 * i + 3]) == sorted(PARTNERS[c])


def test_partners_are_in_random_order(digits):
    _, indices = compose(digits, 1280)
    classes = digits.train.labels[indices].tolist()
    first = {(c, partner) for c, partner in zip(classes[:160], classes[160:640:3], strict=True)}
    assert first == {(c, partner) for c in TAIL for partner in PARTNERS[c]}


@pytest.mark.parametrize(("num_confusing", "per_image"), [(3, 2), (3, 1), (2, 5), (1, 3)])
def test_partners_use_the_confusing_classes_evenly(digits, num_confusing, per_image):
    _, indices = compose(digits, 100 * 2 * (1 + per_image), num_confusing=num_confusing, per_image=per_image)
    classes = digits.train.labels[indices].tolist()
    seen = set()
    for i, c in enumerate(classes[:100]):
        used = Counter(classes[100 + per_image * i : 100 + per_image * (i + 1)])
        confusing = PARTNERS[c][:num_confusing]
        assert set(used) <= set(confusing)
        assert max(used[u] for u in confusing) - min(used[u] for u in confusing) <= 1
        seen |= {(c, u) for u in used}
    assert seen == {(c, u) for c in set(classes[:100]) for u in PARTNERS[c][:num_confusing]}


@pytest.mark.parametrize("draw", ["class", "image"])
@pytest.mark.parametrize("fusion", [True, False])
def test_what_is_drawn_uniformly(digits, draw, fusion):
    _, indices = compose(digits, 8 * 4000, draw=draw, fusion=fusion)
    labels = digits.train.labels
    tails = 4000 if fusion else 16000
    for ids, drawn in ((TAIL, indices[:tails]), (sorted(set(range(10)) - set(TAIL)), indices[16000:])):
        images = [i for i, c in enumerate(labels.tolist()) if c in ids]
        share = {
            i: 1 / len(images) if draw == "image" else 1 / len(ids) / digits.counts[labels[i].item()] for i in images
        }
        used = Counter(drawn.tolist())
        assert set(used) <= set(images)
        for i in images:
            expected = share[i] * len(drawn)
            assert abs(used[i] - expected) < 6 * math.sqrt(expected)


def test_without_fusion_the_batch_is_balanced_and_nothing_else(digits):
    made, indices = compose(digits, fusion=False)
    classes = digits.train.labels[indices]
    tail = (classes[:, None] == torch.tensor(TAIL)).any(1)
    assert len(indices) == 128 and tail[:64].all() and not tail[64:].any()
    images, labels = torch.rand(128, 3, 4, 4), [(classes, 1.0)]
    assert made.on_feature_map(images, labels) == (images, labels)
    assert made.phase_one == {}


def test_permuting_the_classes_permutes_the_batch(digits):
    order = torch.tensor([3, 0, 9, 4, 8, 1, 2, 7, 6, 5])  # new class i is old class order[i]
    new_id = order.argsort()
    train = Split(digits.train.images, new_id[digits.train.labels])
    permuted = CAMFusion(
        model(),
        SimpleNamespace(train=train),
        [digits.counts[i] for i in order],
        lambda split: predicted(digits.train)[:, order],
    )
    permuted.start_stage()
    classes = order[train.labels[permuted.on_indices(torch.arange(128))]].tolist()
    assert set(classes[:16]) <= set(TAIL) and not set(classes[64:]) & set(TAIL)
    for i, c in enumerate(classes[:16]):
        assert sorted(classes[16 + 3 * i : 19 + 3 * i]) == sorted(PARTNERS[c])


def fused_batch(digits, size=4, **options):
    """Maps whose vectors are (image, location, random), and what the transform makes of them."""
    made, indices = compose(digits, **options)
    generator = torch.Generator().manual_seed(5)
    number = size * size
    image, location = torch.meshgrid(torch.arange(128.0), torch.arange(float(number)), indexing="ij")
    before = torch.stack([image, location, 500 * torch.randn(128, number, generator=generator)], 1)
    before = before.unflatten(2, (size, size))
    targets = digits.train.labels[indices]
    torch.manual_seed(1)
    after, labels = made.on_feature_map(before, [(targets, 1.0)])
    return made, before, targets, after, labels


def test_fused_samples_take_the_partners_place_and_the_tails_label(digits):
    _, before, targets, after, labels = fused_batch(digits)
    assert after.shape == before.shape
    assert after[:16].equal(before[:16]) and after[64:].equal(before[64:])
    ((classes, weight),) = labels
    assert weight == 1.0
    expected = targets[:16].tolist() + [c for c in targets[:16].tolist() for _ in range(3)] + targets[64:].tolist()
    assert classes.tolist() == expected


@pytest.mark.parametrize("taus", [(0.8, 0.2), (0.5, 0.4)])
def test_fused_samples_are_of_their_tail_image_and_partner_by_the_activation_of_their_own_class(digits, taus):
    made, before, targets, after, _ = fused_batch(digits, tau_specific=taus[0], tau_generic=taus[1])
    weight = made.state_dict()["class_weight"]
    cams = class_activation_map(before, weight[targets])
    ratios = []
    for row in range(48):
        tail, other = row // 3, 16 + row
        specific, generic = allowed(cams[tail], cams[other], *taus)
        vectors = list(zip(*after[16 + row].flatten(1)[:2].long().tolist(), strict=True))
        assert all(at in specific if image == tail else at in generic for image, at in vectors)
        assert {image for image, _ in vectors} <= {tail, other}
        ratios.append(sum(image == tail for image, _ in vectors) / 16)
    assert len(set(ratios)) > 8  # drawn for each, not once for the batch
    assert 0.3 < sum(ratios) / 48 < 0.7
    assert ratios[0::3] != ratios[1::3]


@pytest.mark.parametrize("block", [1, 2, 3])
def test_before_the_last_block_the_resized_activation_of_the_last_map_decides(digits, block):
    size = 32 >> block
    made, before, targets, after, _ = fused_batch(digits, size=size, block=block)
    last = made.model.backbone[block:](before)
    cams = class_activation_map(last, made.state_dict()["class_weight"][targets])
    in_place = replaced = 0
    for row in range(48):
        tail, other = row // 3, 16 + row
        specific, generic = (enlarge(cams[i].tolist(), size) for i in (tail, other))
        image, location = after[16 + row].flatten(1)[:2].long().tolist()
        for here, (i, at) in enumerate(zip(image, location, strict=True)):
            assert i in (tail, other)
            assert specific[at] >= 0.8 - 1e-5 if i == tail else generic[at] <= 0.2 + 1e-5
            if i == other and generic[here] < 0.2 - 1e-5:
                assert at == here
                in_place += 1
            replaced += i == tail
    assert in_place > 100 and replaced > 100


def enlarge(cam, size):
    """Bilinear interpolation between the centres of pixels, then min-max normalisation; a flat list."""
    small = len(cam)

    def along(position):
        at = min(max((position + 0.5) * small / size - 0.5, 0), small - 1)
        low = min(int(at), small - 1)
        return low, min(low + 1, small - 1), at - low

    values = []
    for y in range(size):
        y0, y1, v = along(y)
        for x in range(size):
            x0, x1, u = along(x)
            above, below = ((1 - u) * cam[r][x0] + u * cam[r][x1] for r in (y0, y1))
            values.append((1 - v) * above + v * below)
    low, high = min(values), max(values)
    return [(value - low) / (high - low) for value in values]


@pytest.mark.parametrize(
    "change",
    [{"tau_specific": 0.5}, {"tau_generic": 0.4}, {"block": 3}, {"fusion": False}, {"weighted": True}],
    ids=str,
)
def test_every_option_changes_the_fused_maps(digits, change):
    assert not fused_batch(digits)[3].equal(fused_batch(digits, **change)[3])


@pytest.mark.parametrize(
    "change",
    [{"num_confusing": 4}, {"per_image": 1}, {"head_ratio": 0.5}, {"draw": "image"}, {"fusion": False}],
    ids=str,
)
def test_every_option_changes_the_batch(digits, change):
    assert not compose(digits, 1280)[1].equal(compose(digits, 1280, **change)[1])


def test_what_the_stage_began_with_is_kept_and_restored(digits):
    made, indices = compose(digits)
    weight = made.model.class_weight.detach().clone()
    with torch.no_grad():
        made.model.class_weight.add_(1)
    state = copy.deepcopy(made.state_dict())
    assert state["class_weight"].equal(weight) and not state["class_weight"].requires_grad
    assert state["confusing"].tolist() == PARTNERS
    resumed = CAMFusion(made.model, digits, digits.counts, lambda split: pytest.fail("predicted again"))
    resumed.load_state_dict(state)
    torch.manual_seed(0)
    assert resumed.on_indices(torch.arange(128)).equal(indices)
    assert resumed.state_dict()["class_weight"].equal(weight)


def test_the_classifier_may_move_on_and_the_activations_do_not(digits):
    made, before, targets, after, _ = fused_batch(digits)
    with torch.no_grad():
        made.model.class_weight.copy_(torch.randn(10, 3))
    torch.manual_seed(1)
    assert made.on_feature_map(before, [(targets, 1.0)])[0].equal(after)


@pytest.mark.parametrize("block", [None, 2])
def test_no_step_of_the_transform_looks_at_values(digits, block):
    made = transform(digits, block=block)
    for name in ("by_class", "counts", "starts", "tail", "head"):
        setattr(made, name, getattr(made, name).to("meta"))
    made.phase_one = {name: value.to("meta") for name, value in made.phase_one.items()}
    made.rest.to("meta")
    assert made.on_indices(torch.arange(128)).shape == (128,)
    before, targets = torch.rand(128, 3, 4, 4, device="meta"), torch.zeros(128, dtype=torch.int64, device="meta")
    assert made.on_feature_map(before, [(targets, 1.0)])[0].shape == before.shape


def test_activations_stay_those_of_phase_one_while_the_rest_of_the_network_learns(digits, tmp_path):
    part_of_recipe = part("cam_fusion.CAMFusion", block=2)
    second = Stage(steps=4, batch_size=32, trains="rest", transform=part_of_recipe, learning_rate=0.1)
    recipe = Recipe("toy", "digits-lt", (Stage(steps=2, batch_size=32), second), imbalance=20, backbone="resnet8")
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        original = CAMFusion.on_feature_map
        patch.setattr(CAMFusion, "on_feature_map", lambda self, *a: (seen.append(self), original(self, *a))[1])
        job = toys.train(recipe, digits)
    first = toys.train(recipe.up_to(0), digits)
    for name, value in first.model.backbone[2:].state_dict().items():
        assert seen[-1].rest.state_dict()[name].equal(value)
    learnt = job.model.backbone[2][0].conv1.weight
    assert not learnt.equal(first.model.backbone[2][0].conv1.weight)


def test_a_last_map_of_one_location_is_refused(digits):
    made, indices = compose(digits)
    with pytest.raises(ValueError, match="feature_map: got a last map of 1x1"):
        made.on_feature_map(torch.rand(128, 3, 1, 1), [(digits.train.labels[indices], 1.0)])


@pytest.mark.parametrize(
    "options",
    [
        {"head_ratio": 1.0},
        {"num_confusing": 0},
        {"num_confusing": 10},
        {"per_image": 0},
        {"tau_specific": 1.1},
        {"tau_generic": -0.1},
        {"block": 0},
        {"block": 4},
        {"draw": "tail"},
    ],
    ids=str,
)
def test_bad_options_are_refused_by_name(digits, options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))}: got"):
        CAMFusion(model(), digits, digits.counts, predicted, **options)


def test_counts_of_which_none_is_tail_are_refused(digits):
    with pytest.raises(ValueError, match="no class to the tail"):
        CAMFusion(model(), digits, [5, 5], predicted, num_confusing=1)


# --- in a training ---


def cam_recipe(**options):
    second = Stage(
        steps=8, batch_size=114, trains="head", learning_rate=0.01, transform=part("cam_fusion.CAMFusion", **options)
    )
    return Recipe("cam", "digits-lt", (Stage(steps=6, batch_size=64), second), 20, "resnet8")


def weights(job):
    return torch.cat([value.double().flatten() for value in job.model.state_dict().values()])


@pytest.fixture(scope="module")
def whole(digits):
    return toys.train(cam_recipe(), digits)


@pytest.mark.parametrize(
    "options",
    [{"fusion": False}, {"block": 2}, {"per_image": 2}, {"tau_specific": 0.3}, {"weighted": True}],
    ids=str,
)
def test_a_training_fine_tunes_the_head_and_every_option_tells(digits, whole, options):
    job = toys.train(cam_recipe(**options), digits)
    assert weights(job).isfinite().all()
    assert not job.model.head.weight.equal(whole.model.head.weight)
    backbones = (other.model.backbone.state_dict().values() for other in (job, whole))
    assert all(a.equal(b) for a, b in zip(*backbones, strict=True))


def test_a_training_in_half_precision_runs(digits):
    job = toys.train(cam_recipe(block=2), toys.shrunk(digits, 16), precision="bfloat16")
    assert weights(job).isfinite().all()


def test_a_killed_and_resumed_training_ends_bit_identical(digits, whole, tmp_path, monkeypatch):
    class StoppedError(Exception):
        pass

    def save_and_stop(content, path, save=training.save_atomically):
        save(content, path)
        raise StoppedError  # after the first of two epochs, when the class weights have moved on

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(training, "save_atomically", save_and_stop)
        toys.train(cam_recipe(), digits, checkpoint=tmp_path / "c.pt")
    assert torch.load(tmp_path / "c.pt", weights_only=True)["epoch"] == 1
    resumed = toys.train(cam_recipe(), digits, checkpoint=tmp_path / "c.pt")
    assert weights(resumed).equal(weights(whole))
    assert resumed.history == whole.history


@pytest.mark.parametrize("shape", [(3,), (2, 1), (1, 2)])
def test_a_ratio_for_another_number_of_maps_is_refused(shape):
    maps, cams = torch.rand(2, 3, 4, 4), torch.rand(2, 4, 4)
    with pytest.raises(ValueError, match=r"^ratio: got shape"):
        fuse(maps, cams, maps, cams, 0.8, 0.2, torch.full(shape, 0.5))
