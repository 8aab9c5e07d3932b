"""The codec `plugin_name` keeps the contract of codecs, and writes what it always wrote."""

from __future__ import annotations

from pathlib import Path

from arc_halo.plugins import PluginManager
from arc_halo.testing import CodecContract

FILE = Path(__file__).parents[1] / "plugins" / "plugin_name.py"
LOADED = PluginManager.load({"plugins/plugin_name.py": FILE})

# The SHA-256 of what is made of some samples, None where it does not pay. Once chunks are stored by
# the codec, these stay as they are. While you still change it, `golden_digests` of arc_halo.testing
# gives the new ones.
GOLDEN = {
    "zeros": "7bd06c5310b4f9095c54e69017eda1f558ac0df2218d6706e13ddd9bc79f1bb3",
    "clean": "a10a6c6776c5a231faa8406fdfbb61616ce10cfacd53332a707efb58abcd3517",
    "noise": None,
}


class TestPluginName(CodecContract):
    """Round trips, damage, memory, threads and more, each as a test."""

    codec = LOADED.codec("plugin_name")
    golden = GOLDEN
