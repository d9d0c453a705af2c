"""Opt-out lists in the form of robots.txt (RFC 9309), for many hosts in one file.

A line `Host: example.com` says whose rules follow; they hold for the hosts below it too, unless
those have rules of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.urls.canonical import ascii_host, escaped
from maxlm.config.errors import UserError
from maxlm.files import open_regular

_Rule = tuple[str, bool]  # a pattern of paths, and whether they are allowed


@dataclass
class _Group:
    """Rules for some agents; a group of agents ends at the first rule after them."""

    agents: list[str] = field(default_factory=list)
    rules: list[_Rule] = field(default_factory=list)


class OptOuts:
    """What the owners of pages ask the crawlers of certain names not to take."""

    def __init__(self, files: Sequence[str], agents: Sequence[str]):
        """Read the lists.

        Raises:
          UserError: a file cannot be read.
        """
        self._agents = [agent.lower() for agent in agents]
        self._hosts: dict[str, list[_Group]] = {}
        for name in files:
            for host, groups in _read(name):
                self._hosts.setdefault(host, []).extend(groups)

    def forbids(self, host: str, path: str) -> bool:
        """Return whether a page may not be taken by one of the agents at least."""
        groups = self._groups_of(host)
        return any(not _allowed(_rules_for(agent, groups), path) for agent in self._agents)

    def _groups_of(self, host: str) -> list[_Group]:
        while host:
            if host in self._hosts:
                return self._hosts[host]
            host = host.partition(".")[2]
        return []


def check_opt_outs(name: str) -> None:
    """Read a list, which must have rules for some host.

    Raises:
      UserError: it cannot be read, or names no host.
    """
    if not any(host and groups for host, groups in _read(name)):
        raise UserError(
            f"{name}: no rules of any host, so nothing would be found; put a line `Host: example.com` "
            "above each host's rules, or remove the file"
        )


def _read(name: str) -> Iterator[tuple[str, list[_Group]]]:
    try:
        with open_regular(Path(name)) as file:
            text = file.read().decode("utf-8-sig", "replace")
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}; give another list") from None
    host, lines = "", list[tuple[str, str]]()
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition("#")[0].partition(":"))
        if key.lower() == "host":
            yield host, _groups(lines)
            host, lines = ascii_host(value), []
        else:
            lines.append((key.lower(), value))
    yield host, _groups(lines)


def _groups(lines: Iterable[tuple[str, str]]) -> list[_Group]:
    groups: list[_Group] = []
    for key, value in lines:
        if key == "user-agent":
            if not groups or groups[-1].rules:
                groups.append(_Group())
            # Some write the version, which is no part of the name (2.2.1): `CCBot/2.0`.
            groups[-1].agents.append(value.lower().partition("/")[0].rstrip())
        elif key in ("allow", "disallow") and groups:
            groups[-1].rules.append((escaped(value), key == "allow"))  # as addresses are
    return groups


def _rules_for(agent: str, groups: list[_Group]) -> list[_Rule]:
    """Return the rules of all groups that name the agent, else of those for everybody (2.2.1)."""
    for name in (agent, "*"):
        if any(name in group.agents for group in groups):
            return [rule for group in groups if name in group.agents for rule in group.rules]
    return []


def _allowed(rules: list[_Rule], path: str) -> bool:
    """Return what the longest pattern says that fits; of two as long, the one that allows (2.2.2)."""
    fitting = [(len(pattern), allow) for pattern, allow in rules if pattern and fits(pattern, path)]
    return max(fitting, default=(0, True))[1]


def fits(pattern: str, path: str) -> bool:
    """Return whether a path begins as a pattern says: `*` is anything, `$` at the end is its end.

    Takes the first place of each part, so it is linear where a regular expression is not.
    """
    anchored = pattern.endswith("$")
    first, *rest = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    position = len(first)
    last = rest.pop() if rest and anchored else None
    for part in rest:
        place = path.find(part, position)
        if place < 0:
            return False
        position = place + len(part)
    if last is not None:
        return len(path) - len(last) >= position and path.endswith(last)
    return not anchored or position == len(path)
