"""Which licences of models let their answers train another model, by name.

>>> is_permissive("Apache-2.0"), is_permissive("llama3.1"), is_permissive("unknown")
(True, False, False)
>>> is_permissive("Apache License, Version 2.0"), is_permissive("Modified MIT License")
(True, False)

A list of names, not legal advice: what is not on it is not permissive, and a config may say
otherwise of a model.
"""

import re

PERMISSIVE = frozenset(
    (
        *("apache-2.0", "mit", "mit-0", "bsd-2-clause", "bsd-3-clause", "isc", "0bsd", "unlicense"),
        *("cc0-1.0", "cc-by-4.0", "cdla-permissive-2.0"),
    )
)
# Usual spellings, as `_plain` leaves them, that are not their SPDX identifiers.
_SPELT = {
    **dict.fromkeys(("apache-2", "apache2", "apache2.0", "apache-software-2.0"), "apache-2.0"),
    **dict.fromkeys(("mit-no-attribution", "mit0"), "mit-0"),
    **dict.fromkeys(("bsd-2", "bsd-2-clause-simplified"), "bsd-2-clause"),
    **dict.fromkeys(("bsd-3", "bsd-3-clause-new-or-revised"), "bsd-3-clause"),
    **dict.fromkeys(("bsd-zero-clause", "0-bsd"), "0bsd"),
    **dict.fromkeys(("cc0", "cc0-1.0-universal", "creative-commons-zero-1.0-universal"), "cc0-1.0"),
    **dict.fromkeys(
        (
            "ccby4.0",
            "cc-by-4.0-international",
            "creative-commons-attribution-4.0",
            "creative-commons-attribution-4.0-international",
        ),
        "cc-by-4.0",
    ),
    "community-data-agreement-permissive-2.0": "cdla-permissive-2.0",
}
_UNTOLD = re.compile(r"\b(?:the|licen[sc]e|version)\b|\bv(?:er)?\.? ?(?=\d)")


def is_permissive(license: str) -> bool:
    """Is the licence on the list, however it is written?"""
    plain = _plain(license)
    return _SPELT.get(plain, plain) in PERMISSIVE


def _plain(license: str) -> str:
    """`The Apache License, Version 2.0` as `apache-2.0`."""
    told = _UNTOLD.sub(" ", license.lower())
    return re.sub(r"[^a-z0-9.]+", "-", told).strip("-.")
