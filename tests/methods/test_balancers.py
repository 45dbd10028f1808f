"""Balancers against loops over the equations, and the laws that any balancer obeys."""

import math

import pytest
import torch

from ltnotes.methods import balancers
from tests.test_counts import BAD_COUNTS

COUNTS = [50, 5000, 83, 2997, 1, 20]
BALANCERS = {
    "instance": balancers.instance_balanced,
    "square-root": balancers.square_root,
    "class": balancers.class_balanced,
    "progressive": lambda counts: balancers.progressively_balanced(counts, 0.3),
    "power": lambda counts: balancers.power_balanced(counts, 0.9),
    "effective-number": balancers.effective_number_balanced,
}
each_balancer = pytest.mark.parametrize("balancer", BALANCERS.values(), ids=BALANCERS)


def from_sample_weights(counts, weight):
    """Class probabilities by the definition: every image has a weight, and a class gets the share of its images."""
    total = 0.0
    for n in counts:
        for _ in range(n):
            total += weight(n)
    return [n * weight(n) / total for n in counts]


def interpolated(counts, t):
    return [(1 - t) * n / sum(counts) + t / len(counts) for n in counts]


REFERENCES = {
    "instance": lambda n: 1.0,
    "square-root": lambda n: n**-0.5,
    "class": lambda n: 1 / n,
    "power": lambda n: sum(COUNTS) / n**0.9,
    "effective-number": lambda n: (1 - 0.9999) / (1 - 0.9999**n),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_equals_the_share_of_its_weighted_images(name):
    expected = from_sample_weights(COUNTS, REFERENCES[name])
    assert BALANCERS[name](COUNTS).tolist() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_progressive_is_the_interpolation(t):
    assert balancers.progressively_balanced(COUNTS, t).tolist() == pytest.approx(interpolated(COUNTS, t), abs=1e-12)


@each_balancer
def test_is_a_distribution_in_float64(balancer):
    p = balancer(COUNTS)
    assert p.dtype == torch.float64
    assert p.shape == (len(COUNTS),)
    assert (p > 0).all()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)


@each_balancer
def test_permuting_the_classes_permutes_the_probabilities(balancer):
    order = [3, 0, 5, 1, 4, 2]
    torch.testing.assert_close(balancer([COUNTS[i] for i in order]), balancer(COUNTS)[order], rtol=0, atol=1e-15)


@each_balancer
def test_balanced_counts_give_the_uniform_distribution(balancer):
    assert balancer([17] * 5).tolist() == pytest.approx([0.2] * 5, abs=1e-14)


@each_balancer
def test_8142_classes(balancer):
    counts = [1 + (7919 * j) % 1000 for j in range(8142)]
    p = balancer(counts)
    assert p.isfinite().all()
    assert p.sum().item() == pytest.approx(1, abs=1e-10)


@each_balancer
def test_counts_of_very_different_size_stay_finite(balancer):
    p = balancer([1, 10**9, 10**15])
    assert p.isfinite().all()
    assert p.sum().item() == pytest.approx(1, abs=1e-10)


@each_balancer
@pytest.mark.parametrize("counts", BAD_COUNTS.values(), ids=BAD_COUNTS)
def test_bad_counts_are_refused_by_name(balancer, counts):
    with pytest.raises(ValueError, match=r"^counts: got"):
        balancer(counts)


@pytest.mark.parametrize(("gamma", "same_as"), [(0, "instance"), (0.5, "square-root"), (1, "class")])
def test_power_holds_the_named_balancers(gamma, same_as):
    torch.testing.assert_close(balancers.power_balanced(COUNTS, gamma), BALANCERS[same_as](COUNTS), rtol=0, atol=0)


def test_power_above_one_favours_the_rarest():
    assert balancers.power_balanced(COUNTS, 1.5).argmax().item() == COUNTS.index(1)


@pytest.mark.parametrize(("beta", "same_as"), [(0, "instance"), (1 - 1e-12, "class")])
def test_effective_number_reaches_its_limits(beta, same_as):
    p = balancers.effective_number_balanced(COUNTS, beta)
    torch.testing.assert_close(p, BALANCERS[same_as](COUNTS), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: balancers.power_balanced(COUNTS, 0.3), lambda: balancers.power_balanced(COUNTS, 0.4)),
        (lambda: balancers.progressively_balanced(COUNTS, 0.3), lambda: balancers.progressively_balanced(COUNTS, 0.4)),
        (
            lambda: balancers.effective_number_balanced(COUNTS),
            lambda: balancers.effective_number_balanced(COUNTS, 0.99),
        ),
    ],
    ids=["gamma", "t", "beta"],
)
def test_the_argument_changes_the_result(one, other):
    assert (one() - other()).abs().max() > 1e-3


@pytest.mark.parametrize("beta", [0, 0.5, 0.9, 0.9999, 1 - 1e-9])
@pytest.mark.parametrize("n", [1, 2, 50, 5000])
def test_inverse_effective_number_is_one_over_the_geometric_sum(beta, n):
    effective = math.fsum(beta**k for k in range(n))
    weight = balancers.inverse_effective_number([n], beta)
    assert weight.item() == pytest.approx(1 / effective, rel=1e-9)


@pytest.mark.parametrize("beta", [-0.1, 1, 1.1, float("nan")])
@pytest.mark.parametrize("function", [balancers.effective_number_balanced, balancers.inverse_effective_number])
def test_beta_is_refused_by_name(function, beta):
    with pytest.raises(ValueError, match=r"^beta: got"):
        function(COUNTS, beta)


@pytest.mark.parametrize("t", [-0.01, 1.01, float("nan")])
def test_t_is_refused_by_name(t):
    with pytest.raises(ValueError, match=r"^t: got"):
        balancers.progressively_balanced(COUNTS, t)


@pytest.mark.parametrize("gamma", [float("nan"), float("inf")])
def test_gamma_is_refused_by_name(gamma):
    with pytest.raises(ValueError, match=r"^gamma: got"):
        balancers.power_balanced(COUNTS, gamma)
