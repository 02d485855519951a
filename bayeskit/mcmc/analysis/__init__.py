"""Checks of samplers: Stein discrepancies and simulation-based calibration."""
