"""Converts weights and runs from and to other formats."""
