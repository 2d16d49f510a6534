"""The ways in which a command ends early: one line on the terminal, and a status that a script can tell apart."""

from __future__ import annotations

import click


class BadInput(click.ClickException):
    """What was asked for cannot be: an unknown op, a broken file, results of two devices compared."""

    exit_code = 2


class TooNoisy(click.ClickException):
    """The machine is too busy for a figure to mean anything."""

    exit_code = 3
