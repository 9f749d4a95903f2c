"""What was seen in the bytes of files in earlier runs, kept for as long as the file system says that they are the
same: a run in which nothing changed opens no source file.

A file counts as unchanged while its size, inode and both times (of its content and of its entry) are what they
were, as in git's index. Times have a resolution, so a file that changed in the last seconds is not relied on.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from klguard.cache import digest, load_data, save_data
from klguard.gate import Gate, Look
from klguard.read.files import Failure, load

_MAGIC = b"klguard files 2\n"

SETTLED = 2_000_000_000
"""Nanoseconds after which a change would show in the time of a file, on any common file system."""

Stamp = tuple[int, int, int, int]
_Found = tuple[bytes, bool, bool, bool, bool]
"""Digest, has a site, has a command line, has a comment of klguard, was parsed for its syntax."""

_Entry = tuple[Stamp, bytes, bool, bool, bool, bool]


class Seen:
    """Looks at the files of one project, at their bytes only where they may have changed."""

    def __init__(self, file: Path, key: bytes, gate: Gate) -> None:
        self.file = file
        self.key = key
        self.gate = gate
        found = load_data(file, _MAGIC + key)
        self._known: dict[str, _Entry] = found if isinstance(found, dict) else {}
        self._changed = False

    def look(self, path: str, place: Path) -> Look:
        """What the bytes of the file say; `path` is how it is reported."""
        stamp = _stamp(place)
        known = self._entry(path, stamp)
        if known is not None and stamp is not None:
            _, _, has_site, has_launch, has_suppression, parsed = known
            if has_site or parsed == self.gate.affords(stamp[2]):
                if parsed:
                    self.gate.spend(stamp[2])
                return Look(path, has_site, has_launch, has_suppression)
        content = load(place, limit=self.gate.limit)
        if isinstance(content, Failure):
            return Look(content.path, failures=(content,))
        affordable = self.gate.affords(len(content))
        look = self.gate.look_at(content, path)
        if not look.failures:
            parsed = affordable and not look.has_site
            said = (look.has_site, look.has_launch, look.has_suppression)
            self._keep(path, stamp, (digest(content), *said, parsed))
        return look

    def digest(self, path: str, place: Path) -> bytes:
        """The digest of the file's content, b"" where it cannot be read."""
        stamp = _stamp(place)
        if (known := self._entry(path, stamp)) is not None:
            return known[1]
        content = load(place, limit=self.gate.limit)
        if isinstance(content, Failure):
            return b""
        found, gate = digest(content), self.gate
        said = (gate.has_site(content, path), gate.has_launch(content), gate.has_suppression(content))
        self._keep(path, stamp, (found, *said, False))
        return found

    def has_site(self, path: str, place: Path) -> bool:
        """Whether the file may hold a site."""
        return bool(self.digest(path, place)) and (
            self._known[path][2] if path in self._known else self.gate.look(place).has_site
        )

    def _entry(self, path: str, stamp: Stamp | None) -> _Entry | None:
        known = self._known.get(path)
        return known if known is not None and stamp is not None and known[0] == stamp else None

    def _keep(self, path: str, stamp: Stamp | None, found: _Found) -> None:
        self._changed = True
        if stamp is None or time.time_ns() - max(stamp[0], stamp[1]) < SETTLED:
            self._known.pop(path, None)
        else:
            self._known[path] = (stamp, *found)

    def save(self) -> None:
        if self._changed:
            save_data(self.file, _MAGIC + self.key, self._known)


def _stamp(place: Path) -> Stamp | None:
    """Times, size and inode of a regular file."""
    try:
        status = os.stat(place)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
