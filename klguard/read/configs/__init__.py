"""Configurations of training frameworks that no Python of the project loads: YAML, TOML, shell scripts, and the command
lines that Python puts together.

A framework is configured in its own names, in a file or on the command line of its launcher. These are told by
names that only this framework has, and become a site like one of a Python program: the settings of its engine, and
what it does about the KL. A file that is of no framework known here is not looked at any further.
"""

from __future__ import annotations

from klguard.read.configs.sites import read_config, read_launches

__all__ = ["read_config", "read_launches"]
