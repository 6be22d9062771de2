"""Print the lowest version of each package that setup.cfg allows, as constraints of pip: `make test-lowest`."""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.cfg"


def lowest_versions() -> list[str]:
    """`name==version` of what fastcifar and its optional parts require, but for the tools of `dev`."""
    config = configparser.ConfigParser()
    config.read(SETUP, encoding="utf-8")
    extras = config["options.extras_require"]
    lists = [config["options"]["install_requires"], *(extras[name] for name in extras if name != "dev")]
    lines = {line.partition(",")[0] for text in lists for line in text.split() if ">=" in line}
    return sorted(line.replace(">=", "==") for line in lines)


if __name__ == "__main__":
    sys.stdout.write("".join(f"{line}\n" for line in lowest_versions()))
