"""Codecs, tokenizers, sources, records and batches. No JAX."""
