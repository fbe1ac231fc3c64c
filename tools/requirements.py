"""Print what pyproject.toml requires, one a line: for "build", or for an extra."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(__file__).parent.parent.joinpath("pyproject.toml").read_text())
extras = project["project"]["optional-dependencies"]
print("\n".join({"build": project["build-system"]["requires"], **extras}[sys.argv[1]]))
