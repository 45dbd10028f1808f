"""Feature-balanced loss against plain Python written from thesis Eqs. 4.4, 4.6 and 4.8, and Table 4.4."""

import math

import pytest
import torch
from torch.nn import functional as F

from ltnotes.methods.fbl import CURRICULA, FeatureBalancedLoss
from tests.methods.test_baselines import COUNTS, batch, log_softmax
from tests.test_counts import BAD_COUNTS

TABLE_4_4 = {
    "linear-decrease": lambda t: 1 - t,
    "linear": lambda t: t,
    "sine": lambda t: math.sin(t * math.pi / 2),
    "cosine": lambda t: 1 - math.cos(t * math.pi / 2),
    "parabolic": lambda t: t * t,
}


def reference(rows, targets, features, alpha, normalized=False):
    stimulus = [math.log(max(COUNTS)) - math.log(n) for n in COUNTS]
    if normalized:
        stimulus = [value / max(stimulus) for value in stimulus]
    total = 0.0
    for row, y, f in zip(rows, targets, features, strict=True):
        norm = math.sqrt(math.fsum(value * value for value in f))
        total -= log_softmax([z - alpha * s / norm for z, s in zip(row, stimulus, strict=True)])[y]
    return total / len(targets)


def samples(dtype=torch.float64, classes=5):
    logits, targets = batch(dtype, classes)
    return logits, targets, torch.randn(len(targets), 7, generator=torch.Generator().manual_seed(2)).to(dtype)


@pytest.mark.parametrize("curriculum", TABLE_4_4)
@pytest.mark.parametrize(("strength", "normalized"), [(1.0, False), (60.0, True)])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_the_equation(curriculum, strength, normalized, t, dtype, tolerance):
    logits, targets, features = samples(dtype)
    loss = FeatureBalancedLoss(COUNTS, strength, normalized, curriculum)
    loss.set_progress(t)
    alpha = strength * TABLE_4_4[curriculum](t)
    expected = reference(logits.double().tolist(), targets.tolist(), features.double().tolist(), alpha, normalized)
    assert loss(logits, targets, features).item() == pytest.approx(expected, rel=tolerance)


def test_the_curricula_are_those_of_the_table():
    assert list(CURRICULA) == list(TABLE_4_4)


@pytest.mark.parametrize("epoch", [0, 95, 190, 199])
def test_the_released_schedule_of_200_epochs_ends_ten_epochs_early(epoch):
    loss = FeatureBalancedLoss(COUNTS, 60.0, normalized=True, end=0.95)
    loss.set_progress(epoch / 200)
    assert loss.alpha.item() == pytest.approx(60 * (epoch / (200 - 10)) ** 2, rel=1e-12)


def test_the_strength_changes_in_place_and_leaves_no_trace_in_a_checkpoint():
    loss = FeatureBalancedLoss(COUNTS)
    address = loss.alpha.data_ptr()
    loss.set_progress(1.0)
    assert loss.alpha == 1 and loss.alpha.data_ptr() == address and set(loss.state_dict()) == {"stimulus"}


def test_gradient_flows_through_the_feature_norm():
    logits, targets, features = samples()
    loss = FeatureBalancedLoss(COUNTS, 5.0)
    loss.set_progress(0.7)
    inputs = (logits.requires_grad_(), features.requires_grad_())
    assert torch.autograd.gradcheck(lambda z, f: loss(z, targets, f), inputs)
    loss(logits, targets, features).backward()
    assert (features.grad * features).sum(1).lt(0).any()  # longer features would cost less


def test_permuting_the_classes_changes_nothing():
    logits, targets, features = samples()
    order = torch.tensor([3, 0, 4, 1, 2])
    values = []
    for counts, z, y in (
        (COUNTS, logits, targets),
        ([COUNTS[i] for i in order], logits[:, order], order.argsort()[targets]),
    ):
        loss = FeatureBalancedLoss(counts)
        loss.set_progress(1.0)
        values.append(loss(z, y, features).item())
    assert values[0] == pytest.approx(values[1], rel=1e-12)


@pytest.mark.parametrize("normalized", [False, True])
def test_balanced_counts_are_cross_entropy(normalized):
    logits, targets, features = samples()
    loss = FeatureBalancedLoss([7] * 5, 60.0, normalized)
    loss.set_progress(1.0)
    expected = F.cross_entropy(logits, targets).item()
    assert loss(logits, targets, features).item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("other", [{"strength": 2.0}, {"normalized": True}, {"curriculum": "sine"}, {"end": 0.8}])
def test_every_argument_changes_the_loss(other):
    logits, targets, features = samples()
    values = []
    for options in ({}, other):
        loss = FeatureBalancedLoss(COUNTS, **options)
        loss.set_progress(0.5)
        values.append(loss(logits, targets, features).item())
    assert abs(values[0] - values[1]) > 1e-3


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4])
def test_extreme_logits_and_features_stay_finite(scale):
    logits, targets, features = samples(torch.float32)
    inputs = [(scale * x).detach().requires_grad_() for x in (logits, features)]
    loss = FeatureBalancedLoss(COUNTS)
    loss.set_progress(1.0)
    value = loss(inputs[0], targets, inputs[1])
    value.backward()
    assert value.isfinite() and all(x.grad.isfinite().all() for x in inputs)


def test_8142_classes():
    logits, targets, features = samples(torch.float32, 8142)
    assert FeatureBalancedLoss([1 + j % 997 for j in range(8142)])(logits, targets + 8000, features).isfinite()


def test_missing_or_misshaped_features_are_refused():
    logits, targets, features = samples()
    loss = FeatureBalancedLoss(COUNTS)
    for wrong in (None, features[:3], features[0]):
        with pytest.raises(ValueError, match="features: got"):
            loss(logits, targets, wrong)


@pytest.mark.parametrize("counts", BAD_COUNTS.values(), ids=BAD_COUNTS)
def test_bad_counts_are_refused_by_name(counts):
    with pytest.raises(ValueError, match="counts: got"):
        FeatureBalancedLoss(counts)


@pytest.mark.parametrize(
    "options",
    [{"strength": -1}, {"strength": float("nan")}, {"curriculum": "steep"}, {"end": 0.0}, {"end": 1.1}],
    ids=str,
)
def test_bad_options_are_refused_by_name(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        FeatureBalancedLoss(COUNTS, **options)


@pytest.mark.parametrize("curriculum", CURRICULA)
def test_it_can_be_saved(curriculum, tmp_path):
    loss = FeatureBalancedLoss([5, 3, 1], strength=2.0, curriculum=curriculum)
    torch.save(loss, tmp_path / "loss.pt")
    again = torch.load(tmp_path / "loss.pt", weights_only=False)
    again.set_progress(0.3)
    loss.set_progress(0.3)
    assert again.alpha.equal(loss.alpha)
