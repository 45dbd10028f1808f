"""What a GPU replays: a step can be captured, a replay is the call; and, where a GPU is, that it holds there.

Without a GPU, tensors of the device "meta" stand in for those of one: they have no values, so
reading one on the host, or a shape that depends on one, fails, as it would while capturing.
"""

import functools
import gc
import warnings
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ltnotes import data, recipes
from ltnotes.batches import Augmenter
from ltnotes.devices import EAGER_CALLS, Captured, Lane
from ltnotes.live_stage import LiveStage
from ltnotes.methods.common import part
from ltnotes.recipes import Recipe, Stage
from ltnotes.training import Training, side_by_side
from tests import toys

IMBALANCE = 20
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")


@functools.cache
def digits_with(validation):
    return data.load("digits-lt", IMBALANCE, validation=validation)


def stages():
    """Every stage that trains, of every recipe, once."""
    seen = {}
    for name in recipes.names():
        recipe = recipes.get(name, "digits-lt", IMBALANCE, "tiny")
        for number, stage in enumerate(recipe.stages):
            if stage.steps != 0:
                seen.setdefault(
                    (recipe.head, stage, recipe.validation), pytest.param(recipe, number, id=f"{name}-{number}")
                )
    return list(seen.values())


def live_stage(recipe, number):
    job = Training(recipe, digits_with(recipe.validation), 0, number)
    live = LiveStage(job, job.stage)
    live.start()
    return live


def without_values(thing):
    """Tensors, also in dicts and modules, as tensors of the device "meta"."""
    if isinstance(thing, Tensor | nn.Module):
        return thing.to("meta")
    return {key: without_values(value) for key, value in thing.items()} if isinstance(thing, dict) else thing


class OnlyMeta(TorchDispatchMode):
    """Refuses operations on a tensor of the host, which a GPU would have to wait for."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for leaf in tree_leaves((arguments, options, result)):
            assert not isinstance(leaf, Tensor) or leaf.device.type == "meta", f"{function} on {leaf.device}"
        return result


@pytest.mark.parametrize(("recipe", "number"), stages())
def test_what_is_captured_asks_the_host_for_nothing(recipe, number, monkeypatch):
    # The device "meta" knows neither, and on a GPU neither waits.
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())
    monkeypatch.setattr(torch, "_sample_dirichlet", torch.empty_like)
    live = live_stage(recipe, number)
    assert live.capturable() == ("update" if "blt.BLT" in str(live.stage.transform) else "step")
    job, stage = live.training, live.stage
    images = job.augment(torch.arange(32)).to("meta")
    job.model.to("meta")
    job.data = job.data.to("meta")
    job.augment = Augmenter(job.data)
    vars(live.transform).update({name: without_values(value) for name, value in vars(live.transform).items()})
    live.loss.to("meta")
    live.optimizer = torch.optim.SGD([*job.model.parameters(), *live.loss.parameters()], stage.learning_rate, 0.9)
    live.set_mode()
    labels, ones = torch.zeros(32, dtype=torch.int64, device="meta"), torch.ones(32, device="meta")
    with OnlyMeta():
        loss, correct = live.step(labels) if live.capturable() == "step" else live.update(images, labels, ones)
    assert loss.shape == () and correct.ndim == 1


def test_a_part_that_follows_the_clock_in_python_is_not_captured(digits):
    def captured(**options):
        job = Training(Recipe("toy", "digits-lt", (Stage(steps=1),), 20, "resnet8"), digits, 0)
        return LiveStage(job, Stage(steps=1, **options)).capturable()

    assert captured() == "step"
    assert captured(loss=part("tests.toys:ExplodingLoss")) is None
    reweighted = part("baselines.DeferredReweighting", loss=part("tests.toys:ExplodingLoss"))
    assert captured(loss=reweighted) is None
    assert captured(loss=part("baselines.DeferredReweighting", loss=part("kps.KPSLoss"))) == "step"
    assert captured(transform=part("tests.toys:RandomTransform")) == "update"
    assert captured(transform=part("tests.toys:EarlyTransform")) is None


# --- a replay, with a graph that plays the function again in the place of a GPU's ---


class PlayedGraph:
    """Calls again what was called while it was recorded, and writes the outcome where that lay."""

    recording = None

    def replay(self):
        for place, value in zip(self.outputs, self.function(*self.inputs), strict=True):
            place.copy_(value)


class FakeGenerator:
    state = "takes itself for recording"

    def clone_state(self):
        return "fresh"

    def graphsafe_set_state(self, state):
        self.state = state


@pytest.fixture
def played(monkeypatch):
    """Captured functions that run here; the list of graphs made."""
    graphs = []

    @contextmanager
    def record(graph, pool, stream):
        assert pool == "one pool"
        PlayedGraph.recording = graph
        try:
            yield
            graphs.append(graph)
        finally:
            PlayedGraph.recording = None

    monkeypatch.setattr(torch.cuda, "CUDAGraph", PlayedGraph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "one pool")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "default_generators", [FakeGenerator()])
    return graphs


def playable(function):
    earlier = {}

    def call(*inputs):
        shapes = tuple(x.shape for x in inputs if isinstance(x, Tensor))
        if graph := PlayedGraph.recording:  # while recording nothing is computed
            graph.function, graph.inputs = function, inputs
            graph.outputs = tuple(torch.full_like(output, False) for output in earlier[shapes])
            return graph.outputs
        earlier[shapes] = function(*inputs)
        return earlier[shapes]

    return Captured(call)


def test_a_replay_has_the_new_inputs_and_leaves_the_old_outcome_alone(played):
    total = playable(lambda x, weight: ((weight * x).sum()[None], x + 1))
    outcomes = [total(torch.full((3,), float(i)), 2.0) for i in range(EAGER_CALLS + 3)]
    assert [outcome[0].item() for outcome in outcomes] == [6.0 * i for i in range(EAGER_CALLS + 3)]
    assert [outcome[1][0].item() for outcome in outcomes] == [i + 1.0 for i in range(EAGER_CALLS + 3)]
    assert len(played) == 1


def test_each_kind_of_input_has_a_graph_of_its_own(played):
    double = playable(lambda x, weight: (weight * x,))
    kinds = [(torch.ones(3), 2.0), (torch.ones(2), 2.0), (torch.ones(3), 3.0), (torch.ones(3).double(), 2.0)]
    for x, weight in kinds * (EAGER_CALLS + 2):
        assert double(x, weight)[0].equal(weight * x)
    assert len(played) == len(kinds)


def test_where_recording_fails_it_is_said_and_the_function_is_called(played):
    def function(x):
        if PlayedGraph.recording:
            raise RuntimeError("operation not permitted when stream is capturing")
        return (2 * x,)

    double = Captured(function)
    with pytest.warns(UserWarning, match="without CUDA graphs.*not permitted when stream") as warned:
        for value in range(EAGER_CALLS + 3):
            assert double(torch.full((2,), value))[0].tolist() == [2 * value] * 2
    assert len(warned) == 1
    assert played == []
    assert torch.cuda.default_generators[0].state == "fresh"


@pytest.mark.parametrize(
    "stage",
    [
        Stage(steps=12, batch_size=100, transform=part("baselines.Mixup")),
        Stage(steps=12, batch_size=100, loss=part("fbl.FeatureBalancedLoss"), schedule="cosine"),
        Stage(steps=12, batch_size=100, loss=part("baselines.DeferredReweighting", loss=part("kps.KPSLoss"))),
    ],
    ids=["mixup", "FBL", "KPS-DRW"],
)
def test_a_training_of_replays_is_the_training(digits, played, monkeypatch, stage):
    def train():
        job = Training(Recipe("toy", "digits-lt", (stage,), 20, "resnet8"), digits, 0)
        job.run()
        return job

    eager = train()
    init = LiveStage.__init__

    def capture(self, *arguments):
        init(self, *arguments)
        self.step = playable(self.step)

    monkeypatch.setattr(LiveStage, "__init__", capture)
    replayed = train()
    # An epoch is four batches of 100 and one of 17.
    assert len(played) == 1
    assert replayed.history == eager.history
    for name, value in eager.model.state_dict().items():
        assert value.equal(replayed.model.state_dict()[name]), name


# --- turns ---


def test_a_lane_goes_on_where_it_stopped_and_leaves_the_rest_alone():
    torch.manual_seed(1)
    lanes = Lane(torch.device("cpu")), Lane(torch.device("cpu"))
    before = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        for lane in lanes:
            with lane.turn():
                drawn.append(torch.rand(1).item())
    assert torch.get_rng_state().equal(before)
    assert drawn == [x for x in torch.rand(2).tolist() for _ in lanes]


SIDE_BY_SIDE = Recipe(
    "toys",
    "digits-lt",
    (
        Stage(steps=6, batch_size=100, transform=part("baselines.Mixup")),
        Stage(steps=3, batch_size=100, transform=part("tests.toys:RandomTransform"), trains="head"),
    ),
    imbalance=20,
    backbone="resnet8",
)


def same_weights(one, other):
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("stage", [0, 1])
def test_trainings_side_by_side_end_as_each_does_alone(digits, stage):
    alone = [Training(SIDE_BY_SIDE, digits, seed, stage) for seed in (0, 1, 2)]
    for job in alone:
        job.run()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    together = [Training(SIDE_BY_SIDE, digits, seed, stage) for seed in (0, 1, 2)]
    assert list(side_by_side(together)) == together
    assert torch.get_rng_state().equal(state)
    for one, other in zip(alone, together, strict=True):
        assert same_weights(one, other) and one.history == other.history
        assert other.seconds > 0
    assert not same_weights(together[0], together[1])


def test_a_training_that_diverges_does_not_take_the_others_with_it(digits):
    exploding = Recipe("boom", "digits-lt", (Stage(steps=4, loss=part("tests.toys:ExplodingLoss")),), 20, "resnet8")
    jobs = [Training(exploding, digits, 0), Training(SIDE_BY_SIDE, digits, 0)]
    done = []
    with pytest.raises(Exception, match="recipe 'boom', seed 0: the loss is nan"):
        done.extend(side_by_side(jobs))
    toys.calls.clear()
    alone = Training(SIDE_BY_SIDE, digits, 0)
    alone.run()
    assert same_weights(alone, jobs[1])


# --- on a GPU ---

GPU_STAGES = {
    "ce": Stage(steps=24, batch_size=100),
    "mixup": Stage(steps=24, batch_size=100, transform=part("baselines.Mixup")),
    "FBL": Stage(steps=24, batch_size=100, loss=part("fbl.FeatureBalancedLoss"), schedule="cosine"),
    "GCL": Stage(steps=24, batch_size=100, loss=part("gcl.GCLLoss", scale=1.0)),
}


@pytest.fixture
def exact():
    """Each operation sums in one order, and a recording that fails is an error."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="training without CUDA graphs")
        yield
    torch.backends.cudnn.deterministic = before


def recipe_on_gpu(*stages):
    return Recipe("toy", "digits-lt", stages, 20, "resnet8")


def train_on_gpu(*stages, seed=0):
    return toys.train(recipe_on_gpu(*stages), data.load("digits-lt", 20).to("cuda"), seed)


def similar(one, other):
    return [record["loss"] for record in one.history] == pytest.approx(
        [record["loss"] for record in other.history], rel=1e-3
    )


@needs_gpu
@pytest.mark.parametrize("name", GPU_STAGES)
def test_a_captured_training_is_the_eager_one(name, monkeypatch, exact):
    replays = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(graph) or replay(graph))
    captured = train_on_gpu(GPU_STAGES[name])
    assert len(replays) > 10
    monkeypatch.setattr(Captured, "__call__", lambda self, *inputs: self.function(*inputs))
    assert similar(captured, train_on_gpu(GPU_STAGES[name]))


@needs_gpu
def test_nothing_of_a_finished_stage_stays_on_the_device(exact):
    """The graphs of one stage are gone before those of the next are recorded."""
    train_on_gpu(GPU_STAGES["ce"], GPU_STAGES["mixup"])
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    train_on_gpu(GPU_STAGES["ce"], GPU_STAGES["mixup"])
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before


@needs_gpu
def test_blt_trains_on_batches_of_many_sizes(exact):
    held_out = data.load("digits-lt", 20, validation=1).to("cuda")
    job = toys.train(recipes.get("blt", "digits-lt", 20, "tiny", steps=60), held_out)
    assert all(record["loss"] < 1e3 for record in job.history)


@needs_gpu
def test_where_recording_fails_on_a_gpu_training_goes_on(monkeypatch):
    monkeypatch.setattr(
        LiveStage, "step", lambda self, i, step=LiveStage.step: (torch.cuda.synchronize(), step(self, i))[1]
    )
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        job = train_on_gpu(GPU_STAGES["mixup"])
    assert len(job.history) == 5


@needs_gpu
@pytest.mark.parametrize("name", GPU_STAGES)
def test_a_step_on_a_gpu_waits_for_nothing(name):
    job = Training(recipe_on_gpu(GPU_STAGES[name]), data.load("digits-lt", 20).to("cuda"), 0)
    live = LiveStage(job, GPU_STAGES[name])
    live.set_mode()
    indices = torch.arange(64, device="cuda")
    torch.cuda.synchronize()
    with job.turn():
        live.step(indices)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(2):
                live._tell_time(0)
                live.step(indices)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_trainings_side_by_side_on_a_gpu_learn_as_each_does_alone(exact):
    stage = GPU_STAGES["mixup"]
    digits = data.load("digits-lt", 20).to("cuda")
    together = [Training(recipe_on_gpu(stage), digits, seed) for seed in (0, 1, 2)]
    list(side_by_side(together))
    for seed, job in enumerate(together):
        assert similar(train_on_gpu(stage, seed=seed), job)


@needs_gpu
def test_a_resumed_training_on_a_gpu_goes_on(tmp_path, monkeypatch, exact):
    stage = GPU_STAGES["ce"]
    digits = data.load("digits-lt", 20).to("cuda")
    whole = train_on_gpu(stage)
    half = Training(recipe_on_gpu(stage), digits, 0, checkpoint=tmp_path / "c.pt")
    monkeypatch.setattr("ltnotes.training.CHECKPOINT_SHARE", float("inf"))
    steps = half.steps()
    for _ in range(12):
        with half.turn():
            next(steps)
    again = Training(recipe_on_gpu(stage), digits, 0, checkpoint=tmp_path / "c.pt")
    again.run()
    assert similar(whole, again)
