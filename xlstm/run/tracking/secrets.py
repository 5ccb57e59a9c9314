"""Secrets stay in the environment: what is printed, or kept in files, has them masked. Imports without torch."""

import os
import re

from xlstm.run.processes import TOKEN_VARIABLE

_PASSWORD = re.compile(r"(://[^\s/@:'\"]*:)([^\s/'\"]*)@")
"""`scheme://user:password@`, up to the last @ before the path."""
_PARAMETER = re.compile(r"([?&](?:\w*(?:password|passwd|pwd|token|secret|key))=)[^&\s'\"]+", re.IGNORECASE)
_NAMES = re.compile(r"PASSWORD|PASSWD|TOKEN|SECRET|API_?KEY|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
_SHORTEST = 6
"""Characters of a secret that is looked for in texts: shorter ones are words of other meanings."""


def masked(text: str) -> str:
    """A text with `***` for passwords in addresses, and for the secrets that the environment holds."""
    text = _PARAMETER.sub(r"\1***", _PASSWORD.sub(r"\1***@", text))
    for secret in _secrets():
        text = text.replace(secret, "***")
    return text


def _secrets() -> set[str]:
    """What the environment holds under the name of a secret, or as the password of an address."""
    found = {password for value in os.environ.values() for _, password in _PASSWORD.findall(value)}
    found |= {value for name, value in os.environ.items() if name != TOKEN_VARIABLE and _NAMES.search(name)}
    return {secret for secret in found if len(secret) >= _SHORTEST and not os.path.isabs(secret)}
