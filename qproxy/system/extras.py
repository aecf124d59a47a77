"""Commands that install the packages of an extra, in a form that works wherever qproxy came from."""

from __future__ import annotations

import re
import shlex
from importlib import metadata

_REQUIREMENT = re.compile(r"^(?P<requirement>[^;]++);.*\bextra\s*+==\s*+['\"](?P<extra>[\w-]++)['\"]")


def install_command(extra: str) -> str:
    """Return the command that installs an extra's packages.

    It names the packages rather than `qproxy[extra]`, which pip would look up in an index even if this qproxy
    was installed from a checkout or a wheel.
    """
    try:
        lines = metadata.requires("qproxy") or []
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        lines = []
    found = [
        match["requirement"].strip()
        for line in lines
        if (match := _REQUIREMENT.match(line)) and match["extra"] == extra
    ]
    return f"pip install {shlex.join(found or [f'.[{extra}]'])}"
