"""Compiled entry points: evolve states, and sweep back through them for values and gradients.

One call handles a range of blocks (LANES samples each) and releases the interpreter lock, so that threads share a
batch. The way back is in `backward`.
"""
# mypy: disable-error-code="misc,no-any-return,no-untyped-call,no-untyped-def,untyped-decorator"
# ruff: noqa: ANN001, ANN201, PLR0913, C901 - numba infers types; kernels take flat tables

from __future__ import annotations

from numba import njit

from llm_qfl.quantum.exact import cache
from llm_qfl.quantum.exact.backward import backward_pass, chain, combine
from llm_qfl.quantum.exact.blocks import (
    apply_groups,
    gather,
    jit,
    measure_phases,
    observe,
    phases,
    quaternions,
    scatter,
)
from llm_qfl.quantum.exact.lanes import fill, load, store, zeros

VALUES, JACOBIAN, VECTOR = 0, 1, 2

entry = njit(nogil=True, boundscheck=False, error_model="numpy")


@entry
def angles(monomials, coefficients, shared, sample, shared_out, sample_out):
    """Half angles: `shared_out` (slot,) and `sample_out` (slot, sample) from the values of the parameters."""
    shared_out[:] = 0.0
    sample_out[:] = 0.0
    known = len(shared)
    for m in range(monomials.shape[0]):
        slot, first, second = monomials[m, 1], monomials[m, 2], monomials[m, 3]
        half = 0.5 * coefficients[m]
        if second < known:
            factor = half * shared[first] * shared[second]
            if monomials[m, 0] == 0:
                shared_out[slot] += factor
            else:
                for n in range(sample_out.shape[1]):
                    sample_out[slot, n] += factor
        elif first < known:
            factor = half * shared[first]
            for n in range(sample_out.shape[1]):
                sample_out[slot, n] += factor * sample[second - known, n]
        else:
            for n in range(sample_out.shape[1]):
                sample_out[slot, n] += half * sample[first - known, n] * sample[second - known, n]


@entry
def phase_tables(steps, terms, shared_half, rows, out):
    """Sum of the shared half angles of each phase layer at each row: `out` (table, row)."""
    out[:] = 0.0
    for step in range(steps.shape[0]):
        if steps[step, 0] == 1 and steps[step, 4] >= 0:
            for t in range(steps[step, 2], steps[step, 2] + steps[step, 3]):
                if terms[t, 1] == 0:
                    for r in range(rows):
                        bit = terms[t, 0] & r
                        bit ^= bit >> 32
                        bit ^= bit >> 16
                        bit ^= bit >> 8
                        bit ^= bit >> 4
                        bit = (0x6996 >> (bit & 15)) & 1
                        out[steps[step, 4], r] += shared_half[terms[t, 2]] * (1.0 - 2.0 * bit)


@jit
def block_sines(terms, slots, cs, stride, at, sines, tag):
    """Cosine, sine and negative sine of every per-sample phase term of a block, by slot."""
    lanes = len(tag)
    for t in range(terms.shape[0]):
        if terms[t, 1] == 1:
            slot = terms[t, 2]
            s = load(cs[1], (slots[1] + slot) * stride + at, tag)
            store(sines, slot * 3 * lanes, load(cs[1], slot * stride + at, tag))
            store(sines, slot * 3 * lanes + lanes, s)
            store(sines, slot * 3 * lanes + 2 * lanes, -s)


@jit
def forward(ket, size, tape, coef, shared_groups, tables, sines, buf, first, last, tag):
    """Apply steps `first` to `last` to one block."""
    steps, groups, terms, rows = tape
    for step in range(first, last):
        if steps[step, 0] == 0:
            local = steps[step, 5]
            rows_local = 1 << steps[step, 2]
            for c in range(steps[step, 7]):
                base = rows[steps[step, 6] + c]
                gather(ket, 0, buf, rows, local, rows_local, base, tag)
                apply_groups(buf, rows_local, groups, steps[step, 3], steps[step, 4], coef, shared_groups, False, tag)
                scatter(ket, 0, buf, rows, local, rows_local, base, tag)
        else:
            table = steps[step, 4]
            phases(
                ket,
                0,
                size,
                terms,
                steps[step, 2],
                steps[step, 3],
                tables[max(table, 0)],
                table >= 0,
                sines,
                False,
                tag,
            )


@jit
def start(ket, size, source, block, tag):
    """|0...0>, or the block's row of `source` where that has rows."""
    width = size * 2 * len(tag)
    if source.shape[0] > 0:
        for i in range(0, width, len(tag)):
            store(ket, i, load(source, block * width + i, tag))
    else:
        for i in range(0, width, len(tag)):
            store(ket, i, zeros(ket, tag))
        store(ket, 0, fill(ket, 1.0, tag))


@entry
def evolve(
    tag, blocks, steps_range, size, tape, factors, fixed, slots, cs, stride, counts, tables, source, target, work
):
    """States after a range of steps, written to `target` (flat, a block behind the other)."""
    buf, coef, sines = work
    _, groups, terms, _ = tape
    lanes = len(tag)
    quaternions(groups, factors, fixed, 0, slots, cs, stride, 0, coef, 0, tag)
    for block in range(blocks[0], blocks[1]):
        at = block * lanes
        quaternions(groups, factors, fixed, 1, slots, cs, stride, at, coef, counts[0], tag)
        block_sines(terms, slots, cs, stride, at, sines, tag)
        ket = target[block * size * 2 * lanes : (block + 1) * size * 2 * lanes]
        start(ket, size, source, block, tag)
        forward(ket, size, tape, coef, counts[0], tables, sines, buf, steps_range[0], steps_range[1], tag)


@entry
def sweep(
    tag,
    mode,
    wanted,
    blocks,
    samples,
    first_step,
    last_layer,
    size,
    tape,
    factors,
    fixed,
    slots,
    cs,
    stride,
    counts,
    tables,
    source,
    readout,
    outputs,
    roles,
    derivatives,
    slopes,
    columns,
    shared,
    sample,
    work,
    results,
    cotangent,
    chunk,
):
    """Values, and gradients by `wanted` (1 weights, 2 inputs, 3 both), of a range of blocks.

    `mode`: VALUES; JACOBIAN, results[1] (sample, output, column); VECTOR, results[1] (block, 1, column), the gradient
    of sum over samples and outputs of cotangent * output. `chunk` bras are carried at once.
    """
    buf, coef, sines, ket, saved, bras, bra_buf, sums, grad, by_column, scratch = work
    diagonal, diagonal_of, off, off_coef, off_range = readout
    out_bra, out_scale, out_offset = outputs
    values, gradients = results
    steps, groups, terms, _ = tape
    lanes = len(tag)
    num_bras, num_out, width = len(diagonal_of), len(out_bra), gradients.shape[2]
    block_width, grad_width = size * 2 * lanes, len(roles) * lanes
    quaternions(groups, factors, fixed, 0, slots, cs, stride, 0, coef, 0, tag)
    for block in range(blocks[0], blocks[1]):
        at = block * lanes
        inside = min(lanes, samples - at)
        quaternions(groups, factors, fixed, 1, slots, cs, stride, at, coef, counts[0], tag)
        block_sines(terms, slots, cs, stride, at, sines, tag)
        start(ket, size, source, block, tag)
        forward(ket, size, tape, coef, counts[0], tables, sines, buf, first_step, steps.shape[0], tag)
        for b in range(0 if mode == JACOBIAN else num_bras):
            value = observe(
                ket, bras, 0, size, diagonal, diagonal_of[b] * size, off, off_coef, off_range[b], off_range[b + 1], tag
            )
            store(scratch, b * lanes, value)
        if mode == JACOBIAN and chunk < num_bras:
            for i in range(0, block_width, lanes):
                store(saved, i, load(ket, i, tag))
        carried = 0 if mode == VALUES else (num_bras if mode == JACOBIAN else 1)
        for first in range(0, carried, chunk):
            count = min(chunk, carried - first)
            if first > 0:
                for i in range(0, block_width, lanes):
                    store(ket, i, load(saved, i, tag))
            if mode == JACOBIAN:
                for b in range(count):
                    value = observe(
                        ket,
                        bras,
                        b * block_width,
                        size,
                        diagonal,
                        diagonal_of[first + b] * size,
                        off,
                        off_coef,
                        off_range[first + b],
                        off_range[first + b + 1],
                        tag,
                    )
                    store(scratch, (first + b) * lanes, value)
            else:
                combine(ket, bras, size, readout, outputs, cotangent, at, inside, scratch, num_bras, tag)
            for i in range(count * len(roles)):
                store(grad, i * lanes, zeros(grad, tag))
            for step in range(steps.shape[0] - 1, first_step - 1, -1):
                if steps[step, 1] < last_layer:
                    break
                apply = steps[step, 1] > last_layer
                if steps[step, 0] == 0:
                    backward_pass(
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
                        wanted,
                        slots,
                        cs,
                        stride,
                        at,
                        coef,
                        counts[0],
                        buf,
                        bra_buf,
                        sums,
                        grad,
                        grad_width,
                        tag,
                    )
                else:
                    table, term, num = steps[step, 4], steps[step, 2], steps[step, 3]
                    for k in range(count):
                        measure_phases(
                            ket, bras, k * block_width, size, terms, term, num, roles, wanted, grad, k * grad_width, tag
                        )
                        if apply:
                            phases(
                                bras,
                                k * block_width,
                                size,
                                terms,
                                term,
                                num,
                                tables[max(table, 0)],
                                table >= 0,
                                sines,
                                True,
                                tag,
                            )
                    if apply:
                        phases(ket, 0, size, terms, term, num, tables[max(table, 0)], table >= 0, sines, True, tag)
            for k in range(count):
                chain(
                    derivatives,
                    slopes,
                    columns,
                    shared,
                    sample,
                    stride,
                    at,
                    grad,
                    k * grad_width,
                    by_column,
                    width,
                    tag,
                )
                if mode == JACOBIAN:
                    for o in range(num_out):
                        if out_bra[o] == first + k:
                            for lane in range(inside):
                                for c in range(width):
                                    gradients[at + lane, o, c] = out_scale[o] * by_column[c * lanes + lane]
                else:
                    for c in range(width):
                        total = 0.0
                        for lane in range(inside):
                            total += by_column[c * lanes + lane]
                        gradients[block, 0, c] = total
        for o in range(num_out):
            for lane in range(inside):
                value = out_offset[o]
                if out_bra[o] >= 0:
                    value += out_scale[o] * scratch[out_bra[o] * lanes + lane]
                values[at + lane, o] = value


cache.install(angles, phase_tables, evolve, sweep)
