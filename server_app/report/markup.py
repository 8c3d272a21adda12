"""HTML and SVG without templates: `tag` escapes whatever is not markup already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

Child = str | int | None
DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
_VOID = frozenset({"br", "meta", "input"})


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Markup:
    """One element. `class_` is written `class`, other underscores become hyphens; an attribute of None is left out.

    Args:
        name: of the element.
        children: escaped, unless they are `Markup`.
        attributes: values are escaped and quoted.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is not None:
            text = _short(value) if isinstance(value, float) else str(escape(value))
            parts.append(f' {key.rstrip("_").replace("_", "-")}="{text}"')
    if name in _VOID:
        return Markup("".join(parts) + ">")
    inner = "".join(str(escape(child)) for child in children if child is not None)
    return Markup("".join(parts) + f">{inner}</{name}>")


def join(parts: Iterable[Child]) -> Markup:
    """Elements one after another."""
    return Markup("").join(escape(part) for part in parts if part is not None)


def table(heads: Sequence[Child], rows: Iterable[Sequence[Child]], *, numbers_from: int = 1, caption: str) -> Markup:
    """A table whose columns from `numbers_from` on are numbers (right aligned)."""

    def cell(kind: str, column: int, child: Child) -> Markup:
        scope = "col" if kind == "th" else None
        return tag(kind, child, class_="n" if column >= numbers_from else None, scope=scope)

    head = tag("thead", tag("tr", *(cell("th", i, h) for i, h in enumerate(heads))))
    body = tag("tbody", *(tag("tr", *(cell("td", i, c) for i, c in enumerate(row))) for row in rows))
    return tag("div", tag("table", tag("caption", caption), head, body), class_="scroll")


def section(title: str, *children: Child, anchor: str, lead: Child = None) -> Markup:
    """A section of the page, with an optional first paragraph."""
    heading = tag("h2", title)
    return tag("section", heading, None if lead is None else tag("p", lead, class_="lead"), *children, id=anchor)


def details(title: str, *children: Child) -> Markup:
    """Something to unfold; print unfolds it."""
    return tag("details", tag("summary", title), *children)


def number(value: float | None, digits: int = 3) -> str:
    """A number with that many decimals, or a dash for what is not known."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def count(value: int | None) -> str:
    """A whole number with thousands apart, or a dash."""
    return DASH if value is None else f"{value:,}"


def size(value: float | None) -> str:
    """Bytes in B, kB, MB, GB (powers of ten), or a dash."""
    if value is None:
        return DASH
    for limit, unit in ((1e3, "B"), (1e6, "kB"), (1e9, "MB")):
        if value < limit:
            return f"{value:.0f} B" if unit == "B" else f"{value / limit * 1e3:.3g} {unit}"
    return f"{value / 1e9:.3g} GB"


def duration(value: float | None) -> str:
    """Seconds, minutes or hours, or a dash."""
    if value is None:
        return DASH
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def plural(value: int, word: str) -> str:
    """`1 site`, `4 sites`."""
    return f"{value:,} {word}" + ("" if value == 1 else "s")


def listing(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([*([", ".join(words[:-1])] if len(words) > 1 else []), *words[-1:]])


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
