# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Uploads to the Hub while training goes on."""

import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from ..hub import upload_pipeline


logger = logging.getLogger(__name__)


class HubUploader:
    """
    Uploads folders in the background, one after the other. A failed upload is tried again, then logged as an error. It
    never raises, and the local files stay.

    Args:
        repo_id (`str`): The repository, `user/name` or `name`. It is created if it does not exist.
        token (`str`, *optional*): Defaults to the token that you are logged in with.
        private (`bool`, defaults to `False`): Whether a new repository is private.
        waits (`Sequence[float]`, defaults to `(10.0, 20.0, 40.0)`):
            Seconds before each retry. The Hub's client itself retries transfers, but not commits.

    Raises:
        ValueError: the repository's name is invalid, or the Hub refuses the token or the repository. Better now than
            after days of training. A Hub that does not answer, or has an error of its own (5xx), is only logged.
    """

    def __init__(
        self,
        repo_id: str,
        token: str | None = None,
        private: bool = False,
        waits: Sequence[float] = (10.0, 20.0, 40.0),
    ):
        self.repo_id, self.private, self.waits = repo_id, private or None, waits  # None is the account's default
        self._api = HfApi(token=token)
        self._last: Future | None = None
        try:
            self.repo_id = self._api.create_repo(repo_id, private=self.private, exist_ok=True).repo_id
            # `create_repo` accepts a repository of somebody else
            self._api.auth_check(self.repo_id, write=True)
        except Exception as error:
            if not _may_work_later(error):
                raise ValueError(
                    f"`repo_id` is {repo_id!r}, but you cannot upload there. Give `--hub_model_id user/name`, and log in"
                    f" with `hf auth login` as a user who may write to it. {error}"
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
        self._last = self._api.run_as_future(self._upload, folder, commit_message, ignore_patterns)
        return self._last

    @contextmanager
    def snapshot(self, commit_message: str) -> Iterator[Path]:
        """
        A temporary folder to fill, which is uploaded when the block ends and then deleted.

        While the upload before is under way, the new one is left out: a slow connection must not pile up copies of the
        model.
        """
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ddm-upload-", ignore_cleanup_errors=True))
            yield Path(folder)
            if self._last is None or self._last.done():
                self._last = self._api.run_as_future(self._upload, folder, commit_message, (), stack.pop_all())
            else:
                logger.warning("The upload before %r is still under way; this one is left out.", commit_message)

    def close(self) -> bool:
        """Wait for the uploads, and return whether the last one succeeded; `True` if there was none."""
        return self._last is None or self._last.result()

    def _upload(
        self, folder: str | Path, message: str, ignored: Sequence[str], cleanup: ExitStack | None = None
    ) -> bool:
        with cleanup or ExitStack():
            for attempt, wait in enumerate((*self.waits, None), start=1):
                try:
                    upload_pipeline(
                        folder, self.repo_id, message, self.private, self._api.token, ignore_patterns=ignored
                    )
                    logger.info("Uploaded %r to %s", message, self.repo_id)
                    return True
                except Exception as error:
                    if wait is None or not _may_work_later(error):
                        failed = "The upload of %r to %s failed after %d attempts: %s"
                        logger.error(failed, message, self.repo_id, attempt, error)
                        return False
                    logger.warning("The upload of %r failed and is tried again: %s", message, error)
                    time.sleep(wait)


def _may_work_later(error: Exception) -> bool:
    """Whether the Hub did not answer, was too busy or had an error of its own, and did not refuse the request."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 409, 412, 429)
    return not isinstance(error, ValueError | OfflineModeIsEnabled)
