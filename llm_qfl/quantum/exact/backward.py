"""The way back of a block: gradients of its angles, and the bras that it starts from.

By the adjoint method (Jones and Gacon, arXiv:2009.02823): the ket and one bra O|ket> per observable walk back through
the circuit; a fused 2x2 group yields the gradients of all its angles from three numbers, Im <bra|X, Y, Z|ket>, carried
from factor to factor by plane rotations.
"""
# mypy: disable-error-code="misc,no-any-return,no-untyped-call,no-untyped-def,untyped-decorator"
# ruff: noqa: ANN001, ANN201, PLR0913 - numba infers types; kernels take flat tables

from __future__ import annotations

from llm_qfl.quantum.exact.blocks import (
    apply_groups,
    gather,
    half_angle,
    jit,
    measure_all,
    measure_y,
    observe,
    rotate_back,
    scatter,
)
from llm_qfl.quantum.exact.lanes import fill, load, store, zeros


@jit
def group_gradients(g, groups, factors, fixed, roles, mode, slots, cs, stride, at, x, y, z, grad, grad_at, tag):
    """From the three numbers behind a group to the gradients of its angles."""
    lanes = len(tag)
    for f in range(groups[g, 3] + groups[g, 4] - 1, groups[g, 3] - 1, -1):
        axis, slot, gradient = factors[f, 0], factors[f, 2], factors[f, 3]
        if axis == 3:
            x, y, z = (
                fill(grad, fixed[slot, 4], tag) * x
                + fill(grad, fixed[slot, 5], tag) * y
                + fill(grad, fixed[slot, 6], tag) * z,
                fill(grad, fixed[slot, 7], tag) * x
                + fill(grad, fixed[slot, 8], tag) * y
                + fill(grad, fixed[slot, 9], tag) * z,
                fill(grad, fixed[slot, 10], tag) * x
                + fill(grad, fixed[slot, 11], tag) * y
                + fill(grad, fixed[slot, 12], tag) * z,
            )
            continue
        if gradient >= 0 and roles[gradient] & mode:
            to = grad_at + gradient * lanes
            if axis == 0:
                store(grad, to, load(grad, to, tag) + x)
            elif axis == 1:
                store(grad, to, load(grad, to, tag) + y)
            else:
                store(grad, to, load(grad, to, tag) + z)
        if f > groups[g, 3]:
            c, s = half_angle(factors, f, slots, cs, stride, at, grad, tag)
            x, y, z = rotate_back(axis, c, s, x, y, z)


@jit
def backward_pass(
    ket,
    bras,
    count,
    size,
    tape,
    step,
    apply,
    factors,
    fixed,
    roles,
    mode,
    slots,
    cs,
    stride,
    at,
    coef,
    shared_groups,
    buf,
    bra_buf,
    sums,
    grad,
    grad_width,
    tag,
):
    """One pass backwards: the three numbers of every group and bra, then the inverse gates where `apply`."""
    steps, groups, _, rows = tape
    lanes = len(tag)
    first, num = steps[step, 3], steps[step, 4]
    local, rows_local = steps[step, 5], 1 << steps[step, 2]
    for i in range(count * num * 3):
        store(sums, i * lanes, zeros(sums, tag))
    for coset in range(steps[step, 7]):
        base = rows[steps[step, 6] + coset]
        gather(ket, 0, buf, rows, local, rows_local, base, tag)
        for k in range(count):
            offset = k * size * 2 * lanes
            gather(bras, offset, bra_buf, rows, local, rows_local, base, tag)
            for j in range(num):
                to = (k * num + j) * 3 * lanes
                needs = groups[first + j, 4 + mode]
                if needs == 1:
                    y = measure_y(buf, bra_buf, j, rows_local >> 1, tag)
                    store(sums, to + lanes, load(sums, to + lanes, tag) + y)
                elif needs == 2:
                    x, y, z = measure_all(buf, bra_buf, j, rows_local >> 1, tag)
                    store(sums, to, load(sums, to, tag) + x)
                    store(sums, to + lanes, load(sums, to + lanes, tag) + y)
                    store(sums, to + 2 * lanes, load(sums, to + 2 * lanes, tag) + z)
            if apply:
                apply_groups(bra_buf, rows_local, groups, first, num, coef, shared_groups, True, tag)
                scatter(bras, offset, bra_buf, rows, local, rows_local, base, tag)
        if apply:
            apply_groups(buf, rows_local, groups, first, num, coef, shared_groups, True, tag)
            scatter(ket, 0, buf, rows, local, rows_local, base, tag)
    for k in range(count):
        for j in range(num):
            if groups[first + j, 4 + mode] > 0:
                to = (k * num + j) * 3 * lanes
                x, y, z = load(sums, to, tag), load(sums, to + lanes, tag), load(sums, to + 2 * lanes, tag)
                group_gradients(
                    first + j,
                    groups,
                    factors,
                    fixed,
                    roles,
                    mode,
                    slots,
                    cs,
                    stride,
                    at,
                    x,
                    y,
                    z,
                    grad,
                    k * grad_width,
                    tag,
                )


@jit
def chain(derivatives, slopes, columns, shared, sample, stride, at, grad, grad_at, by_column, width, tag):
    """From angles to parameters: `by_column` (column, lane)."""
    lanes = len(tag)
    for c in range(width):
        store(by_column, c * lanes, zeros(by_column, tag))
    for e in range(derivatives.shape[0]):
        column = columns[derivatives[e, 1]]
        if column >= 0:
            value = derivatives[e, 2]
            slope = load(grad, grad_at + derivatives[e, 0] * lanes, tag)
            if value < len(shared):
                slope = slope * fill(grad, slopes[e] * shared[value], tag)
            else:
                slope = slope * fill(grad, slopes[e], tag) * load(sample, (value - len(shared)) * stride + at, tag)
            store(by_column, column * lanes, load(by_column, column * lanes, tag) + slope)


@jit
def combine(ket, bras, size, readout, outputs, cotangent, at, inside, scratch, num_bras, tag):
    """The one bra of a vector-Jacobian product: sum over outputs of cotangent * scale * O|ket>, a lane each."""
    diagonal, diagonal_of, off, off_coef, off_range = readout
    out_bra, out_scale, _ = outputs
    lanes = len(tag)
    width = size * 2 * lanes
    weights = num_bras * lanes
    for i in range(weights, 2 * weights):
        scratch[i] = 0.0
    for o in range(len(out_bra)):
        if out_bra[o] >= 0:
            for lane in range(inside):
                scratch[weights + out_bra[o] * lanes + lane] += out_scale[o] * cotangent[at + lane, o]
    for i in range(0, width, lanes):
        store(bras, i, zeros(bras, tag))
    for b in range(num_bras):
        observe(
            ket, bras, width, size, diagonal, diagonal_of[b] * size, off, off_coef, off_range[b], off_range[b + 1], tag
        )
        weight = load(scratch, weights + b * lanes, tag)
        for i in range(0, width, lanes):
            store(bras, i, load(bras, i, tag) + weight * load(bras, width + i, tag))
