"""The files a model card refers to, as verified local files: downloaded, or found where the card says or we were told.

Downloads are kept by checksum in `<cache>/mdc/blobs`, the layout Dynamo shares; without a writable cache they last as
long as the store.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from blake3 import blake3

from dynamo.shared.protocol import FileRef

MAX_BYTES = 1 << 30
CHUNK_BYTES = 1 << 20
STALL_TIMEOUT_S = 30.0
DOWNLOAD_TIMEOUT_S = 600.0
_CHECKSUM = re.compile(r"blake3:([0-9a-f]{64})")
_HUB_PATH = re.compile(r"(?P<repo>[^/@]+(?:/[^/@]+)?)(?:@(?P<revision>[^/]+))?/(?P<file>.+)")


class ArtifactError(Exception):
    """A file of a model cannot be had; the message names it and what was wrong with it."""


def default_cache_dir() -> Path:
    """Where Dynamo keeps its downloads: below XDG_CACHE_HOME, else ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "dynamo"


class ArtifactStore:
    """`model_path`: a local copy of the model, searched by file name for paths that do not exist on this machine."""

    def __init__(self, model_path: Path | None = None, cache_dir: Path | None = None) -> None:
        self._model_path = model_path
        self._blobs = (cache_dir or default_cache_dir()) / "mdc" / "blobs"
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def fetch(self, ref: FileRef, source_path: str | None = None) -> Path:
        """A local file with the checksum of `ref`. `source_path`: the model's name on the hub, the last resort.

        Blocks for as long as a download takes. Raises ArtifactError.
        """
        expected = _expected_digest(ref)
        url = urlsplit(ref.path)
        if url.scheme in ("http", "https"):
            return self._download(ref, expected)
        if url.scheme == "hf":
            return _verified(_from_hub(ref.path, url.netloc + url.path), expected)
        local = Path(unquote(url.path)) if url.scheme == "file" else Path(ref.path)
        return self._find(local, expected, source_path)

    def _find(self, path: Path, expected: str, source_path: str | None) -> Path:
        candidates = [path] if self._model_path is None else [path, self._model_path / path.name]
        present = [candidate for candidate in candidates if candidate.is_file()]
        for candidate in present:
            if _digest(candidate) == expected:
                return candidate
        if present:
            return _verified(present[0], expected)
        if source_path and not Path(source_path).is_absolute():
            return _verified(_from_hub(str(path), f"{source_path}/{path.name}"), expected)
        raise ArtifactError(f"{path}: no such file here; copy the model to this machine or give --model-path")

    def _download(self, ref: FileRef, expected: str) -> Path:
        folder = self._blob_folder()
        blob = folder / expected
        if blob.is_file() and _digest(blob) == expected:
            return blob
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{expected[:16]}-", delete=False) as file:
            part = Path(file.name)
            try:
                found = _copy_url(ref, file)
                if found != expected:
                    raise ArtifactError(_mismatch(ref.path, expected, found))
                part.replace(blob)
            finally:
                part.unlink(missing_ok=True)
        return blob

    def _blob_folder(self) -> Path:
        """The cache, or a temporary folder where there can be none."""
        if self._temporary is None:
            try:
                self._blobs.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=self._blobs).close()
                return self._blobs
            except OSError:
                self._temporary = _temporary_folder()
        return Path(self._temporary.name)


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="dynamo-artifacts-")
    except OSError as error:
        raise ArtifactError(f"nowhere to keep downloads: no cache folder and no temporary one: {error}") from None


def _copy_url(ref: FileRef, file: IO[bytes]) -> str:
    """Stream the body into `file`; the digest of what came."""
    from urllib.error import HTTPError  # 3 MB, which a process without downloads need not hold
    from urllib.request import urlopen

    limit = min(ref.size or MAX_BYTES, MAX_BYTES)
    deadline = time.monotonic() + DOWNLOAD_TIMEOUT_S
    hasher = blake3()
    size = 0
    try:
        with urlopen(ref.path, timeout=STALL_TIMEOUT_S) as response:
            while chunk := response.read1(CHUNK_BYTES):
                size += len(chunk)
                if size > limit:
                    raise ArtifactError(f"{ref.path}: larger than the {limit} bytes it may have")
                if time.monotonic() > deadline:
                    raise ArtifactError(f"{ref.path}: not downloaded within {DOWNLOAD_TIMEOUT_S:.0f} s")
                hasher.update(chunk)
                file.write(chunk)
    except HTTPError as error:
        raise ArtifactError(f"{ref.path}: the server answered {error.code} {error.reason}") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{ref.path}: download failed: {getattr(error, 'reason', error)}") from None
    file.flush()
    return hasher.hexdigest()


def _from_hub(shown: str, path: str) -> Path:
    """Ask the hub through its own client, which is slow to import and rarely needed."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import HF_HUB_OFFLINE

    match = _HUB_PATH.fullmatch(path)
    if match is None:
        raise ArtifactError(f"{shown}: not a file of a hub repository (hf://owner/name[@revision]/file)")
    if HF_HUB_OFFLINE:
        raise ArtifactError(f"{shown}: not on this machine, and HF_HUB_OFFLINE forbids downloading it")
    try:
        return Path(hf_hub_download(match["repo"], match["file"], revision=match["revision"]))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{shown}: not on this machine, and the hub download failed: {error}") from None


def _expected_digest(ref: FileRef) -> str:
    match = _CHECKSUM.fullmatch(ref.checksum.lower())
    if match is None:
        raise ArtifactError(f"{ref.path}: checksum {ref.checksum!r} is not of the form blake3:<64 hex digits>")
    return match[1]


def _verified(path: Path, expected: str) -> Path:
    found = _digest(path)
    if found != expected:
        raise ArtifactError(_mismatch(str(path), expected, found))
    return path


def _digest(path: Path) -> str:
    try:
        return blake3().update_mmap(path).hexdigest()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from None


def _mismatch(where: str, expected: str, found: str) -> str:
    return f"{where}: expected checksum blake3:{expected}, found blake3:{found}"
