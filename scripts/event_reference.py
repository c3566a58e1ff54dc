"""Writes the reference of events in docs/events.md out of the JSON Schema that is shipped.

python scripts/event_reference.py            write it
python scripts/event_reference.py --check    exit 1 when it is not up to date
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "events.md"
BEGIN = "<!-- The rest is written by scripts/event_reference.py. -->\n"

sys.path.insert(0, str(ROOT))

from taskq.events.schema import load_schema  # noqa: E402

Fields = Mapping[str, Mapping[str, Any]]


def rows(fields: Fields, required: list[str]) -> list[str]:
    """Return fields as lines of a table."""
    lines = ["| field | type | always | meaning |", "|---|---|---|---|"]
    for name, item in fields.items():
        kind = item.get("type") or f"`{item.get('const', '')}`"
        text = str(item.get("description", "")).replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| `{name}` | {kind} | {'yes' if name in required else ''} | {text} |")
        inner = item.get("properties", {})
        for part, about in inner.items():
            always = "yes" if part in item.get("required", []) else ""
            lines.append(
                f"| `{name}.{part}` | {about['type']} | {always} | {about['description']} |"
            )
    return lines


def common(document: Mapping[str, Any]) -> list[str]:
    """Return the names of the fields that all events of tasks have."""
    sets = [
        list(definition["properties"])
        for kind, definition in document["$defs"].items()
        if kind.startswith("task.")
    ]
    return [name for name in sets[0] if all(name in names for names in sets)]


def reference() -> str:
    """Return the reference as Markdown."""
    document = load_schema()
    shared = common(document)
    sample = document["$defs"]["task.sent"]
    lines = ["### The envelope", "", *rows(document["properties"], document["required"]), ""]
    fields = {name: sample["properties"][name] for name in shared}
    lines += ["### Events of tasks", "", "All of them have in `data`:", ""]
    lines += [*rows(fields, sample["required"]), ""]
    for kind, definition in document["$defs"].items():
        task = kind.startswith("task.")
        own = {
            name: item
            for name, item in definition["properties"].items()
            if not (task and name in shared)
        }
        lines += [f"### `{kind}`", "", definition["description"], ""]
        if own:
            lines += [*rows(own, definition["required"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Write the page, or compare it."""
    text = PAGE.read_text("utf-8")
    kept, begin, _ = text.partition(BEGIN)
    if not begin:
        print(f"{PAGE} has no line {BEGIN!r}", file=sys.stderr)
        return 1
    wanted = f"{kept}{BEGIN}\n{reference()}"
    if wanted == text:
        return 0
    if "--check" in sys.argv[1:]:
        print(f"{PAGE} is not up to date: run python {Path(__file__).name}", file=sys.stderr)
        return 1
    PAGE.write_text(wanted, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
