"""An example plugin: what was applied is written down, one line of JSON an apply.

A project loads it by naming the file in its `arc_halo.yaml`:

    plugins: [plugins/announce.py]

and whoever applies sets ARC_HALO_ANNOUNCE to the file that the lines go to. A chat or a tracker
would be told in the same way.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from arc_halo import hookimpl


@hookimpl
def arc_halo_after_apply(report):
    """Append the revision, and what it changed."""
    if not (path := os.environ.get("ARC_HALO_ANNOUNCE")):
        return
    line = {
        "project": report["project"],
        "revision": report["revision"],
        "changed": [each["address"] for each in report["resource_changes"]],
    }
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
