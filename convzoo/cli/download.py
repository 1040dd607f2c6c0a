"""What --download fetches before a verb begins, and what is not fetched without it."""

from pathlib import Path

from convzoo import errors, logs
from convzoo.plain import JsonObject


def fetch(download: bool, spec: JsonObject, data: Path | None, weights: str | None = None) -> None:
    """Fetch CIFAR-10 where --download asks for it; weights by name are fetched where they are read.

    Raises:
        UsageError: nothing that could be fetched, or weights by name without --download.
    """
    if weights:
        require_download(weights, download)
    if not download:
        return
    from convzoo.convert.sources import is_remote

    if spec["name"] != "cifar10" and weights and is_remote(weights):
        return
    if spec["name"] != "cifar10" or data is None:
        raise errors.UsageError(
            "--download fetches CIFAR-10 into the folder that --data names; other data sets are not fetched"
        )
    from convzoo import distributed
    from convzoo.data.datasets.download import download_cifar10

    if distributed.rank() == 0:
        logs.setup()
        download_cifar10(data)


def require_download(weights: str, download: bool) -> None:
    """Raise UsageError for LIBRARY:NAME without --download."""
    from convzoo.convert.sources import is_remote

    if is_remote(weights) and not download:
        raise errors.UsageError(f"{weights}: comes from the network, which is used only when asked for: add --download")
