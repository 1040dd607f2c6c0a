"""An S3 server on the loopback, which fsspec is told of by its own configuration."""

import fsspec
import pytest
from fsspec.config import conf

import object_store
from convzoo.storage import urls


@pytest.fixture(scope="module")
def _server():
    store, stop = object_store.serve()
    yield store
    stop()


@pytest.fixture
def store(_server, monkeypatch, tmp_path):
    """An empty bucket `bucket`, and nothing in the cache; what is tried again is so at once."""
    monkeypatch.setitem(conf, "s3", _server.options)
    monkeypatch.setattr(urls, "FIRST_DELAY_S", 0.01)
    monkeypatch.setenv("CONVZOO_CACHE", str(tmp_path / "cache of urls"))
    _server.faults = []
    bucket = fsspec.filesystem("s3", use_listings_cache=False)
    if bucket.exists("bucket"):
        bucket.rm("bucket", recursive=True)
    bucket.mkdir("bucket")
    _server.requests.clear()
    _server.fs = bucket
    return _server
