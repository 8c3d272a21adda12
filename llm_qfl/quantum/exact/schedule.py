"""Elementary gates into layers that commute inside.

Two kinds of layers: a *group* layer holds 2x2 groups on independent (virtual) qubits, a *phase* layer holds
diagonal factors `exp(-i angle/2 (-1)^parity(z & row))`. An item moves to the earliest layer that it can reach by
commutation, so that runs on one qubit fuse into one group. What depends on a weight never enters a layer that depends
on none: the layers before the first weight are the *encoding*, whose states can be kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llm_qfl.quantum.exact.expressions import Polynomial, scaled
from llm_qfl.quantum.exact.frame import Frame, parity

X, Y, Z = 0, 1, 2
QUATERNION = NDArray[np.float64]


@dataclass
class Rotation:
    """`exp(-i angle/2 sigma_axis)`."""

    axis: int
    angle: Polynomial


@dataclass
class Fixed:
    """`q0 - i (q1 X + q2 Y + q3 Z)`."""

    quaternion: QUATERNION


@dataclass
class Group:
    """A run of 2x2 factors on the virtual qubit (x, z), first factor first."""

    x: int
    z: int
    factors: list[Rotation | Fixed]

    def commutes(self, x: int, z: int) -> bool:
        """Is (x, z) another, independent virtual qubit?"""
        return not parity(self.x & z) and not parity(x & self.z)


@dataclass
class Phase:
    """A diagonal factor."""

    z: int
    angle: Polynomial


@dataclass
class Layer:
    """Items that commute with each other."""

    weighted: bool
    groups: list[Group] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)


class Schedule:
    """Takes elementary gates in circuit order, holds the layers.

    Args:
        num_qubits: qubits of the circuit.
        num_weights: values 1 to `num_weights` of a polynomial are weights.
        weighted_values: further values (functions) that depend on a weight; may grow while gates are added.
    """

    def __init__(self, num_qubits: int, num_weights: int, weighted_values: set[int]) -> None:
        self.frame = Frame(num_qubits)
        self.layers: list[Layer] = []
        self._num_weights = num_weights
        self._weighted_values = weighted_values

    def is_weighted(self, angle: Polynomial) -> bool:
        """Does the angle depend on a weight?"""
        return any(1 <= v <= self._num_weights or v in self._weighted_values for key in angle for v in key)

    def rotation(self, axis: int, qubit: int, angle: Polynomial) -> None:
        """RX, RY or RZ."""
        if axis == Z:
            self.phase((qubit,), angle)
            return
        sign = -1.0 if axis == Y and self.frame.flipped[qubit] else 1.0
        self._add_factor(qubit, Rotation(axis, scaled(angle, sign)), self.is_weighted(angle))

    def fixed(self, qubit: int, quaternion: QUATERNION) -> None:
        """A constant SU(2) gate."""
        signs = np.array([1.0, 1.0, -1.0, -1.0]) if self.frame.flipped[qubit] else np.ones(4)
        self._add_factor(qubit, Fixed(quaternion * signs), False)

    def phase(self, qubits: tuple[int, ...], angle: Polynomial) -> None:
        """`exp(-i angle/2 Z...Z)` on the qubits."""
        z = flipped = 0
        for q in qubits:
            z ^= self.frame.z[q]
            flipped ^= self.frame.flipped[q]
        self._add_phase(Phase(z, scaled(angle, -1.0 if flipped else 1.0)), self.is_weighted(angle))

    def _add_factor(self, qubit: int, factor: Rotation | Fixed, weighted: bool) -> None:
        x, z = self.frame.x[qubit], self.frame.z[qubit]
        group, home, stop = Group(x, z, []), None, len(self.layers)
        while stop > 0:
            layer = self.layers[stop - 1]
            if weighted and not layer.weighted:
                break
            same = next((g for g in layer.groups if g.x == x and g.z == z), None)
            if same is not None:
                same.factors += [*group.factors, factor]
                return
            if not all(g.commutes(x, z) for g in layer.groups):
                break
            clash = [p for p in layer.phases if parity(x & p.z)]
            own = [p for p in clash if p.z == z]
            for phase in own:
                layer.phases.remove(phase)
            group.factors = [*(Rotation(Z, phase.angle) for phase in own), *group.factors]
            weighted = weighted or any(self.is_weighted(p.angle) for p in own)
            if len(own) < len(clash):
                break
            stop -= 1
            home = layer if layer.groups else home
        group.factors.append(factor)
        self._place(home, stop, weighted).groups.append(group)
        self.layers = [layer for layer in self.layers if layer.groups or layer.phases]

    def _add_phase(self, phase: Phase, weighted: bool) -> None:
        home, stop = None, len(self.layers)
        while stop > 0:
            layer = self.layers[stop - 1]
            if weighted and not layer.weighted:
                break
            same = next((g for g in layer.groups if g.z == phase.z), None)
            if same is not None:
                same.factors.append(Rotation(Z, phase.angle))
                return
            if any(parity(g.x & phase.z) for g in layer.groups):
                break
            stop -= 1
            home = layer if layer.phases else home
        self._place(home, stop, weighted).phases.append(phase)

    def _place(self, home: Layer | None, stop: int, weighted: bool) -> Layer:
        if home is None:
            # Behind the first weight there is no encoding to protect: later items may fuse.
            home = Layer(weighted or any(layer.weighted for layer in self.layers[:stop]))
            self.layers.insert(stop, home)
        return home
