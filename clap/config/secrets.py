"""Passwords and tokens in addresses: moved to the environment, and hidden in all that is printed or recorded."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

HIDDEN = "***"
ADDRESS = re.compile(r"\b[a-zA-Z][\w+.-]*://\S+")
USER_INFO = re.compile(r"(?<=://)(?:[^/\s:]*:\S*|[^/\s]*)@")  # a password may contain / and @
LOGIN = re.compile(r"(?<=://)([^/\s@:'\"]*)(?::([^/\s'\"]*))?@")
INTERPOLATION = re.compile(r"\$\{[^}]*\}")
PARAMETER = re.compile(r"([?&#;][^=&\s]*=)([^&\s'\"]+)")
SECRET_NAME = re.compile(r"token|key|secret|sig|pass|pwd|auth|credential|policy|code", re.IGNORECASE)
MAX_PUBLIC_VALUE = 20  # characters of a parameter's value; a video's id has 11
USERNAME, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"


def hide_secrets(text: str) -> str:
    """A text in which user, password and token of every address are `***`, also those of presigned addresses."""
    return ADDRESS.sub(lambda found: PARAMETER.sub(_hide_value, USER_INFO.sub(f"{HIDDEN}@", found[0])), text)


def _hide_value(found: re.Match) -> str:
    name, value = found.groups()
    is_public = len(value) <= MAX_PUBLIC_VALUE and not SECRET_NAME.search(name)
    return found[0] if is_public else f"{name}{HIDDEN}"


def move_login(text: str) -> str:
    """Move user and password of the addresses in a text to the variables that MLflow reads; the text without them.

    Processes that are started later inherit the variables.

    Raises:
        ValueError: there is a user without a password.
    """
    if INTERPOLATION.search(text):  # Hydra writes it unresolved
        return text
    for user, password in LOGIN.findall(text):
        if not (user and password):
            raise ValueError(
                f"{hide_secrets(text)} has a user without a password; write http://USER:PASSWORD@HOST, or set "
                f"{USERNAME} and {PASSWORD}, or MLFLOW_TRACKING_TOKEN"
            )
        os.environ[USERNAME], os.environ[PASSWORD] = unquote(user), unquote(password)
    return LOGIN.sub("", text)


def move_server_login(uri: str) -> str:
    """The address of an MLflow server, after `move_login`.

    Raises:
        ValueError: MLflow cannot append its paths, because of a query, or the password is not percent-encoded.
    """
    moved = move_login(uri).rstrip("/")
    parts = urlsplit(moved)
    if parts.query or parts.fragment or "@" in moved:
        raise ValueError(
            f"tracking.uri={hide_secrets(uri)} has a query or an unclear password; write http://USER:PASSWORD@HOST "
            "with / as %2F and @ as %40, and set a token as MLFLOW_TRACKING_TOKEN"
        )
    return moved


def move_logins(overrides: Sequence[str]) -> list[str]:
    """Overrides without the login of `tracking.uri`, see `move_login`; Hydra writes overrides to the run folder.

    Raises:
        ValueError: another override has a password or token.
    """
    moved = [move_login(line) if line.lstrip("+").startswith("tracking") else line for line in overrides]
    check_no_secrets(dict(line.partition("=")[::2] for line in moved))
    return moved


def check_no_secrets(values: Mapping[str, Any]) -> None:
    """Check that no value of a config is an address with a password or token, because runs record their config.

    Raises:
        ValueError: there is one.
    """
    for key, value in values.items():
        written = re.sub("://:?@", "://", INTERPOLATION.sub("", value)) if isinstance(value, str) else ""
        if hide_secrets(written) != written:
            advice = (
                f"set {USERNAME} and {PASSWORD}" if key.startswith("tracking") else "download it, and give its path"
            )
            raise ValueError(f"{key}={hide_secrets(value)} has a password or token, which a run would record; {advice}")
