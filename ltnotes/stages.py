"""What a recipe is: a whole training as plain data, in stages.

A recipe says everything that a training depends on but the seed. It is frozen and
hashable, and its hash names the cached run. The papers' own have names; see
:mod:`ltnotes.recipes`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from ltnotes.data import DEFAULT_IMBALANCE
from ltnotes.image_files import CROPS
from ltnotes.methods.common import Part, part
from ltnotes.models import check_backbone
from ltnotes.options import choice, number, of_type, require, whole

TRAINABLE = ("all", "rest", "head")
FORBIDDEN = frozenset('/\\:*?"<>|')  # in the name of a recipe, which names a folder
LONGEST_NAME = 150
SHOWN = " ".join(sorted(FORBIDDEN))
CROSS_ENTROPY = part("baselines.CrossEntropy")
OPTIONAL = ("epochs", "steps", "head_learning_rate", "projection", "pad")  # fields that may be None
INSTANCE_BALANCED = part("balancers.instance_balanced")
LINEAR = part("squashing_cosine.LinearClassifier")


@dataclass(frozen=True)
class Stage:
    """One stretch of training with one balancer, loss and schedule.

    Args:
        epochs: passes over as many images as the training set has; may be a fraction.
        steps: batches, instead of ``epochs``; exactly one of the two is given. A stage
            of 0 steps trains nothing: it only replaces the head.
        loss, balancer, transform: method parts; see :mod:`ltnotes.methods.common`.
        head: a new classifier head for this stage; the old one goes on if None. Its
            constructor is supplied ``previous``, the old head, where it asks for it, and
            its ``fit(features, labels)``, where it has one, is called with those of all
            training images before the stage begins.
        trains: "all"; "head", with the backbone frozen in evaluation mode; or "rest", all
            layers after the block of the backbone where the stage's transform acts.
        learning_rate: of the backbone and, unless ``head_learning_rate`` is given, the head.
        schedule: "step" multiplies the rate by ``decay`` at each milestone; "cosine"
            brings it to ``final_rate`` times itself along half a cosine.
        milestones: progress of the stage in (0, 1) at which the rate falls.
        warmup: share of the stage over which the rate rises linearly from 0.
        keep: "last" ends with the weights of the last epoch. "best-test" looks at the test
            set after every epoch and ends with the best, as much released code does: a
            choice made on the test set, here only to measure what it is worth.
    """

    epochs: float | None = None
    steps: int | None = None
    loss: Part = CROSS_ENTROPY
    balancer: Part = INSTANCE_BALANCED
    transform: Part | None = None
    head: Part | None = None
    trains: str = "all"
    batch_size: int = 128
    learning_rate: float = 0.1
    head_learning_rate: float | None = None
    schedule: str = "step"
    milestones: tuple[float, ...] = (0.8, 0.9)
    decay: float = 0.1
    final_rate: float = 0.0
    warmup: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 2e-4
    keep: str = "last"

    def __post_init__(self) -> None:
        given = (self.epochs, self.steps)
        require(given.count(None) == 1, "epochs, steps", given, "exactly one of the two")
        _whole_numbers(self, {"steps": 0, "batch_size": 1})
        _numbers(self, {"epochs": 0, "learning_rate": 0, "head_learning_rate": 0, "decay": 0, "final_rate": 0})
        _numbers(self, {"warmup": 0, "momentum": 0, "weight_decay": 0})
        _of_type(self, {"loss": Part, "balancer": Part, "transform": Part | None, "head": Part | None})
        require(self.epochs != 0, "epochs", self.epochs, "a number above 0")
        choice("trains", self.trains, TRAINABLE)
        choice("schedule", self.schedule, ("step", "cosine"))
        choice("keep", self.keep, ("last", "best-test"))
        _of_type(self, {"milestones": tuple})
        for milestone in self.milestones:
            number("milestones", milestone, above=0, below=1)
        of_transform = self.trains != "rest" or self.transform is not None
        require(of_transform, "trains", self.trains, "'all' or 'head' in a stage without a transform")
        allowed = "0 with the schedule 'step', where it has no effect"
        require(self.schedule == "cosine" or not self.final_rate, "final_rate", self.final_rate, allowed)
        require(self.warmup < 1, "warmup", self.warmup, "a share from 0 up to, not including, 1")
        require(self.momentum < 1, "momentum", self.momentum, "a number from 0 up to, not including, 1")


@dataclass(frozen=True)
class Recipe:
    """A whole training: data, backbone, head and one or more stages.

    Args:
        imbalance: ratio of the largest to the smallest class.
        backbone: one of :data:`ltnotes.models.BACKBONES`; or ``frozen-`` and the name of a network
            of :mod:`ltnotes.features`, whose features are then what is trained on.
        head: the classifier of the first stage.
        projection: width of a fully connected layer between pooling and head, 0 for none;
            the backbone's own if None.
        pretrained: begin with torchvision's weights for ImageNet.
        validation: training images per class held out for methods that need validation.
        pad: pixels by which training images are shifted at random; the data set's own if None.
        flip: whether mirror images of them are shown as well; the data set's own if None.
        crop: how training images in files are cut, one of :data:`ltnotes.image_files.CROPS`; the data set's own
            if None.
        sync_batchnorm: normalise with the statistics of the whole batch where several processes share it.
    """

    name: str
    dataset: str
    stages: tuple[Stage, ...]
    imbalance: float = DEFAULT_IMBALANCE
    backbone: str = "resnet32"
    head: Part = LINEAR
    projection: int | None = None
    pretrained: bool = False
    validation: int = 0
    data_seed: int = 0
    pad: int | None = None
    flip: bool | None = None
    crop: str | None = None
    sync_batchnorm: bool = False

    def __post_init__(self) -> None:
        _of_type(self, {"name": str, "dataset": str, "stages": tuple, "head": Part})
        names_a_folder = self.name.isprintable() and not FORBIDDEN & set(self.name) and self.name[:1] not in ("", ".")
        allowed = f"what can name a folder, without {SHOWN}, in at most {LONGEST_NAME} characters"
        require(names_a_folder and len(self.name) <= LONGEST_NAME, "name", self.name, allowed)
        of_stages = len(self.stages) > 0 and all(isinstance(stage, Stage) for stage in self.stages)
        require(of_stages, "stages", self.stages, "one Stage or more")
        check_backbone(self.backbone)
        _numbers(self, {"imbalance": 1})
        _whole_numbers(self, {"projection": 0, "validation": 0, "data_seed": 0, "pad": 0})
        _of_type(self, {"pretrained": bool, "flip": bool | None, "sync_batchnorm": bool})
        if self.crop is not None:
            choice("crop", self.crop, CROPS)

    @property
    def hash(self) -> str:
        """sha256 of everything but the name, so two names for one training share its runs."""
        content = {key: value for key, value in asdict(self).items() if key != "name"}
        for name, without in {"pad": None, "flip": None, "crop": None, "sync_batchnorm": False}.items():
            if content[name] is without:  # runs from before there was a choice keep their hash
                del content[name]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def up_to(self, stage: int) -> Recipe:
        """The recipe of the stages up to this one, counted from 0: what was trained when it ends."""
        if stage == len(self.stages) - 1:
            return self
        return replace(self, name=f"{self.name[: LONGEST_NAME - 10]}-stage{stage + 1}", stages=self.stages[: stage + 1])

    def with_stages(self, **changes: Any) -> Recipe:
        """The recipe with the same fields changed in every stage; one without steps stays without."""
        lasting = {name: value for name, value in changes.items() if name not in ("epochs", "steps")}
        return replace(
            self, stages=tuple(replace(stage, **(lasting if stage.steps == 0 else changes)) for stage in self.stages)
        )


def recipe_from_record(content: dict[str, Any]) -> Recipe:
    """The recipe that ``dataclasses.asdict`` and JSON made ``content`` of.

    Raises:
        ValueError, TypeError, LookupError: it is no recipe of this code.
    """
    stages = tuple(Stage(**{name: _from_json(value) for name, value in stage.items()}) for stage in content["stages"])
    others = {name: _from_json(value) for name, value in content.items() if name != "stages"}
    return Recipe(stages=stages, **others)


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return Part(value["name"], _from_json(value["options"]))
    return tuple(map(_from_json, value)) if isinstance(value, list) else value


def _numbers(owner: Any, lowest: dict[str, float]) -> None:
    """Check number fields against their lowest value and make them floats, so that 1 and 1.0 hash alike."""
    for name, low in lowest.items():
        if (value := getattr(owner, name)) is not None or name not in OPTIONAL:
            object.__setattr__(owner, name, float(number(name, value, least=low)))


def _whole_numbers(owner: Any, lowest: dict[str, int]) -> None:
    for name, low in lowest.items():
        if (value := getattr(owner, name)) is not None or name not in OPTIONAL:
            object.__setattr__(owner, name, whole(name, value, least=low))


def _of_type(owner: Any, kinds: dict[str, Any]) -> None:
    for name, kind in kinds.items():
        of_type(name, getattr(owner, name), kind)
