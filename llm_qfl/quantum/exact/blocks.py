"""Compiled pieces: what happens to one block of samples, a lane each. `kernels.py` strings them together.

A state is a flat array: row r holds LANES real parts at `2 r LANES` and LANES imaginary parts behind them.
Gates work on a local copy (`buf`) of 2**bits rows, in which the bit of group j is bit j of the local row.
"""
# mypy: disable-error-code="misc,no-any-return,no-untyped-call,no-untyped-def,untyped-decorator"
# ruff: noqa: ANN001, ANN201, PLR0913 - numba infers types; kernels take flat tables

from __future__ import annotations

from numba import njit

from llm_qfl.quantum.exact import cache
from llm_qfl.quantum.exact.lanes import fill, load, odd, splat, store, zeros

cache.adopt_target()

jit = njit(nogil=True, boundscheck=False, error_model="numpy")


@jit
def quaternions(groups, factors, fixed, per_sample, slots, cs, stride, at, coef, base, tag):
    """Multiply the factors of every group into one quaternion a lane: `coef[(base + index) * 4 lanes]`.

    `cs` holds cosines (slot s at `s * stride + at`) and behind all of them the sines of half the angles; shared
    slots have stride 1 and are spread over the lanes.
    """
    lanes = len(tag)
    for g in range(groups.shape[0]):
        if groups[g, 1] != per_sample:
            continue
        q0 = fill(coef, 1.0, tag)
        q1, q2, q3 = zeros(coef, tag), zeros(coef, tag), zeros(coef, tag)
        for f in range(groups[g, 3], groups[g, 3] + groups[g, 4]):
            axis, slot = factors[f, 0], factors[f, 2]
            if axis == 3:
                p0, p1 = fill(coef, fixed[slot, 0], tag), fill(coef, fixed[slot, 1], tag)
                p2, p3 = fill(coef, fixed[slot, 2], tag), fill(coef, fixed[slot, 3], tag)
                r0 = p0 * q0 - p1 * q1 - p2 * q2 - p3 * q3
                r1 = p0 * q1 + p1 * q0 + p2 * q3 - p3 * q2
                r2 = p0 * q2 + p2 * q0 + p3 * q1 - p1 * q3
                r3 = p0 * q3 + p3 * q0 + p1 * q2 - p2 * q1
                q0, q1, q2, q3 = r0, r1, r2, r3
                continue
            c, s = half_angle(factors, f, slots, cs, stride, at, coef, tag)
            if axis == 0:
                q0, q1, q2, q3 = c * q0 - s * q1, c * q1 + s * q0, c * q2 - s * q3, c * q3 + s * q2
            elif axis == 1:
                q0, q1, q2, q3 = c * q0 - s * q2, c * q1 + s * q3, c * q2 + s * q0, c * q3 - s * q1
            else:
                q0, q1, q2, q3 = c * q0 - s * q3, c * q1 - s * q2, c * q2 + s * q1, c * q3 + s * q0
        to = (base + groups[g, 2]) * 4 * lanes
        store(coef, to, q0)
        store(coef, to + lanes, q1)
        store(coef, to + 2 * lanes, q2)
        store(coef, to + 3 * lanes, q3)


@jit
def half_angle(factors, f, slots, cs, stride, at, like, tag):
    """Cosine and sine of half the angle of factor f; `slots` and `cs` are pairs of shared and per sample."""
    slot = factors[f, 2]
    if factors[f, 1] == 1:
        return load(cs[1], slot * stride + at, tag), load(cs[1], (slots[1] + slot) * stride + at, tag)
    return splat(cs[0], slot, tag), splat(cs[0], slots[0] + slot, tag)


@jit
def gather(state, offset, buf, rows, local, size, base, tag):
    """Copy the rows of one coset to `buf`."""
    width = 2 * len(tag)
    for i in range(size):
        source = offset + (base ^ rows[local + i]) * width
        store(buf, i * width, load(state, source, tag))
        store(buf, i * width + len(tag), load(state, source + len(tag), tag))


@jit
def scatter(state, offset, buf, rows, local, size, base, tag):
    """Copy `buf` back to the rows of its coset."""
    width = 2 * len(tag)
    for i in range(size):
        target = offset + (base ^ rows[local + i]) * width
        store(state, target, load(buf, i * width, tag))
        store(state, target + len(tag), load(buf, i * width + len(tag), tag))


@jit
def apply_complex(buf, bit, pairs, coef, at, inverse, tag):
    """One SU(2) group: 16 multiply-adds for a pair of amplitudes."""
    lanes = len(tag)
    q0, q1 = load(coef, at, tag), load(coef, at + lanes, tag)
    q2, q3 = load(coef, at + 2 * lanes, tag), load(coef, at + 3 * lanes, tag)
    if inverse:
        q1, q2, q3 = -q1, -q2, -q3
    low = (1 << bit) - 1
    for p in range(pairs):
        i = ((p >> bit) << (bit + 1) | (p & low)) * 2 * lanes
        j = i + (2 * lanes << bit)
        ar, ai, br, bi = load(buf, i, tag), load(buf, i + lanes, tag), load(buf, j, tag), load(buf, j + lanes, tag)
        store(buf, i, q0 * ar + q3 * ai - q2 * br + q1 * bi)
        store(buf, i + lanes, q0 * ai - q3 * ar - q2 * bi - q1 * br)
        store(buf, j, q2 * ar + q1 * ai + q0 * br - q3 * bi)
        store(buf, j + lanes, q2 * ai - q1 * ar + q0 * bi + q3 * br)


@jit
def apply_real(buf, bit, pairs, u00, u01, u10, u11, tag):
    """One real group: 8 multiply-adds for a pair of amplitudes."""
    lanes = len(tag)
    low = (1 << bit) - 1
    for p in range(pairs):
        i = ((p >> bit) << (bit + 1) | (p & low)) * 2 * lanes
        j = i + (2 * lanes << bit)
        ar, ai, br, bi = load(buf, i, tag), load(buf, i + lanes, tag), load(buf, j, tag), load(buf, j + lanes, tag)
        store(buf, i, u00 * ar + u01 * br)
        store(buf, i + lanes, u00 * ai + u01 * bi)
        store(buf, j, u10 * ar + u11 * br)
        store(buf, j + lanes, u10 * ai + u11 * bi)


@jit
def apply_group(buf, bit, pairs, kind, coef, at, inverse, tag):
    """A group on its local bit; kinds as in `compile.py`."""
    lanes = len(tag)
    if kind == 0:
        apply_complex(buf, bit, pairs, coef, at, inverse, tag)
    elif kind == 1:
        c, s = load(coef, at, tag), load(coef, at + 2 * lanes, tag)
        if inverse:
            s = -s
        apply_real(buf, bit, pairs, c, -s, s, c, tag)
    else:
        c, s = load(coef, at + 3 * lanes, tag), load(coef, at + lanes, tag)
        apply_real(buf, bit, pairs, c, s, s, -c, tag)


@jit
def apply_groups(buf, size, groups, first, count, coef, shared_groups, inverse, tag):
    """All groups of a pass on one coset."""
    for j in range(count):
        g = first + j
        at = (groups[g, 2] + groups[g, 1] * shared_groups) * 4 * len(tag)
        apply_group(buf, j, size >> 1, groups[g, 0], coef, at, inverse, tag)


@jit
def measure_y(ket, bra, bit, pairs, tag):
    """Im <bra|Y|ket> on a local bit."""
    lanes = len(tag)
    low = (1 << bit) - 1
    plus, minus = zeros(ket, tag), zeros(ket, tag)
    for p in range(pairs):
        i = ((p >> bit) << (bit + 1) | (p & low)) * 2 * lanes
        j = i + (2 * lanes << bit)
        plus += load(bra, j, tag) * load(ket, i, tag) + load(bra, j + lanes, tag) * load(ket, i + lanes, tag)
        minus += load(bra, i, tag) * load(ket, j, tag) + load(bra, i + lanes, tag) * load(ket, j + lanes, tag)
    return plus - minus


@jit
def measure_all(ket, bra, bit, pairs, tag):
    """Im <bra|X|ket>, Im <bra|Y|ket> and Im <bra|Z|ket> on a local bit."""
    lanes = len(tag)
    low = (1 << bit) - 1
    x, y, z = zeros(ket, tag), zeros(ket, tag), zeros(ket, tag)
    for p in range(pairs):
        i = ((p >> bit) << (bit + 1) | (p & low)) * 2 * lanes
        j = i + (2 * lanes << bit)
        ar, ai, br, bi = load(ket, i, tag), load(ket, i + lanes, tag), load(ket, j, tag), load(ket, j + lanes, tag)
        cr, ci, dr, di = load(bra, i, tag), load(bra, i + lanes, tag), load(bra, j, tag), load(bra, j + lanes, tag)
        x += (cr * bi - ci * br) + (dr * ai - di * ar)
        y += (dr * ar + di * ai) - (cr * br + ci * bi)
        z += (cr * ai - ci * ar) - (dr * bi - di * br)
    return x, y, z


@jit
def rotate_back(axis, c, s, x, y, z):
    """Carry the three components from behind a rotation (half angle c, s) to before it."""
    cos, sin = c * c - s * s, c * s + c * s
    if axis == 0:
        return x, cos * y + sin * z, cos * z - sin * y
    if axis == 1:
        return cos * x - sin * z, y, cos * z + sin * x
    return cos * x + sin * y, cos * y - sin * x, z


@jit
def phases(state, offset, rows, terms, first, count, table, has_table, sines, inverse, tag):
    """A layer of diagonal factors: the shared table of phases, then a term at a time per sample.

    `table` holds `size` cosines and `size` negative sines; `sines` a cosine, a sine and its negative a term and lane.
    """
    lanes = len(tag)
    flip = 1 if inverse else 0
    for r in range(rows):
        at = offset + r * 2 * lanes
        re, im = load(state, at, tag), load(state, at + lanes, tag)
        if has_table:
            c, s = splat(table, r, tag), splat(table, rows + r, tag)
            if inverse:
                s = -s
            re, im = c * re - s * im, c * im + s * re
        for t in range(first, first + count):
            if terms[t, 1] == 1:
                at_term = terms[t, 2] * 3 * lanes
                c = load(sines, at_term, tag)
                s = load(sines, at_term + (1 + (odd(terms[t, 0] & r) ^ flip)) * lanes, tag)
                re, im = c * re + s * im, c * im - s * re
        store(state, at, re)
        store(state, at + lanes, im)


@jit
def measure_phases(ket, bra, offset, rows, terms, first, count, roles, mode, grad, grad_at, tag):
    """Im <bra|Z...Z|ket> of every term that is wanted, added to its gradient slot."""
    lanes = len(tag)
    for r in range(rows):
        at = r * 2 * lanes
        ar, ai = load(ket, at, tag), load(ket, at + lanes, tag)
        cr, ci = load(bra, offset + at, tag), load(bra, offset + at + lanes, tag)
        weight = cr * ai - ci * ar
        for t in range(first, first + count):
            slot = terms[t, 3]
            if slot >= 0 and roles[slot] & mode:
                to = grad_at + slot * lanes
                sign = fill(ket, 1.0 - 2.0 * odd(terms[t, 0] & r), tag)
                store(grad, to, load(grad, to, tag) + sign * weight)


@jit
def observe(ket, out, offset, rows, diagonal, diagonal_at, off, off_coef, first, last, tag):
    """Write O|ket> at `offset` of `out`; return <ket|O|ket>.

    `diagonal_at` < 0: no diagonal part. Off-diagonal terms `off[t] = (x, z)`: coefficient (-1)^(z r) |r ^ x><r|.
    """
    lanes = len(tag)
    value = zeros(ket, tag)
    for r in range(rows):
        at = r * 2 * lanes
        ar, ai = load(ket, at, tag), load(ket, at + lanes, tag)
        re, im = zeros(ket, tag), zeros(ket, tag)
        if diagonal_at >= 0:
            d = splat(diagonal, diagonal_at + r, tag)
            re, im = d * ar, d * ai
        for t in range(first, last):
            source = r ^ off[t, 0]
            sign = 1.0 - 2.0 * odd(off[t, 1] & source)
            c, s = fill(ket, off_coef[t, 0] * sign, tag), fill(ket, off_coef[t, 1] * sign, tag)
            br, bi = load(ket, source * 2 * lanes, tag), load(ket, source * 2 * lanes + lanes, tag)
            re, im = re + (c * br - s * bi), im + (c * bi + s * br)
        store(out, offset + at, re)
        store(out, offset + at + lanes, im)
        value += re * ar + im * ai
    return value
