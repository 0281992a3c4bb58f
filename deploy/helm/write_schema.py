"""Writes the settings into the chart's values.schema.json: python -m deploy.helm.write_schema.

So that helm refuses what the server would refuse at its start. A test holds the two together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from app.settings import Settings

SCHEMA = Path(__file__).parent / "bert-lora-server" / "values.schema.json"
# The chart mounts and maps these, and has values of its own for keys.
FIXED = {"host", "port", "store", "cache_dir", "adapters_dir"}
TIMES = ["drain_delay", "drain_seconds", "max_forward_seconds"]  # the chart computes with them
KEYS = {"api_keys", "admin_keys", "api_keys_file", "admin_keys_file"}


def settings_schema() -> dict[str, Any]:
    """Of the value `settings`: each field's type, bounds and description."""
    fields = Settings.model_json_schema()["properties"]
    return {
        "type": "object",
        "additionalProperties": False,
        "required": TIMES,
        "properties": {
            name: {k: v for k, v in field.items() if k not in ("title", "default")}
            for name, field in fields.items()
            if name not in FIXED | KEYS
        },
    }


if __name__ == "__main__":
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["settings"] = settings_schema()
    SCHEMA.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n")
