"""The published methods: one TOML file each, with what it does, how sure that is, and what of it runs here.

A file opens with its metadata (`Method`); every table after them is configuration that the trainer reads.
"""

from g2rpo_fast.methods.catalogue import find, load_method, load_methods
from g2rpo_fast.methods.record import EVIDENCE, STATUS, Method, method_from_toml, own_method
from g2rpo_fast.methods.show import as_json, explain, table

__all__ = [
    "EVIDENCE",
    "STATUS",
    "Method",
    "as_json",
    "explain",
    "find",
    "load_method",
    "load_methods",
    "method_from_toml",
    "own_method",
    "table",
]
