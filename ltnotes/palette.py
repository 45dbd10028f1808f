"""One colour for each group of classes and one colour and name for each method, the same in every chapter.

Safe for colour-blind readers: Okabe and Ito's palette first, and markers that differ as well.
"""

from __future__ import annotations

COLORS = BLUE, ORANGE, VERMILION, GREEN, SKY, PURPLE, YELLOW, BLACK = (
    "#0072B2",
    "#E69F00",
    "#D55E00",
    "#009E73",
    "#56B4E9",
    "#CC79A7",
    "#F0E442",
    "#333333",
)
GROUP_COLORS = {
    **dict(zip(("many", "medium", "few"), (BLUE, ORANGE, VERMILION), strict=True)),
    **dict(zip(("largest", "middle", "smallest"), (BLUE, ORANGE, VERMILION), strict=True)),
}
METHOD_COLORS = {
    "ce": BLACK,
    "square-root": SKY,
    "power": GREEN,
    "class-balanced-sampling": PURPLE,
    "progressive": YELLOW,
    "effective-number-sampling": "#8C564B",
    "weighted": "#999999",
    "class-balanced": "#7570B3",
    "focal": "#A6761D",
    "mixup": "#66A61E",
    "logit-adjustment": "#882255",
    "crt": "#332288",
    "cosine": BLUE,
    "squashing-cosine": "#E7298A",
    "squashing-cosine-oltr": "#17BECF",
    "squashing-cosine-as-released": ORANGE,
    "tau-norm": VERMILION,
    "blt": "#1F78B4",
    "cam-fusion": "#1B7837",
    "cam-no-fusion": "#C2A5CF",
    "ldam-drw": "#E6AB02",
    "kps": "#01665E",
    "kps-plain": "#7FCDBB",
    "kps-drw": "#9EBCDA",
}
METHOD_NAMES = {
    "ce": "cross-entropy",
    "square-root": "square-root sampling",
    "power": "power sampling, γ = 0.9",
    "class-balanced-sampling": "class-balanced sampling",
    "progressive": "progressive sampling",
    "effective-number-sampling": "effective-number sampling",
    "weighted": "weighted loss",
    "class-balanced": "effective-number weighted loss",
    "focal": "focal loss",
    "mixup": "mixup",
    "logit-adjustment": "logit adjustment in the loss",
    "crt": "classifier re-training",
    "cosine": "cosine head",
    "squashing-cosine": "squashing cosine",
    "squashing-cosine-oltr": "squashing cosine, OLTR's",
    "squashing-cosine-as-released": "squashing cosine, as released",
    "tau-norm": "τ-normalisation",
    "blt": "BLT",
    "cam-fusion": "feature fusion",
    "cam-no-fusion": "balanced batches alone",
    "ldam-drw": "LDAM with DRW",
    "kps": "KPS with GA",
    "kps-plain": "KPS without GA",
    "kps-drw": "KPS with DRW",
}
