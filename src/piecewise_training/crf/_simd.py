"""Vector registers in Numba: a type that lowers to an LLVM vector, and the few operations that the kernels need.

LLVM turns the same vectors into AVX-512, AVX2 or NEON instructions, so that nothing here knows the processor. A product
followed by a sum becomes one fused instruction. Wherever two vectors are expected, a number stands for a vector of it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin

_CONTRACT = ("contract",)
_INT = ir.IntType(32)


class Vector(types.Type):
    """So many numbers of one floating-point type, side by side in registers."""

    def __init__(self, dtype: types.Float, lanes: int) -> None:
        self.dtype = dtype
        self.lanes = lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")


@register_default(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        element = manager.lookup(vector.dtype).get_value_type()
        super().__init__(manager, vector, ir.VectorType(element, vector.lanes))


def _spread(builder: Any, vector: ir.VectorType, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _INT(0))
    return _shuffle(builder, one, one, [0] * vector.count)


def _typed(kinds: Any) -> Any:
    """The signature of an operation between vectors and numbers; None where there is no vector."""
    vectors = [kind for kind in kinds if isinstance(kind, Vector)]
    if not vectors:
        return None
    return signature(vectors[0], *(kind if isinstance(kind, Vector) else vectors[0].dtype for kind in kinds))


def _vectors(context: Any, builder: Any, sig: Any, args: Any) -> list[Any]:
    shape = context.get_value_type(sig.return_type)
    return [
        value if isinstance(kind, Vector) else _spread(builder, shape, value)
        for kind, value in zip(sig.args, args, strict=True)
    ]


def _operator(symbol: Any, build: Callable[..., Any]) -> None:
    """Gives a Python operator a meaning for vectors."""

    @infer_global(symbol)
    class Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            return _typed(args)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return build(builder, *_vectors(context, builder, sig, args))

    for kinds in ((Vector, Vector), (Vector, types.Float), (types.Float, Vector)):
        lower_builtin(symbol, *kinds)(lower)


_operator(operator.add, lambda builder, a, b: builder.fadd(a, b, flags=_CONTRACT))
_operator(operator.sub, lambda builder, a, b: builder.fsub(a, b, flags=_CONTRACT))
_operator(operator.truediv, lambda builder, a, b: builder.fdiv(a, b))
_operator(operator.mul, lambda builder, a, b: builder.fmul(a, b, flags=_CONTRACT))


def _lanewise(build: Callable[..., Any]) -> Any:
    """A function of two vectors, lane by lane."""

    @intrinsic
    def function(_: Any, a: Any, b: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return build(builder, *_vectors(context, builder, sig, args))

        return _typed((a, b)), lower

    return function


maximum = _lanewise(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))
minimum = _lanewise(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b))
# 1 in the lanes where a < b, 0 in the others
less = _lanewise(lambda builder, a, b: builder.uitofp(builder.fcmp_ordered("<", a, b), a.type))


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any, vector: Vector) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), context.get_value_type(vector).as_pointer())


def _loader(lanes: int) -> Any:
    @intrinsic
    def load(_: Any, array: Any, index: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            value = builder.load(_pointer(context, builder, sig.args[0], args[0], args[1], sig.return_type))
            value.align = array.dtype.bitwidth // 8
            return value

        return signature(Vector(array.dtype, lanes), array, types.intp), lower

    return load


load8, load16 = _loader(8), _loader(16)  # array[index : index + 8] of a flat array


@intrinsic
def store(_: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index : index + lanes] = value of a flat array, of the same type of numbers."""
    if array.dtype != value.dtype:
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = _pointer(context, builder, sig.args[0], args[0], args[1], sig.args[2])
        builder.store(args[2], place).align = array.dtype.bitwidth // 8
        return context.get_dummy_value()

    return signature(types.void, array, types.intp, value), lower


def _spreader(lanes: int) -> Any:
    @intrinsic
    def spread(_: Any, number: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return _spread(builder, context.get_value_type(sig.return_type), args[0])

        return signature(Vector(number, lanes), number), lower

    return spread


spread8, spread16 = _spreader(8), _spreader(16)  # the same number in every lane


@intrinsic
def prefetch(_: Any, array: Any, index: Any) -> Any:
    """Has a flat array's memory around an index brought into the cache, because it will be read soon."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        place = builder.bitcast(builder.gep(data, [args[1]]), cgutils.voidptr_t)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _INT, _INT, _INT])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [place, _INT(0), _INT(3), _INT(1)])  # to be read, into every cache, data
        return context.get_dummy_value()

    return signature(types.void, array, types.intp), lower


@intrinsic
def nearest(_: Any, a: Any) -> Any:
    """The nearest whole number of each lane, ties to even."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        shape = context.get_value_type(a)
        return builder.call(_llvm(builder, "rint", a, shape, [shape]), args)

    return signature(a, a), lower


@intrinsic
def times_power_of_two(_: Any, a: Any, exponent: Any) -> Any:
    """A 2^exponent for whole exponents that stay within the range of single precision."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        integers = ir.VectorType(_INT, a.lanes)
        steps = builder.shl(builder.fptosi(args[1], integers), ir.Constant(integers, [23] * a.lanes))
        bits = builder.add(builder.bitcast(args[0], integers), steps)
        return builder.bitcast(bits, context.get_value_type(a))

    return signature(a, a, exponent), lower


def _reducer(name: str, flags: tuple[str, ...], start: float | None) -> Any:
    @intrinsic
    def reduce(_: Any, a: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            element = context.get_value_type(a.dtype)
            first = [] if start is None else [ir.Constant(element, start)]
            kinds = [element] * len(first) + [context.get_value_type(a)]
            function = _llvm(builder, f"vector.reduce.{name}", a, element, kinds)
            return builder.call(function, [*first, *args], fastmath=flags)

        return signature(a.dtype, a), lower

    return reduce


total = _reducer("fadd", ("reassoc",), 0.0)  # of the lanes, always in the same order
highest = _reducer("fmax", ("nnan",), None)  # of the lanes


@intrinsic
def halves_added(_: Any, a: Any) -> Any:
    """The lower half of the lanes plus the upper half."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fadd(*_halves(builder, a, args[0]))

    return signature(Vector(a.dtype, a.lanes // 2), a), lower


@intrinsic
def halves_highest(_: Any, a: Any) -> Any:
    """The greater of the lower and the upper half of the lanes, lane by lane."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        low, high = _halves(builder, a, args[0])
        return builder.select(builder.fcmp_ordered(">", low, high), low, high)

    return signature(Vector(a.dtype, a.lanes // 2), a), lower


def _halves(builder: Any, vector: Vector, value: Any) -> tuple[Any, Any]:
    lanes = list(range(vector.lanes))
    middle = vector.lanes // 2
    return _shuffle(builder, value, value, lanes[:middle]), _shuffle(builder, value, value, lanes[middle:])


@intrinsic
def transpose8(_: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
    """Eight registers of eight lanes as the rows of a matrix, and the rows of its transpose as a tuple."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        rows = list(args)
        for size in (4, 2, 1):  # exchanges the two blocks of this size off the diagonal, in every block of twice it
            first = [lane if lane & size == 0 else 8 + lane - size for lane in range(8)]
            second = [lane + size if lane & size == 0 else 8 + lane for lane in range(8)]
            for i in (i for i in range(8) if i & size == 0):
                pair = rows[i], rows[i + size]
                rows[i], rows[i + size] = _shuffle(builder, *pair, first), _shuffle(builder, *pair, second)
        return context.make_tuple(builder, sig.return_type, rows)

    return signature(types.UniTuple(a, 8), *[a] * 8), lower


def _shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    """The lanes of two registers, counted one after the other, that are named."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT, len(lanes)), lanes))


def _llvm(builder: Any, name: str, vector: Vector, result: ir.Type, arguments: list[ir.Type]) -> Any:
    """LLVM's own function of a type of vector, such as llvm.rint.v8f32."""
    full_name = f"llvm.{name}.v{vector.lanes}f{vector.dtype.bitwidth}"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), full_name)


# Operations on several rows of a table at once, whose vectors stay in registers as a tuple. `rows` and `shares` are
# flat and hold the number and the weight of each row from `first` on, or are `elements` of such arrays; a row has so
# many channels.


@intrinsic(prefer_literal=True)
def elements(_: Any, array: Any, first: Any, count: Any) -> Any:
    """`count` elements of a flat array as a tuple, to be loaded once where stores between might change the array."""
    number = count.literal_value

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        loaded = _elements(context, builder, sig.args[0], args[0], args[1], number)
        return context.make_tuple(builder, sig.return_type, loaded)

    return signature(types.UniTuple(array.dtype, number), array, types.intp, count), lower


def _gatherer(lanes: int) -> Any:
    @intrinsic(prefer_literal=True)
    def gather(_: Any, table: Any, rows: Any, first: Any, channels: Any, c: Any, count: Any) -> Any:
        vector = Vector(table.dtype, lanes)
        number = count.literal_value

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            loaded = [builder.load(place) for place in _places(context, builder, sig, args, vector, number)]
            for value in loaded:
                value.align = table.dtype.bitwidth // 8
            return context.make_tuple(builder, sig.return_type, loaded)

        integers = (types.intp, types.intp, types.intp, count)
        return signature(types.UniTuple(vector, number), table, rows, *integers), lower

    return gather


gather8, gather16 = _gatherer(8), _gatherer(16)  # the vectors at channel c of `count` rows, which must be a constant


@intrinsic
def put(_: Any, table: Any, rows: Any, first: Any, channels: Any, c: Any, vectors: Any) -> Any:
    """Writes vectors to channel c of their rows."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        places = _places(context, builder, sig, args, vectors.dtype, vectors.count)
        for place, value in zip(places, cgutils.unpack_tuple(builder, args[5], vectors.count), strict=True):
            builder.store(value, place).align = table.dtype.bitwidth // 8
        return context.get_dummy_value()

    return signature(types.void, table, rows, types.intp, types.intp, types.intp, vectors), lower


@intrinsic
def mixed(_: Any, x: Any, vectors: Any, shares: Any, first: Any) -> Any:
    """X plus the sum of the vectors, each times its share."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        total = args[0]
        spread = _shares(context, builder, sig.args[2], args[2], args[3], total.type, vectors.count)
        for value, share in zip(cgutils.unpack_tuple(builder, args[1], vectors.count), spread, strict=True):
            total = builder.fadd(total, builder.fmul(value, share, flags=_CONTRACT), flags=_CONTRACT)
        return total

    return signature(x, x, vectors, shares, types.intp), lower


@intrinsic
def sent(_: Any, vectors: Any, x: Any, shares: Any, first: Any) -> Any:
    """Each vector plus its share of x."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        spread = _shares(context, builder, sig.args[2], args[2], args[3], args[1].type, vectors.count)
        return _sent(context, builder, sig, args, spread)

    return signature(vectors, vectors, x, shares, types.intp), lower


@intrinsic
def sent_at(_: Any, vectors: Any, x: Any, table: Any, places: Any, offset: Any) -> Any:
    """Each vector plus its share of x, which lies in a flat table at the vector's place plus an offset."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = ir.Constant(args[4].type, 0)
        numbers = _elements(context, builder, sig.args[3], args[3], zero, vectors.count)
        data = context.make_array(sig.args[2])(context, builder, args[2]).data
        indices = [builder.add(builder.sext(number, args[4].type), args[4]) for number in numbers]
        spread = [_spread(builder, args[1].type, builder.load(builder.gep(data, [index]))) for index in indices]
        return _sent(context, builder, sig, args, spread)

    return signature(vectors, vectors, x, table, places, types.intp), lower


def _sent(context: Any, builder: Any, sig: Any, args: Any, spread: list[Any]) -> Any:
    """The vectors of the first argument, each plus its share of the second."""
    products = [builder.fmul(args[1], share, flags=_CONTRACT) for share in spread]
    old = cgutils.unpack_tuple(builder, args[0], len(spread))
    new = [builder.fadd(v, product, flags=_CONTRACT) for v, product in zip(old, products, strict=True)]
    return context.make_tuple(builder, sig.return_type, new)


def _places(context: Any, builder: Any, sig: Any, args: Any, vector: Vector, count: int) -> list[Any]:
    """Pointers to channel c of each row."""
    table, rows, first, channels, c = args[:5]
    numbers = [builder.sext(row, channels.type) for row in _elements(context, builder, sig.args[1], rows, first, count)]
    offsets = [builder.add(builder.mul(number, channels), c) for number in numbers]
    return [_pointer(context, builder, sig.args[0], table, offset, vector) for offset in offsets]


def _shares(context: Any, builder: Any, kind: Any, array: Any, first: Any, shape: Any, count: int) -> list[Any]:
    """Each row's share in every lane."""
    return [_spread(builder, shape, share) for share in _elements(context, builder, kind, array, first, count)]


def _elements(context: Any, builder: Any, kind: Any, array: Any, first: Any, count: int) -> list[Any]:
    """So many elements of a flat array, or all of a tuple."""
    if isinstance(kind, types.BaseTuple):
        return list(cgutils.unpack_tuple(builder, array, count))
    data = context.make_array(kind)(context, builder, array).data
    return [builder.load(builder.gep(data, [builder.add(first, first.type(k))])) for k in range(count)]
