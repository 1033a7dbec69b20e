# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Uploads to the Hub while training goes on."""

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import create_repo
from huggingface_hub.errors import HfHubHTTPError

from ..hub import upload_pipeline


logger = logging.getLogger(__name__)

REFUSED = (401, 403)


class HubUploader:
    """
    Uploads folders in a thread of its own, one after the other. An upload that fails is tried again, then reported as
    an error in the log; it never raises, and the local files stay.

    Args:
        repo_id (`str`): The repository, `user/name` or `name`; it is created if it does not exist.
        token (`str`, *optional*): Defaults to the token that you are logged in with.
        private (`bool`, defaults to `False`): Whether a new repository is private.
        retries (`int`, defaults to 3): How often a failed upload is tried again.
        wait (`float`, defaults to 10.0): Seconds before the first retry; each further one waits twice as long.

    Raises:
        ValueError: the Hub refuses the token. Better now than after days of training.
    """

    def __init__(
        self, repo_id: str, token: str | None = None, private: bool = False, retries: int = 3, wait: float = 10.0
    ):
        self.repo_id = repo_id
        self.token = token
        self.private = private
        self.retries = retries
        self.wait = wait
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hub-upload")
        self._last: Future | None = None
        try:
            self.repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        except Exception as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code in REFUSED:
                raise ValueError(
                    f"`repo_id` is {repo_id!r}, but the Hub does not let this token write there, or there is none: log"
                    f" in with `hf auth login`. {error}"
                ) from error
            logger.warning("The Hub does not answer; training goes on and uploads later. %s", error)

    def upload(self, folder: str | Path, commit_message: str, ignore_patterns: Sequence[str] = ()) -> Future:
        """
        Queue a folder that stays as it is until it is uploaded.

        Args:
            folder (`str` or `Path`): What `save_pretrained` wrote.
            commit_message (`str`): Message of the commit.
            ignore_patterns (`Sequence[str]`, defaults to `()`): Files that are not uploaded.

        Returns:
            `concurrent.futures.Future`: whose result is whether the folder was uploaded.
        """
        self._last = self._executor.submit(self._upload, Path(folder), commit_message, ignore_patterns)
        return self._last

    @contextmanager
    def snapshot(self, commit_message: str) -> Iterator[Path]:
        """
        A temporary folder to fill, which is uploaded when the block ends and then deleted.

        If the upload before is still under way, the new one is left out: a slow line must not pile up copies of the
        model.
        """
        folder = Path(tempfile.mkdtemp(prefix="ddm-upload-"))
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if self._last is not None and not self._last.done():
            logger.warning("The upload before %r is not through yet; this one is left out.", commit_message)
            shutil.rmtree(folder, ignore_errors=True)
            return
        self.upload(folder, commit_message).add_done_callback(lambda _: shutil.rmtree(folder, ignore_errors=True))

    def close(self) -> None:
        """Wait until everything is uploaded, or has failed for good."""
        self._executor.shutdown(wait=True)

    def _upload(self, folder: Path, commit_message: str, ignore_patterns: Sequence[str]) -> bool:
        for attempt in range(self.retries + 1):
            try:
                upload_pipeline(
                    folder,
                    self.repo_id,
                    commit_message=commit_message,
                    private=self.private,
                    token=self.token,
                    ignore_patterns=ignore_patterns,
                )
                logger.info("Uploaded %r to %s", commit_message, self.repo_id)
                return True
            except Exception as error:
                refused = isinstance(error, HfHubHTTPError) and error.response.status_code in REFUSED
                if refused or attempt == self.retries:
                    logger.error(
                        "The upload of %r to %s failed after %d attempts: %s",
                        commit_message,
                        self.repo_id,
                        attempt + 1,
                        error,
                    )
                    return False
                logger.warning("The upload of %r failed and is tried again: %s", commit_message, error)
                time.sleep(self.wait * 2**attempt)
        return False
