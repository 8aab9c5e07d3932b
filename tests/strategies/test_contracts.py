"""Our own strategies keep the contract that is shipped for everybody's."""

from __future__ import annotations

from arc_halo.strategies import linear, slerp
from arc_halo.testing import StrategyContract


class TestLinear(StrategyContract):
    strategy = next(linear.arc_halo_fusion_strategies())


class TestLinearWithoutNormalizing(StrategyContract):
    strategy = next(linear.arc_halo_fusion_strategies())
    params = {"normalize": False}  # noqa: RUF012
    has_fixed_point = False


class TestSlerp(StrategyContract):
    strategy = next(slerp.arc_halo_fusion_strategies())


class TestSlerpToOneSide(StrategyContract):
    strategy = next(slerp.arc_halo_fusion_strategies())
    params = {"t": 0.2}  # noqa: RUF012
    is_symmetric = False
