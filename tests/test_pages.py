"""The appendix: the API has what the package promises, terms are defined once, links lead to a section."""

import importlib
import inspect
import re
from functools import cache
from pathlib import Path

import nbformat
import pytest

BOOK = Path(__file__).parents[1] / "book"
METHODS = "balancers squashing_cosine blt cam_fusion kps fbl gcl baselines"
PROMISED = {
    "counts": "exponential_counts imbalance_ratio shot_groups",
    "methods.balancers": "instance_balanced class_balanced square_root progressively_balanced power_balanced"
    " effective_number_balanced",
    "methods.gcl": "cben GCLLoss",
    "methods.baselines": "CrossEntropy WeightedCrossEntropy FocalLoss ClassBalancedLoss LDAMLoss LogitAdjustedLoss"
    " EqualizationLoss CosFaceLoss ArcFaceLoss Mixup LabelAwareSmoothing LWSClassifier TauNormalizedClassifier",
    "methods.kps": "KPSLoss",
    "methods.fbl": "FeatureBalancedLoss",
    "methods.squashing_cosine": "LinearClassifier CosineClassifier SquashingCosineClassifier",
    "methods.blt": "confusing_class_probabilities hallucinate",
    "methods.cam_fusion": "class_activation_map head_classes most_confusing fuse",
    "models": "build Classifier.features Classifier.feature_map Classifier.num_features",
    "features": "extract",
    "data": "load",
    "recipes": "names get Recipe",
    "runs": "run over_seeds",
    "finished": "Run Run.per_class_accuracy",
}
MODULES = "counts models data metrics recipes training runs plots check features diagnose ledger reruns grid"
DIRECTIVE = re.compile(r"^\.\. (auto\w+|py:function):: +(\S.*(?:\n {10,}\S.*)*)\n((?:   .*\n|\n(?=   ))*)", re.M)
LINK = re.compile(r"\[[^\]]+\]\(([^)#]+)#([^)]+)\)")


def page(name):
    return (BOOK / f"{name}.md").read_text(encoding="utf-8")


def find(path):
    """The object of a dotted path, and the name of its module."""
    module, names = path, []
    while True:
        try:
            found = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, name = module.rpartition(".")
            names.insert(0, name)
    for name in names:
        found = getattr(found, name)
    return found


def members(owner):
    """What autodoc shows of a module or a class: its own, with a docstring, and no underscore before its name."""
    own = owner.__name__ if inspect.ismodule(owner) else owner.__module__
    return {
        name
        for name, value in vars(owner).items()
        if not name.startswith("_") and (isinstance(value, property) or getattr(value, "__module__", None) == own)
        if value.__doc__ and (isinstance(value, property | type) or inspect.isroutine(value))
    }


@cache
def entries():
    """Dotted paths of all entries of the page API, and the modules that it introduces."""
    found, modules = [], []
    for kind, argument, options in DIRECTIVE.findall(page("api")):
        chosen = re.search(r":members:(.*)", options)
        left_out = re.search(r":exclude-members: (.*)", options)
        left_out = set(left_out[1].split(", ")) if left_out else set()
        if kind == "py:function":
            module = re.search(r":module: (\S+)", options)[1]
            found += [f"{module}.{name}" for name in re.findall(r"(\w+)\(", argument)]
            continue
        path = argument.partition("(")[0].strip()
        (modules if kind == "automodule" else found).append(path)
        found += [f"{path}.{name}" for name in re.findall(r"^ +\.\. automethod:: (\w+)", options, re.M)]
        if chosen:
            names = [name.strip() for name in chosen[1].split(",") if name.strip()] or sorted(members(find(path)))
            found += [f"{path}.{name}" for name in names if name not in left_out]
            for name in names if kind == "automodule" else ():
                if name not in left_out and inspect.isclass(owner := getattr(find(path), name)):
                    found += [f"{path}.{name}.{member}" for member in members(owner) - left_out]
    return found, modules


@cache
def shown():
    """Where the entries are at home: what is imported elsewhere counts as the same."""
    return {home(path) for path in entries()[0]}


def home(path):
    found = find(path)
    if isinstance(found, property):
        found = found.fget
    return getattr(found, "__module__", None), getattr(found, "__qualname__", path)


@pytest.mark.parametrize("module", PROMISED)
def test_the_api_has_what_is_promised(module):
    for name in PROMISED[module].split():
        assert home(f"ltnotes.{module}.{name}") in shown(), f"{module}.{name} is not on the page"


def test_the_api_introduces_the_promised_modules():
    wanted = [f"ltnotes.{name}" for name in MODULES.split()] + [f"ltnotes.methods.{name}" for name in METHODS.split()]
    assert set(wanted) <= set(entries()[1])


def test_the_api_has_every_module_of_the_methods():
    files = (Path(__file__).parents[1] / "ltnotes" / "methods").glob("[!_]*.py")
    assert {f"ltnotes.methods.{file.stem}" for file in files} <= set(entries()[1])


def test_the_api_has_every_exercise_that_answers():
    from ltnotes import check

    assert {f"ltnotes.check.{name}" for name in check.__all__} <= set(entries()[0])


def test_entries_of_the_api_exist_once():
    found, modules = entries()
    assert len(found) == len(set(found)) and len(modules) == len(set(modules))
    for path in [*found, *modules]:
        find(path)


def test_nothing_private_is_in_the_api():
    found, modules = entries()
    assert not [path for path in [*found, *modules] if re.search(r"(^|\.)_", path)]
    assert ":private-members:" not in page("api") and ":undoc-members:" not in page("api")


# --- glossary ----------------------------------------------------------------


def glossary():
    """Pairs of an entry's terms and its definition."""
    text = re.search(r"```\{glossary\}\n(.*)\n```", page("glossary"), re.S)[1]
    blocks = [block.splitlines() for block in text.split("\n\n")]
    return [([line for line in block if line[0] != " "], " ".join(block[-1:]).strip()) for block in blocks]


def test_terms_are_defined_once():
    terms = [term.casefold() for entry, _ in glossary() for term in entry]
    assert 45 <= len(terms) <= 70 and len(terms) == len(set(terms))


def test_terms_are_in_alphabetical_order():
    first = [terms[0].replace("τ", "tau").casefold() for terms, _ in glossary()]
    assert first == sorted(first)


def test_each_definition_is_short_and_links_to_a_chapter():
    for terms, definition in glossary():
        chapters = [name for name in re.findall(r"\{doc\}`([^`]+)`", definition) if name[0].isdigit()]
        assert chapters and all((BOOK / f"{name}.ipynb").is_file() for name in chapters), terms
        assert len(re.findall(r"[.!?](?: |$)", re.sub(r"\(\{doc\}.*?\)", "", definition))) <= 2, terms


# --- what did not help -------------------------------------------------------


def anchors(path):
    """Those of all headings of a page or a chapter, as MyST makes them."""
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, 4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    else:
        text = path.read_text(encoding="utf-8")
    headings = re.findall(r"^#{1,3} (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_links_of_what_did_not_help_lead_to_a_section():
    links = LINK.findall(page("did-not-help"))
    assert len(links) > 30
    wrong = [f"{file}#{anchor}" for file, anchor in links if anchor not in anchors(BOOK / file)]
    assert not wrong


def prose(text):
    return re.sub(r"```.*?```", "", text, flags=re.S)


def test_each_paragraph_of_what_did_not_help_has_a_source():
    for paragraph in prose(page("did-not-help")).split("\n\n"):
        if paragraph.startswith("**"):
            assert LINK.search(paragraph) or "{doc}" in paragraph, paragraph[:80]


def test_no_number_is_typed_into_what_did_not_help():
    text = re.sub(r"\]\([^)]*\)|\{doc\}`[^`]*`|CIFAR-\d+-LT", "", prose(page("did-not-help")))
    assert not re.findall(r".{20}\d.{0,20}", text)


def test_tables_of_what_did_not_help_are_there():
    files = re.findall(r":file: (\S+)", page("did-not-help"))
    assert files and all((BOOK / file).is_file() for file in files)
