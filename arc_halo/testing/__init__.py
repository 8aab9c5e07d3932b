"""Contract suites for plugin authors: subclass one in your tests, and pytest runs it.

They need the extra `arc-halo[test]`.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("arc_halo.testing.codecs", "arc_halo.testing.strategies")

from arc_halo.testing.codecs import CodecContract, golden_digests, write_golden  # noqa: E402
from arc_halo.testing.strategies import StrategyContract  # noqa: E402

__all__ = ["CodecContract", "StrategyContract", "golden_digests", "write_golden"]
