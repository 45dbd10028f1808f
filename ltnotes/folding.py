"""BatchNorm folded into the convolution before it: in evaluation mode the same function, with less to compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

Pair = tuple[nn.Conv2d, nn.BatchNorm2d]
_known: WeakKeyDictionary[nn.Module, tuple[list[nn.Module], list[Pair]]] = WeakKeyDictionary()


@contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """For a while, convolutions of ``model`` do the work of the BatchNorms that follow them.

    In evaluation mode a BatchNorm scales and shifts each channel, which the convolution
    before it can do with other weights and another bias. Inside, a folded norm hands on what it
    gets, and its convolution computes with such weights. They are made on entering, so that
    nothing may learn meanwhile, and no gradient reaches what they are made of. Parameters,
    buffers and ``state_dict()`` stay as they are.

    Folded is a norm in evaluation mode whose input is a convolution's output that nothing
    else uses. Others stay norms, as half of DenseNet's do, and all in a model whose forward
    pass branches on what it computes. A hook on a folded convolution sees what its norm gives.
    """
    pairs = [pair for pair in _pairs(model) if _can_fold(*pair)]
    try:
        for conv, norm in pairs:
            with torch.no_grad():
                weight, bias = fuse_conv_bn_weights(
                    conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                )
            conv.forward = partial(conv._conv_forward, weight=weight.detach(), bias=bias.detach())
            norm.forward = nn.Identity().forward
        yield
    finally:
        for module in chain.from_iterable(pairs):
            vars(module).pop("forward", None)


def _can_fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    """Not a norm of the batch's own statistics, nor a weight that a hook makes, nor what is folded already."""
    plain = "forward" not in vars(conv) and "forward" not in vars(norm)
    return plain and not norm.training and norm.running_mean is not None and isinstance(conv.weight, nn.Parameter)


def _pairs(model: nn.Module) -> list[Pair]:
    """Convolutions, each with the norm that alone uses its output; looked for anew when the model has other modules."""
    modules = list(model.modules())[1:]  # without the model itself, which would keep itself alive
    if model not in _known or _known[model][0] != modules:
        _known[model] = modules, _find_pairs(model)
    return _known[model][1]


def _find_pairs(model: nn.Module) -> list[Pair]:
    try:
        graph = _Tracer().trace(model)
    except Exception:  # of any kind: the model's code meets stand-ins for tensors that it can't branch on
        return []
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(node.target for node in calls)
    once = {node: model.get_submodule(node.target) for node in calls if times[node.target] == 1}
    pairs = [(once[node], once.get(user)) for node in once for user in node.users if len(node.users) == 1]
    return [pair for pair in pairs if [type(module) for module in pair] == [nn.Conv2d, nn.BatchNorm2d]]


class _Tracer(fx.Tracer):
    """Does not look into what holds neither a convolution nor a norm, such as a head."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        kinds = {type(each) for each in module.modules()}
        return super().is_leaf_module(module, name) or kinds.isdisjoint((nn.Conv2d, nn.BatchNorm2d))
