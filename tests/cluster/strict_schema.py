"""Strict schemas of custom resources, by which a misspelt key is an error instead of being dropped silently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

# Kubernetes accepts a number or a string for these values: 8265, 512Mi.
INT_OR_STRING = {"anyOf": [{"type": "integer"}, {"type": "string"}]}


def make_strict(schema: Any) -> Any:
    """Return the schema with objects that allow only the properties they list.

    Objects that preserve unknown fields (`x-kubernetes-preserve-unknown-fields`) stay open.
    """
    if isinstance(schema, list):
        return [make_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return INT_OR_STRING | {key: schema[key] for key in ("pattern",) if key in schema}
    strict = {key: make_strict(value) if key != "properties" else value for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        # By name, because a property can have the name of a schema keyword.
        strict["properties"] = {name: make_strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
            strict["additionalProperties"] = False
    return strict


def read_schema(folder: Path, kind: str) -> dict[str, Any]:
    """Return the strict schema of a kind of ray.io/v1; `metadata`, which Kubernetes defines, stays open."""
    schema = make_strict(json.loads((folder / f"{kind.lower()}s.v1.json").read_text()))
    schema["properties"]["metadata"] = {"type": "object"}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema


def find_errors(document: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Return the errors in a document, each with its path."""
    errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in errors]
