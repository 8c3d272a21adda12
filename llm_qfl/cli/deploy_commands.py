"""`llm-qfl deploy`: what an operator of a federation, or of one of its sites, does by hand or in a container."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_qfl.federation.errors import ConfigError

if TYPE_CHECKING:
    from llm_qfl.cli import deploy_nodes

app = typer.Typer(help="Certificates, node keys and registration of a deployment.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option("--folder", help="The deployment's folder (a site's own, for a site).")]
Days = Annotated[int, typer.Option("--days", help="Days that certificates are valid.", min=1)]
CaDays = Annotated[int, typer.Option("--ca-days", help="Days that the authority is valid.", min=1)]
Within = Annotated[int, typer.Option("--within", help="Renew what ends in so many days.", min=0)]
Address = Annotated[
    str,
    typer.Option("--superlink", metavar="HOST:PORT", help="The SuperLink itself, not its proxy.", show_default=False),
]
Ca = Annotated[
    Path | None, typer.Option("--ca", help="The authority's certificate; by default operator/ca.crt of the folder.")
]
Insecure = Annotated[bool, typer.Option("--insecure", help="No TLS: for a SuperLink on this machine.")]

HERE = Path("deploy")


@app.command()
def init(
    name: Annotated[list[str], typer.Option("--name", help="Host name or address of the SuperLink; repeat it.")],
    folder: Folder = HERE,
    proxy_name: Annotated[
        list[str] | None, typer.Option("--proxy-name", help="The same of the proxy that sites reach.")
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option("--site", metavar="NAME[=HOST]", help="A site on this machine too; HOST is its SuperNode's."),
    ] = None,
    days: Days = 397,
    ca_days: CaDays = 3650,
    within: Within = 30,
) -> None:
    """Make what the server needs: authority, certificates, secret. Again: only what is missing or ends soon."""
    from llm_qfl.cli import deploy_folders as folders

    terms = folders.Terms(days, ca_days, within)
    sites = dict(folders.parse_site(given) for given in site or [])
    _say(folders.init_server(folder, name, proxy_name or [], terms))
    for called, host in sites.items():
        _say(folders.init_site(folder / folders.SITES / called, called, [host], terms))
        _say(folders.offer(folder, called))
    _say(folders.trust(folder))
    typer.echo(f"{folder}: complete")


@app.command()
def site(
    name: Annotated[str, typer.Argument(help="The site's name.", show_default=False)],
    folder: Folder = HERE,
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="Where the site's executor reaches its SuperNode; by default 127.0.0.1."),
    ] = None,
    days: Days = 397,
    within: Within = 30,
) -> None:
    """Make, at a site, what it needs: node key, its own port's certificate, secret. Only node.pub leaves the site."""
    from llm_qfl.cli import deploy_folders as folders

    _say(folders.init_site(folder, name, host or ["127.0.0.1"], folders.Terms(days, within=within)))
    public = folder / folders.NODE / "node.pub"
    typer.echo(f"{folder}: complete; send {public} to the server's operator, who sends back ca.crt for both folders")


@app.command()
def renew(
    folder: Folder = HERE,
    days: Days = 397,
    ca_days: CaDays = 3650,
    within: Within = 30,
    force: Annotated[bool, typer.Option("--force", help="All certificates, whenever they end.")] = False,
    ca: Annotated[bool, typer.Option("--ca", help="A new authority beside the old one; certificates stay.")] = False,
) -> None:
    """Make certificates anew before they end; node keys, secrets and names stay. Restart what uses them."""
    from llm_qfl.cli import deploy_folders as folders

    terms = folders.Terms(days, ca_days, within, force)
    done = list(folders.renew_authority(folder, terms) if ca else folders.renew(folder, terms))
    _say(done or [f"{folder}: nothing ends within {within} days"])


@app.command()
def status(
    folder: Folder = HERE,
    within: Within = 30,
) -> None:
    """List the certificates and when they end; exit code 1 where one ends soon."""
    from llm_qfl.cli import deploy_folders as folders

    found = list(folders.held(folder))
    if not found:
        raise ConfigError(f"expected the folder of a deployment or of a site, got {folder}: there are no certificates")
    for one in found:
        mark = "" if one.days > within else "   <- ended" if one.days < 0 else "   <- soon"
        names = ", ".join(one.names) or "authority"
        typer.echo(f"{one.end:%Y-%m-%d}  {one.days:5d} days  {one.path.relative_to(folder)}  {names}{mark}")
    if any(one.days <= within for one in found):
        raise typer.Exit(1)


@app.command()
def register(
    superlink: Address,
    folder: Folder = HERE,
    ca: Ca = None,
    insecure: Insecure = False,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the SuperLink.")] = 60.0,
) -> None:
    """Let every site in operator/nodes (`<site>.pub`) take part; those that are known stay as they are."""
    from llm_qfl.cli import deploy_nodes

    link = _link(superlink, folder, ca, insecure=insecure)
    link.wait(wait)
    _say(deploy_nodes.register(link, folder / "operator" / "nodes"))


@app.command()
def revoke(
    site: Annotated[str, typer.Argument(help="The site's name.", show_default=False)],
    superlink: Address,
    folder: Folder = HERE,
    ca: Ca = None,
    insecure: Insecure = False,
) -> None:
    """Refuse a site from now on, for good: its key is never taken again."""
    from llm_qfl.cli import deploy_nodes

    typer.echo(deploy_nodes.revoke(_link(superlink, folder, ca, insecure=insecure), site, folder))


@app.command()
def nodes(
    superlink: Address,
    folder: Folder = HERE,
    ca: Ca = None,
    insecure: Insecure = False,
) -> None:
    """List the nodes that the SuperLink knows."""
    from llm_qfl.cli import deploy_nodes

    for node in deploy_nodes.nodes(_link(superlink, folder, ca, insecure=insecure)):
        typer.echo(f"{node.node_id:>20}  {node.status:12}  {node.name or '(no name)'}")


@app.command()
def submit(
    superlink: Address,
    folder: Folder = HERE,
    ca: Ca = None,
    insecure: Insecure = False,
    run_config: Annotated[
        list[str] | None,
        typer.Option("--run-config", "-c", help="As `flwr run -c` takes it; repeat it, the last word counts."),
    ] = None,
    output: Annotated[Path, typer.Option(help="The folder of runs as it is seen from here.")] = Path("runs"),
) -> None:
    """Submit the app, show its rounds, print the run folder last; the exit code says how the run ended."""
    from llm_qfl.cli.deploy_submit import submit_run

    code = submit_run(_link(superlink, folder, ca, insecure=insecure), run_config or [], output)
    if code:
        raise typer.Exit(code)


def _link(address: str, folder: Path, ca: Path | None, *, insecure: bool) -> deploy_nodes.SuperLink:
    from llm_qfl.cli.deploy_nodes import SuperLink

    if ":" not in address:
        raise ConfigError(f"--superlink: expected HOST:PORT, got {address!r}")
    if insecure:
        return SuperLink(address, None)
    trusted = ca or folder / "operator" / "ca.crt"
    if not trusted.is_file():
        raise ConfigError(f"expected the authority's certificate in {trusted}; name it with --ca, or use --insecure")
    return SuperLink(address, trusted)


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)
