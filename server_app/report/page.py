"""The whole page: a list of sections, a style, a few lines of script; nothing from outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from server_app.report import circuit, decisions, headline, language, privacy, provenance, rounds, sites
from server_app.report.markup import join, tag
from server_app.report.run import Run
from server_app.report.style import SCRIPT, STYLE

Section = Callable[[Run], Markup]

# In the order of the page; later parts of the product add theirs.
SECTIONS: Sequence[tuple[str, str, Section]] = (
    ("buys", "Result", headline.comparison),
    ("cost", "Cost", headline.costs),
    ("rounds", "Rounds", rounds.curves),
    ("language", "Language model", language.language_section),
    ("decisions", "Decisions", decisions.decisions_section),
    ("data", "Rows", sites.rows_and_classes),
    ("sites", "Sites", sites.learning),
    ("spending", "Cost by round", rounds.spending),
    ("replies", "Replies", rounds.replies),
    ("privacy", "Privacy", privacy.privacy_section),
    ("circuit", "Circuit", circuit.circuit_section),
    ("reproduce", "Do it again", provenance.reproduce),
    ("configuration", "Configuration", provenance.configuration),
    ("provenance", "Versions", provenance.provenance),
    ("glossary", "Words", provenance.glossary),
)


def render_page(run: Run) -> str:
    """The page as HTML text."""
    title = f"{run.summary.get('dataset')}, {run.summary.get('run_id')}: federated QNN"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # The page loads nothing, and says so to the browser.
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    links = (tag("a", name, href=f"#{anchor}") + " " for anchor, name, _ in SECTIONS)
    body = tag(
        "body",
        headline.head(run),
        tag("nav", *links, aria_label="Sections"),
        tag("main", join(show(run) for _, _, show in SECTIONS)),
        tag("footer", "Made by llm-qfl from the run folder alone; this page loads nothing from elsewhere."),
        tag("script", Markup(SCRIPT)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
