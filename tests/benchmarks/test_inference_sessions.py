"""The benchmark of sessions, tiny: all is there, and is what numpy says."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import inference_sessions  # noqa: E402
import tensor_site  # noqa: E402


def test_no_request_is_missing_and_percentiles_are_numpys(tmp_path):
    with tensor_site.site(tmp_path) as at:
        rows = list(inference_sessions.sessions(at, at.create_database("sessions"), 1000))
    assert [row.is_met for row in rows[1:]] == [True, True]
