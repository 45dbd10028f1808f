"""The method cards: complete, as the page has them, and each line of code runs."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ltnotes.catalogue import RECIPES, cards

BOOK = Path(__file__).parents[1] / "book"
PAGE = BOOK / "cards.md"
BLOCKS = re.findall(r"```python\n(.*?)\n```", PAGE.read_text(encoding="utf-8"), re.S)


class Model(nn.Module):
    """A network of one's own, with a last layer ``fc``."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 64, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(64, 4)

    def forward(self, images):
        return self.fc(self.body(images))


@pytest.fixture
def loop():
    """What a plain training loop has at hand when a batch comes."""
    torch.manual_seed(0)
    counts = [50, 20, 10, 5]
    labels = torch.arange(4).repeat_interleave(torch.tensor(counts))
    model, images, targets = Model().eval(), torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    features = model.body(images)
    names = {"counts": counts, "labels": labels, "model": model, "images": images, "targets": targets}
    names |= {"features": features, "logits": model.fc(features), "epoch": 3, "num_epochs": 10}
    maps = {"tail_map": torch.rand(8, 64, 4, 4), "other_map": torch.rand(8, 64, 4, 4)}
    cams = {"tail_cam": torch.rand(8, 4, 4), "other_cam": torch.rand(8, 4, 4)}
    names |= maps | cams
    exec(BLOCKS[0], names)
    return names


def test_the_page_is_what_the_cards_say():
    assert PAGE.read_text(encoding="utf-8") == cards.page(), "run python -m ltnotes.catalogue.cards"


def test_every_card_names_a_recipe_and_a_chapter():
    for card in cards.CARDS:
        assert card.recipe in RECIPES and (BOOK / f"{card.chapter}.ipynb").is_file()
    chapters = {path.stem for path in BOOK.glob("0[1-8]*.ipynb")}
    assert chapters == {card.chapter for card in cards.CARDS}


@pytest.mark.parametrize("card", cards.CARDS, ids=lambda card: card.recipe)
def test_the_line_runs_in_a_plain_loop(loop, card):
    before = loop["images"]
    exec(card.line, loop)
    if "loss" in loop:
        loss = loop["loss"]
        assert loss.ndim == 0 and loss.isfinite()
        loss.backward()
        assert loop["model"].body[0].weight.grad.abs().sum() > 0
    elif "sampler" in loop:
        drawn = loop["labels"][list(loop["sampler"])]
        assert len(drawn) == 85 and torch.bincount(drawn, minlength=4).min() > 5
    elif "fused" in loop:
        assert loop["fused"].shape == (8, 64, 4, 4)
    else:
        assert loop["model"](loop["images"]).shape == (8, 4)
        changed = not loop["images"].equal(before) or not isinstance(loop["model"].fc, type(Model().fc))
        assert changed or card.recipe == "crt"


def test_a_method_of_ones_own_trains(tmp_path, monkeypatch, capsys):
    own, use = BLOCKS[-2:]
    (tmp_path / "my_loss.py").write_text(own)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LTNOTES_HOME", str(tmp_path))
    exec(use, {})
    assert 0 < float(capsys.readouterr().out) < 1
    assert "my_loss" in sys.modules
    sys.modules.pop("my_loss")
