"""What every test needs: commands keep text embeddings in a folder of the tests, never in somebody's home."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def text_cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEATE_CACHE", str(tmp_path_factory.mktemp("text_cache")))
        yield
