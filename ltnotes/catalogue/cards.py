"""Method cards: what each method assumes, costs and fails at, and the line that puts it into a loop of your own.

``python -m ltnotes.catalogue.cards`` writes the book's page of them. The accuracies come from the table of ``lite``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ltnotes.files import write_text
from ltnotes.papers import folder


@dataclass(frozen=True)
class Card:
    """One method.

    Args:
        recipe: its name in the catalogue.
        chapter: file of the chapter that derives and measures it.
        line: Python that uses it in a plain loop, given ``counts``, ``labels`` of all training
            images, a ``model`` with a last layer ``model.fc`` of 64 features, ``head`` (a cosine
            head), and for each batch ``images``, ``features``, ``logits`` and ``targets``.
    """

    name: str
    recipe: str
    chapter: str
    assumes: str
    formula: str
    costs: str
    sensitive: str
    fails: str
    line: str


CARDS = (
    Card(
        "Logit adjustment",
        "logit-adjustment",
        "01-long-tail",
        "the test set's classes are equally frequent, and images of a class look alike in training and test",
        r"z_j + \tau \log \pi_j \text{ inside the loss, or } z_j - \tau \log \pi_j \text{ after training}",
        "nothing",
        "τ, which can be chosen after training, on images held out",
        "it moves the decision and leaves the features as they are; with another test prior it needs that prior",
        "loss = LogitAdjustedLoss(counts)(logits, targets)",
    ),
    Card(
        "Balanced sampling",
        "class-balanced-sampling",
        "02-balancers",
        "the head's images are so many that some can be missed, and the tail's can be repeated",
        r"p_j \propto n_j^{\,1 - \gamma}",
        "nothing; an epoch sees fewer different images",
        "γ, and the length of training: repeated images are soon known by heart",
        "for a whole network: its features suffer. For a head on finished features it does what a shift of logits does",
        "p = balancers.class_balanced(counts) / torch.tensor(counts)\n"
        "sampler = WeightedRandomSampler(p[labels], len(labels))",
    ),
    Card(
        "Classifier re-training",
        "crt",
        "02-balancers",
        "plain training gives good features and a bad last layer",
        r"W \text{ is trained anew on } p_j = 1/C \text{, with the features fixed}",
        "a twentieth of the training",
        "how long the new head is trained, and the sampler",
        "the tail's training images are fitted already, so a head that is trained on them sees few of its errors",
        "# then freeze all else, and draw with the sampler above\nmodel.fc = nn.Linear(64, len(counts))",
    ),
    Card(
        "Re-weighting",
        "weighted",
        "02-balancers",
        "an error on a rare class should cost as much as all errors on a frequent one",
        r"\frac{w_y}{B} \, \ell \text{ with } w_j \propto 1/n_j",
        "nothing",
        "the learning rate: rare images make large steps",
        "for networks that fit their training images: weights of a loss that is near 0 change little",
        "loss = WeightedCrossEntropy(counts)(logits, targets)",
    ),
    Card(
        "LDAM with deferred re-weighting",
        "ldam-drw",
        "06-kps-ga",
        "rare classes need a wider margin, and weights only once features are there",
        r"m_j \propto n_j^{-1/4} \text{ off the target's score}",
        "nothing; a cosine head",
        "the scale of the cosines",
        "where its margin is too small for the ratio: then the weights at the end do the work",
        "loss = LDAMLoss(counts)(head(features), targets)",
    ),
    Card(
        "Squashing cosine",
        "squashing-cosine",
        "03-squashing-cosine",
        "the lengths of class weights carry the imbalance, and those of features should not be lost",
        r"\alpha\, \frac{\lVert f \rVert^2}{\beta + \lVert f \rVert^2} \cos\theta_j",
        "nothing",
        "α",
        "alone it corrects nothing: it is a head, and wants a balancer or a loss beside it",
        "model.fc = SquashingCosineClassifier(64, len(counts))",
    ),
    Card(
        "BLT",
        "blt",
        "04-blt",
        "the tail is taken for certain other classes, and hard examples between them help",
        r"x \leftarrow x + \delta \, \nabla_x z_{k} \text{ until } p_k \text{ is high enough; the label stays}",
        "up to 15 forward and backward passes for the tail's part of a batch",
        "how many images are replaced, and the confidence at which the ascent stops",
        "where tail images are so few that no class confuses them reliably",
        "wrong = (targets + 1) % len(counts)  # a class that each is taken for\n"
        "images = hallucinate(model, images, wrong, min_confidence=0.2)",
    ),
    Card(
        "Feature fusion by activation maps",
        "cam-fusion",
        "05-cam-fusion",
        "what is common to all classes can be borrowed from frequent ones",
        r"f = \text{specific part of the tail} + \text{generic part of another class}",
        "one pass over the training images, then a short second phase",
        "the thresholds of the maps, which decide what is specific",
        "much of what it gains is a new head on other class frequencies: compare it with that",
        "maps = tail_map, tail_cam, other_map, other_cam\n"
        "fused = fuse(*maps, tau_specific=0.8, tau_generic=0.2, ratio=0.5)",
    ),
    Card(
        "KPS with gradient adjustment",
        "kps",
        "06-kps-ga",
        "samples near two class anchors decide the border, and frequent classes drown the others' gradients",
        r"s_y \bigl( r_j \cos\theta_j - m_y [j = y] \bigr)",
        "nothing; a cosine head",
        "the length of training: before the training images are fitted it leans to the tail",
        "in short trainings; and with margins by position where classes are not sorted by size",
        "loss = KPSLoss(counts, gradient_adjustment=True)(head(features), targets)",
    ),
    Card(
        "Feature-balanced loss",
        "fbl",
        "07-fbl-curriculum",
        "a cost on the logits of rare classes makes the network lengthen their features",
        r"z_j - \alpha(t)\, \lambda_j / \lVert f \rVert",
        "nothing",
        "its strength, which has to fit the lengths of the features and the length of training",
        "where features are short, the cost is many times log n: it is logit adjustment with a τ for each image",
        "fbl = FeatureBalancedLoss(counts, strength=60, normalized=True)\n"
        "fbl.set_progress(epoch / num_epochs)\n"
        "loss = fbl(logits, targets, features)",
    ),
    Card(
        "GCL",
        "gcl",
        "08-gcl-cben",
        "noise on the scores of rare classes keeps their images from falling silent",
        r"s \bigl( \cos\theta_j - \delta_j \lvert\varepsilon_j\rvert \bigr)",
        "nothing; a cosine head, mixup, and a second stage",
        "the sampler of the second stage: clouds and sampler add up",
        "as a way to better features: mixup brings those, and a subtraction after training most of the rest",
        "loss = GCLLoss(counts)(head(features), targets)",
    ),
)

OWN = '''
# my_loss.py
from torch.nn import functional as F

from ltnotes.methods.common import Loss


class Tempered(Loss):
    """Cross-entropy on logits that are divided by a temperature."""

    def __init__(self, temperature=2.0):
        super().__init__()
        self.temperature = temperature

    def per_sample(self, logits, targets, features):
        tempered = logits / self.temperature
        return F.cross_entropy(tempered, targets, reduction="none")
'''
USE = """
from ltnotes import recipes, runs
from ltnotes.methods.common import part

tempered = part("my_loss:Tempered", temperature=3.0)
recipe = recipes.get("ce", "digits-lt", scale="tiny", loss=tempered)
print(runs.run(recipe).metrics["balanced_accuracy"])
"""
IMPORTS = """
import torch
from torch import nn
from torch.utils.data import WeightedRandomSampler

from ltnotes.methods import balancers
from ltnotes.methods.baselines import (
    LogitAdjustedLoss,
    WeightedCrossEntropy,
)
from ltnotes.methods.cam_fusion import fuse
from ltnotes.methods.fbl import FeatureBalancedLoss
from ltnotes.methods.gcl import GCLLoss
from ltnotes.methods.hallucination import hallucinate
from ltnotes.methods.kps import KPSLoss
from ltnotes.methods.margins import LDAMLoss
from ltnotes.methods.squashing_cosine import (
    CosineClassifier,
    SquashingCosineClassifier,
)

head = CosineClassifier(64, len(counts))  # for losses that take cosines
"""


def page() -> str:
    """The book's page, in MyST."""
    table = pd.read_csv(folder().parent / "lite" / "cifar10-lt.csv", index_col="recipe")
    baseline = _accuracy(table, "ce")
    parts = [
        "# Method cards",
        "Each card is a summary; its chapter has the derivation and the measurement. The accuracies are those of the"
        f" {{doc}}`scale lite <lite>` on CIFAR-10-LT at a ratio of 100, where cross-entropy has {baseline}."
        " The last line of a card puts the method into a PyTorch loop of your own. It knows `counts`, the training"
        " images of each class, `labels`, those of all images, a `model` whose last layer `model.fc` has 64 features,"
        " and for each batch `images`, `features`, `logits` and `targets`; fusion works on feature maps and their"
        " activation maps.",
        _code(IMPORTS),
        *(_card(card, table) for card in CARDS),
        "## A method of your own",
        "A recipe names its parts, so yours needs a name that Python can import. This is a whole loss:",
        _code(OWN),
        "With the folder of that file on Python's path, every recipe can have it, in place of its own loss. It is"
        " trained, kept and evaluated like any other. Heads, samplers and transforms are named in the same way.",
        _code(USE),
    ]
    return "\n\n".join(parts) + "\n"


def _card(card: Card, table: pd.DataFrame) -> str:
    lines = [
        f"## {card.name}",
        f"{{doc}}`{card.chapter}`, recipe `{card.recipe}`",
        f"$$\n{card.formula}\n$$",
        f"**Assumes:** {card.assumes}.\\\n**Costs:** {card.costs}.\\\n**Sensitive to:** {card.sensitive}.\\\n"
        f"**Where it fails:** {card.fails}.\\\n**At lite:** {_accuracy(table, card.recipe)}.",
        _code(card.line),
    ]
    return "\n\n".join(lines)


def _accuracy(table: pd.DataFrame, recipe: str) -> str:
    row = table.loc[recipe]
    return f"{row['balanced accuracy']} % ({row['largest']} on the largest classes, {row['smallest']} on the smallest)"


def _code(text: str) -> str:
    return f"```python\n{text.strip()}\n```"


if __name__ == "__main__":
    write_text(page(), Path("book") / "cards.md")
