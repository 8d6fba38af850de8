"""Fingerprints of what decides a result, and what makes two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_ABSENT = object()


def fingerprint(facts: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON of `facts` (64 hex digits): equal facts, equal fingerprint."""
    return hashlib.sha256(_canonical(facts).encode()).hexdigest()


def differing_keys(left: Mapping[str, Any], right: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names what makes two fingerprints differ, as `section.key: left != right` lines."""
    lines: list[str] = []
    for key in sorted(left.keys() | right.keys()):
        a, b = left.get(key, _ABSENT), right.get(key, _ABSENT)
        if isinstance(a, Mapping) and isinstance(b, Mapping) and a and b:
            lines += differing_keys(a, b, f"{prefix}{key}.")
        elif _canonical(a) != _canonical(b):
            lines.append(f"{prefix}{key}: {_canonical(a)} != {_canonical(b)}")
    return lines


def _canonical(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
