"""Which licences of models let their answers train another model, by name.

>>> is_permissive("Apache-2.0"), is_permissive("llama3.1"), is_permissive("unknown")
(True, False, False)

A list of names, not legal advice: what is not on it is not permissive, and a config may say
otherwise of a model.
"""

PERMISSIVE = frozenset(
    (
        *("apache-2.0", "mit", "mit-0", "bsd-2-clause", "bsd-3-clause", "isc", "0bsd", "unlicense"),
        *("cc0-1.0", "cc-by-4.0", "cdla-permissive-2.0"),
    )
)


def is_permissive(license: str) -> bool:
    """Is the licence on the list, however it is written?"""
    return license.strip().lower().replace(" ", "-") in PERMISSIVE
