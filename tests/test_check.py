"""Every exercise lets right answers pass, however they are written, and calls each known mistake by its own name."""

import math
import random

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from ltnotes import check
from ltnotes.exercises.engine import Exercise, Mistake, find_mistake
from ltnotes.methods import cam_fusion, gcl
from ltnotes.methods.fbl import FeatureBalancedLoss
from ltnotes.methods.hallucination import hallucinate
from ltnotes.methods.kps import KPSLoss
from ltnotes.methods.squashing_cosine import SquashingCosineClassifier

EXERCISES = {name: value for name, value in vars(check).items() if isinstance(value, Exercise)}
EXACT = {name: exercise for name, exercise in EXERCISES.items() if name != "draw"}
VARIANTS = [(name, sentence) for name, exercise in EXACT.items() for sentence in exercise.mistakes]

each_exercise = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES)


def images_of(labels, class_id):
    return [i for i, label in enumerate(labels.tolist()) if label == class_id]


def sampler(weight=lambda class_id, n: 1.0, choose=random.choice, labels_as=lambda labels: labels):
    """A draw in plain Python: a class by ``p`` times a weight, then an image that ``choose`` picks."""

    def draw(p, labels, size):
        members = [images_of(labels_as(labels), c) for c in range(len(p))]
        weights = [p[c].item() * weight(c, len(members[c])) for c in range(len(p))]
        return [choose(members[c]) for c in random.choices(range(len(p)), weights, k=size)]

    return draw


def without_replacement(p, labels, size):
    n = torch.bincount(labels, minlength=len(p))
    return torch.multinomial((p / n)[labels], size, replacement=False)


DRAWS = {
    "the probability of a class given to each of its images": lambda p, labels, size: torch.multinomial(
        p[labels], size, replacement=True
    ),
    "labels taken to be sorted": sampler(labels_as=lambda labels: labels.sort().values),
    "the last image of each class": sampler(choose=lambda members: members[int(random.random() * (len(members) - 1))]),
    "the first image of each class": sampler(choose=lambda members: random.choice(members[1:] or members)),
    "drawn without replacement": without_replacement,
    "every image equally likely": lambda p, labels, size: torch.randint(len(labels), (size,)),
    "the classes that were drawn": lambda p, labels, size: torch.multinomial(p, size, replacement=True),
}


def macro_f1_in_loops(confusion):
    total = 0.0
    for c in range(len(confusion)):
        found, called = sum(confusion[c]), sum(row[c] for row in confusion)
        total += 2 * confusion[c][c] / (found + called)
    return total / len(confusion)


def adjust_in_numpy(logits, counts, tau):
    z, prior = logits.double().numpy(), np.array(counts) / np.sum(counts)
    adjusted = z - tau * np.log(prior)
    return adjusted - np.log(np.exp(adjusted).sum(1, keepdims=True))  # log-probabilities are logits, too


def power_in_loops(counts, gamma):
    weight_of_all = sum(n * n**-gamma for n in counts)
    return [n * n**-gamma / weight_of_all for n in counts]


def effective_in_numpy(counts, beta):
    n = np.array(counts, dtype=float)
    p = n * (1 - beta) / (1 - beta**n)
    return p / p.sum()


def weighted_in_loops(logits, targets, counts):
    inverse = [1 / n for n in counts]
    weights = [len(counts) * w / sum(inverse) for w in inverse]
    losses = [-weights[y] * z.log_softmax(0)[y].item() for z, y in zip(logits, targets.tolist(), strict=True)]
    return sum(losses) / len(losses)


def weighted_by_torch(logits, targets, counts):
    weight = 1 / torch.tensor(counts)
    weight = weight * len(counts) / weight.sum()
    return F.cross_entropy(logits, targets, weight=weight, reduction="sum") / len(targets)


def draw_without_a_loop(p, labels, size):
    by_class, n = torch.argsort(labels, stable=True), torch.bincount(labels, minlength=len(p))
    classes = torch.searchsorted(p.cumsum(0), torch.rand(size, dtype=p.dtype)).clamp_max(len(p) - 1)
    return by_class[(n.cumsum(0) - n)[classes] + (torch.rand(size) * n[classes]).long()]


def draw_with_generator(p, labels, size):
    share = (p / torch.bincount(labels, minlength=len(p)))[labels].numpy()
    return np.random.default_rng(1).choice(len(labels), size=size, p=share)


def squashed_by_the_package(features, weight, alpha, beta):
    head = SquashingCosineClassifier(features.shape[1], len(weight), alpha, beta).double()
    head.weight.data = weight.clone()
    return head(features)


def squashed_in_loops(features, weight, alpha, beta):
    def score(f, w):
        r = f.square().sum().sqrt()
        return alpha * (f * w).sum() / ((beta + r) * w.square().sum().sqrt())

    return [[score(f, w).item() for w in weight] for f in features]


def errors_in_loops(confusion):
    rows = []
    for j, row in enumerate(confusion.tolist()):
        wrong = [n if k != j else 0.0 for k, n in enumerate(row)]
        if not sum(wrong):
            wrong = [float(k != j) for k in range(len(row))]
        rows.append([n / sum(wrong) for n in wrong])
    return rows


def climb_with_the_package(x, weight, classes, confidence, step_size, max_steps):
    linear = torch.nn.Linear(x.shape[1], len(weight), bias=False).double()
    linear.weight.data = weight.clone()
    model = torch.nn.Sequential(torch.nn.Flatten(), linear)
    return hallucinate(model, x[:, :, None, None], classes, confidence, step_size, max_steps)[:, :, 0, 0]


def climb_one_by_one(x, weight, classes, confidence, step_size, max_steps):
    result = []
    for image, k, enough in zip(x, classes.tolist(), confidence.tolist(), strict=True):
        image, step = image.numpy().copy(), 0
        while step < max_steps:
            odds = np.exp(weight.numpy() @ image)
            if odds[k] / odds.sum() >= enough:
                break
            image, step = image + step_size * weight[k].numpy(), step + 1
        result.append(image)
    return np.array(result)


def activation_by_the_head(feature_map, class_weight):
    """As the package has it, with an einsum, and constant maps by hand."""
    a = torch.einsum("bdhw,bd->bhw", feature_map, class_weight)
    for image in a:
        image -= image.min().clone()
        image /= image.max() if image.max() > 0 else 1.0
    return a


def confusing_in_loops(scores, labels, top):
    chosen = []
    for c in range(scores.shape[1]):
        own = scores[labels == c].sum(0).tolist()  # a sum orders a row as the mean does
        others = [j for j in range(len(own)) if j != c]
        chosen.append(sorted(others, key=lambda j, own=own: -own[j])[:top])
    return chosen


def margins_in_loops(counts, n_base, max_margin):
    logs = [math.log10(n * n_base / min(counts)) for n in counts]
    turned = [max(logs) / min(logs) + 1 - value / min(logs) for value in logs]
    return [max_margin * value / max(turned) for value in turned]


def kps_in_loops(cosines, targets, radius, margin, scale):
    total = 0.0
    for row, y in zip(cosines.tolist(), targets.tolist(), strict=True):
        scores = [r * c for r, c in zip(radius.tolist(), row, strict=True)]
        scores[y] -= margin[y].item()
        s = scale[y].item()
        total += math.log(sum(math.exp(s * (score - scores[y])) for score in scores))
    return total / len(targets)


def balanced_in_loops(logits, features, counts, chi):
    def one(z, f):
        r = math.sqrt(sum(v * v for v in f))
        return [score - chi * math.log(max(counts) / n) / r for score, n in zip(z, counts, strict=True)]

    return [one(z, f) for z, f in zip(logits.tolist(), features.tolist(), strict=True)]


def balanced_by_the_package(logits, features, counts, chi):
    loss = FeatureBalancedLoss(counts, strength=chi)
    loss.set_progress(1.0)
    return logits - loss.alpha * loss.stimulus / features.norm(dim=1, keepdim=True)


def pull_by_autograd(logits, targets, features, counts, chi):
    """With logits that do not depend on the features, all of the gradient is the stimulus's."""
    stimulus = math.log(max(counts)) - torch.tensor(counts, dtype=torch.float64).log()
    f = features.clone().requires_grad_()
    balanced = logits - chi * stimulus / f.norm(dim=1, keepdim=True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(balanced, targets, reduction="sum"), f)
    return -(gradient * F.normalize(features)).sum(1)


def clouded_in_loops(cosines, noise, counts, scale):
    largest, smallest = max(counts), min(counts)
    span = math.log(largest / smallest) or 1.0
    sizes = [math.log(largest / n) / span for n in counts]
    return [
        [scale * (z - d * min(abs(e), 1.0)) for z, e, d in zip(*row, sizes, strict=True)]
        for row in zip(cosines.tolist(), noise.tolist(), strict=True)
    ]


def clouded_from_the_loss(cosines, noise, counts, scale):
    """With the sizes that the package's loss keeps."""
    off = gcl.GCLLoss(counts, scale=scale).cloud * noise.abs().clamp(max=1)
    return scale * cosines - scale * off


def cben_in_loops(counts, a, b):
    span = math.log(max(counts) / min(counts)) or 1.0
    betas = [a + b * math.log(max(counts) / n) / span for n in counts]
    weights = [n * (1 - beta) / (1 - beta**n) for n, beta in zip(counts, betas, strict=True)]
    return [weight / sum(weights) for weight in weights]


def prior_in_loops(counts, p, w, tau):
    """By the logarithms, which add."""
    logs = [math.log(a) + math.log(b) - tau * math.log(n) for a, b, n in zip(p, w, counts, strict=True)]
    return [math.exp(v - max(logs)) / sum(math.exp(u - max(logs)) for u in logs) for v in logs]


def frequencies_in_loops(posterior, prior, steps):
    q = prior.tolist()
    for _ in range(steps):
        rows = [[v * a / b for v, a, b in zip(row, q, prior.tolist(), strict=True)] for row in posterior.tolist()]
        q = [sum(row[c] / sum(row) for row in rows) / len(rows) for c in range(len(q))]
    return q


def components_in_loops(y):
    """From the sums of squares of a table of the analysis of variance."""
    a, b = y.shape
    rows, mean = y.tolist(), y.mean()
    of_row = [sum(row) / b for row in rows]
    of_column = [sum(row[j] for row in rows) / a for j in range(b)]
    squares = sum((rows[i][j] - of_row[i] - of_column[j] + mean) ** 2 for i in range(a) for j in range(b))
    rest = squares / ((a - 1) * (b - 1))
    subset = (b * sum((m - mean) ** 2 for m in of_row) / (a - 1) - rest) / b
    seed = (a * sum((m - mean) ** 2 for m in of_column) / (b - 1) - rest) / a
    return [max(0, subset), max(0, seed), rest]


def needed_by_integration(std, difference, power):
    """The power of a t-test by integrating over the estimated standard deviation."""
    n, seen = 1, 0.0
    while seen < power:
        n += 1
        df = n - 1
        q = (np.arange(20_000) + 0.5) / 20_000
        estimated = np.sqrt(stats.chi2.ppf(q, df) / df)  # in units of the true one
        seen = stats.norm.sf(stats.t.ppf(0.975, df) * estimated - difference * math.sqrt(n) / std).mean()
    return n


RIGHT = {
    "macro_f1": [macro_f1_in_loops],
    "balanced_accuracy": [
        lambda confusion: sum(row[c] / sum(row) for c, row in enumerate(confusion)) / len(confusion),
        lambda confusion: torch.tensor((confusion.diagonal() / confusion.sum(1)).mean()),
    ],
    "exponential_counts": [
        lambda n_max, num_classes, imbalance: [
            int(n_max * imbalance ** (-j / (num_classes - 1))) for j in range(num_classes)
        ],
        lambda n_max, num_classes, imbalance: (n_max / imbalance ** np.linspace(0, 1, num_classes)).astype(int),
        lambda n_max, num_classes, imbalance: torch.tensor(
            [n_max / imbalance ** (j / (num_classes - 1)) for j in range(num_classes)]
        ).long(),
    ],
    "adjust": [adjust_in_numpy, lambda logits, counts, tau: logits - tau * torch.tensor(counts).log()],
    "power_balanced": [power_in_loops],
    "effective_number_balanced": [effective_in_numpy],
    "draw": [sampler(), draw_without_a_loop, draw_with_generator],
    "weighted_cross_entropy": [weighted_in_loops, weighted_by_torch],
    "confusing_class_probabilities": [errors_in_loops],
    "climb_linear": [climb_with_the_package, climb_one_by_one],
    "squashing_cosine": [squashed_by_the_package, squashed_in_loops],
    "class_activation_map": [cam_fusion.class_activation_map, activation_by_the_head],
    "balanced_logits": [balanced_in_loops, balanced_by_the_package],
    "radial_pull": [pull_by_autograd],
    "most_confusing": [cam_fusion.most_confusing, confusing_in_loops],
    "kps_margins": [margins_in_loops, lambda counts, n_base, max_margin: KPSLoss(counts, n_base, max_margin).margin],
    "kps_loss": [kps_in_loops],
    "clouded_logits": [clouded_in_loops, clouded_from_the_loss],
    "cben": [cben_in_loops],
    "head_prior": [prior_in_loops],
    "estimate_frequencies": [frequencies_in_loops],
    "variance_components": [components_in_loops],
    "trainings_needed": [needed_by_integration],
}


def test_every_exercise_of_the_module_is_tested():
    assert set(RIGHT) == set(EXERCISES) == set(check.__all__) - {"Mistake"}


@pytest.mark.parametrize("name", EXACT)
def test_the_reference_is_right(name, capsys):
    assert EXACT[name](EXACT[name].reference) is None
    assert capsys.readouterr().out == "right\n"


@pytest.mark.parametrize(("name", "i"), [(name, i) for name, answers in RIGHT.items() for i in range(len(answers))])
def test_a_right_answer_that_is_written_differently_is_right(name, i):
    assert find_mistake(EXERCISES[name], RIGHT[name][i]) is None


@pytest.mark.parametrize(("name", "sentence"), VARIANTS)
def test_each_known_mistake_is_called_by_its_own_sentence(name, sentence):
    with pytest.raises(Mistake) as caught:
        EXACT[name](EXACT[name].mistakes[sentence])
    assert str(caught.value) == f"looks like: {sentence}"


@pytest.mark.parametrize("name", EXACT)
def test_a_known_mistake_is_recognised_in_float32(name):
    sentence, variant = next(iter(EXACT[name].mistakes.items()))
    single = lambda *case: torch.as_tensor(variant(*case)).float()
    assert find_mistake(EXACT[name], single) == f"looks like: {sentence}"


@pytest.mark.parametrize("begin", DRAWS)
def test_each_wrong_sampler_is_called_by_its_own_sentence(begin):
    (sentence,) = [sentence for sentence in check.draw.mistakes if sentence.startswith(begin)]
    with pytest.raises(Mistake) as caught:
        check.draw(DRAWS[begin])
    assert str(caught.value) == f"looks like: {sentence}"


def test_there_is_a_wrong_sampler_for_each_known_mistake():
    assert len(DRAWS) == len(check.draw.mistakes)


def test_a_shuffle_is_drawn_without_replacement():
    with pytest.raises(Mistake, match="without replacement"):
        check.draw(lambda p, labels, size: torch.randperm(len(labels))[:size])


def test_a_sampler_that_draws_the_tail_at_60_percent_of_its_rate_fails():
    with pytest.raises(Mistake, match=r"draws of class \d+, which has \d+ of the images: got \d+, expected \d+"):
        check.draw(sampler(weight=lambda class_id, n: 0.6 if n <= 5 else 1.0))


def test_a_class_is_judged_by_its_own_deviation():
    """A class of one image at 60 % of its rate: fewer draws are missing than the largest may miss by chance."""
    with pytest.raises(Mistake, match="draws of class 2, which has 1 of the images: got"):
        check.draw(sampler(weight=lambda class_id, n: 0.6 if n == 1 else 1.0))


def test_a_sampler_that_never_reaches_one_image_fails():
    with pytest.raises(Mistake, match=r"draws of image \d+, of class 1: got 0"):
        check.draw(sampler(choose=lambda members: random.choice(members[:2] + members[3:])))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda p, labels, size: torch.zeros(size) + 0.5, "0.5, which is no index"),
        (lambda p, labels, size: torch.full((size,), len(labels)), "which is no index of"),
        (lambda p, labels, size: -torch.ones(size), "-1, which is no index"),
        (lambda p, labels, size: torch.zeros(size, 1), "an index for each of the size draws"),
    ],
)
def test_what_is_no_index_is_named(answer, message):
    with pytest.raises(Mistake, match=message):
        check.draw(answer)


def unfinished(*arguments):
    raise NotImplementedError


def broken(*arguments):
    one = 1
    return one / 0


@each_exercise
@pytest.mark.parametrize("stub", [lambda *arguments: None, unfinished], ids=["returns None", "raises"])
def test_an_empty_stub_is_called_one(exercise, stub):
    with pytest.raises(Mistake, match="an empty stub"):
        exercise(stub)


@each_exercise
def test_an_exception_is_named_with_its_line(exercise):
    with pytest.raises(Mistake, match="raises ZeroDivisionError: division by zero in line 3 of your function"):
        exercise(broken)


@each_exercise
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("a", "returns str 'a', which can't be read as numbers"),
        ({"a": 1}, "returns dict .*, which can't be read as numbers"),
        ([[1.0], [2.0, 3.0]], "can't be read as numbers"),
        (torch.zeros(2, 3, 4), r"returns shape \[2, 3, 4\], expected"),
    ],
    ids=["str", "dict", "ragged", "shape"],
)
def test_an_answer_of_the_wrong_kind_is_named(exercise, answer, message):
    with pytest.raises(Mistake, match=message):
        exercise(lambda *arguments: answer)


@pytest.mark.parametrize("name", EXACT)
def test_an_unknown_mistake_is_shown_with_what_was_expected(name):
    wrong = lambda *case: torch.as_tensor(EXACT[name].reference(*case)).double() ** 3 + 0.123
    with pytest.raises(Mistake, match=r"^(?!looks like).*got \S+, expected \S+, with \w+ = "):
        EXACT[name](wrong)


@pytest.mark.parametrize("name", ["power_balanced", "effective_number_balanced"])
def test_an_answer_that_is_right_in_float32_only_is_nearly_right(name):
    with pytest.raises(Mistake, match="nearly right, but rounded, as in float32"):
        EXACT[name](lambda *case: EXACT[name].reference(*case).float())


def test_one_small_class_decides():
    """An error that a tolerance for the largest class would not see."""

    def smallest_at_90_percent(counts, gamma):
        p = check.power_balanced.reference(counts, gamma)
        p[p.argmin()] *= 0.9
        return p

    with pytest.raises(Mistake, match="class 2: got"):
        check.power_balanced(smallest_at_90_percent)


@pytest.mark.parametrize("name", EXACT)
def test_a_right_answer_that_changes_an_argument_fails(name):
    def spoiling(*case):
        answer = EXACT[name].reference(*case)
        spoilt = next((argument for argument in case if not isinstance(argument, int | float)), None)
        if spoilt is not None:
            spoilt[0] = spoilt[0] + 1
        return answer

    if name in ("exponential_counts", "trainings_needed"):  # takes numbers only, which can't be changed
        assert find_mistake(EXACT[name], spoiling) is None
    else:
        assert "in place" in find_mistake(EXACT[name], spoiling)


def test_counts_sorted_in_place_do_not_pass():
    def sorting(counts, gamma):
        counts.sort(reverse=True)
        return check.power_balanced.reference(counts, gamma)

    with pytest.raises(Mistake, match="changes its argument counts in place"):
        check.power_balanced(sorting)


@each_exercise
def test_what_is_no_function_is_a_value_error(exercise):
    with pytest.raises(ValueError, match="allowed is your function itself, not called"):
        exercise(0.5)


def test_a_mistake_fails_an_assertion_and_shows_itself_in_one_line():
    with pytest.raises(AssertionError) as caught:
        check.balanced_accuracy(lambda confusion: 0.5)
    (line,) = caught.value._render_traceback_()
    assert line == f"Mistake: {caught.value}"
    assert "\n" not in line


def test_the_verdict_on_a_random_answer_stays_and_the_readers_own_numbers_go_on():
    seen = []

    def draw(p, labels, size):
        indices = sampler()(p, labels, size)
        seen.append((indices[:5], torch.rand(()).item(), np.random.rand()))
        return indices

    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    expected = torch.rand(2)[1], np.random.rand(2)[1], [random.random() for _ in range(2)][1]
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    torch.rand(()), np.random.rand(), random.random()
    check.draw(draw)
    check.draw(draw)
    half = len(seen) // 2
    assert seen[:half] == seen[half:]
    assert (torch.rand(1)[0], np.random.rand(), random.random()) == expected


WITHOUT_COUNTS = (
    "squashing_cosine",
    "confusing_class_probabilities",
    "climb_linear",
    "class_activation_map",
    "most_confusing",
    "kps_loss",
    "variance_components",
    "trainings_needed",
)
OF_COUNTS = {name: exercise for name, exercise in EXERCISES.items() if name not in WITHOUT_COUNTS}


@pytest.mark.parametrize("exercise", OF_COUNTS.values(), ids=OF_COUNTS)
def test_cases_have_classes_out_of_order_equal_ones_a_single_image_and_many(exercise):
    counts = [counts_of(case) for case in exercise.cases()]
    assert any(len(set(n)) == 1 for n in counts)
    assert any(min(n) == 1 for n in counts)
    assert any(len(n) >= 20 for n in counts)
    if "exponential_counts" not in exercise.call:
        assert any(n != sorted(n) and n != sorted(n, reverse=True) for n in counts)
        assert any(not math.isclose(a / b, b / c) for a, b, c in (sorted(n)[-3:] for n in counts if len(n) > 2))


def counts_of(case):
    if "confusion" in case:
        # The least that makes every class predicted may come on top of the counts.
        rows = case["confusion"].sum(1)
        return (rows if rows.min() == 1 else rows - 1).tolist()
    if "labels" in case:
        return torch.bincount(case["labels"]).tolist()
    if "prior" in case:
        return (case["prior"] / case["prior"].min()).round().int().tolist()
    return case["counts"] if "counts" in case else check.exponential_counts.reference(*case.values())
