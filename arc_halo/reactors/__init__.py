"""Reactors that run: members asked, their answers fused, and what happened recorded."""
