"""Sampling: completes files, or writes new ones, with a trained model."""
