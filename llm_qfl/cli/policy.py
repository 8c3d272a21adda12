"""`llm-qfl policy`: train the language model that decides, judge it, replay what it decided in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="The language model as policy: train it, judge it, replay a run's decisions.",
    no_args_is_help=True,
    add_completion=False,
)

Folder = Annotated[Path, typer.Option("--folder", help="Keeps all that is done; the command goes on from there.")]
Minutes = Annotated[float, typer.Option(help="Ends the slice after so many minutes.", min=0.0)]
Policy = Annotated[Path | None, typer.Option("--policy", help="A policy file; by default the app's own.")]


@app.command()
def train(
    folder: Folder = Path("policy-training"),
    output: Annotated[Path, typer.Option("--output", "-o", help="The policy file.")] = Path("policy.json"),
    model: Annotated[str, typer.Option(help="Base language model, as language.model takes it.")] = "smollm2-135m",
    federations: Annotated[int, typer.Option(help="Federations to learn from.", min=1)] = 200,
    epochs: Annotated[int, typer.Option(help="Passes of the cloning.", min=1)] = 6,
    groups: Annotated[int, typer.Option(help="Groups of the policy gradient; 0 leaves the clone.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Of all draws.", min=0)] = 0,
    minutes: Minutes = 1e9,
) -> None:
    """Train a policy in simulated federations: clone what was cheapest there, then the policy gradient."""
    from llm_qfl.cli.policy_work import train_policy
    from simulation.policy_learning import Recipe

    recipe = Recipe(model=model, federations=federations, epochs=epochs, groups=groups, seed=seed)
    train_policy(folder, recipe, output, minutes=minutes, say=typer.echo)


@app.command()
def evaluate(
    policy: Policy = None,
    folder: Folder = Path("policy-training"),
    federations: Annotated[int, typer.Option(help="Held-out federations.", min=1)] = 20,
    minutes: Minutes = 1e9,
) -> None:
    """Play a policy in federations that it never saw, at three price lists, beside static settings."""
    from llm_qfl.cli.policy_work import evaluate_policy

    evaluate_policy(policy, folder, federations, minutes=minutes, say=typer.echo)


@app.command()
def replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)],
    policy: Policy = None,
) -> None:
    """Ask a policy again in every state of a run, and compare with what is in decisions.jsonl."""
    from llm_qfl.cli.policy_work import replay_run

    if not replay_run(run, policy, say=typer.echo):
        raise typer.Exit(1)
