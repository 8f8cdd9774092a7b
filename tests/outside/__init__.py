"""Kinds of another package: a codec, a tokenizer, a model and a method of tables."""
