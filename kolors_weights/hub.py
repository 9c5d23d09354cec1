"""Fetching from the Hugging Face Hub: what is in its cache is not fetched again, and serves without a network too."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from kolors_kernel.errors import RunError, WeightsError, needs
from kolors_weights.places import HubPlace

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SECONDS = 10.0


def find_on_hub(place: HubPlace, names: Sequence[str]) -> Path | None:
    """Return the first of the files `names`, relative to the place, that is there, fetched into the Hub's cache.

    A transfer that breaks off goes on where it was. Raises WeightsError when the repository, the revision or the
    permission is missing, RunError when the Hub cannot be reached and the cache has none, or the disk is full.
    """
    with needs("huggingface_hub", extra="hub", wanted_by=str(place)):
        import huggingface_hub  # noqa: F401  (asked for here, so that its absence is said in words)
    listed = _files(place.repo, place.revision)
    for name in names:
        file = place / name
        if file.folder in listed if listed is not None else not file.folder.startswith(".."):
            found = _fetch(file, local=listed is None)
            if found is not None:
                return found
    if listed is None:
        from huggingface_hub.constants import HF_HUB_CACHE

        raise RunError(
            f"{place}: the Hugging Face Hub cannot be reached, and its cache {HF_HUB_CACHE} does not have "
            f"{' or '.join(names[:2])}; fetch it once with a connection, or set HF_HUB_CACHE to where it is"
        )
    return None


@cache
def _files(repo: str, revision: str | None) -> frozenset[str] | None:
    """Return the files of a revision, or None when the Hub cannot be asked; asked once in a process."""
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi().model_info(repo, revision=revision, timeout=_SECONDS)
    except errors.GatedRepoError as error:
        raise WeightsError(f"hf://{repo} asks for permission: accept its terms there, then: hf auth login") from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"there is no repository hf://{repo}, or it is private: look for a mistyped name, or: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(f"hf://{repo} has no revision {revision!r}") from error
    except errors.HFValidationError as error:
        raise WeightsError(f"hf://{repo}: {error}") from error
    except (OSError, errors.HTTPError):  # type: ignore[attr-defined]  # no network, no Hub, or told to stay offline
        return None
    return frozenset(each.rfilename for each in info.siblings or ())


@cache
def _fetch(file: HubPlace, *, local: bool) -> Path | None:
    """Return the file in the Hub's cache, fetched unless `local`; None when it is not there."""
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(file.repo, file.folder, revision=file.revision, local_files_only=local))
    except errors.LocalEntryNotFoundError as error:
        if local:
            return None
        raise RunError(f"{file} could not be fetched: {error}") from error
    except (OSError, RuntimeError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        if getattr(error, "errno", None) in _FULL:
            raise RunError(
                f"{file} could not be fetched: the disk of the Hub's cache is full; HF_HUB_CACHE sets another place"
            ) from error
        raise RunError(f"{file} could not be fetched: {error}; the files that are complete are kept") from error
