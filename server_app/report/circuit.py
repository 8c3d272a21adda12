"""The circuit, drawn so that one sees which gates carry data and which are trained.

Own drawing, because Qiskit's (matplotlib) knows neither the page's colours nor that difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from server_app.report.charts import svg
from server_app.report.markup import Child, count, join, section, tag
from server_app.report.run import Run

if TYPE_CHECKING:
    from llm_qfl.quantum.drawing import Gate

ROW, GAP, LINE_WIDTH = 44.0, 10.0, 1080.0
FACTS = {"gates": "gates with weights (G)", "parameters": "parameters, readout included"}
MOST_GATES = 1500  # beyond, a drawing says nothing
NAME = {"rx": "RX", "ry": "RY", "rz": "RZ", "p": "P", "u": "U", "cz": "CZ", "cp": "CP", "sdg": "S†"}


def circuit_section(run: Run) -> Markup:
    """The circuit's figures and its drawing."""
    about = run.about.get("circuit") or {}
    facts: list[tuple[Child, Child]] = [(FACTS.get(key, key), _fact(value)) for key, value in about.items()]
    if run.about.get("gradient_cost") is not None:
        facts.append(("one gradient costs", f"{run.about['gradient_cost']:,} evaluations"))
    figures = tag("dl", *(tag("div", tag("dt", k), tag("dd", v)) for k, v in facts), class_="facts-list")
    path = run.folder / "model" / "circuit.qpy"
    drawing = tag("p", "The run left no circuit.", class_="empty") if not path.exists() else _drawing(path)
    return section("The circuit", figures, drawing, anchor="circuit")


def _drawing(path: Path) -> Markup:
    from llm_qfl.quantum.drawing import load_circuit, read_gate  # qiskit, for those who draw

    circuit = load_circuit(path)
    if len(circuit.data) > MOST_GATES:
        return tag("p", f"{len(circuit.data):,} gates are too many to draw; model/circuit.qpy holds them.")
    gates = [gate for item in circuit.data if (gate := read_gate(circuit, item)) is not None]
    words = f"{circuit.num_qubits} qubits, {len(gates)} gates: " + ", ".join(
        f"{n} {name}" for name, n in sorted(circuit.count_ops().items(), key=lambda item: -item[1])
    )
    keys = [("data", "row's features"), ("weight", "trained"), ("mixed", "features and trained"), ("fixed", "fixed")]
    there = {gate.kind for gate in gates}
    legend = join(tag("span", tag("i", class_=f"swatch g-{k}"), name) for k, name in keys if k in there)
    return tag(
        "figure",
        tag("figcaption", tag("span", legend, class_="legend")),
        tag("div", draw(circuit.num_qubits, gates, words), class_="scroll"),
    )


def draw(qubits: int, gates: Sequence[Gate], words: str) -> Markup:
    """Wires and gates, folded into lines of about the page's width."""
    layers = _layers(qubits, gates)
    lines: list[list[list[Gate]]] = [[]]
    used = 0.0
    for layer in layers:
        wide = max(g.width for g in layer) + GAP
        if used + wide > LINE_WIDTH - 60 and lines[-1]:
            lines.append([])
            used = 0.0
        lines[-1].append(layer)
        used += wide
    tall = qubits * ROW + 18
    parts: list[Child] = []
    widest = 0.0
    for place, line in enumerate(lines):
        drawn, width = _line(qubits, line)
        parts.append(tag("g", drawn, transform=f"translate(0 {place * tall:g})"))
        widest = max(widest, width)
    height = len(lines) * tall
    # Natural size on a wide page; on a narrow one it scrolls rather than shrinks to nothing.
    style = f"min-width:{min(widest, 620):.0f}px;max-width:{widest:.0f}px"
    return svg(join(parts), widest, height, words, class_="circuit", style=style)


def _layers(qubits: int, gates: Sequence[Gate]) -> list[list[Gate]]:
    free = [0] * qubits
    layers: list[list[Gate]] = []
    for gate in gates:
        span = range(min(gate.qubits), max(gate.qubits) + 1)
        at = max(free[q] for q in span)
        if at == len(layers):
            layers.append([])
        layers[at].append(gate)
        for q in span:
            free[q] = at + 1
    return layers


def _line(qubits: int, layers: Sequence[Sequence[Gate]]) -> tuple[Markup, float]:
    left = 38.0
    drawn: list[Child] = []
    for layer in layers:
        wide = max(gate.width for gate in layer)
        drawn += [_gate(gate, left + wide / 2) for gate in layer]
        left += wide + GAP
    wires = [tag("line", class_="wire", x1=30.0, x2=left, y1=_wire(q), y2=_wire(q)) for q in range(qubits)]
    names = [tag("text", f"q{q}", x=24.0, y=_wire(q) + 4, text_anchor="end") for q in range(qubits)]
    return join([*wires, *names, *drawn]), left + 4


def _wire(qubit: int) -> float:
    return 24 + qubit * ROW


def _gate(gate: Gate, middle: float) -> Markup:
    top, low = _wire(min(gate.qubits)), _wire(max(gate.qubits))
    if gate.name == "barrier":
        return tag("line", class_="barrier", x1=middle, x2=middle, y1=top - 18, y2=low + 18)
    if gate.name in ("cx", "cz"):
        control, target = (_wire(q) for q in gate.qubits)
        parts: list[Child] = [tag("line", class_="link", x1=middle, x2=middle, y1=control, y2=target)]
        parts.append(tag("circle", class_="control", cx=middle, cy=control, r=4.0))
        if gate.name == "cz":
            parts.append(tag("circle", class_="control", cx=middle, cy=target, r=4.0))
        else:
            parts.append(tag("circle", class_="target", cx=middle, cy=target, r=8.0))
            cross = f"M{middle - 8:g} {target:g}H{middle + 8:g}M{middle:g} {target - 8:g}V{target + 8:g}"
            parts.append(tag("path", class_="link", d=cross))
        return join(parts)
    box = {"x": middle - gate.width / 2, "y": top - 16, "width": gate.width, "height": low - top + 32}
    name = NAME.get(gate.name, gate.name.upper() if len(gate.name) < 3 else gate.name)
    center = (top + low) / 2
    words = tag("title", f"{name}({gate.text})") if gate.text else None
    parts = [tag("rect", words, class_=f"gate g-{gate.kind}", rx=4.0, **box)]
    parts.append(tag("text", name, x=middle, y=center + (-1 if gate.text else 4), text_anchor="middle", class_="name"))
    if gate.text:
        parts.append(tag("text", gate.label, x=middle, y=center + 11, text_anchor="middle", class_="angle"))
    if len(gate.qubits) > 1:
        parts += [tag("circle", class_="control", cx=middle - gate.width / 2, cy=_wire(q), r=2.5) for q in gate.qubits]
    return join(parts)


def _fact(value: object) -> Child:
    if isinstance(value, dict):
        return ", ".join(f"{n} {name}" for name, n in value.items())
    return count(value) if isinstance(value, int) else str(value)
