"""Classifier heads against loops over their equations."""

import math

import pytest
import torch

from ltnotes.methods.squashing_cosine import CosineClassifier, LinearClassifier, SquashingCosineClassifier

BATCH, FEATURES, CLASSES = 5, 4, 3


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def norm(a):
    return math.sqrt(dot(a, a))


def linear(head, f, c):
    return dot(head.weight[c].tolist(), f) + (0 if head.bias is None else head.bias[c].item())


def cosine(head, f, c):
    w = head.weight[c].tolist()
    return head.scale * dot(w, f) / (norm(w) * norm(f))


def squashing(alpha, beta):
    return lambda head, f, c: (
        alpha * norm(f) / (beta + norm(f)) * dot(head.weight[c].tolist(), f) / (norm(head.weight[c].tolist()) * norm(f))
    )


HEADS = {
    "linear": (lambda: LinearClassifier(FEATURES, CLASSES), linear),
    "linear without bias": (lambda: LinearClassifier(FEATURES, CLASSES, bias=False), linear),
    "cosine": (lambda: CosineClassifier(FEATURES, CLASSES), cosine),
    "cosine scale=16": (lambda: CosineClassifier(FEATURES, CLASSES, scale=16.0), cosine),
    "squashing": (lambda: SquashingCosineClassifier(FEATURES, CLASSES), squashing(20.0, 0.5)),
    "squashing as in OLTR": (
        lambda: SquashingCosineClassifier(FEATURES, CLASSES, alpha=16.0, beta=1.0),
        squashing(16.0, 1.0),
    ),
    "squashing beta=0": (lambda: SquashingCosineClassifier(FEATURES, CLASSES, beta=0.0), squashing(20.0, 0.0)),
}
each_head = pytest.mark.parametrize("make", [make for make, _ in HEADS.values()], ids=HEADS)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(("make", "reference"), HEADS.values(), ids=HEADS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_the_equation(make, reference, dtype, tolerance):
    head, features = make().to(dtype), torch.randn(BATCH, FEATURES, dtype=dtype)
    expected = [[reference(head, f, c) for c in range(CLASSES)] for f in features.tolist()]
    scores = head(features)
    assert scores.dtype == dtype
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=dtype), rtol=tolerance, atol=tolerance)


@each_head
def test_gradients(make):
    head = make().double()
    assert torch.autograd.gradcheck(head, torch.randn(BATCH, FEATURES, dtype=torch.float64, requires_grad=True))


@each_head
def test_permuting_the_class_weights_permutes_the_scores(make):
    head, features = make().double(), torch.randn(BATCH, FEATURES, dtype=torch.float64)
    before, order = head(features), torch.tensor([2, 0, 1])
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(parameter[order])
    torch.testing.assert_close(head(features), before[:, order])


@each_head
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-6, 1e4])
def test_extreme_features_stay_finite(make, size):
    head, features = make(), (size * torch.randn(BATCH, FEATURES)).requires_grad_()
    scores = head(features)
    scores.sum().backward()
    assert scores.isfinite().all()
    assert features.grad.isfinite().all()


def test_cosines_ignore_the_norms():
    head, features = CosineClassifier(FEATURES, CLASSES), torch.randn(BATCH, FEATURES)
    before = head(features)
    with torch.no_grad():
        head.weight.mul_(7)
    torch.testing.assert_close(head(3 * features), before)
    assert before.abs().max() <= 1


def test_squashing_grows_with_the_norm_up_to_alpha():
    head, features = SquashingCosineClassifier(FEATURES, CLASSES), torch.randn(1, FEATURES)
    sizes = [head(size * features).norm().item() for size in (0.01, 0.1, 1.0, 10.0, 1e4)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == pytest.approx(CosineClassifier.forward(head, features).norm().item(), rel=1e-3)


def test_squashing_reaches_half_of_alpha_at_beta():
    head = SquashingCosineClassifier(FEATURES, CLASSES, alpha=12.0, beta=2.0)
    with torch.no_grad():
        head.weight[0] = torch.tensor([0.0, 5.0, 0.0, 0.0])
    assert head(torch.tensor([[0.0, 2.0, 0.0, 0.0]]))[0, 0].item() == pytest.approx(6.0)


def test_squashing_with_beta_zero_is_the_cosine_classifier():
    squash, plain = SquashingCosineClassifier(FEATURES, CLASSES, beta=0.0), CosineClassifier(FEATURES, CLASSES, 20.0)
    plain.load_state_dict(squash.state_dict())
    features = torch.randn(BATCH, FEATURES)
    torch.testing.assert_close(squash(features), plain(features))


def test_8142_classes():
    assert SquashingCosineClassifier(FEATURES, 8142)(torch.randn(2, FEATURES)).shape == (2, 8142)


@pytest.mark.parametrize(
    ("head", "options", "name"),
    [
        (CosineClassifier, {"scale": 0}, "scale"),
        (CosineClassifier, {"scale": float("nan")}, "scale"),
        (SquashingCosineClassifier, {"alpha": -1}, "alpha"),
        (SquashingCosineClassifier, {"alpha": float("nan")}, "alpha"),
        (SquashingCosineClassifier, {"beta": -0.1}, "beta"),
        (SquashingCosineClassifier, {"beta": float("nan")}, "beta"),
    ],
)
def test_bad_options_are_refused_by_name(head, options, name):
    with pytest.raises(ValueError, match=f"^{name}: got"):
        head(FEATURES, CLASSES, **options)


@pytest.mark.parametrize("head", [CosineClassifier, SquashingCosineClassifier])
def test_cosines_keep_their_digits_under_autocast(head):
    classifier, features = head(16, 5), torch.randn(8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        scores = classifier(features)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, classifier(features))
