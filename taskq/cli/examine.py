"""`taskq doctor`."""

from dataclasses import asdict

import click

from taskq.cli.base import app_option, app_place, json_option, print_json

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


@click.command(
    epilog="""\b
Examples:
  taskq doctor
  taskq doctor -A shop.tasks:app --json"""
)
@app_option
@json_option
def doctor(as_json: bool) -> int:
    """Examine settings, app, broker and results store; exit code 1 when a check fails."""
    from taskq.doctor import examine

    checks = examine(app_place())
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            status = click.style(check.status.ljust(7), fg=_COLOURS[check.status])
            click.echo(f"{status} {check.name.ljust(width)} {check.detail}")
            if check.advice:
                click.echo(f"{' ' * 8}{' ' * width} try: {check.advice}")
    return 1 if any(check.status == "failed" for check in checks) else 0
