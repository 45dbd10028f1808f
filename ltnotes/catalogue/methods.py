"""The trainings of chapters 4 to 8: each method, its paper's variants, and what its released code does otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ltnotes.catalogue.builders import (
    CLASS_BALANCED,
    COSINE,
    MIXUP,
    ZERO_STEPS,
    Build,
    Row,
    Setting,
    deferred,
    plain,
    retrained,
    squashing,
)
from ltnotes.methods.common import Part, part
from ltnotes.stages import LINEAR, Stage

# --- chapter 4 ---------------------------------------------------------------

BLT_BALANCER = part("balancers.power_balanced", gamma=0.9)
SQUASHING = squashing()
HELD_OUT = {"imagenet-lt": 20, "places-lt": 20, "inat2017": 5, "inat2018": 5, "inat2018-blt": 5}
LARGEST = {"cifar10-lt": 5000, "cifar100-lt": 500, "digits-lt": 124}  # images of the largest class


def held_out(setting: Setting) -> int:
    """Images of each class for the confusion matrix.

    ImageNet-LT and Places-LT come with 20, and 5 are held out of iNaturalist (BLT section
    4). So are 5 of the small sets, and at most half of the smallest class.
    """
    if setting.large:
        return HELD_OUT[setting.dataset]
    return min(5, int(LARGEST.get(setting.dataset, 0) / setting.imbalance) // 2)


def blt(
    head: Part = SQUASHING, balancer: Part = BLT_BALANCER, second: dict[str, Any] | None = None, **options: Any
) -> Build:
    """Two stages (BLT-S section 2): plain, then balanced with BLT.

    Where no image can be spared for validation, the confusion matrix is that of the training images.
    """

    def build(setting: Setting) -> dict[str, Any]:
        if len(setting.protocol.stages) != 2:
            raise ValueError("protocol: got one with a single stage, allowed for BLT is 'blt'")
        validation = held_out(setting)
        # Small sets need not have a class of 20 images or fewer, the paper's tail.
        own = {"tail": "few" if setting.large else "smallest"}
        if not validation:
            own["confusion_from"] = "train"
        transform = part("blt.BLT", **(own | options))
        stage1, stage2 = setting.protocol.stages
        changes = {"balancer": balancer, "transform": transform, **(second or {})}
        return {"head": head, "validation": validation, "stages": (stage1, replace(stage2, **changes))}

    return build


def slower(build: Build) -> Build:
    """A tenth of the learning rates (BLT-S Table 1, right half, and Table 2)."""

    def slow(stage: Stage) -> Stage:
        rate = stage.head_learning_rate
        return replace(
            stage, learning_rate=stage.learning_rate / 10, head_learning_rate=None if rate is None else rate / 10
        )

    def built(setting: Setting) -> dict[str, Any]:
        fields = build(setting)
        return fields | {"stages": tuple(map(slow, fields["stages"]))}

    return built


def _blt_as_released(*differences: str, **options: Any) -> Build:
    return blt(as_released=differences, **options)


BLT_DIFFERENCES = {
    "accumulated-gradients": "image gradients add up over the steps of the ascent",
    "shifted-classes": "once some images are finished, others climb towards their classes",
    "stale-timeouts": "an image that ran out of steps can come back under another's label",
    "three-thresholds": "thresholds are 0.15, 0.2 or 0.25",
    "rounded-down": "the number of images is rounded down",
    "fresh-images": "the ascent begins at another training image",
    "unconfused-skipped": "classes that are never confused get no image",
}
NEW_HEAD = {"head": SQUASHING}

BLT: dict[str, Row] = {
    "blt": ("tail images turned into hard examples by gradient ascent", blt()),
    "blt-quarter": ("BLT for a quarter of the tail images (BLT-S; the released code)", blt(fraction=0.25)),
    "blt-quarter-slower": ("BLT for a quarter, at a tenth of the rate (BLT-S Table 1)", slower(blt(fraction=0.25))),
    "blt-slower": ("BLT at a tenth of the rate (BLT-S Table 2)", slower(blt())),
    "blt-class-balanced": ("BLT with gamma = 1 (BLT Figure 3)", blt(balancer=CLASS_BALANCED)),
    "blt-static-targeted": ("BLT with images made once, towards confusing classes", blt(static=True)),
    "blt-static-random": ("BLT with images made once, towards random classes", blt(static=True, new_images="random")),
    "blt-softmax": ("BLT with a linear head (BLT-S Table 4)", blt(head=LINEAR)),
    "blt-entire-batch": ("BLT for images of all classes (BLT-S Table 4)", blt(tail="all")),
    "blt-uniform": ("BLT without balancing (BLT-S Table 4)", blt(balancer=part("balancers.instance_balanced"))),
    "blt-augmentations": (
        "BLT with augmented copies instead, with gamma = 1 (BLT Figure 3)",
        blt(balancer=CLASS_BALANCED, new_images="augmented"),
    ),
    "blt-neither": (
        "BLT without new images, with gamma = 1 (BLT Figure 3)",
        blt(balancer=CLASS_BALANCED, fraction=0.0),
    ),
    "plain-sampling": (
        "plain, then balanced classes, with a linear head (BLT Tables 1 and 2)",
        blt(head=LINEAR, balancer=CLASS_BALANCED, fraction=0.0),
    ),
    "blt-divided-by-batch": ("BLT with the loss divided as in Eq. 3", blt(divide_by="original")),
    "blt-as-released": (
        "BLT with all differences together, p = 0.25, alpha = 16",
        blt(
            head=squashing(alpha=16.0),
            second={"head": squashing(alpha=16.0)},
            fraction=0.25,
            start=1 / 55,
            confusion_from="test-every-second-epoch",
            as_released=tuple(BLT_DIFFERENCES),
        ),
    ),
    **{
        f"blt-{name}-as-released": (f"BLT: {summary}", _blt_as_released(name))
        for name, summary in BLT_DIFFERENCES.items()
    },
    "blt-confusion-as-released": (
        "BLT: every second epoch the confusion matrix is the test set's",
        blt(confusion_from="test-every-second-epoch"),
    ),
    "blt-new-head-as-released": ("BLT: the second stage begins with a new head", blt(second=NEW_HEAD)),
    "blt-head-as-released": ("BLT with alpha = 16", blt(head=squashing(alpha=16.0))),
}

# --- chapter 5 ---------------------------------------------------------------


def fusion(first: dict[str, Any] | None = None, **options: Any) -> Build:
    """FSA's two phases: plain training, then the layers after the fusion alone (FSA 4.3)."""
    return retrained(first or {}, {"transform": part("cam_fusion.CAMFusion", **options), "trains": "rest"})


FUSION: dict[str, Row] = {
    "cam-fusion": ("tail features fused with those of confusing classes", fusion()),
    "cam-fusion-focal": (
        "feature fusion after focal loss (FSA Table 3)",
        fusion({"loss": part("baselines.FocalLoss")}),
    ),
    "cam-fusion-block-3": ("feature fusion after block 3 (FSA Figure 9)", fusion(block=3)),
    "cam-fusion-block-2": ("feature fusion after block 2 (FSA Figure 9)", fusion(block=2)),
    "cam-no-fusion": ("feature fusion's balanced batches alone (FSA Figure 9)", fusion(fusion=False)),
    "cam-fusion-weighted": ("feature fusion, multiplied by the activation as in Eqs. 2 and 3", fusion(weighted=True)),
}

# --- chapter 6 ---------------------------------------------------------------

MAX_MARGIN = {"imagenet-lt": 0.35, "inat2017": 0.3, "inat2018": 0.3}  # thesis 3.5.2; 0.5 on CIFAR
ADJUSTED = {"gradient_adjustment": True, "adjust_from": 120 / 200}  # the epoch is the released code's


def kps(
    stage: dict[str, Any] | None = None,
    wrap: Callable[[Part], Part] = lambda part: part,
    small_margin: float = 0.5,
    **options: Any,
) -> Build:
    """KPS on cosines, with the data set's largest margin; on small ones it can be chosen."""

    def build(setting: Setting) -> dict[str, Any]:
        margin = _margin(setting) if setting.large else small_margin
        chosen = wrap(part("kps.KPSLoss", max_margin=margin, **options))
        return plain(COSINE, loss=chosen, **(stage or {}))(setting)

    return build


def mislas_kps(setting: Setting) -> dict[str, Any]:
    """MiSLAS with KPS in its second stage (thesis 3.5.5.3), on a new head: KPS takes cosines."""
    second = {"head": COSINE, "balancer": CLASS_BALANCED, "loss": part("kps.KPSLoss", max_margin=_margin(setting))}
    return retrained({"transform": MIXUP}, second)(setting)


def _margin(setting: Setting) -> float:
    return MAX_MARGIN.get(setting.dataset, 0.35 if setting.large else 0.5)


KPS: dict[str, Row] = {
    "kps": ("key point sensitive loss with gradient adjustment", kps(**ADJUSTED)),
    "kps-plain": ("key point sensitive loss without gradient adjustment", kps()),
    "kps-drw": ("KPS with deferred re-weighting in place of the adjustment (Table 3.4)", kps(wrap=deferred)),
    "kps-mixup": ("KPS with mixup (Table 3.5)", kps({"transform": MIXUP}, **ADJUSTED)),
    "kps-angle": ("KPS with radius and margin on the angle (Eq. 3.20)", kps(penalty="angle", **ADJUSTED)),
    "mislas-kps": ("mixup, then KPS on a new head (Table 3.6)", mislas_kps),
    "kps-as-released": (
        "KPS with all differences together",
        kps({"decay": 0.1}, reversal="list", small_margin=0.2, max_scale=50.0, **ADJUSTED),
    ),
    "kps-margins-as-released": (
        "KPS: margins and scales are the radii read backwards",
        kps(reversal="list", **ADJUSTED),
    ),
    "kps-margin-0.2-as-released": (
        "KPS: the largest margin is 0.2, as in the script for CIFAR",
        kps(small_margin=0.2, **ADJUSTED),
    ),
    "kps-scale-as-released": ("KPS: the adjustment's scale ends at 50", kps(max_scale=50.0, **ADJUSTED)),
    "kps-decay-as-released": (
        "KPS: the learning rate falls to a tenth, not a hundredth",
        kps({"decay": 0.1}, **ADJUSTED),
    ),
}

# --- chapter 7 ---------------------------------------------------------------


def fbl(released_batch: bool = False, released_schedule: bool = False, **options: Any) -> Build:
    """FBL with the strength of its released code; the thesis gives no number."""

    def build(setting: Setting) -> dict[str, Any]:
        own = {"strength": 150.0 if setting.large else 60.0, "normalized": True}
        if released_schedule:  # (epoch / (epochs - 10))**2
            own["end"] = 1 - 10 / setting.protocol.stages[0].epochs
        batch = {"batch_size": 64} if released_batch and not setting.large else {}
        return plain(loss=part("fbl.FeatureBalancedLoss", **(own | options)), **batch)(setting)

    return build


FBL: dict[str, Row] = {
    "fbl": ("feature-balanced loss, parabolic curriculum", fbl()),
    **{
        f"fbl-{curriculum}": (f"feature-balanced loss, {curriculum} curriculum (Table 4.4)", fbl(curriculum=curriculum))
        for curriculum in ("linear-decrease", "linear", "sine", "cosine")
    },
    "fbl-schedule-as-released": (
        "FBL: the curriculum ends 10 epochs early and goes on above 1",
        fbl(released_schedule=True),
    ),
    "fbl-batch-as-released": ("FBL: batches of 64 on CIFAR, as in 4.4.1", fbl(released_batch=True)),
    "fbl-as-released": ("FBL with all differences together", fbl(released_batch=True, released_schedule=True)),
}

# --- chapter 8 ---------------------------------------------------------------

CBEN = part("gcl.cben")


def gcl(
    first: dict[str, Any] | None = None,
    first_loss: dict[str, Any] | None = None,
    second_loss: dict[str, Any] | None = None,
    **second: Any,
) -> Build:
    """GCL with mixup, then a new head on CBEN samples (thesis Algorithm 5.1, with the mixup of 5.4.1)."""
    stage1 = {"loss": part("gcl.GCLLoss", **(first_loss or {})), "transform": MIXUP, **(first or {})}
    stage2 = {"loss": part("gcl.GCLLoss", **(second_loss or {})), "head": COSINE, "balancer": CBEN, **second}
    return retrained(stage1, stage2, COSINE)


def half_noise(second_loss: dict[str, Any] | None = None, **changes: Any) -> Build:
    """GCL with half the noise in both stages on small data sets, as the released code has it on CIFAR."""

    def build(setting: Setting) -> dict[str, Any]:
        noise = {} if setting.large else {"noise_multiplier": 0.5}
        return gcl(first_loss=noise, second_loss={**noise, **(second_loss or {})}, **changes)(setting)

    return build


def _cloud(rule: str) -> Build:
    return gcl(first_loss={"cloud": rule}, second_loss={"cloud": rule})


RELEASED_SECOND = {"scale": 20.0, "target_margin": 0.1, "focal_gamma": 1.0}
RELEASED_SCHEDULE = {"epochs": 30.0, "steps": None, "learning_rate": 0.002, "final_rate": 0.0}

GCL: dict[str, Row] = {
    "gcl": ("Gaussian clouded logits, then a new head by CBEN", gcl()),
    "gcl-no-retraining": (
        "GCL, the first stage alone (Table 5.6)",
        plain(COSINE, loss=part("gcl.GCLLoss"), transform=MIXUP),
    ),
    "gcl-lws": ("GCL, then one factor for each class (Table 5.6)", gcl(head=part("retraining.LWSClassifier"))),
    "gcl-tau-norm": (
        "GCL, then class weights of equal length (Table 5.6)",
        gcl(head=part("retraining.TauNormalizedClassifier"), **ZERO_STEPS),
    ),
    "gcl-instance-balanced": (
        "GCL, re-trained on all images alike (Table 5.5)",
        gcl(balancer=part("balancers.instance_balanced")),
    ),
    "gcl-class-balanced": (
        "GCL, re-trained on all classes alike (Table 5.5; the released code)",
        gcl(balancer=CLASS_BALANCED),
    ),
    "gcl-effective-number": (
        "GCL, re-trained by the effective number (Table 5.5)",
        gcl(balancer=part("balancers.effective_number_balanced")),
    ),
    "gcl-cben-per-class": (
        "GCL, CBEN normalised over classes (Eq. 5.14 as printed)",
        gcl(balancer=part("gcl.cben", per="class")),
    ),
    "gcl-cloud-cosine": ("GCL with clouds by a cosine (Table 5.4)", _cloud("cosine")),
    "gcl-cloud-third-root": ("GCL with clouds by the third root (Table 5.4)", _cloud("power-1/3")),
    "gcl-cloud-fourth-root": ("GCL with clouds by the fourth root (Table 5.4)", _cloud("power-1/4")),
    "gcl-as-released": (
        "GCL with all differences together",
        half_noise(
            RELEASED_SECOND, first={"keep": "best-test"}, head=None, balancer=CLASS_BALANCED, **RELEASED_SCHEDULE
        ),
    ),
    "gcl-noise-as-released": (
        "GCL with half the noise in both stages, as on CIFAR",
        half_noise(),
    ),
    "gcl-best-test-as-released": ("GCL: stage 1 ends with its best epoch on the test set", gcl({"keep": "best-test"})),
    "gcl-warm-head-as-released": ("GCL: stage 2 goes on with the head of stage 1", gcl(head=None)),
    **{
        f"gcl-{name}-as-released": (f"GCL: {summary} in stage 2", gcl(second_loss=options))
        for name, summary, options in (
            ("margin", "a margin of 0.1 for the target", {"target_margin": 0.1}),
            ("scale", "a scale of 20", {"scale": 20.0}),
            ("focal", "focal weights", {"focal_gamma": 1.0}),
        )
    },
    "gcl-schedule-as-released": (
        "GCL: stage 2 has 30 epochs from a rate of 0.002",
        gcl(**RELEASED_SCHEDULE),
    ),
}
