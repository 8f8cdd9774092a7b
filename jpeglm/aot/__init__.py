"""Compiles training and sampling for machines that are not available, and reports memory and time."""
