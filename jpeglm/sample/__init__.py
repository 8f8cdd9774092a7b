"""Completes and writes files by a trained model."""
