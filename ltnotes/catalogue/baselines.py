"""The trainings that every chapter compares with, and those of chapters 2 and 3."""

from __future__ import annotations

from ltnotes.catalogue.builders import (
    CLASS_BALANCED,
    COSINE,
    MIXUP,
    ZERO_STEPS,
    Row,
    deferred,
    loss,
    plain,
    retrained,
    sampling,
    squashing,
)
from ltnotes.methods.common import part
from ltnotes.stages import LINEAR

BALANCERS: dict[str, Row] = {
    "square-root": ("cross-entropy, classes drawn by the root of their size", sampling("square_root")),
    "class-balanced-sampling": ("cross-entropy, every class drawn equally often", sampling("class_balanced")),
    "progressive": ("cross-entropy, from instance- to class-balanced sampling", sampling("progressively_balanced")),
    "power": ("cross-entropy, BLT's balancer (Eq. 1) with gamma = 0.9", sampling("power_balanced", gamma=0.9)),
    "effective-number-sampling": (
        "cross-entropy, drawn by the inverse effective number",
        sampling("effective_number_balanced"),
    ),
}

BASELINES: dict[str, Row] = {
    "ce": ("cross-entropy on shuffled images", plain()),
    "mixup": ("cross-entropy on blended images", plain(transform=MIXUP)),
    "weighted": ("cross-entropy weighted by the inverse class size", loss("baselines.WeightedCrossEntropy")),
    "weighted-as-released": (
        "weighted cross-entropy divided by the batch's weights, as torch does",
        loss("baselines.WeightedCrossEntropy", divide_by="weights"),
    ),
    "focal": ("focal loss, gamma = 1", loss("baselines.FocalLoss")),
    "focal-0.5": ("focal loss, gamma = 0.5 (FSA Table 1)", loss("baselines.FocalLoss", gamma=0.5)),
    "focal-2": ("focal loss, gamma = 2 (FSA Table 1)", loss("baselines.FocalLoss", gamma=2.0)),
    "focal-as-released": (
        "focal loss without a gradient through its weight",
        loss("baselines.FocalLoss", detach_weight=True),
    ),
    "class-balanced": (
        "weighted by the inverse effective number, beta = 0.9999",
        loss("baselines.ClassBalancedLoss"),
    ),
    "class-balanced-0.999": (
        "weighted by the inverse effective number, beta = 0.999 (FSA Table 1)",
        loss("baselines.ClassBalancedLoss", beta=0.999),
    ),
    "class-balanced-0.9": (
        "weighted by the inverse effective number, beta = 0.9 (FSA Table 1)",
        loss("baselines.ClassBalancedLoss", beta=0.9),
    ),
    "class-balanced-focal": (
        "focal loss weighted by the inverse effective number",
        loss("baselines.ClassBalancedLoss", base="focal"),
    ),
    "cosface": ("additive margin on the cosine", loss("baselines.CosFaceLoss", COSINE)),
    "arcface": ("additive margin on the angle", loss("baselines.ArcFaceLoss", COSINE)),
    "ldam": ("label-distribution-aware margin", loss("baselines.LDAMLoss", COSINE)),
    "ldam-drw": (
        "label-distribution-aware margin, re-weighted in the last fifth",
        plain(COSINE, loss=deferred(part("baselines.LDAMLoss"))),
    ),
    "drw": ("cross-entropy, re-weighted in the last fifth", plain(loss=deferred(part("baselines.CrossEntropy")))),
    "equalization": ("equalization loss: rare classes are not pushed down", loss("baselines.EqualizationLoss")),
    "logit-adjustment": ("logit adjustment, or balanced softmax", loss("baselines.LogitAdjustedLoss")),
    "label-aware-smoothing": ("label smoothing by class size", loss("baselines.LabelAwareSmoothing")),
    "crt": (
        "cross-entropy, then a new head on balanced classes",
        retrained({}, {"head": LINEAR, "balancer": CLASS_BALANCED}),
    ),
    "mixup-crt": (
        "mixup, then a new head on balanced classes",
        retrained({"transform": MIXUP}, {"head": LINEAR, "balancer": CLASS_BALANCED}),
    ),
    "lws": (
        "cross-entropy, then one learnt factor for each class",
        retrained({}, {"head": part("retraining.LWSClassifier"), "balancer": CLASS_BALANCED}),
    ),
    "tau-norm": (
        "cross-entropy, then class weights of equal length",
        retrained({}, {"head": part("retraining.TauNormalizedClassifier"), **ZERO_STEPS}),
    ),
    "ncm": (
        "cross-entropy, then the nearest class mean",
        retrained({}, {"head": part("retraining.NearestClassMeanClassifier"), **ZERO_STEPS}),
    ),
    # MiSLAS also lets the statistics of its BatchNorm move in the second stage; this one does not.
    "mislas": (
        "mixup, then label-aware smoothing and one factor for each class",
        retrained(
            {"transform": MIXUP},
            {
                "head": part("retraining.LWSClassifier"),
                "balancer": CLASS_BALANCED,
                "loss": part("baselines.LabelAwareSmoothing"),
            },
        ),
    ),
}


HEADS: dict[str, Row] = {
    "cosine": ("cross-entropy on cosines, scaled by 16", plain(part("squashing_cosine.CosineClassifier", scale=16.0))),
    "squashing-cosine": ("BLT's head (Eq. 2), alpha = 20, beta = 0.5", plain(squashing())),
    "squashing-cosine-oltr": (
        "OLTR's head (Eq. 2), alpha = 16, beta = 1",
        plain(squashing(alpha=16.0, beta=1.0)),
    ),
    "squashing-cosine-as-released": ("BLT's head (Eq. 2), alpha = 16, beta = 0.5", plain(squashing(alpha=16.0))),
}
