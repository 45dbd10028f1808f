"""Recipes at full scale against the papers' tables of settings, typed here from the papers."""

import pytest

from ltnotes import recipes
from ltnotes.protocols import PROTOCOLS, protocol_for

# backbone, batch size, initial rate, weight decay, epochs, factor and epochs of decay, epochs of warm-up
THESIS = {
    ("kps", "cifar10-lt"): ("resnet32", 64, 0.1, 2e-4, 200, 0.01, [160, 180], 5),
    ("kps", "cifar100-lt"): ("resnet32", 64, 0.1, 2e-4, 200, 0.01, [160, 180], 5),
    ("kps", "imagenet-lt"): ("resnet50", 128, 0.1, 1e-4, 180, 0.1, [120, 160], 0),
    ("kps", "inat2018"): ("resnet50", 512, 0.2, 1e-4, 180, 0.1, [120, 160], 0),
    ("fbl", "cifar10-lt"): ("resnet32", 128, 0.1, 2e-4, 200, 0.01, [160, 180], 5),
    ("fbl", "cifar100-lt"): ("resnet32", 128, 0.1, 2e-4, 200, 0.01, [160, 180], 5),
    ("fbl", "imagenet-lt"): ("resnet50", 512, 0.2, 2e-4, 200, 0.01, [160, 180], 0),
    ("fbl", "inat2018"): ("resnet50", 512, 0.2, 1e-4, 180, 0.1, [120, 160], 0),
    ("fbl", "places-lt"): ("resnet152", 512, 0.2, 5e-4, 90, 0.1, [60, 80], 0),
    ("gcl", "cifar10-lt"): ("resnet32", 128, 0.1, 2e-4, 200, 0.01, [160, 180], 5),
    ("gcl", "cifar100-lt"): ("resnet32", 128, 0.1, 2e-4, 200, 0.01, [160, 180], 5),
    ("gcl", "imagenet-lt"): ("resnet50", 256, 0.1, 2e-4, 200, 0.01, [160, 180], 0),
    ("gcl", "inat2018"): ("resnet50", 256, 0.1, 1e-4, 180, 0.1, [120, 160], 0),
    ("gcl", "places-lt"): ("resnet152", 512, 0.2, 5e-4, 90, 0.1, [60, 80], 0),
}


def drops(stage):
    return [pytest.approx(milestone * stage.epochs) for milestone in stage.milestones]


@pytest.mark.parametrize(("method", "dataset"), THESIS)
def test_the_thesis_trains_by_its_tables_3_1_4_1_and_5_1(method, dataset):
    recipe = recipes.get(method, dataset)
    stage = recipe.stages[0]
    backbone, batch, rate, weight_decay, epochs, decay, epochs_of_decay, warmup = THESIS[method, dataset]
    assert recipe.backbone == backbone
    assert recipe.pretrained == (backbone == "resnet152")
    assert (stage.batch_size, stage.learning_rate, stage.weight_decay) == (batch, rate, weight_decay)
    assert (stage.epochs, stage.decay, stage.schedule) == (epochs, decay, "step")
    assert drops(stage) == epochs_of_decay
    assert stage.warmup * epochs == pytest.approx(warmup)
    assert stage.momentum == 0.9


@pytest.mark.parametrize(
    ("dataset", "epochs", "final_rate"),
    [
        ("cifar10-lt", 10, 0.2),
        ("cifar100-lt", 10, 0.2),
        ("imagenet-lt", 10, 0.1),
        ("inat2018", 30, 0.1),
        ("places-lt", 30, 0.1),
    ],
)
def test_gcl_rebalances_its_classifier_by_table_5_1(dataset, epochs, final_rate):
    second = recipes.get("gcl", dataset).stages[1]
    assert (second.epochs, second.schedule, second.final_rate, second.trains) == (epochs, "cosine", final_rate, "head")
    assert str(second.balancer) == "gcl.cben"


@pytest.mark.parametrize(("dataset", "margin"), [("cifar10-lt", 0.5), ("imagenet-lt", 0.35), ("inat2018", 0.3)])
def test_kps_has_the_margins_of_3_5_2(dataset, margin):
    options = dict(recipes.get("kps", dataset).stages[0].loss.options)
    assert options["max_margin"] == margin
    assert options["adjust_from"] == pytest.approx(120 / 200)


@pytest.mark.parametrize(("dataset", "strength"), [("cifar10-lt", 60), ("imagenet-lt", 150), ("places-lt", 150)])
def test_fbl_has_the_strength_of_its_released_code(dataset, strength):
    options = dict(recipes.get("fbl", dataset).stages[0].loss.options)
    assert (options["strength"], options["normalized"]) == (strength, True)


@pytest.mark.parametrize(
    ("dataset", "backbone"), [("imagenet-lt", "resnet10"), ("places-lt", "resnet10"), ("inat2018", "resnet34")]
)
def test_blt_trains_by_section_2_of_its_supplement(dataset, backbone):
    recipe = recipes.get("blt", dataset)
    first, second = recipe.stages
    assert (recipe.backbone, recipe.projection) == (backbone, 512)
    assert str(recipe.head) in (
        "squashing_cosine.SquashingCosineClassifier",
        "squashing_cosine.SquashingCosineClassifier(alpha=20.0, beta=0.5)",
    )
    assert (first.epochs, second.epochs) == (35, 55)
    assert (drops(first), drops(second)) == ([25, 32], [23, 38, 52])
    assert (first.learning_rate, second.learning_rate, second.head_learning_rate) == (0.1, 0.01, 0.1)
    assert {(s.decay, s.momentum, s.weight_decay, s.batch_size) for s in (first, second)} == {(0.1, 0.9, 5e-4, 256)}
    assert (first.transform, str(first.balancer)) == (None, "balancers.instance_balanced")
    assert second.transform.name == "blt.BLT"
    assert str(second.balancer) == "balancers.power_balanced(gamma=0.9)"


@pytest.mark.parametrize(
    ("dataset", "backbone", "epochs", "epochs_of_decay", "steps"),
    [
        ("cifar10-lt", "resnet18-cifar", 300, [150], 6400),
        ("cifar100-lt", "resnet18-cifar", 300, [150], 6400),
        ("inat2017", "resnet50", 100, [30, 60, 90], 200),
        ("inat2018", "resnet50", 100, [30, 60, 90], 200),
        ("imagenet-lt", "resnet10", 100, [30, 60, 90], 6400),
        ("places-lt", "resnet152", 100, [30, 60, 90], 6400),
    ],
)
def test_feature_fusion_trains_by_section_5_of_fsa(dataset, backbone, epochs, epochs_of_decay, steps):
    recipe = recipes.get("cam-fusion", dataset)
    first, second = recipe.stages
    assert (recipe.backbone, recipe.projection, recipe.pretrained) == (backbone, 0, backbone == "resnet152")
    assert (first.epochs, first.learning_rate, first.decay, drops(first)) == (epochs, 0.1, 0.1, epochs_of_decay)
    assert (second.steps, second.learning_rate, second.milestones, second.batch_size) == (steps, 0.001, (), 128)
    assert (second.trains, second.transform.name) == ("rest", "cam_fusion.CAMFusion")  # the last block: the head


METHODS = {"kps": "kps", "fbl": "fbl", "gcl": "gcl", "blt": "blt", "fsa": "cam-fusion"}
BUDGET = ("epochs", "steps", "batch_size", "learning_rate", "milestones", "decay", "warmup", "momentum", "weight_decay")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dataset", ["cifar10-lt", "cifar100-lt", "imagenet-lt", "places-lt", "inat2017", "inat2018"])
def test_a_baseline_trains_as_long_as_the_method_that_it_is_compared_with(protocol, dataset):
    baseline, method = recipes.get("ce", dataset, protocol=protocol), recipes.get(METHODS[protocol], dataset)
    whole = [stage for stage in method.stages if stage.trains == "all"]
    assert len(whole) == len(baseline.stages)
    for ours, theirs in zip(baseline.stages, whole, strict=True):
        assert [getattr(ours, field) for field in BUDGET] == [getattr(theirs, field) for field in BUDGET]
    for field in ("backbone", "projection", "pretrained"):
        assert getattr(baseline, field) == getattr(method, field)


@pytest.mark.parametrize("name", ["kps-margin-0.2-as-released", "gcl-noise-as-released", "fbl-batch-as-released"])
def test_what_the_released_code_does_on_cifar_is_not_done_elsewhere(name):
    method = name.split("-")[0]
    assert recipes.get(name, "cifar10-lt").hash != recipes.get(method, "cifar10-lt").hash
    for dataset in ("imagenet-lt", "places-lt", "inat2018"):
        assert recipes.get(name, dataset).hash == recipes.get(method, dataset).hash


def test_a_data_set_of_ones_own_is_trained_like_cifar():
    assert protocol_for("kps", "digits-lt") == protocol_for("kps", "a/folder") == protocol_for("kps", "cifar10-lt")


def test_a_large_set_that_a_paper_left_out_is_trained_by_table_5_1():
    assert protocol_for("kps", "places-lt") == protocol_for("gcl", "places-lt")
    assert protocol_for("gcl", "inat2017") == protocol_for("gcl", "inat2018")
