"""Judging trajectories: scores with intervals, an offline report to read episodes in, and figures."""
