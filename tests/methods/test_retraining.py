"""Heads of classifier re-training against plain Python, and what a stage needs of them."""

import math

import pytest
import torch
from torch import nn

from ltnotes.methods import baselines, retraining
from ltnotes.methods.common import part
from ltnotes.methods.retraining import LWSClassifier, NearestClassMeanClassifier, TauNormalizedClassifier
from ltnotes.methods.squashing_cosine import CosineClassifier, LinearClassifier, SquashingCosineClassifier

D, C, N = 6, 4, 10


def linear(bias=True):
    torch.manual_seed(0)
    head = LinearClassifier(D, C, bias=bias).double()
    if bias:
        nn.init.normal_(head.bias)
    return head


def cosine(kind=CosineClassifier):
    torch.manual_seed(0)
    return kind(D, C).double()


def features(dtype=torch.float64, n=N, d=D):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def means(metric="cosine", dtype=torch.float64):
    head = NearestClassMeanClassifier(D, C, metric).to(dtype)
    head.fit(features(dtype, 4 * N), torch.arange(4 * N) % C)
    return head


PREVIOUS = {"linear": linear, "without bias": lambda: linear(False), "cosine": cosine}
PREVIOUS |= {"squashing": lambda: cosine(SquashingCosineClassifier), "class means": means}
each_previous = pytest.mark.parametrize("previous", PREVIOUS.values(), ids=PREVIOUS)

HEADS = {
    "LWS": lambda: LWSClassifier(C, linear()),
    "LWS on cosines": lambda: LWSClassifier(C, cosine()),
    "tau": lambda: TauNormalizedClassifier(linear()),
    "tau on cosines": lambda: TauNormalizedClassifier(cosine(), 0.5),
    "cosine to means": means,
    "distance to means": lambda: means("euclidean"),
}
each_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", ["LWSClassifier", "TauNormalizedClassifier", "NearestClassMeanClassifier"])
def test_they_are_named_among_the_baselines(name):
    assert getattr(baselines, name) is getattr(retraining, name)


@each_head
def test_scores_and_weights_have_their_shapes(head):
    head = head()
    assert head(features()).shape == (N, C)
    assert head.weight.shape == (C, D)
    assert head.weight.dtype == torch.float64


@each_head
def test_a_checkpoint_brings_a_head_back(head):
    trained, fresh = head(), head()
    with torch.no_grad():
        for tensor in (*trained.parameters(), *trained.buffers()):
            tensor.add_(torch.rand_like(tensor))
    assert not torch.equal(fresh(features()), trained(features()))
    fresh.load_state_dict(trained.state_dict())
    torch.testing.assert_close(fresh(features()), trained(features()), rtol=0, atol=0)


@each_head
def test_the_gradient_reaches_the_features(head):
    head = head()
    assert torch.autograd.gradcheck(head, features().requires_grad_())


@each_head
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e6])
def test_huge_and_tiny_features_stay_finite(head, size):
    f = (size * features(torch.float32)).requires_grad_()
    scores = head().float()(f)
    scores.sum().backward()
    assert scores.isfinite().all() and f.grad.isfinite().all()


@each_head
def test_scores_under_autocast_are_those_of_float32(head):
    head, f = head().float(), features(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        scores = head(f.bfloat16())
    torch.testing.assert_close(scores.float(), head(f), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nearness_is_not_computed_in_half_precision(metric):
    head, f = means(metric, torch.float32), features(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        scores = head(f)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, head(f), rtol=0, atol=0)


# --- learnable weight scaling ---


@each_previous
def test_lws_begins_as_the_previous_head(previous):
    old = previous()
    new = LWSClassifier(C, old)
    torch.testing.assert_close(new(features()), old(features()))
    torch.testing.assert_close(new.weight, old.weight)


def test_lws_scales_weights_and_bias_of_a_linear_head():
    old, f = linear(), features()
    new = LWSClassifier(C, old)
    scale = [0.5, 2.0, -1.0, 3.0]
    with torch.no_grad():
        new.scale.copy_(torch.tensor(scale))
    w, b = old.weight.tolist(), old.bias.tolist()
    expected = [[s * (dot(w_j, row) + b_j) for s, w_j, b_j in zip(scale, w, b, strict=True)] for row in f.tolist()]
    torch.testing.assert_close(new(f), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(new.weight, torch.tensor(scale)[:, None] * old.weight)


def test_lws_scales_the_cosines_of_a_cosine_head():
    old, f = cosine(), features()
    new = LWSClassifier(C, old)
    with torch.no_grad():
        new.scale.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(new(f), torch.tensor([1.0, 2.0, 3.0, 4.0]) * old(f))


@each_previous
def test_only_the_scale_of_lws_learns(previous):
    old = previous()
    new = LWSClassifier(C, old)
    learning = [name for name, parameter in new.named_parameters() if parameter.requires_grad]
    assert learning == ["scale"]
    frozen = {name: tensor.clone() for name, tensor in new.previous.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in new.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    nn.functional.cross_entropy(new(features()), torch.arange(N) % C).backward()
    optimizer.step()
    assert all(torch.equal(tensor, new.previous.state_dict()[name]) for name, tensor in frozen.items())
    assert (new.scale != 1).all()


def test_lws_leaves_the_previous_head_as_it_was():
    old = linear()
    new = LWSClassifier(C, old)
    assert all(parameter.requires_grad for parameter in old.parameters())
    with torch.no_grad():
        old.weight.zero_()
    assert new.weight.abs().min() > 0


def test_lws_can_follow_lws():
    once = LWSClassifier(C, linear())
    with torch.no_grad():
        once.scale.fill_(2.0)
    twice = LWSClassifier(C, once)
    torch.testing.assert_close(twice.weight, 2 * linear().weight)
    assert [name for name, p in twice.named_parameters() if p.requires_grad] == ["scale"]


# --- tau-normalisation ---


@each_previous
@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0, 2.0])
def test_tau_normalisation_equals_the_formula(previous, tau):
    old, f = previous(), features()
    new = TauNormalizedClassifier(old, tau)
    rows = [[w / math.sqrt(dot(row, row)) ** tau for w in row] for row in old.weight.tolist()]
    expected = [[dot(w, row) for w in rows] for row in f.tolist()]
    torch.testing.assert_close(new(f), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    assert not list(new.parameters())
    assert not new.weight.requires_grad


def test_tau_zero_is_the_linear_head_without_its_bias():
    old, f = linear(), features()
    torch.testing.assert_close(TauNormalizedClassifier(old, 0.0)(f), old(f) - old.bias)


def test_tau_one_answers_as_a_cosine_head_does():
    old, f = cosine(), features()
    torch.testing.assert_close(TauNormalizedClassifier(old)(f), f.norm(dim=1, keepdim=True) * old(f))


def test_a_class_without_a_direction_stays_at_zero():
    old = linear()
    with torch.no_grad():
        old.weight[2].zero_()
    assert TauNormalizedClassifier(old).weight[2].tolist() == [0.0] * D


# --- nearest class mean ---


def sample_means(rows, labels):
    result = []
    for j in range(C):
        own = [row for row, y in zip(rows, labels, strict=True) if y == j]
        result.append([math.fsum(column) / len(own) for column in zip(*own, strict=True)])
    return result


def nearness(metric, mean, row):
    if metric == "cosine":
        return dot(mean, row) / math.sqrt(dot(mean, mean) * dot(row, row))
    return -math.sqrt(math.fsum((m - x) ** 2 for m, x in zip(mean, row, strict=True)))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_nearest_class_mean_equals_the_formula(metric, dtype, tolerance):
    train, f = features(dtype, 40) + 1, features(dtype)
    labels = (torch.arange(40) % 7).clamp_max(C - 1)
    head = NearestClassMeanClassifier(D, C, metric).to(dtype)
    head.fit(train, labels)
    expected = sample_means(train.double().tolist(), labels.tolist())
    torch.testing.assert_close(head.weight, torch.tensor(expected, dtype=dtype), rtol=tolerance, atol=tolerance)
    scores = [[nearness(metric, mean, row) for mean in expected] for row in f.double().tolist()]
    torch.testing.assert_close(head(f), torch.tensor(scores, dtype=dtype), rtol=tolerance, atol=tolerance)


def test_distances_far_from_the_origin_keep_their_digits():
    head, f = NearestClassMeanClassifier(D, C, "euclidean"), 1000 + features(torch.float32, 40)
    head.fit(f, torch.arange(40) % C)
    means_, rows = head.weight.double().tolist(), f.double().tolist()
    expected = torch.tensor([[nearness("euclidean", mean, row) for mean in means_] for row in rows])
    torch.testing.assert_close(head(f), expected, rtol=1e-5, atol=0)


def test_permuting_the_classes_permutes_the_scores():
    order = torch.tensor([2, 0, 3, 1])
    labels = torch.arange(40) % C
    one, other = (NearestClassMeanClassifier(D, C).double() for _ in range(2))
    one.fit(features(n=40), labels)
    other.fit(features(n=40), order.argsort()[labels])
    torch.testing.assert_close(other(features()), one(features())[:, order])


def test_the_two_metrics_can_disagree_and_agree_on_means_of_one_length():
    cosines, distances = (NearestClassMeanClassifier(2, 2, metric) for metric in ("cosine", "euclidean"))
    f = torch.tensor([[1.0, 0.5]])
    for means_of, same in ((torch.tensor([[10.0, 4.0], [0.5, 1.0]]), False), (torch.eye(2), True)):
        for head in (cosines, distances):
            head.fit(means_of, torch.arange(2))
        assert (cosines(f).argmax() == distances(f).argmax()).item() is same


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_before_the_means_are_known_scores_are_finite_and_equal(metric):
    head = NearestClassMeanClassifier(D, C, metric)
    assert head.weight.tolist() == [[0.0] * D] * C
    scores = head(features(torch.float32))
    assert scores.isfinite().all()
    assert (scores == scores[:, :1]).all()


def test_a_second_fit_forgets_the_first():
    head, labels = NearestClassMeanClassifier(D, C).double(), torch.arange(40) % C
    head.fit(5 + features(n=40), labels)
    head.fit(features(n=40), labels)
    torch.testing.assert_close(head.weight, means().weight)


def test_8142_classes():
    head = NearestClassMeanClassifier(16, 8142)
    head.fit(features(torch.bfloat16, 9000, 16), torch.arange(9000) % 8142)
    assert head(features(torch.float32, 5, 16)).isfinite().all()
    for again in (LWSClassifier(8142, head), TauNormalizedClassifier(head)):
        assert again(features(torch.float32, 5, 16)).shape == (5, 8142)


# --- errors, and how a stage builds them ---


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2, 2], r"labels: got no sample of class 3"),
        ([0, 1, 3, 4], r"labels: got 4, allowed are 0 to 3"),
        ([0, 1, 2, -1], r"labels: got -1, allowed are 0 to 3"),
        ([0, 1, 2], r"features, labels: got shapes \(4, 6\) and \(3,\)"),
        ([[0], [1], [2], [3]], r"features, labels: got shapes"),
        ([0.0, 1.0, 2.0, 3.0], r"labels: got torch.float32"),
    ],
)
def test_bad_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        NearestClassMeanClassifier(D, C).fit(features(n=4), torch.tensor(labels))


def test_features_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"features, labels: got shapes \(4, 5\)"):
        NearestClassMeanClassifier(D, C).fit(features(n=4, d=5), torch.arange(4))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: LWSClassifier(C + 1, linear()), "previous"),
        (lambda: LWSClassifier(C, nn.ReLU()), "previous"),
        (lambda: LWSClassifier(C, nn.BatchNorm1d(C)), "previous"),
        (lambda: TauNormalizedClassifier(nn.ReLU()), "previous"),
        (lambda: TauNormalizedClassifier(linear(), -1.0), "tau"),
        (lambda: TauNormalizedClassifier(linear(), float("nan")), "tau"),
        (lambda: NearestClassMeanClassifier(D, C, "manhattan"), "metric"),
    ],
)
def test_bad_options_are_refused_by_name(make, name):
    with pytest.raises(ValueError, match=f"^{name}: got"):
        make()


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (part("baselines.LWSClassifier"), LWSClassifier),
        (part("baselines.TauNormalizedClassifier", tau=0.5), TauNormalizedClassifier),
        (part("baselines.NearestClassMeanClassifier", metric="euclidean"), NearestClassMeanClassifier),
    ],
    ids=str,
)
def test_a_stage_builds_them_from_what_the_trainer_supplies(head, kind):
    built = head.build(in_features=D, num_classes=C, class_counts=[3] * C, previous=linear())
    assert isinstance(built, kind)
    assert built.weight.shape == (C, D)
