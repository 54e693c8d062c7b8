"""The hub, for those who are logged in."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id


def logged_in(repository: str) -> HfApi:
    """Asks the hub who this is.

    Raises:
        ValueError: no token, one that the hub does not take, no answer, or a name that it would not take.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"--push: wanted NAME or USER/NAME, got {repository!r}: {_line(error)}") from error
    if get_token() is None:
        raise ValueError(
            f"--push: wanted a login to the hub (`hf auth login`, or HF_TOKEN) for {repository}, got none; "
            "nothing was written"
        )
    api = HfApi()
    try:
        api.whoami()
    except Exception as error:  # of the network, or of the hub
        raise ValueError(
            f"--push: wanted a hub that takes this login, got: {_line(error)}; nothing was written"
        ) from error
    return api


def push(api: HfApi, directory: Path, repository: str) -> str:
    """Uploads the directory; the address. A repository that is made for it is private.

    Raises:
        ValueError: the hub or the network refused; the directory is as it was.
    """
    try:
        made = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(folder_path=directory, repo_id=made.repo_id)
    except Exception as error:  # of the network, or of the hub
        raise ValueError(
            f"--push: {repository} could not be uploaded: {_line(error)}. The model is in {directory}"
        ) from error
    return str(made)


def _line(error: Exception) -> str:
    return " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
