"""A run whose folder is a URL: it goes on in a local folder, and what is whole there goes up in the background.

A checkpoint's model file goes up last, so that what is there is whole. Where the store does not answer the run goes on
and what is due is tried again; it is not done before everything is up.
"""

import dataclasses
import functools
import hashlib
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from convzoo import distributed
from convzoo.config.recipe import Recipe
from convzoo.errors import ConvzooError, InterruptedRun, UsageError
from convzoo.logs import log
from convzoo.model_file import load_model
from convzoo.storage import Remote, cache_folder, url_of
from convzoo.storage.lease import Lease
from convzoo.training.checkpoints import load_state
from convzoo.training.setup import RunOptions

STEP = re.compile(r"checkpoints/step-(\d+)\.safetensors")
PARTS = (".state.pt", ".state.pt.sha256", ".safetensors")  # in the order in which they go up
LEASE, IDENTITY = ".lease", ".run"
MARKS = ("finished", "interrupted")
LOCAL = {".lock", LEASE}
POLL_S, SMALL_S = 1.0, 60.0  # how often is looked for a checkpoint, and how often logs go up without one


def to_url(train: Callable[..., Path]) -> Callable[..., Path]:
    """Let a run whose `out` is a URL go on in a local folder and be kept up there by rank 0."""

    @functools.wraps(train)
    def train_there(recipe: Recipe, options: RunOptions, *rest: object) -> Path:
        if options.out is None or url_of(options.out) is None or distributed.rank() != 0:
            return train(recipe, options, *rest)
        upload = RunUpload(options.out, recipe.train.keep_checkpoint_max)
        try:
            train(recipe, dataclasses.replace(options, out=upload.path), *rest)
        except BaseException as error:
            try:
                upload.close()
            except ConvzooError as second:
                if not isinstance(error, InterruptedRun):
                    log.warning(str(second))
                    raise error from None
                raise
            raise
        upload.close()
        return options.out

    return train_there


class RunUpload:
    """The two folders of one run, local and behind a URL, with the lease that keeps others away.

    Attributes:
        path: the local one, which is below the cache until the run is finished and everything is up.
    """

    def __init__(self, url: Path, keep_max: int):
        """Take the lease and bring the local folder to where the run is.

        Raises:
            UsageError: another process trains there, or there is something else.
            ConvzooError: the store does not answer.
        """
        self._remote, self._keep_max = Remote(url), keep_max
        digest = hashlib.sha256(self._remote.url.encode()).hexdigest()[:12]
        self.path = cache_folder() / "runs" / f"{PurePosixPath(self._remote.path).name[-60:] or 'run'}-{digest}"
        self._sent: dict[str, tuple[int, int]] = {}
        self._lease = Lease(self._remote.child(LEASE))
        try:
            self._fetch()
        except BaseException:
            self._lease.release()
            raise
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait until everything is up, then give the lease back; of a finished run only the URL stays.

        Raises:
            ConvzooError: it cannot be brought there; it is safe in the local folder.
        """
        self._ending.set()
        self._thread.join()
        try:
            self._check_lease()
            self._send()
            self._check_lease()  # it may have been taken between two renewals
            self._lease.release()
        except ConvzooError as error:
            self._lease.abandon()
            safe = f"what is not up is safe in {self.path}, from where the same command continues"
            raise ConvzooError(f"{error}; {safe}") from None
        if (self.path / "finished").is_file():
            shutil.rmtree(self.path, ignore_errors=True)

    def _check_lease(self) -> None:
        if not self._lease.is_held():
            raise ConvzooError(f"{self._remote.shown}: another process took this run over")

    def _work(self) -> None:
        seen, sent_s = -1, time.monotonic()
        while not self._ending.wait(POLL_S):
            folder = self.path / "checkpoints"
            now = folder.stat().st_mtime_ns if folder.is_dir() else -1
            due = now != seen or time.monotonic() - sent_s >= SMALL_S
            try:
                if self._lease.lost or (due and not self._lease.is_held()):
                    # The run saves what it has, here, and stops; outside of its loop nobody listens, and `close` looks.
                    if callable(signal.getsignal(signal.SIGTERM)):
                        os.kill(os.getpid(), signal.SIGTERM)
                    return
                if due:
                    self._send()
                    seen, sent_s = now, time.monotonic()
            except (ConvzooError, OSError) as error:
                log.warning(f"{error}; the run goes on, and what is due is tried again")

    # --- down

    def _fetch(self) -> None:
        """Take over what is there, where it is as far as the local folder or further, or another run's."""
        files = {name: info for name, info in self._remote.files().items() if name != LEASE}
        if files and "recipe.yaml" not in files:
            raise UsageError(f"{self._remote.shown}: not empty and no run; choose another folder", ("out",))
        identity = self._remote.child(IDENTITY).read() if files else None
        own = self.path / IDENTITY
        if identity is None or not own.is_file() or own.read_bytes() != identity:
            shutil.rmtree(self.path, ignore_errors=True)
        there = sorted((int(step[1]) for name in files if (step := STEP.fullmatch(name))), reverse=True)
        here = [int(file.stem.removeprefix("step-")) for file in self.path.glob("checkpoints/step-*.safetensors")]
        if not files or max(here, default=-1) > max(there, default=-1):
            return  # a new run, which begins in an empty folder, or one that was killed before it was up
        for name, info in files.items():
            if not name.startswith("checkpoints/"):
                self._download(name, info["size"])
        for step in there:
            names = [f"checkpoints/step-{step:08d}{part}" for part in PARTS]
            for name in names:
                if name in files and not self._is_whole(step):
                    self._download(name, files[name]["size"])
            if self._is_whole(step):
                return

    def _download(self, name: str, size: int) -> None:
        self._remote.child(name).download(self.path / name, size)
        self._sent[name] = _version(self.path / name)

    def _is_whole(self, step: int) -> bool:
        stem = self.path / f"checkpoints/step-{step:08d}"
        try:
            return load_state(Path(f"{stem}.state.pt"))["model_sha256"] == load_model(Path(f"{stem}.safetensors"))[2]
        except ConvzooError:
            return False

    # --- up

    def _send(self) -> None:
        """Bring up what changed since it went last, and remove the checkpoints that the run dropped."""
        if not (self.path / "recipe.yaml").is_file():
            return
        if not (self.path / IDENTITY).is_file():
            (self.path / IDENTITY).write_text(os.urandom(16).hex())
        names = [file.relative_to(self.path).as_posix() for file in sorted(self.path.rglob("*")) if file.is_file()]
        names = [name for name in names if name not in LOCAL and not name.endswith((".tmp", ".part"))]
        checkpoints = sorted(name for name in names if name.startswith("checkpoints/"))
        for name in [name for name in names if name not in MARKS and name not in checkpoints]:
            self._send_small(name)
        stems = [name.removesuffix(".safetensors") for name in checkpoints if STEP.fullmatch(name)]
        news = [stem for stem in stems if f"{stem}.safetensors" not in self._sent]
        for stem in stems:
            if all(self._send_file(stem + part) for part in PARTS):
                self._link(stem)
        if news:
            self._drop_old()
        for name in MARKS:  # last: they say that all the rest is there
            if name in names:
                self._send_small(name)
            elif self._sent.pop(name, None):
                self._remote.child(name).remove()

    def _drop_old(self) -> None:
        """Remove the oldest checkpoints beyond the number that the run keeps; the model file goes first."""
        names = [f"checkpoints/{name}" for name in self._remote.child("checkpoints").files()]
        models = sorted((name for name in names if STEP.fullmatch(name)), reverse=True)
        for model in models[self._keep_max :]:
            if not (self.path / model).exists():
                for part in reversed(PARTS):
                    self._remote.child(model.removesuffix(".safetensors") + part).remove()

    def _send_small(self, name: str) -> None:
        """Bring up a file that may grow meanwhile."""
        try:
            version, content = _version(self.path / name), (self.path / name).read_bytes()
        except FileNotFoundError:
            return
        if self._sent.get(name) != version:
            if name in ("README.md", "report.html"):  # the folder that they name is the one that stays
                content = content.replace(str(self.path).encode(), self._remote.shown.encode())
            self._remote.child(name).write(content)
            self._sent[name] = version

    def _send_file(self, name: str) -> bool:
        """Bring up a part of a checkpoint; returns whether it is still there."""
        path = self.path / name
        try:
            if self._sent.get(name) != (version := _version(path)):
                self._remote.child(name).upload(path)
                self._sent[name] = version
        except (FileNotFoundError, UsageError):
            if path.exists():
                raise
            return False  # the run dropped it meanwhile
        return True

    def _link(self, stem: str) -> None:
        """Let `last` and `best` be copies of the checkpoint that they are links to here."""
        for name in ("last", "best"):
            try:
                if not (self.path / f"checkpoints/{name}.safetensors").samefile(self.path / f"{stem}.safetensors"):
                    continue
                versions = {part: _version(self.path / f"{stem}{part}") for part in PARTS}
            except FileNotFoundError:  # not linked yet, or dropped meanwhile
                continue
            for part, version in versions.items():
                key = f"checkpoints/{name}{part}"
                if self._sent.get(key) != version:
                    self._remote.child(f"{stem}{part}").copy_to(self._remote.child(key))
                    self._sent[key] = version


def _version(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns
