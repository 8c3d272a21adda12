"""A SIMD value for numba: one number per lane, one lane per sample.

Numba's arrays carry no aliasing information, so LLVM's vectoriser guards every short loop with run-time checks or gives
up. The kernels therefore speak of vectors themselves: `load`, `store`, `splat` and the operators emit LLVM vector
instructions, which the code generator cuts to what the processor has (two AVX2 registers for eight doubles).
The number of lanes and the element type are those of a *tag*: a tuple of LANES zeros, known when a kernel is compiled.
"""
# mypy: disable-error-code="misc,no-any-return,no-untyped-call,untyped-decorator"
# ruff: noqa: ANN401 - llvmlite and numba extension points are untyped

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic, lower_builtin, type_callable

LANES = 8
"""Samples that one kernel iteration carries."""

_CONTRACT = ("contract",)


class Lanes(types.Type):
    """Numba type of a vector of `count` numbers of type `dtype`."""

    def __init__(self, dtype: types.Float, count: int) -> None:
        self.dtype = dtype
        self.count = count
        super().__init__(name=f"Lanes({dtype}, {count})")


@register_default(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(_element(fe_type), fe_type.count))


def _element(lanes: Lanes) -> ir.Type:
    return ir.DoubleType() if lanes.dtype == types.float64 else ir.FloatType()


def _vector(lanes: Lanes) -> ir.Type:
    return ir.VectorType(_element(lanes), lanes.count)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, lanes: Lanes) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _vector(lanes).as_pointer())


def _broadcast(builder: Any, scalar: Any, lanes: Lanes) -> Any:
    vector = _vector(lanes)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), lanes.count), [0] * lanes.count)
    return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), mask)


@intrinsic
def load(typingctx: Any, array: Any, index: Any, tag: Any) -> Any:
    """`array[index : index + lanes]` as one vector."""
    lanes = Lanes(array.dtype, tag.count)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, signature.args[0], args[0], args[1], lanes), align=8)

    return lanes(array, types.intp, tag), codegen


@intrinsic
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Write a vector to `array[index : index + lanes]`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(context, builder, signature.args[0], args[0], args[1], value), align=8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def splat(typingctx: Any, array: Any, index: Any, tag: Any) -> Any:
    """`array[index]` in every lane."""
    lanes = Lanes(array.dtype, tag.count)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return _broadcast(builder, builder.load(builder.gep(data, [args[1]])), lanes)

    return lanes(array, types.intp, tag), codegen


@intrinsic
def zeros(typingctx: Any, array: Any, tag: Any) -> Any:
    """A vector of zeros with the element type of `array`."""
    lanes = Lanes(array.dtype, tag.count)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(_vector(lanes), [0.0] * lanes.count)

    return lanes(array, tag), codegen


@intrinsic
def fill(typingctx: Any, array: Any, value: Any, tag: Any) -> Any:
    """The number `value`, rounded to the element type of `array`, in every lane."""
    lanes = Lanes(array.dtype, tag.count)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scalar = context.cast(builder, args[1], signature.args[1], lanes.dtype)
        return _broadcast(builder, scalar, lanes)

    return lanes(array, types.float64, tag), codegen


def _binary(operation: Callable[..., Any], instruction: str) -> None:
    @type_callable(operation)
    def typing(context: Any) -> Callable[[Any, Any], Any]:
        def typer(left: Any, right: Any) -> Any:
            return left if isinstance(left, Lanes) and left == right else None

        return typer

    @lower_builtin(operation, Lanes, Lanes)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(args[0], args[1], flags=_CONTRACT)


for _operation, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _binary(_operation, _instruction)
_binary(operator.iadd, "fadd")
_binary(operator.isub, "fsub")


@type_callable(operator.neg)
def _type_neg(context: Any) -> Callable[[Any], Any]:
    return lambda value: value if isinstance(value, Lanes) else None


@lower_builtin(operator.neg, Lanes)
def _lower_neg(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fneg(args[0])


@intrinsic
def odd(typingctx: Any, value: Any) -> Any:
    """1 where the integer has an odd number of ones, else 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.and_(builder.ctpop(args[0]), ir.Constant(args[0].type, 1))

    return types.int64(types.int64), codegen
