"""Scores, calibration and the report."""
