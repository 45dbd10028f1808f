"""Balancers: with which probability a training step sees each class (chapter 2).

Each function maps class counts to a float64 tensor ``[C]`` of class probabilities
that sum to 1. A class's images share its probability equally, so a weight ``w_j`` per
*sample* gives class ``j`` the probability ``w_j n_j / sum_k w_k n_k``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ltnotes.counts import check_counts
from ltnotes.options import number


def _log_counts(counts: Sequence[int]) -> Tensor:
    return torch.tensor(check_counts(counts, "counts"), dtype=torch.float64).log()


def power_balanced(counts: Sequence[int], gamma: float) -> Tensor:
    """BLT Eq. 1: per-sample weight ``sum(n) / n_j**gamma``, so ``p_j`` is proportional to ``n_j**(1 - gamma)``.

    Args:
        gamma: 0 is instance-balanced, 0.5 square-root, 1 class-balanced; BLT trains its
            second stage with 0.9. Above 1 the rarest class is the most frequent.

    Raises:
        ValueError: bad counts, or a ``gamma`` that is not finite.
    """
    return torch.softmax((1 - number("gamma", gamma)) * _log_counts(counts), dim=0)


def instance_balanced(counts: Sequence[int]) -> Tensor:
    """Every image is equally likely: ``p_j = n_j / N``. What plain shuffling does."""
    return power_balanced(counts, 0.0)


def square_root(counts: Sequence[int]) -> Tensor:
    """``p_j`` proportional to ``sqrt(n_j)`` (thesis 1.2.1.1)."""
    return power_balanced(counts, 0.5)


def class_balanced(counts: Sequence[int]) -> Tensor:
    """Every class is equally likely: ``p_j = 1 / C``."""
    return power_balanced(counts, 1.0)


def progressively_balanced(counts: Sequence[int], t: float) -> Tensor:
    """From instance- to class-balanced as training goes on: ``(1 - t) * instance + t * class`` (Kang et al. 2020).

    Args:
        t: progress of the stage, from 0 to 1.

    Raises:
        ValueError: bad counts, or ``t`` outside [0, 1].
    """
    t = number("t", t, least=0, most=1)
    return (1 - t) * instance_balanced(counts) + t * class_balanced(counts)


def effective_number_balanced(counts: Sequence[int], beta: float = 0.9999) -> Tensor:
    """Per-sample weight ``(1 - beta) / (1 - beta**n_j)``, the inverse effective number (Cui et al. 2019).

    The thesis prints ``(1 - g) / (1 + g)`` in Table 1.1, which does not depend on the
    class; the paper that it cites has the formula used here.

    Args:
        beta: 0 is instance-balanced; towards 1 it becomes class-balanced.

    Raises:
        ValueError: bad counts, or ``beta`` outside [0, 1).
    """
    log_weights = inverse_effective_number(counts, beta).log()
    return torch.softmax(log_weights + _log_counts(counts), dim=0)


def inverse_effective_number(counts: Sequence[int], beta: float) -> Tensor:
    """``(1 - beta) / (1 - beta**n_j)``, float64 ``[C]``, accurate for any ``beta`` in [0, 1).

    Raises:
        ValueError: bad counts, or ``beta`` outside [0, 1).
    """
    beta = number("beta", beta, least=0, below=1)
    n = torch.tensor(check_counts(counts, "counts"), dtype=torch.float64)
    if beta == 0:
        return torch.ones_like(n)
    return (1 - beta) / -torch.expm1(n * math.log(beta))
