"""Exercises that answer: ``check.power_balanced(your_function)`` prints "right", or says which mistake it looks like.

Anything but "right" is raised as a :class:`Mistake`, an ``AssertionError``. A new exercise is an
entry in a file of :mod:`ltnotes.exercises`, and its name here.
"""

from __future__ import annotations

from ltnotes.exercises.balancers import (  # chapter 2
    draw,
    effective_number_balanced,
    power_balanced,
    weighted_cross_entropy,
)
from ltnotes.exercises.blt import climb_linear, confusing_class_probabilities  # chapter 4
from ltnotes.exercises.comparison import trainings_needed, variance_components  # chapter 9
from ltnotes.exercises.engine import Mistake
from ltnotes.exercises.fbl import balanced_logits, radial_pull  # chapter 7
from ltnotes.exercises.fusion import class_activation_map, most_confusing  # chapter 5
from ltnotes.exercises.gcl import cben, clouded_logits  # chapter 8
from ltnotes.exercises.heads import squashing_cosine  # chapter 3
from ltnotes.exercises.kps import kps_loss, kps_margins  # chapter 6
from ltnotes.exercises.long_tail import adjust, balanced_accuracy, exponential_counts, macro_f1  # chapter 1
from ltnotes.exercises.own_data import estimate_frequencies, head_prior  # chapter 10

__all__ = [
    "Mistake",
    "adjust",
    "balanced_accuracy",
    "balanced_logits",
    "cben",
    "class_activation_map",
    "climb_linear",
    "clouded_logits",
    "confusing_class_probabilities",
    "draw",
    "effective_number_balanced",
    "estimate_frequencies",
    "exponential_counts",
    "head_prior",
    "kps_loss",
    "kps_margins",
    "macro_f1",
    "most_confusing",
    "power_balanced",
    "radial_pull",
    "squashing_cosine",
    "trainings_needed",
    "variance_components",
    "weighted_cross_entropy",
]
