"""Bits of files under a model."""
