"""Distances between sets of pictures or clips."""
