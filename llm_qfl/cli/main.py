"""`llm-qfl` for a person. Every command imports what it needs when it runs: `--help` is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import click
import typer
from typer.core import TyperGroup

from llm_qfl.cli import deploy_commands, policy
from llm_qfl.federation.errors import LlmQflError


class Commands(TyperGroup):
    """Errors that are raised on purpose become one message and exit code 2; others keep their traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """See click.Group."""
        try:
            return super().invoke(ctx)
        except LlmQflError as error:
            typer.echo(f"llm-qfl: {error}", err=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    name="llm-qfl",
    cls=Commands,
    help="Federated quantum neural networks on Flower.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(deploy_commands.app, name="deploy", rich_help_panel="Deployment")
app.add_typer(policy.app, name="policy")

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--run-config", "-c", help="Keys as `flwr run -c` takes them: 'quantum.layers=4 server.rounds=10'."),
]

Base = Annotated[
    str | None,
    typer.Option("--base", help="Folder, hub id or name of the base language model; by default the run's."),
]


def _version(asked: bool) -> None:
    if asked:
        from llm_qfl import __version__

        typer.echo(f"llm-qfl {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Federated quantum neural networks on Flower."""
    del version  # its callback has ended the program


@app.command()
def predict(
    run: RunFolder,
    data: Annotated[Path, typer.Argument(help="CSV with the run's columns; others are not read.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; standard output by default.")
    ] = None,
    model: Annotated[
        Literal["qnn", "language"],
        typer.Option("--with", help="The QNN, or the full language model with the run's adapter."),
    ] = "qnn",
    base: Base = None,
    flat_prior: Annotated[
        bool,
        typer.Option(
            "--flat-prior",
            help="With the language model: divide out what it says whatever the text, as measured on public text.",
        ),
    ] = False,
) -> None:
    """Predict classes and probabilities for the rows of a CSV, from the run folder (and the base language model)."""
    from llm_qfl.cli.predict import predict_csv, write_text

    text = predict_csv(run, data, model=model, base=base, flat_prior=flat_prior)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)
        typer.echo(str(output))


@app.command()
def report(run: RunFolder) -> None:
    """Render a run's report.html again."""
    from server_app.report import write_report

    typer.echo(str(write_report(run)))


@app.command()
def export(
    run: RunFolder,
    merge: Annotated[
        bool, typer.Option("--merge", help="Write the full model with the adapter in its weights, not the PEFT folder.")
    ] = False,
    to: Annotated[
        Path | None, typer.Option("--to", help="Folder to make; by default RUN-adapter or RUN-merged, here.")
    ] = None,
    base: Base = None,
) -> None:
    """Write a run's language adapter as a PEFT folder, or merged into the full model; checked against its base."""
    from llm_qfl.cli.export import export_run

    typer.echo(str(export_run(run, merge=merge, to=to, base=base)))


@app.command()
def tune(
    sites: Annotated[int, typer.Option(help="Simulated sites.", min=1)] = 4,
    trials: Annotated[
        int, typer.Option(help="Federations to run; the first is the configuration as given.", min=1)
    ] = 20,
    run_config: Overrides = None,
    search: Annotated[
        list[str] | None, typer.Option("--search", help="Key to search; repeat it. By default all that suit.")
    ] = None,
) -> None:
    """Search depth, readout, step size, steps and regularisation on validation rows; test rows stay untouched."""
    from llm_qfl.cli.tune import run_tuning

    run_tuning(run_config or [], sites=sites, trials=trials, search=search, say=typer.echo)


@app.command()
def doctor(
    node_config: Annotated[
        str, typer.Option("--node-config", help='As `flower-supernode` takes it: \'site="a" data-path="rows.csv"\'.')
    ] = "",
    run_config: Annotated[
        list[str] | None,
        typer.Option("--config", "--run-config", "-c", help="As `flwr run -c` takes it: 'quantum.backend=\"aer\"'."),
    ] = None,
    superlink: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Is it reached from here?", show_default=False)
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Ask nobody outside this machine.")] = False,
    keys: Annotated[
        Path | None,
        typer.Option(help="Folder of certificates and secrets; by default /pki, or deploy/ here.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Check this machine as a site: user, packages, disk, keys, rows, backend, account, QPU budget, with what to do."""
    from rich.console import Console

    from llm_qfl.cli.doctor import run

    checks = list(run.run_checks(node_config, run_config or [], superlink=superlink, offline=offline, keys=keys))
    if as_json:
        typer.echo(run.as_json(checks))
    else:
        run.show(checks, Console())
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)


@app.command()
def jobs(
    folder: Annotated[
        Path | None, typer.Argument(help="The site's folder; by default the node's own.", show_default=False)
    ] = None,
    again: Annotated[
        str | None, typer.Option(metavar="KEY", help="Let this failed job be submitted again.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List the site's IBM Quantum jobs, their QPU seconds, and those that need a person."""
    from rich.console import Console

    from llm_qfl.cli import jobs as ledger

    place = ledger.jobs_folder(folder)
    if again is not None:
        entry = ledger.run_again(place, again)
        typer.echo(
            f"{entry.intent.key}: attempt {entry.attempt + 1} is submitted when its run asks for it next; "
            f"{entry.previous_seconds:.1f} s were paid or estimated for what went before",
            err=as_json,
        )
        if not as_json:
            return
    found, damaged = ledger.read_jobs(place)
    if as_json:
        typer.echo(ledger.as_json(found, damaged))
    else:
        ledger.show(place, found, damaged, Console())
    if damaged:
        raise typer.Exit(1)


@app.command()
def prune(
    folder: Annotated[
        Path | None, typer.Argument(help="The folder of run folders; by default runs/ here.", show_default=False)
    ] = None,
    keep: Annotated[int | None, typer.Option(metavar="N", help="The newest N stay.", min=0, show_default=False)] = None,
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", help="What changed later stays.", min=0, show_default=False)
    ] = None,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also runs that were interrupted and could go on.")
    ] = False,
    models: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also compressed models: FLWR_HOME/llm-qfl/models.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing, say what would go.")] = False,
) -> None:
    """Delete old run folders, launch logs, models; of each it says why it goes or stays. Never a run under way."""
    from rich.console import Console

    from llm_qfl.cli import prune as pruning
    from llm_qfl.federation.settings import project_folder

    terms = pruning.Terms(keep, older_than, unfinished)
    runs, logs = folder or project_folder() / "runs", pruning.launch_logs(project_folder())
    if folder is not None:
        entries = pruning.plan(folder, None, terms, models=models)
    else:
        entries = pruning.plan(runs if runs.is_dir() or models is None else None, logs, terms, models=models)
    console = Console()
    pruning.show(entries, console, dry_run=dry_run)
    failed = [] if dry_run else pruning.remove_all(entries)
    for problem in failed:
        typer.echo(f"llm-qfl: {problem}", err=True)
    if failed:
        raise typer.Exit(1)


@app.command("config-table")
def config_table(
    write: Annotated[bool, typer.Option("--write", help="Write the table; without it, compare.")] = False,
    pyproject: Annotated[Path, typer.Option(help="The file.")] = Path("pyproject.toml"),
) -> None:
    """Compare or write the run-config table of pyproject.toml, whose one source is RunConfig."""
    from llm_qfl.cli.config_table import check_table, write_table

    if write:
        write_table(pyproject)
        typer.echo(f"{pyproject}: written")
        return
    check_table(pyproject)
    typer.echo(f"{pyproject}: equal to RunConfig")


if __name__ == "__main__":
    app()
