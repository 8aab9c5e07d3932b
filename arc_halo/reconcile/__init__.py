"""Desired against live: state, diff, plan, apply and their reports."""
