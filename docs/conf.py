import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

sys.path.insert(0, str(Path(__file__).parents[1]))

from taskq import config, errors
from taskq._version import __version__

project = "taskq"
author = "the authors of taskq"
version = release = __version__
extensions = ["myst_parser", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"taskq {release}"
html_show_sphinx = False
html_show_copyright = False
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp"


class SettingsTable(Directive):
    """Writes the settings of a class in `taskq.config` as a table, so that they cannot differ."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table's nodes."""
        kind = getattr(config, self.arguments[0])
        lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
        for cells in config.describe(kind):
            name, shown, default, text = (cell.replace("|", "\\|") for cell in cells)
            lines.append(f"| `{name}` | `{shown}` | `{default}` | {text} |")
        parent = nodes.container()
        self.state.nested_parse(StringList(lines, "taskq/config.py"), 0, parent)
        return list(parent.children)


class ErrorTree(Directive):
    """Shows the tree of exceptions that the docstring of `taskq.errors` draws."""

    def run(self) -> list[nodes.Node]:
        """Return the tree as a literal block."""
        text = (errors.__doc__ or "").partition("::")[2].strip("\n")
        lines = [line[4:] for line in text.splitlines()]
        block = nodes.literal_block("\n".join(lines), "\n".join(lines))
        block["language"] = "text"
        return [block]


def setup(app: Any) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("settings-table", SettingsTable)
    app.add_directive("error-tree", ErrorTree)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
