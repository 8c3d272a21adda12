"""Arms of the tweet tables, in the order in which they are run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

ROUNDS, STEPS = 5, 12
COMMON: dict[str, Any] = {"steps": STEPS, "every": 1, "dtype": "float32", "max_tokens": 100}
BATCH = {"classification": 16, "generation": 8}  # rows of a step: a written tweet costs logits at each of its tokens
ALIGN = {"align_first": 100, "align_every": 2, "align_steps": 10, "realign_rate": 2e-3}
GENTLY = {"realign_rate": 2e-4}  # the default: the first alignment's rate throws a converged emulator off

Kind = Literal["zero-shot", "federation", "control", "features"]


@dataclass(frozen=True)
class Arm:
    """A line of a table.

    Attributes:
        name: as printed and kept.
        kind: what is run.
        config: keys of the section `language` beside `COMMON`.
        public: text that the server aligns on.
        labels: are labels of the public texts used?
        calibrate: also score the full model after the label-free calibration on the server.
        once: run at seed 0 alone, unless it is asked for by name.
    """

    name: str
    kind: Kind = "federation"
    config: dict[str, Any] = field(default_factory=dict)
    public: Literal["related", "unrelated", "none"] = "none"
    labels: bool = False
    calibrate: bool = False
    once: bool = False


def _biot(name: str, public: Literal["related", "unrelated", "none"] = "related", **config: Any) -> Arm:
    """FedBiOT: aligned before the first round, and again after every second one."""
    if public == "none":
        config = {"align_first": 0, "align_every": 0, **config}
    presets = config.get("preset", "none") != "none"
    return Arm(name, config={**ALIGN, **config}, public=public, calibrate=public != "none" and not presets)


def _once(*arms: Arm) -> tuple[Arm, ...]:
    return tuple(replace(arm, once=True) for arm in arms)


TAIL = Arm("fedlora-tail", config={"method": "fedlora-tail"})
_FIRST = (
    Arm("zero-shot", "zero-shot"),
    TAIL,
    _biot("fedbiot .2 related", beta=0.2),
    _biot("fedbiot .5 related, 250 steps", beta=0.5, align_first=250),
)
_KL = {"align_every": 1, "align_steps": 10}
_REST = (
    _biot("fedot .2 related", beta=0.2, method="fedot"),
    # the preset `paper` is lambda .5 and eps .01, aligned again after every round
    _biot("paper .2 related", beta=0.2, preset="paper", **_KL),
    _biot("paper .5 related, 250 steps", beta=0.5, preset="paper", align_first=250, **_KL),
    _biot("fedbiot .2 unrelated", "unrelated", beta=0.2),
    _biot("fedbiot .2 none", "none", beta=0.2),
    _biot("fedbiot .5 related, 100 steps", beta=0.5),
    _biot("fedbiot .5 unrelated, 250 steps", "unrelated", beta=0.5, align_first=250),
    _biot("fedbiot .5 none", "none", beta=0.5),
    _biot("fedot .5 related, 250 steps", beta=0.5, method="fedot", align_first=250),
    _biot("offsite .2 related", beta=0.2, method="offsite"),
    _biot("local .2 related", beta=0.2, method="local"),
    _biot("released .2 related", beta=0.2, preset="released", align_every=1),
)
_GENTLE = (
    _biot("fedbiot .2 related, realigned at 2e-4", beta=0.2, **GENTLY),
    _biot("fedbiot .5 related, 250 steps, realigned at 2e-4", beta=0.5, align_first=250, **GENTLY),
)
# Towards 90 % at beta .2 and 75 % at .5.
_GOAL = _once(
    _biot("fedbiot .2 related, lambda 2, every round", beta=0.2, kl_weight=2.0, **_KL),
    _biot("fedbiot .5 related, 250 steps, lambda 2, every round", beta=0.5, kl_weight=2.0, align_first=250, **_KL),
    _biot("fedot .2 related, 300 steps, emulator rank 64", method="fedot", align_first=300, emulator_rank=64),
    _biot("fedot .5 related, 500 steps, emulator rank 64", beta=0.5, method="fedot", align_first=500, emulator_rank=64),
)
# The same with a longer calibration, which classification alone has.
_LONGER = _once(
    *(
        _biot(f"{name}, 200 calibration steps", method="fedot", calibrate_steps=200, **config)
        for name, config in (
            ("fedot .2 related", {"beta": 0.2}),
            ("fedot .5 related, 250 steps", {"beta": 0.5, "align_first": 250}),
            (
                "fedot .5 related, 500 steps, emulator rank 64",
                {"beta": 0.5, "align_first": 500, "emulator_rank": 64},
            ),
        )
    )
)
# What is varied is varied where alignment is done once, so that every line shares it.
_ABLATIONS = _once(
    *(
        _biot(f"fedot .2 related, {text}", beta=0.2, method="fedot", **config)
        for text, config in (
            ("eps 0", {"eps": 0.0}),
            ("eps .1", {"eps": 0.1}),
            ("eps 1", {"eps": 1.0}),
            ("25 steps", {"align_first": 25}),
            ("250 steps", {"align_first": 250}),
            ("lambda .1", {"kl_weight": 0.1}),
            ("lambda 1", {"kl_weight": 1.0}),
        )
    )
)
_ALL = Arm("fedlora-all", config={"method": "fedlora-all"})

CLASSIFICATION = (
    *_FIRST,
    Arm("control: tail on public rows", "control", TAIL.config, "related", labels=True),
    Arm("features, compressed .2 related", "features", {**ALIGN, "beta": 0.2}, "related"),
    Arm(
        "features, compressed .5 related, 250 steps", "features", {**ALIGN, "beta": 0.5, "align_first": 250}, "related"
    ),
    Arm("features, full model (clients do not hold it)", "features", {"method": "fedlora-tail"}),
    *_GOAL,
    *_LONGER,
    *_GENTLE,
    *_REST,
    *_ABLATIONS,
    _ALL,
)
GENERATION = (
    *_FIRST,
    Arm("control: tail on public rows", "control", TAIL.config, "related", labels=True),
    Arm("control: tail on public rows, classes drawn", "control", TAIL.config, "related"),
    _biot("fedbiot .5 none", "none", beta=0.5),
    _biot("fedbiot .2 none", "none", beta=0.2),
    *_GOAL[1:],
    *_GENTLE,
    *(arm for arm in _REST if arm.name not in ("fedbiot .2 none", "fedbiot .5 none")),
    _ALL,
)
TABLES = {"classification": CLASSIFICATION, "generation": GENERATION}
EARLY = 5
"""Arms of each table that the floors are judged by: they come first, at seed 0."""


def order(seeds: int, tables: tuple[str, ...], arms: set[str] | None) -> list[tuple[str, Arm, int]]:
    """Jobs: what the floors need at seed 0, then at the other seeds, then the rest, seed by seed.

    Args:
        seeds: how many.
        tables: which.
        arms: their names, or None for all.
    """
    jobs = []
    for part in (slice(0, EARLY), slice(EARLY, None)):
        for seed in range(seeds):
            for table in tables:
                asked = [arm for arm in TABLES[table][part] if arms is None or arm.name in arms]
                jobs += [(table, arm, seed) for arm in asked if seed == 0 or arms is not None or not arm.once]
    return jobs
