"""Hugging Face directories that the tests of imports share."""

import pytest

from tests.convert import llamas


@pytest.fixture(scope="module")
def text():
    return llamas.tokenizer_text()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, text):
    """A Hugging Face directory of a small Llama; tests copy it before they damage it."""
    return llamas.save(llamas.make(), tmp_path_factory.mktemp("theirs") / "llama", "safetensors", text)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, text):
    return llamas.save(llamas.make(), tmp_path_factory.mktemp("sharded") / "llama", "shards", text)
