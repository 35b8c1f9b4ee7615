"""Schemas of custom resources made strict, so that a misspelt key is an error and not silently dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

# Values that are a number or a text, as Kubernetes takes them: 8265, 512Mi.
INT_OR_STRING = {"anyOf": [{"type": "integer"}, {"type": "string"}]}


def made_strict(schema: Any) -> Any:
    """The schema, in which an object that lists its properties takes no others.

    Where a schema keeps what it does not know (`x-kubernetes-preserve-unknown-fields`) it stays open.
    """
    if isinstance(schema, list):
        return [made_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return INT_OR_STRING | {key: schema[key] for key in ("pattern",) if key in schema}
    strict = {key: made_strict(value) if key != "properties" else value for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        # By name: a property may be called as a keyword is.
        strict["properties"] = {name: made_strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
            strict["additionalProperties"] = False
    return strict


def read_schema(folder: Path, kind: str) -> dict[str, Any]:
    """The strict schema of a kind of ray.io/v1; `metadata` is Kubernetes's own and stays open."""
    schema = made_strict(json.loads((folder / f"{kind.lower()}s.v1.json").read_text()))
    schema["properties"]["metadata"] = {"type": "object"}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema


def errors_of(document: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """What is wrong with a document, each with where."""
    found = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in found]
