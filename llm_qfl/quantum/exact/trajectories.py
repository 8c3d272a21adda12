"""Compiled entry point: shots of a noisy circuit as state vectors, only those with an error on their own.

Each error is a mixture: with a probability that the state has no part in nothing happens, else a rest channel acts
(`llm_qfl.quantum.sampled.trajectories` finds the mixture). So where a shot's first error is can be drawn beforehand:
shots without any share one state, and a shot with one starts from the shared state at that place.
"""
# mypy: disable-error-code="misc,no-any-return,no-untyped-call,no-untyped-def,untyped-decorator"
# ruff: noqa: ANN001, ANN201, PLR0913, C901, NPY002 - numba infers types and seeds a generator a thread; flat tables

from __future__ import annotations

import numpy as np
from numba import njit

from llm_qfl.quantum.exact import cache
from llm_qfl.quantum.exact.blocks import jit

BLOCK, CZ, PAIR = 0, 1, 2
"""Kinds of items: a block of one qubit's gates, a controlled Z, any other gate of two qubits."""

entry = njit(nogil=True, boundscheck=False, error_model="numpy")


@jit
def apply_single(psi, stride, u):
    """A 2x2 matrix on the qubit of this stride."""
    re, im = psi[0], psi[1]
    ar, br, cr, dr = u[0, 0].real, u[0, 1].real, u[1, 0].real, u[1, 1].real
    ai, bi, ci, di = u[0, 0].imag, u[0, 1].imag, u[1, 0].imag, u[1, 1].imag
    for start in range(0, psi.shape[1], 2 * stride):
        zero_re, one_re = re[start : start + stride], re[start + stride : start + 2 * stride]
        zero_im, one_im = im[start : start + stride], im[start + stride : start + 2 * stride]
        for i in range(stride):
            x, y, v, w = zero_re[i], zero_im[i], one_re[i], one_im[i]
            zero_re[i] = ar * x - ai * y + br * v - bi * w
            zero_im[i] = ar * y + ai * x + br * w + bi * v
            one_re[i] = cr * x - ci * y + dr * v - di * w
            one_im[i] = cr * y + ci * x + dr * w + di * v


@jit
def apply_cz(psi, first, second):
    """Sign of the amplitudes in which both qubits, given by their strides, are 1."""
    low, high = min(first, second), max(first, second)
    for part in range(2):
        values = psi[part]
        for top in range(high, psi.shape[1], 2 * high):
            for middle in range(top + low, top + high, 2 * low):
                for i in range(middle, middle + low):
                    values[i] = -values[i]


@jit
def apply_pair(psi, first, second, u):
    """A 4x4 matrix on two qubits given by their strides; `first` is the lower bit of its index, as Qiskit has it."""
    low, high = min(first, second), max(first, second)
    re, im = psi[0], psi[1]
    at = (0, first, second, first + second)
    for top in range(0, psi.shape[1], 2 * high):
        for middle in range(top, top + high, 2 * low):
            for i in range(middle, middle + low):
                v0, v1 = complex(re[i], im[i]), complex(re[i + first], im[i + first])
                v2, v3 = complex(re[i + second], im[i + second]), complex(re[i + at[3]], im[i + at[3]])
                for k in range(4):
                    value = u[k, 0] * v0 + u[k, 1] * v1 + u[k, 2] * v2 + u[k, 3] * v3
                    re[i + at[k]], im[i + at[k]] = value.real, value.imag


@jit
def multiply(a, b, out):
    """2x2 product; `out` may be either of them."""
    p = a[0, 0] * b[0, 0] + a[0, 1] * b[1, 0]
    q = a[0, 0] * b[0, 1] + a[0, 1] * b[1, 1]
    r = a[1, 0] * b[0, 0] + a[1, 1] * b[1, 0]
    s = a[1, 0] * b[0, 1] + a[1, 1] * b[1, 1]
    out[0, 0], out[0, 1], out[1, 0], out[1, 1] = p, q, r, s


@jit
def run_items(psi, first, last, kinds, strides, unitaries, pairs):
    """Items first..last-1 without errors."""
    for i in range(first, last):
        if kinds[i] == BLOCK:
            apply_single(psi, strides[i, 0], unitaries[i])
        elif kinds[i] == CZ:
            apply_cz(psi, strides[i, 0], strides[i, 1])
        else:
            apply_pair(psi, strides[i, 0], strides[i, 1], pairs[i])


@jit
def reduced(psi, first, second, rho):
    """Density matrix of one qubit (second = 0) or two, given by their strides."""
    rho[:] = 0.0
    size = 2 if second == 0 else 4
    mask = first | second
    v = np.empty(4, np.complex128)
    re, im = psi[0], psi[1]
    for i in range(psi.shape[1]):
        if i & mask:
            continue
        v[0], v[1] = complex(re[i], im[i]), complex(re[i + first], im[i + first])
        if size == 4:
            v[2] = complex(re[i + second], im[i + second])
            v[3] = complex(re[i + first + second], im[i + first + second])
        for a in range(size):
            for b in range(size):
                rho[a, b] += v[a] * v[b].conjugate()
    return size


@jit
def act(psi, site, site_strides, site_krauses, krauses, dress, rho, kraus, back):
    """The rest channel of an error: one of its Kraus operators, by its probability in this state."""
    first, second = site_strides[site, 0], site_strides[site, 1]
    size = reduced(psi, first, second, rho)
    draw, weight = np.random.random(), 0.0
    for k in range(site_krauses[site, 0], site_krauses[site, 1]):
        for a in range(4):
            for b in range(4):
                kraus[a, b] = krauses[k, a, b]
        if size == 2:  # as it is seen after the gates that follow in its block: V K V^dagger
            v = dress[site]
            multiply(v, kraus, kraus)
            for a in range(2):
                for b in range(2):
                    back[a, b] = v[b, a].conjugate()
            multiply(kraus, back, kraus)
        p = 0.0
        for a in range(size):
            for b in range(size):
                for c in range(size):
                    p += (kraus[a, b] * rho[b, c] * kraus[a, c].conjugate()).real
        weight = p
        draw -= p
        if draw < 0.0:
            break
    for a in range(size):
        for b in range(size):
            kraus[a, b] /= np.sqrt(weight)
    if size == 2:
        apply_single(psi, first, kraus)
    else:
        apply_pair(psi, first, second, kraus)


@jit
def next_site(after, survival):
    """The next error of a shot behind site `after` (-1: the first one); the number of sites where there is none."""
    target = survival[after + 1] * np.random.random()
    low, high = after + 1, len(survival) - 1
    while low < high:  # the first k with survival[k + 1] <= target
        middle = (low + high) // 2
        if survival[middle + 1] <= target:
            high = middle
        else:
            low = middle + 1
    return low


@jit
def sample(psi, cumulative, shots, reads, flips, counts):
    """Outcomes of measured qubits, read-out errors included."""
    total = 0.0
    for i in range(psi.shape[1]):
        total += psi[0, i] * psi[0, i] + psi[1, i] * psi[1, i]
        cumulative[i] = total
    for _ in range(shots):
        point, state, high = np.random.random() * total, 0, psi.shape[1] - 1
        while state < high:  # the first whose cumulative sum is above the point
            middle = (state + high) // 2
            if cumulative[middle] > point:
                high = middle
            else:
                state = middle + 1
        read = 0
        for bit in range(len(reads)):
            value = (state >> reads[bit]) & 1
            if np.random.random() < flips[bit, value]:
                value = 1 - value
            read |= value << bit
        counts[read] += 1


@jit
def fuse(turns, gates, fixed, items, unitaries, dress):
    """Matrices of the blocks at one point, and for each error what of its block comes after it."""
    g = np.empty((2, 2), np.complex128)
    for i in range(len(items)):
        v = unitaries[i]
        v[0, 0], v[0, 1], v[1, 0], v[1, 1] = 1.0, 0.0, 0.0, 1.0
        for n in range(items[i, 1] - 1, items[i, 0] - 1, -1):
            if gates[n, 2] >= 0:
                w = dress[gates[n, 2]]
                w[0, 0], w[0, 1], w[1, 0], w[1, 1] = v[0, 0], v[0, 1], v[1, 0], v[1, 1]
            if gates[n, 0] >= 0:
                half = 0.5 * turns[gates[n, 0]]
                g[0, 0], g[0, 1] = np.cos(half) - 1j * np.sin(half), 0.0
                g[1, 0], g[1, 1] = 0.0, np.cos(half) + 1j * np.sin(half)
                multiply(v, g, v)
            else:
                multiply(v, fixed[gates[n, 1]], v)


@entry
def trajectories(
    turns, seeds, shots, qubits, kinds, strides, items, gates, fixed, pairs,
    item_sites, site_strides, site_krauses, krauses, survival, reads, flips, out,
):  # fmt: skip
    """Counts (M, 2^bits) at M points.

    Args:
        turns: (M, R) angles of the parametrised Z rotations, in radians.
        seeds: (M,) of each point.
        shots: of each point.
        qubits: n.
        kinds: (I,) of the items.
        strides: (I, 2) 2^qubit of an item's qubits.
        items: (I, 2) range of an item's gates.
        gates: (G, 3) number of a rotation or -1, of a fixed matrix or -1, of the error after it or -1.
        fixed: (F, 2, 2) matrices.
        pairs: (I, 4, 4) matrices of items of kind PAIR.
        item_sites: (I, 2) range of an item's errors.
        site_strides: (S, 2) 2^qubit; 0 in second place for errors of one qubit.
        site_krauses: (S, 2) range of an error's Kraus operators.
        krauses: (K, 4, 4).
        survival: (S + 1,) probability of no error before each site, and in all.
        reads: (bits,) qubit of each bit.
        flips: (bits, 2) probability that 0, 1 is misread.
        out: (M, 2^bits) int64, zeros.
    """
    size, sites = 2**qubits, len(survival) - 1
    clean, noisy = np.empty((2, size)), np.empty((2, size))
    cumulative = np.empty(size)
    unitaries, dress = np.empty((len(kinds), 2, 2), np.complex128), np.empty((sites, 2, 2), np.complex128)
    rho, kraus = np.empty((4, 4), np.complex128), np.empty((4, 4), np.complex128)
    back = np.empty((2, 2), np.complex128)
    starts = np.empty(sites + 1, np.int64)
    for m in range(len(turns)):
        np.random.seed(seeds[m])
        fuse(turns[m], gates, fixed, items, unitaries, dress)
        starts[:] = 0
        for _ in range(shots):
            starts[next_site(-1, survival)] += 1
        clean[:] = 0.0
        clean[0, 0] = 1.0
        for i in range(len(kinds)):
            run_items(clean, i, i + 1, kinds, strides, unitaries, pairs)
            for site in range(item_sites[i, 0], item_sites[i, 1]):
                for _ in range(starts[site]):
                    noisy[:] = clean
                    here, at = site, i
                    while here < sites:
                        while at < len(kinds) and item_sites[at, 1] <= here:
                            at += 1
                            run_items(noisy, at, at + 1, kinds, strides, unitaries, pairs)
                        act(noisy, here, site_strides, site_krauses, krauses, dress, rho, kraus, back)
                        here = next_site(here, survival)
                    run_items(noisy, at + 1, len(kinds), kinds, strides, unitaries, pairs)
                    sample(noisy, cumulative, 1, reads, flips, out[m])
        sample(clean, cumulative, starts[sites], reads, flips, out[m])


cache.install(trajectories)
