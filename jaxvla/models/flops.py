"""How many floating-point operations a model's mathematics has: one function for all models, read off their trace.

What counts is products of matrices and convolutions, two operations for a multiplication and its addition, as in the
MFU of PaLM (Chowdhery et al., 2022, appendix B). A product of m rows and n columns that sums over k costs

    2 m k n                         forward
    2 m k n * (0, 1 or 2)           backward: once for each of its two factors that the trained parameters change

so a linear layer costs three times its forward pass in training, a frozen one twice, one before every trained parameter
once. Attention counts whole, the masked half of causal attention as well, since that is what its products compute. What
remat computes again does not count: it is how a machine gets the gradient, not what the gradient is. Layers in a scan
count once for each.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval

# The fused attention of cuDNN, which hides its two products.
_FUSED_ATTENTION = "dot_product_attention_fwd"


def training_flops(loss: Callable[..., Any], trained: Any, *rest: Any) -> float:
    """FLOPs of a loss and of its gradient with respect to `trained`.

    Args:
        loss: (trained, *rest) -> anything; it is traced and not run.
        trained: pytree of arrays or `jax.ShapeDtypeStruct`s.
        rest: likewise, what gradients do not flow to.
    """
    closed = jax.make_jaxpr(loss)(trained, *rest)
    changing = [True] * len(jax.tree.leaves(trained)) + [False] * len(jax.tree.leaves(rest))
    return _count(closed.jaxpr, changing)[0]


def flops(function: Callable[..., Any], *inputs: Any) -> float:
    """FLOPs of what a function's outputs need, what is computed again included; it is traced and not run."""
    return count(jax.make_jaxpr(function)(*inputs))


def count(closed: core.ClosedJaxpr) -> float:
    """`flops` of what was traced already."""
    # Such as gradients of frozen kernels, which custom derivatives write down for nobody.
    needed, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _count(needed, [False] * len(needed.invars))[0]


def _count(jaxpr: core.Jaxpr, changing: Sequence[bool]) -> tuple[float, list[bool]]:
    """FLOPs, and which outputs the trained parameters change, given which inputs they change."""
    known = dict(zip(jaxpr.invars, changing))

    def changes(var: Any) -> bool:
        return not isinstance(var, core.Literal) and known.get(var, False)

    total = 0.0
    for equation in jaxpr.eqns:
        flags = [changes(var) for var in equation.invars]
        cost, out = _of_equation(equation, flags)
        total += cost
        known |= dict(zip(equation.outvars, out))
    return total, [changes(var) for var in jaxpr.outvars]


def _of_equation(equation: Any, flags: list[bool]) -> tuple[float, list[bool]]:
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return _scan(params, flags)
    if name == "while":
        return _while(params, flags)
    if name == "cond":
        branches = [_count(branch.jaxpr, flags[1:]) for branch in params["branches"]]
        return max(cost for cost, _ in branches), [any(out) for out in zip(*(out for _, out in branches))]
    inner = _called(params)
    if inner is not None:
        return _count(inner, flags)
    through = any(flags) and name != "stop_gradient"
    out = [through and jnp.issubdtype(var.aval.dtype, jnp.inexact) for var in equation.outvars]
    return _products(equation) * (1 + sum(flags[:2])), out


def _called(params: dict[str, Any]) -> core.Jaxpr | None:
    """The program that an equation calls, of jit, remat and custom derivatives alike."""
    for key in ("call_jaxpr", "fun_jaxpr", "jaxpr"):
        if key in params:
            return getattr(params[key], "jaxpr", params[key])
    return None


def _scan(params: dict[str, Any], flags: list[bool]) -> tuple[float, list[bool]]:
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    cost, out, carried = _until_settled(params["jaxpr"].jaxpr, flags, first, last)
    return params["length"] * cost, [*carried, *out[last - first :]]


def _while(params: dict[str, Any], flags: list[bool]) -> tuple[float, list[bool]]:
    """The body counts once: nobody can tell how often it runs, and no loop of a model's products is of this kind."""
    first, last = params["cond_nconsts"] + params["body_nconsts"], len(flags)
    of_body = flags[params["cond_nconsts"] :]
    cost, _, carried = _until_settled(params["body_jaxpr"].jaxpr, of_body, first - params["cond_nconsts"], last)
    return cost, carried


def _until_settled(body: core.Jaxpr, flags: list[bool], first: int, last: int) -> tuple[float, list[bool], list[bool]]:
    """A loop's body, with what is carried from pass to pass counted as changing if any pass makes it so."""
    while True:
        cost, out = _count(body, flags)
        carried = [before or after for before, after in zip(flags[first:last], out)]
        if carried == list(flags[first:last]):
            return cost, out, carried
        flags = [*flags[:first], *carried, *flags[last:]]


def _products(equation: Any) -> float:
    """FLOPs of the forward pass of a product or a convolution; 0 of anything else."""
    name, params = equation.primitive.name, equation.params
    shapes = [getattr(var.aval, "shape", ()) for var in equation.invars]
    if name == "dot_general":
        (summed, _), _ = params["dimension_numbers"]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[0][axis] for axis in summed)
    if name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        # Each output sums over the kernel's window and the input channels of its group.
        window = math.prod(shapes[1][axis] for axis in numbers.rhs_spec[1:])
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * window / params["batch_group_count"]
    if name.startswith(_FUSED_ATTENTION):
        (b, t, n, h), s = shapes[0], shapes[1][1]
        return 4.0 * b * t * s * n * h
    return 0.0
