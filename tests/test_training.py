"""The training loop: the clock, schedules, stages, hooks, determinism and checkpoints."""

import math
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from ltnotes import devices, inference, training
from ltnotes.live_stage import LiveStage, NonFiniteLossError, learning_rate_factor
from ltnotes.methods.common import part
from ltnotes.recipes import Recipe, Stage
from ltnotes.training import Training, save_atomically
from tests import toys

REPOSITORY = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("each_precision")


def recipe(*stages, **changes):
    return Recipe("toy", "digits-lt", stages, imbalance=20, backbone="resnet8", **changes)


def stage(steps=4, **options):
    return Stage(steps=steps, batch_size=options.pop("batch_size", 16), **options)


def train(digits, *stages, seed=0, **changes):
    return toys.train(recipe(*stages, **changes), digits, seed)


def outcome(generator):
    """What a generator returns, once it has run to its end."""
    while True:
        try:
            next(generator)
        except StopIteration as stop:
            return stop.value


def weights(job):
    return torch.cat([value.double().flatten() for value in job.model.state_dict().values()])


@pytest.fixture(scope="module")
def digits(each_precision, digits):
    """In bfloat16 small ones, as a processor that only emulates it takes up to fifty times as long."""
    return digits if each_precision == "float32" else toys.shrunk(digits)


@pytest.fixture(autouse=True)
def _no_calls():
    toys.calls.clear()


def seen(kind):
    return [call[1:] for call in toys.calls if call[0] == kind]


# --- determinism ---


def test_the_seed_decides_the_weights(digits):
    one, again, other = (weights(train(digits, stage(), seed=seed)) for seed in (0, 0, 1))
    assert one.equal(again)
    assert not one.equal(other)


def test_the_global_generator_neither_matters_nor_is_touched(digits):
    stages = (
        stage(loss=part("tests.toys:LearnableTemperature"), transform=part("tests.toys:RandomTransform")),
        stage(head=part("squashing_cosine.CosineClassifier"), trains="head"),
    )
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(weights(train(digits, *stages)))
        assert torch.get_rng_state().equal(before)
    assert results[0].equal(results[1])


def test_training_learns(digits):
    job = train(digits, stage(steps=40, batch_size=64))
    assert job.history[-1]["loss"] < 0.7 * job.history[0]["loss"]
    metrics, probabilities = job.evaluate()
    assert metrics["accuracy"] > 0.3
    assert probabilities.shape == (500, 10)


# --- the clock and the schedule ---


def test_the_clock_runs_from_0_towards_1_and_never_back(digits):
    recording = {"loss": part("tests.toys:RecordingLoss"), "transform": part("tests.toys:RecordingTransform")}
    job = train(digits, stage(steps=60, **recording))
    assert len(job.history) == 3
    for kind in ("progress", "loss progress"):
        clock = [t for (t,) in seen(kind)]
        assert clock == sorted(clock)
        assert sorted(set(clock)) == [step / 60 for step in range(60)]


def test_every_stage_starts_its_own_clock(digits):
    recording = stage(loss=part("tests.toys:RecordingLoss"))
    train(digits, recording, recording)
    clock = [t for (t,) in seen("loss progress")]
    assert clock.count(0.0) == 4  # told at the start of the epoch and at its first step
    assert max(clock) == 0.75


BLT_FIRST = Stage(epochs=35, milestones=(25 / 35, 32 / 35))


@pytest.mark.parametrize("steps_per_epoch", [1, 7, 97])
def test_milestones_fall_on_their_epochs(steps_per_epoch):
    total = 35 * steps_per_epoch
    for epoch, factor in ((0, 1.0), (24, 1.0), (25, 0.1), (31, 0.1), (32, 0.01), (34, 0.01)):
        for step in (epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch - 1):
            assert learning_rate_factor(BLT_FIRST, step / total, 1 / total) == pytest.approx(factor)


def test_the_optimiser_follows_the_milestones(digits):
    steps = stage(steps=10, batch_size=500, learning_rate=0.2, milestones=(0.5, 0.8), decay=0.1)
    rates = [record["learning_rate"] for record in train(digits, steps).history]
    assert rates == pytest.approx([0.2] * 5 + [0.02] * 3 + [0.002] * 2)


def test_cosine_ends_at_its_final_rate():
    falling = Stage(epochs=10, schedule="cosine", final_rate=0.2)
    assert learning_rate_factor(falling, 0.5, 0.1) == pytest.approx(0.6)
    assert learning_rate_factor(falling, 1 - 1e-9, 0.1) == pytest.approx(0.2)


def test_warm_up_rises_linearly_to_the_full_rate():
    rising = Stage(epochs=10, warmup=0.5, milestones=())
    factors = [learning_rate_factor(rising, step / 10, 1 / 10) for step in range(10)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1, 1, 1, 1, 1])


def test_cosine_falls_from_1_towards_0():
    falling = Stage(epochs=10, schedule="cosine")
    factors = [learning_rate_factor(falling, step / 8, 1 / 8) for step in range(8)]
    assert factors == pytest.approx([(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)])
    assert learning_rate_factor(falling, 1.0, 1 / 8) == pytest.approx(0, abs=1e-12)


def test_cosine_warms_up_too():
    assert learning_rate_factor(Stage(epochs=10, schedule="cosine", warmup=0.5), 0.0, 0.1) == pytest.approx(0.2)


def test_backbone_and_head_have_their_own_rates(digits):
    frozen = train(digits, stage(learning_rate=0.0, head_learning_rate=0.1, weight_decay=0.0))
    fresh = Training(frozen.recipe, digits, 0)
    assert all(map(torch.equal, frozen.model.backbone.parameters(), fresh.model.backbone.parameters()))
    assert not frozen.model.head.weight.equal(fresh.model.head.weight)


def test_momentum_and_weight_decay_reach_the_optimiser(digits):
    plain, *others = (
        weights(train(digits, stage(**options))) for options in ({}, {"momentum": 0.0}, {"weight_decay": 0.1})
    )
    assert not any(other.equal(plain) for other in others)


@pytest.mark.parametrize(
    ("options", "epochs", "steps"),
    [
        ({"epochs": 2}, 2, 10),
        ({"epochs": 0.5}, 1, 2),  # 5 batches an epoch, 2.5 rounded to even
        ({"epochs": 1.6}, 2, 8),
        ({"steps": 3}, 1, 3),
        ({"steps": 12}, 3, 12),
    ],
)
def test_epochs_and_steps_are_as_many_as_asked(digits, options, epochs, steps):
    job = train(digits, Stage(batch_size=100, loss=part("tests.toys:RecordingLoss"), **options))
    assert len(digits.train) == 417
    assert len(job.history) == epochs
    assert len(seen("loss")) == steps


# --- stages ---


def test_a_frozen_backbone_keeps_weights_and_statistics(digits):
    first = train(digits, stage())
    second = train(digits, stage(), stage(trains="head", weight_decay=0.1))
    for name, value in first.model.state_dict().items():
        assert second.model.state_dict()[name].equal(value) == name.startswith("backbone."), name


def test_a_stage_can_replace_the_head(digits):
    job = train(digits, stage(), stage(head=part("squashing_cosine.CosineClassifier", scale=16.0)))
    assert job.model.head.scale == 16.0
    assert [record["stage"] for record in job.history] == [0, 1]


def test_a_new_head_can_build_on_the_previous_one(digits):
    first = train(digits, stage())
    rescaled = part("tests.toys:RescaledHead")
    job = train(digits, stage(), stage(head=rescaled, trains="head", learning_rate=0.0, weight_decay=0.0))
    assert job.model.head.previous.weight.equal(first.model.head.weight)
    assert job.model.head.factor.tolist() == [1.0] * 10


def test_a_loss_can_have_parameters_that_learn(digits):
    live = LiveStage(Training(recipe(stage()), digits, 0), stage(loss=part("tests.toys:LearnableTemperature")))
    before = live.loss.temperature.item()
    outcome(live.run_epoch(0, lambda share, text: None))
    assert live.loss.temperature.item() != before


@pytest.mark.parametrize(("trains", "norms"), [("all", 7), ("rest", 2), ("head", 0)])
def test_frozen_blocks_normalise_nothing_in_a_step(digits, monkeypatch, trains, norms):
    """Their norms are folded into their convolutions; ResNet-8 has 7, and 2 after its second block."""
    called = []
    original = torch.nn.functional.batch_norm
    monkeypatch.setattr(torch.nn.functional, "batch_norm", lambda *a, **k: called.append(1) or original(*a, **k))
    train(digits, stage(steps=3, trains=trains, transform=part("tests.toys:EarlyTransform")))
    assert len(called) == 3 * norms


def test_a_head_option_that_does_not_exist_is_refused_by_name(digits):
    with pytest.raises(ValueError, match=r"LinearClassifier: got option 'scale', allowed are bias"):
        Training(recipe(stage(), head=part("squashing_cosine.LinearClassifier", scale=2.0)), digits, 0)


@pytest.mark.parametrize("balancer", ["class_balanced", "progressively_balanced"])
def test_the_balancer_decides_what_is_drawn(digits, balancer):
    recording = {"transform": part("tests.toys:RecordingTransform"), "batch_size": 500}
    train(digits, stage(steps=12, balancer=part(f"balancers.{balancer}"), learning_rate=0.0, **recording))
    counts = [digits.train.labels[drawn].bincount(minlength=10) for (drawn,) in seen("indices")]
    first, last = counts[0].double(), torch.stack(counts[-3:]).double().mean(0)
    true = torch.tensor(digits.counts).double()
    assert (last - true).abs().sum() > (last - 41.7).abs().sum()
    if balancer == "progressively_balanced":
        assert first.equal(true)


# --- hooks ---


def test_every_hook_is_called_in_order_with_what_the_last_one_returned(digits):
    train(
        digits, stage(steps=1, transform=part("tests.toys:RecordingTransform"), loss=part("tests.toys:RecordingLoss"))
    )
    kinds = [call[0] for call in toys.calls if "progress" not in call[0]]
    assert kinds == ["init", "init", "epoch", "indices", "images", "maps", "loss"]
    assert seen("init") == [(digits.counts,)] * 2  # the first on a copy, before anything is trained
    ((indices,),) = seen("indices")
    ((images, labels),) = seen("images")
    ((maps, map_labels),) = seen("maps")
    assert indices.shape == (16,)
    size = digits.train.images.shape[1]
    assert images.shape == (4, 3, size, size)
    assert labels[0][0].equal(digits.train.labels[indices[:4]])
    assert labels[0][1] == 1.0
    assert maps.shape == (8, 64, size // 4, size // 4)
    assert map_labels[0][0].equal(labels[0][0].repeat(2))
    assert seen("loss") == [(torch.float32, False, 8, (8, 64))]


def test_the_images_are_the_augmented_ones(digits):
    train(digits, stage(steps=1, transform=part("tests.toys:RecordingTransform")))
    ((indices,),), ((images, _),) = seen("indices"), seen("images")
    original = digits.train.images[indices[:4]]
    crops = images.permute(0, 2, 3, 1) * torch.tensor(digits.std) + torch.tensor(digits.mean)
    assert crops.min() >= -1e-5
    assert crops.max() <= 1 + 1e-5
    # A shift of up to two pixels leaves the ink of a digit inside the image, or nearly.
    assert torch.allclose(crops.mean((1, 2, 3)), original.double().mean((1, 2, 3)).float() / 255, atol=0.05)


def test_what_a_hook_changes_reaches_the_weights(digits):
    plain = train(digits, stage())
    changed = train(digits, stage(transform=part("tests.toys:RecordingTransform")))
    assert not weights(plain).equal(weights(changed))


@pytest.mark.parametrize(("trains", "backbone_training"), [("all", True), ("head", False)])
def test_an_epoch_starts_in_the_mode_of_its_stage(digits, trains, backbone_training):
    train(digits, stage(transform=part("tests.toys:RecordingTransform"), trains=trains))
    assert seen("epoch") == [(True, backbone_training)]


def test_training_accuracy_is_a_share_even_of_batches_that_a_transform_enlarges(digits):
    class Doubling(toys.Transform):
        def on_images(self, images, labels):
            return images.repeat(3, 1, 1, 1), [(labels[0][0].repeat(3), 1.0)]

    job = Training(recipe(stage()), digits, 0)
    live = LiveStage(job, stage(steps=20, batch_size=64, learning_rate=0.05))
    live.transform = Doubling()
    accuracies = [outcome(live.run_epoch(epoch, lambda share, text: None))["train_accuracy"] for epoch in range(2)]
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    assert accuracies[-1] > 0.3


def test_mixup_trains(digits):
    plain, mixed = (train(digits, stage(transform=t)) for t in (None, part("baselines.Mixup")))
    assert math.isfinite(mixed.history[-1]["loss"])
    assert not weights(plain).equal(weights(mixed))


def test_in_half_precision_the_loss_is_computed_in_float32(digits):
    short = recipe(stage(steps=2, loss=part("tests.toys:RecordingLoss")))
    half, plain = (toys.train(short, digits, precision=precision) for precision in ("bf16", "float32"))
    assert {(dtype, autocast) for dtype, autocast, *_ in seen("loss")} == {(torch.float32, False)}
    assert not weights(plain).equal(weights(half))  # the network itself did run in half precision


def test_evaluation_is_in_float32_whatever_the_training(digits):
    """The same weights give the same numbers."""
    jobs = [Training(recipe(stage()), digits, 0, precision=precision) for precision in ("bfloat16", "float32")]
    jobs[1].model.load_state_dict(toys.train(jobs[0].recipe, digits, precision="bfloat16").model.state_dict())
    jobs[0].model.load_state_dict(jobs[1].model.state_dict())
    half, plain = (job.logits() for job in jobs)
    assert half.dtype == torch.float32 and half.equal(plain)
    assert not half.bfloat16().float().equal(half)  # it has digits that bfloat16 has not
    with torch.autocast("cpu", torch.bfloat16):
        assert jobs[0].logits().equal(plain)
        features = inference.extract_features(jobs[0].model, digits.test, digits)
    assert features.equal(inference.extract_features(jobs[1].model, digits.test, digits))


@pytest.mark.parametrize("name", ["half", "float16", ""])
def test_a_precision_that_is_none_is_refused(digits, name, monkeypatch):
    with pytest.raises(ValueError, match=rf"^precision: got '{name}', allowed are float32, fp32, bfloat16, bf16"):
        Training(recipe(stage()), digits, 0, precision=name)
    if name:
        monkeypatch.setenv("LTNOTES_PRECISION", name)
        with pytest.raises(ValueError, match=rf"^LTNOTES_PRECISION: got '{name}', allowed are"):
            Training(recipe(stage()), digits, 0)


def test_the_precision_is_what_is_asked_for_then_the_environment_s_then_the_hardware_s(monkeypatch):
    cpu = torch.device("cpu")
    for fast, native in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(devices, "multiplies_bfloat16", lambda device, fast=fast: fast)
        monkeypatch.setenv("LTNOTES_PRECISION", "bf16")
        assert devices.choose_precision(None, cpu) == "bfloat16"
        assert devices.choose_precision("fp32", cpu) == "float32"
        for unset in ("", None):
            monkeypatch.setenv("LTNOTES_PRECISION", "") if unset == "" else monkeypatch.delenv("LTNOTES_PRECISION")
            assert devices.choose_precision(None, cpu) == native


# --- what two-stage methods need ---


@pytest.mark.parametrize(
    "bad",
    [
        {"transform": part("blt.BLT", tail="few", confusion_from="validation")},  # no images are held out
        {"transform": part("cam_fusion.CAMFusion", block=9), "trains": "rest"},
        {"head": part("retraining.TauNormalizedClassifier", tau=float("nan")), "trains": "head"},
        {"loss": part("kps.KPSLoss", n_base=0.5)},
    ],
    ids=["transform", "block", "head", "loss"],
)
def test_a_bad_option_of_a_later_stage_is_said_before_the_first_trains(digits, bad):
    with pytest.raises(ValueError, match=r"^\w+: got"):
        Training(recipe(stage(), stage(**bad)), digits, 0)


def test_a_stage_of_no_steps_replaces_the_head_and_fits_it(digits):
    job = train(digits, stage(), Stage(steps=0, head=part("tests.toys:MeanHead")))
    ((features, labels),) = seen("fit")
    assert features.shape == (len(digits.train), 64)
    assert labels.equal(digits.train.labels)
    assert features.equal(inference.extract_features(job.model, digits.train, digits))
    assert job.model.head.weight[3].allclose(features[labels == 3].mean(0))
    assert {record["stage"] for record in job.history} == {0}


def test_a_fitted_head_is_in_the_checkpoint_and_fitted_once(digits, tmp_path):
    fitted = stage(steps=8, batch_size=114, head=part("tests.toys:MeanHead"), trains="head")
    fitted = replace(fitted, loss=part("tests.toys:LearnableTemperature"))
    whole = Training(recipe(fitted), digits, 0, checkpoint=tmp_path / "c.pt")
    whole.run()
    again = Training(recipe(fitted), digits, 0, checkpoint=tmp_path / "c.pt")
    again.run()
    assert weights(again).equal(weights(whole))
    assert len(seen("fit")) == 1


def test_a_transform_reaches_an_earlier_block(digits):
    early = part("tests.toys:EarlyTransform")
    plain, doubled = train(digits, stage(steps=2)), train(digits, stage(steps=2, transform=early))
    assert seen("early map") == [(32, True)] * 2
    assert not weights(plain).equal(weights(doubled))
    train(digits, stage(steps=1, transform=early, trains="head"))
    assert seen("early map")[-1] == (32, False)  # a frozen backbone keeps no graph


def test_the_rest_is_what_comes_after_the_transform(digits):
    after = train(digits, stage(), stage(transform=part("tests.toys:EarlyTransform"), trains="rest"))
    before = train(digits, stage())
    same = [
        all(old.equal(new) for old, new in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
        for a, b in zip(before.model.backbone, after.model.backbone, strict=True)
    ]
    assert same == [True, True, False]
    assert seen("early map")[-1] == (32, False)
    late = part("tests.toys:RecordingTransform")
    head, rest = (train(digits, stage(), stage(trains=trains, transform=late)) for trains in ("head", "rest"))
    assert weights(head).equal(weights(rest))  # nothing comes after the last block but the head
    with pytest.raises(ValueError, match=r"^trains: got 'rest', allowed is 'all' or 'head' in a stage without"):
        stage(trains="rest")


def test_the_loss_scales_the_scores_for_their_confidence_only(digits):
    cosine = part("squashing_cosine.CosineClassifier")
    job = train(digits, stage(loss=part("tests.toys:ScaledLoss")), head=cosine)
    _, probabilities = job.evaluate()
    plain = training.predict(job.model, digits.test, digits)
    assert (plain.argmax(1) == probabilities.argmax(1)).all()
    assert plain.max() < 0.5 < probabilities.max()
    expected = torch.from_numpy(plain).log().mul(20).softmax(1).numpy()
    assert probabilities == pytest.approx(expected, abs=1e-4)


def test_frozen_parameters_of_a_head_are_not_trained(digits):
    job = train(digits, stage(), stage(head=part("retraining.LWSClassifier"), trains="head"))
    before = train(digits, stage()).model.head
    assert job.model.head.previous.weight.equal(before.weight)
    assert not job.model.head.scale.equal(torch.ones(10))


def test_a_projection_learns_with_the_backbone(digits):
    stages = stage(steps=1), stage(steps=1, trains="head")
    jobs = [train(digits, *stages[:n], projection=16) for n in (1, 2)]
    assert jobs[0].model.num_features == 16
    assert jobs[0].model.projection.weight.equal(jobs[1].model.projection.weight)
    with devices.seeded([0, 0, 0], torch.device("cpu")):
        start = training.build_model(jobs[0].recipe, digits.counts)
    assert not jobs[0].model.projection.weight.equal(start.projection.weight)


def test_the_best_epoch_on_the_test_set_is_kept_only_if_asked(digits, tmp_path):
    longer = stage(steps=8, batch_size=114, learning_rate=0.5, warmup=0.0)
    last = train(digits, longer)
    best = Training(recipe(replace(longer, keep="best-test")), digits, 0, checkpoint=tmp_path / "c.pt")
    best.run()
    looks = [record["test_accuracy"] for record in best.history]
    assert "test_accuracy" not in last.history[0]
    assert looks[-1] == last.evaluate()[0]["accuracy"]  # looking changes nothing
    assert best.evaluate()[0]["accuracy"] == max(looks)
    resumed = Training(best.recipe, digits, 0, checkpoint=tmp_path / "c.pt")
    resumed.run()
    assert weights(resumed).equal(weights(best))


# --- failures ---


def test_a_non_finite_loss_stops_with_step_recipe_and_advice(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", math.inf)  # after every epoch, however slow the disk
    exploding = recipe(stage(steps=20, batch_size=114, loss=part("tests.toys:ExplodingLoss")))
    job = Training(exploding, digits, 3, checkpoint=tmp_path / "c.pt")
    message = r"recipe 'toy', seed 3: the loss is nan at step 11 of 20\. Try a learning rate below 0\.1"
    with pytest.raises(NonFiniteLossError, match=message):
        job.run()
    assert torch.load(tmp_path / "c.pt", weights_only=True)["epoch"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=rf"^device: got '{device}', but torch sees no CUDA device"):
        devices.choose_device(device)


def test_a_device_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.choose_device("cuda:1") == torch.device("cuda:1")
    assert devices.choose_device(None) == torch.device("cuda")
    with pytest.raises(ValueError, match=r"^device: got 'cuda:2', allowed are"):
        devices.choose_device("cuda:2")


@pytest.mark.parametrize("device", ["gpu", "meta", ""])
def test_a_device_that_is_none_is_refused(device):
    with pytest.raises(ValueError, match=rf"^device: got '{device}', allowed are 'cpu'"):
        devices.choose_device(device)


def test_progress_reports_rise_to_one(digits):
    reports = []
    Training(recipe(stage(steps=60)), digits, 0, report=lambda share, text: reports.append((share, text))).run()
    shares = [share for share, _ in reports]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert reports[-1][1] == "epoch 3 of 3"


# --- checkpoints ---


class StoppedError(Exception):
    pass


TWO_STAGES = (
    stage(steps=8, batch_size=114, transform=part("baselines.Mixup")),
    stage(
        steps=8,
        batch_size=114,
        head=part("squashing_cosine.CosineClassifier", scale=10.0),
        loss=part("tests.toys:LearnableTemperature"),
        transform=part("tests.toys:RandomTransform"),
        balancer=part("balancers.progressively_balanced"),
    ),
)


@pytest.fixture(scope="module")
def uninterrupted(digits, each_precision):
    """The training of each stage."""
    first = train(digits, *TWO_STAGES[:1])
    second = Training(recipe(*TWO_STAGES), digits, 0, 1, first.model.state_dict())
    second.run()
    return first, second


@pytest.mark.parametrize("writes", [1, 2])
@pytest.mark.parametrize("number", [0, 1])
def test_stopped_after_any_epoch_and_started_again_ends_bit_identical(
    digits, uninterrupted, tmp_path, monkeypatch, number, writes
):
    remaining = [None] * writes

    def save_and_stop(content, path):
        save_atomically(content, path)
        remaining.pop()
        if not remaining:
            raise StoppedError

    whole, before = uninterrupted[number], uninterrupted[0].model.state_dict() if number else None
    job = partial(Training, recipe(*TWO_STAGES), digits, 0, number, before, tmp_path / "c.pt")
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(training, "save_atomically", save_and_stop)
        patch.setattr(training, "CHECKPOINT_SHARE", math.inf)  # one after every epoch
        job().run()
    resumed = job()
    resumed.run()
    assert weights(resumed).equal(weights(whole))
    assert resumed.history == whole.history
    assert resumed.evaluate()[0] == whole.evaluate()[0]


@pytest.mark.parametrize(("share", "epochs"), [(math.inf, [1, 2, 3, 4]), (1e-9, [1, 4])])
def test_checkpoints_take_no_more_than_their_share_of_the_time(digits, tmp_path, monkeypatch, share, epochs):
    """The first is always written, and the last of a stage."""
    written = []
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", share)
    monkeypatch.setattr(training, "save_atomically", lambda content, path: written.append(content["epoch"]))
    Training(recipe(stage(steps=16, batch_size=114)), digits, 0, checkpoint=tmp_path / "c.pt").run()
    assert written == epochs


def test_momentum_from_another_device_keeps_this_ones_way_of_stepping(digits):
    live = LiveStage(Training(recipe(stage()), digits, 0), stage())
    live.step(torch.arange(8))
    saved = live.optimizer.state_dict()
    for group in saved["param_groups"]:
        group.update(lr=0.5, fused=True, foreach=None)
    rates = [group["lr"] for group in live.optimizer.param_groups]
    live.restore_optimizer(saved)
    for group, rate in zip(live.optimizer.param_groups, rates, strict=True):
        assert group["lr"] is rate and group["foreach"] and not group["fused"]


def test_a_checkpoint_holds_plain_data_only(digits, tmp_path):
    Training(recipe(*TWO_STAGES), digits, 0, checkpoint=tmp_path / "c.pt").run()
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    assert set(saved) == {"of", "epoch", "model", "optimizer", "loss", "transform", "best", "history", "seconds"}


class Unsafe:
    def __reduce__(self):
        return print, ("executed",)


def test_a_checkpoint_that_would_run_code_is_not_loaded(digits, tmp_path, capsys):
    torch.save(Unsafe(), tmp_path / "c.pt")
    Training(recipe(stage()), digits, 0, checkpoint=tmp_path / "c.pt").run()
    said = capsys.readouterr()
    assert "executed" not in said.out
    assert "c.pt can't be read (no file of tensors and numbers); the training begins anew, and the file is" in said.err
    assert (tmp_path / "c.damaged.pt").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("file write failed")])
def test_a_failed_write_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch, error):
    path = tmp_path / "c.pt"
    save_atomically({"epoch": 1}, path)

    def fail(content, file):
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match=rf"can't write {path} .*what was there before is unharmed"):
        save_atomically({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from ltnotes.training import save_atomically
path = Path(sys.argv[1])
save_atomically({"epoch": 1}, path)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_atomically({"epoch": 2, "weights": torch.zeros(1_000_000)}, path)
except OSError as error:
    print(error)
"""


def test_a_disk_that_fills_while_writing_leaves_the_last_checkpoint_whole(tmp_path):
    path = tmp_path / "c.pt"
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert f"can't write {path}" in result.stdout
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_predictions_are_softmaxed_plain_scores_in_evaluation_mode(digits):
    job = train(digits, stage())
    job.model.train()
    probabilities = training.predict(job.model, digits.test[torch.arange(7)], digits)
    assert job.model.training
    images = digits.test.images[:7].permute(0, 3, 1, 2) / 255
    normal = (images - torch.tensor(digits.mean)[:, None, None]) / torch.tensor(digits.std)[:, None, None]
    with torch.no_grad():
        expected = job.model.eval()(normal).softmax(1)
    torch.testing.assert_close(torch.from_numpy(probabilities), expected, rtol=1e-3, atol=1e-4)


def test_evaluation_takes_the_validation_split(digits):
    held = replace(digits, validation=digits.test[torch.arange(500).flip(0)[:30]])
    job = Training(recipe(stage()), held, 0)
    metrics, probabilities = job.evaluate(held.validation)
    assert probabilities.shape == (30, 10)
    assert sum(map(sum, metrics["confusion"])) == 30


def test_a_bad_option_of_a_later_stage_is_said_before_the_first_is_trained(digits):
    first = Stage(steps=2)
    for wrong in (part("balancers.power_balanced"), part("balancers.effective_number_balanced", beta=2.0)):
        recipe = Recipe("late", "digits-lt", (first, Stage(steps=2, balancer=wrong)), 20, "resnet8")
        with pytest.raises(ValueError, match=r"gamma|beta"):
            Training(recipe, digits, 0)


def test_weights_that_an_update_made_infinite_become_no_checkpoint(digits, tmp_path, monkeypatch):
    step = torch.optim.SGD.step

    def explode(optimizer):
        step(optimizer)
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0].fill_(math.inf)

    monkeypatch.setattr(torch.optim.SGD, "step", explode)
    boom = Recipe("boom", "digits-lt", (Stage(steps=1),), 20, "resnet8")
    job = Training(boom, digits, 0, checkpoint=tmp_path / "checkpoint.pt")
    with pytest.raises(NonFiniteLossError, match=r"a weight is not finite after the update at step 1 of 1"):
        job.run()
    assert not (tmp_path / "checkpoint.pt").exists()


def test_predicting_leaves_the_mode_of_every_module_as_it_was(digits):
    job = Training(Recipe("modes", "digits-lt", (Stage(steps=1),), 20, "resnet8"), digits, 0)
    job.model.train()
    job.model.backbone.eval()
    job.evaluate()
    assert job.model.head.training and not any(module.training for module in job.model.backbone.modules())


def test_a_checkpoint_with_weights_alone_is_no_place_to_go_on_from(digits, tmp_path):
    recipe = Recipe("stripped", "digits-lt", (Stage(steps=2),), 20, "resnet8")
    whole = Training(recipe, digits, 0)
    whole.run()
    save_atomically({"model": whole.model.state_dict()}, tmp_path / "checkpoint.pt")
    again = Training(recipe, digits, 0, checkpoint=tmp_path / "checkpoint.pt")
    again.run()
    pairs = zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
