"""Method parts that only tests use, named in recipes as ``tests.toys:...``."""

from dataclasses import replace

import torch
from torch import nn

from ltnotes.live_stage import LiveStage
from ltnotes.methods.baselines import CrossEntropy
from ltnotes.methods.common import Loss, Transform
from ltnotes.training import Training


def train(recipe, data, seed=0, checkpoint=None, **options):
    """The training of a recipe's last stage, which has the checkpoint, after those before it; the history of all."""
    history, weights = [], None
    for stage in range(len(recipe.stages)):
        last = stage == len(recipe.stages) - 1
        job = Training(recipe, data, seed, stage, weights, checkpoint if last else None, **options)
        job.run()
        history, weights = history + job.history, job.model.state_dict()
    job.history = history
    return job


def explode(patch, seed):
    """From now on the loss of this seed is NaN."""
    step = LiveStage.step

    def exploding(live, indices):
        loss, correct = step(live, indices)
        return (loss * float("nan") if live.training.seed == seed else loss), correct

    patch.setattr(LiveStage, "step", exploding)


def shrunk(data, side=8):
    """The same data with images of ``side`` pixels."""
    factor = data.train.images.shape[1] // side

    def small(split):
        blocks = split.images.unflatten(1, (side, factor)).unflatten(3, (side, factor)).float()
        return replace(split, images=blocks.mean((2, 4)).round().byte())

    return replace(data, train=small(data.train), test=small(data.test), pad=0)


calls = []
"""What the recording parts below saw, in order; a test clears it."""


class RecordingTransform(Transform):
    """Writes down every call, and changes what passes through each hook so that the loss shows it."""

    def __init__(self, model, data, class_counts):
        self.model, self.data = model, data
        calls.append(("init", class_counts))

    def set_progress(self, t):
        calls.append(("progress", t))

    def start_epoch(self):
        calls.append(("epoch", self.model.training, self.model.backbone[0].training))

    def on_indices(self, indices):
        calls.append(("indices", indices))
        return indices[:4]

    def on_images(self, images, labels):
        calls.append(("images", images, labels))
        targets = labels[0][0]
        return torch.cat([images, 2 * images]), [(torch.cat([targets, targets]), 1.0)]

    def on_feature_map(self, feature_map, labels):
        calls.append(("maps", feature_map, labels))
        return feature_map[:, :, :2, :2], labels


class RecordingLoss(CrossEntropy):
    """Cross-entropy that writes down the clock and what it is given."""

    def set_progress(self, t):
        calls.append(("loss progress", t))

    def per_sample(self, logits, targets, features):
        calls.append(("loss", logits.dtype, torch.is_autocast_enabled("cpu"), len(targets), features.shape))
        return super().per_sample(logits, targets, features)


class ExplodingLoss(CrossEntropy):
    """Becomes NaN late in the training."""

    def set_progress(self, t):
        self.t = t

    def per_sample(self, logits, targets, features):
        loss = super().per_sample(logits, targets, features)
        return loss * float("nan") if self.t >= 0.5 else loss


class LearnableTemperature(Loss):
    """Has a parameter of its own, drawn at random."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(1 + 0.1 * torch.rand(()))

    def per_sample(self, logits, targets, features):
        return nn.functional.cross_entropy(logits * self.temperature, targets, reduction="none")


class RescaledHead(nn.Module):
    """The previous head with a learnable factor per class, as LWS has it."""

    def __init__(self, num_classes, previous):
        super().__init__()
        self.previous = previous
        self.factor = nn.Parameter(torch.ones(num_classes))

    def forward(self, features):
        return self.factor * self.previous(features)


class RandomTransform(Transform):
    """Draws a random number when it is made and for every batch."""

    def __init__(self):
        self.shift = torch.rand(())

    def on_images(self, images, labels):
        return images + 0.1 * self.shift + 0.1 * torch.randn_like(images), labels


class MeanHead(nn.Module):
    """Scores from what it was fitted to, and nothing to train."""

    def __init__(self, in_features, num_classes):
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_classes, in_features))

    def fit(self, features, labels):
        calls.append(("fit", features, labels))
        for class_id in range(len(self.weight)):
            self.weight[class_id] = features[labels == class_id].mean(0)

    def forward(self, features):
        return features @ self.weight.T


class EarlyTransform(Transform):
    """Reaches into the map after the second block."""

    block = 2

    def on_feature_map(self, feature_map, labels):
        calls.append(("early map", feature_map.shape[1], feature_map.requires_grad))
        return 2 * feature_map, labels


class ScaledLoss(CrossEntropy):
    """Takes plain cosines, as the margin losses do."""

    evaluation_scale = 20.0

    def per_sample(self, logits, targets, features):
        return super().per_sample(20.0 * logits, targets, features)
