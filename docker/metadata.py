"""`python3 metadata.py`: what an installed llm-qfl tells of itself; `llm-qfl doctor` reads it."""

import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
lines = ["Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {project['version']}"]
lines += [f"Requires-Dist: {line}" for line in project["dependencies"]]
for extra, needed in project["optional-dependencies"].items():
    lines += [f"Provides-Extra: {extra}", *(f"Requires-Dist: {line}; extra == '{extra}'" for line in needed)]
folder = Path(f"llm_qfl-{project['version']}.dist-info")
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text("\n".join(lines) + "\n")
