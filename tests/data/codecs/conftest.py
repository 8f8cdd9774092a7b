"""One cache for the tests of the JPEG grammar: its tables take seconds to make."""

import tempfile
from collections.abc import Iterator

import pytest

from jpeglm.data.codecs import jpeg_grammar


@pytest.fixture(scope="session")
def _tables_of_this_session() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield folder


@pytest.fixture(scope="module")
def tables_cache(_tables_of_this_session) -> Iterator[None]:
    """A cache of these tests' own: what earlier code left in the user's is not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", _tables_of_this_session)
        jpeg_grammar._tables.cache_clear()
        yield
        jpeg_grammar._tables.cache_clear()
