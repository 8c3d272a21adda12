"""What was decided in every round, why it was allowed, and what the ratio rule had done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from markupsafe import Markup

from agent.budgets import StepCost
from agent.words import choices, steps_of, told
from server_app.report.charts import Line, line_chart
from server_app.report.markup import DASH, Child, count, details, number, plural, section, signed, table, tag
from server_app.report.rounds import legend
from server_app.report.run import Json, Run

MOST = 1000
FIRED = {"grew": "raised", "shrank": "lowered", "held": "left"}


def decisions_section(run: Run) -> Markup:
    """Everything about the decisions; one sentence where all rounds were alike."""
    found: Json = run.summary.get("policy") or {}
    if not run.decisions or not found:
        text = "Nothing was decided: all rounds were alike (agent.mode qfl)."
        if str(run.summary.get("mode", "qfl")) != "qfl":
            text = "The run left no decisions: it ended before its first round closed."
        return section("Decisions", tag("p", text), anchor="decisions")
    cost = step_cost(run)
    parts: list[Child] = [
        tag("p", _verdict(run, found), class_="verdict"),
        tag("p", _fired(run, found), class_="note"),
        _charts(run, cost),
        tag("div", _table(run, cost), class_="backends"),
        _choices(run, found),
        _rules(found),
        _masks(run),
        details("Both losses, by round and site", _losses(run)),
    ]
    return section("Decisions", *parts, anchor="decisions", lead=_lead(run))


def step_cost(run: Run) -> StepCost:
    """What an optimizer step of the run costs."""
    parameters = int((run.about.get("circuit") or {}).get("parameters") or 0)
    return StepCost.of(str(_key(run, "training.optimizer")), int(run.about["gradient_cost"]), parameters)


def _lead(run: Run) -> str:
    mode = str(run.summary.get("mode"))
    who = {
        "policy": "Before each round a language model scores a small set of actions from numbers of the closed rounds; "
        "a shield masks what may not be, and the ratio rule decides where the model may not.",
        "llm-qfl-all": "Before each round a rule sets every site's local budget; all sites train.",
        "llm-qfl-selected": "Before each round a rule sets every site's local budget, and some of the sites train.",
    }.get(mode, "")
    return (
        f"Mode {mode}. {who} The ratio rule compares a site's quantum model (F) with its own language model (L), both "
        "cross-entropies in nats on the same validation rows."
    )


def _verdict(run: Run, found: Json) -> str:
    if run.summary.get("mode") != "policy":
        return f"The rule {found['rule']} decided all {plural(found['decisions'], 'round')}."
    asked, fallen = int(found["with_history"]), int(found["fallbacks"])
    reasons = ", ".join(f"{reason} {n}" for reason, n in found["reasons"].items())
    if found["kind"] == "policy":
        rest = f"the ratio rule took the other {fallen} ({reasons})" if fallen else "the ratio rule took none"
        return f"The language model decided {asked - fallen} of the {asked} rounds that had a history; {rest}."
    limit = float(str(_key(run, "agent.max-fallback") or 0.2))
    return (
        f"This counts as a run of the ratio rule, not of the language model: the rule took {fallen} of the {asked} "
        f"rounds that had a history ({reasons or 'the policy decided none'}), more than {limit:.0%}."
    )


def _fired(run: Run, found: Json) -> str:
    fired: Json = found["rule_fired"]
    behind = found["kind"] == "policy"
    text = (
        f"The rule {found['rule']} {'would have ' if behind else ''}raised a budget in {fired['grew']:.0%} and lowered "
        f"one in {fired['shrank']:.0%} of the {plural(fired['rounds'], 'closed round')}"
        f"{', each time from what the policy had chosen' if behind else ''}."
    )
    if fired["inert"]:
        text += (
            " It is inert here: no quantum model ever was so much worse than its site's language model that the rule "
            "could spend more. What such a run saves, any smaller fixed budget saves; it is no win of the rule."
        )
    return text


def _charts(run: Run, cost: StepCost) -> Markup:
    def points(of: str, what: Callable[[Json], float | None]) -> list[tuple[float, float | None]]:
        return [(int(line["round"]), what(line[of]) if line[of] else None) for line in run.decisions]

    def steps(plan: Json) -> float | None:
        found = steps_of(plan, cost)
        return float(median(found)) if found else None

    def sites(plan: Json) -> float | None:
        return float(len(plan["sites"])) if plan["stop"] is None else None

    figures = []
    for title, what in (("Local steps (median over the sites)", steps), ("Sites that train", sites)):
        lines = [Line("this run", "qnn", points("plan", what))]
        if run.summary.get("mode") == "policy":
            lines.append(Line("the ratio rule", "received", points("rule", what)))
        chart = line_chart(lines, label=f"{title} by round; last {number(lines[0].last, 0)}", x_label="round", base=0.0)
        figures.append(tag("figure", tag("figcaption", tag("b", title), legend(lines, 0)), chart))
    return tag("div", *figures, class_="two")


def _table(run: Run, cost: StepCost) -> Markup:
    closed = {int(line["round"]): line for line in run.rounds}
    policy = run.summary.get("mode") == "policy"
    rewards = {line["reward_of_round"]: line["reward"] for line in run.decisions if line["reward"] is not None}
    rows: list[list[Child]] = []
    for line in run.decisions[:MOST]:
        words, after = told(line, cost), closed.get(int(line["round"]), {})
        reward = rewards.get(line["round"])
        row: list[Child] = [int(line["round"]), words.by, words.did, words.why or DASH]
        row += [words.rule or DASH] if policy else []
        row += [_median([client.get("trained_loss") for client in after.get("clients", [])])]
        row += [_median(list((after.get("language_losses") or {}).values()))]
        row += [DASH if reward is None else signed(reward), number(line["milliseconds"], 0)] if policy else []
        rows.append(row)
    heads: list[Child] = ["Round", "By", "What it did", "Why it was allowed"]
    heads += ["The ratio rule"] if policy else []
    heads += ["F", "L", *(["Reward", "ms"] if policy else [])]
    caption = "One line a decision, as in decisions.jsonl; F and L: medians over the round's sites, nats, after it"
    return table(heads, rows, numbers_from=5 if policy else 4, caption=caption)


def _choices(run: Run, found: Json) -> Markup | None:
    """The policy's options with their probabilities."""
    asked = [line for line in run.decisions if line["probabilities"]]
    if not asked:
        return None
    names = list(asked[0]["probabilities"])
    rows: list[list[Child]] = [
        [int(line["round"]), *(choices(line).get(name, DASH) for name in names)] for line in asked[:MOST]
    ]
    information: Mapping[str, float] = found.get("mutual_information") or {}
    words = ", ".join(f"{name} {number(value)}" for name, value in information.items())
    note = f"Mutual information of state and option among equal masks, nats (0: the same whatever the state): {words}."
    caption = "The policy's options with their probabilities; where the rule took over, the most probable ones"
    heads: list[Child] = ["Round", *names]
    return details(
        "What the policy chose", table(heads, rows, numbers_from=9, caption=caption), tag("p", note, class_="note")
    )


def _rules(found: Json) -> Markup | None:
    """How often each of the five rules would have fired on the losses of this run."""
    fired: Mapping[str, Json] = found.get("rules_fired") or {}
    if not fired:
        return None
    rows: list[list[Child]] = [[rule, f"{one['grew']:.0%}", f"{one['shrank']:.0%}"] for rule, one in fired.items()]
    caption = (
        "Share of the closed rounds in which a rule would have changed any site's budget, given these losses and its "
        "own budgets from the first round on; one that stands at its limit moves no further"
    )
    heads: list[Child] = ["Rule", "Raised", "Lowered"]
    return details("What each rule makes of these losses", table(heads, rows, caption=caption))


def _masks(run: Run) -> Markup | None:
    """Options that were not allowed, with the rounds and the reason."""
    found: dict[tuple[str, str], list[int]] = {}
    for line in run.decisions:
        for option, why in line["masked"].items():
            found.setdefault((str(option), str(why)), []).append(int(line["round"]))
    if not found:
        return None
    rows: list[list[Child]] = [[o, why, count(len(at)), f"{at[0]} to {at[-1]}"] for (o, why), at in found.items()]
    heads: list[Child] = ["Option", "Why not", "Rounds", "From"]
    return details("What was masked", table(heads, rows[:MOST], numbers_from=2, caption="Masked options"))


def _losses(run: Run) -> Markup:
    """F_i, L_i and what the rule made of them, by round and site."""
    rows: list[list[Child]] = []
    for line in run.rounds:
        teachers, regulated = line.get("language_losses") or {}, line.get("regulated") or {}
        for client in line["clients"]:
            site = str(client["site"])
            own, teacher = client.get("trained_loss"), teachers.get(site)
            ratio = own / teacher if own is not None and teacher else None
            fired = FIRED.get(str(regulated.get(site)), DASH)
            weight = (line["plan"] or {}).get("distill_weight")
            rows.append(
                [int(line["round"]), site, number(own), number(teacher), number(ratio, 2), fired, number(weight, 1)]
            )
    heads: list[Child] = ["Round", "Site", "F", "L", "F / L", "Budget", "Lambda"]
    caption = "Both losses on the site's validation rows (nats), and what the ratio rule makes of the budget"
    return table(heads, rows[:MOST], numbers_from=2, caption=caption)


def _median(losses: Sequence[float | None]) -> str:
    known = [loss for loss in losses if loss is not None]
    return number(float(median(known)) if known else None)


def _key(run: Run, key: str) -> object:
    return (run.about.get("config") or {}).get(key)
