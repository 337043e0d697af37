"""Comparing score files: intervals, significance, leaderboards."""
