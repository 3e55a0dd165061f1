# SPDX-License-Identifier: Apache-2.0
"""Disks that lose what was not synced, and that fail or end the process at any operation."""

import errno
import random
from pathlib import PurePosixPath


class Killed(BaseException):
    """The process ends here."""


class LossyDisk:
    """A disk in memory. What is written or named is certain after a sync; losing power takes any part of the rest."""

    def __init__(self):
        self.bytes, self.certain_bytes = {}, {}
        self.entries, self.certain_entries = {}, {}
        self.pending = []
        self.folders = {"."}
        self.count = 0

    def _parent(self, name):
        return str(PurePosixPath(name).parent)

    def _enter(self, name, inode):
        if inode is None:
            self.entries.pop(name, None)
        else:
            self.entries[name] = inode
        self.pending.append((name, inode))

    def write(self, name, data):
        if self._parent(name) not in self.folders:
            raise FileNotFoundError(name)
        if name in self.entries:
            raise FileExistsError(name)
        self.count += 1
        self.bytes[self.count] = data
        self._enter(name, self.count)

    def sync(self, name):
        inode = self.entries[name]
        self.certain_bytes[inode] = self.bytes[inode]

    def link(self, name, target):
        if target in self.entries:
            raise FileExistsError(target)
        self._enter(target, self.entries[name])

    def rename(self, name, target):
        inode = self.entries[name]
        self._enter(target, inode)
        self._enter(name, None)

    def remove(self, name):
        if name in self.entries:
            self._enter(name, None)

    def sync_folder(self, name):
        rest = []
        for entry, inode in self.pending:
            if self._parent(entry) == name:
                self._settle(entry, inode)
            else:
                rest.append((entry, inode))
        self.pending = rest

    def _settle(self, name, inode):
        if inode is None:
            self.certain_entries.pop(name, None)
        else:
            self.certain_entries[name] = inode

    def make_folder(self, name):
        self.folders |= {name, *map(str, PurePosixPath(name).parents)}

    def read(self, name):
        if name not in self.entries:
            raise FileNotFoundError(name)
        return self.bytes[self.entries[name]]

    def names(self, name):
        return [PurePosixPath(entry).name for entry in self.entries if self._parent(entry) == name]

    def age(self, name):
        self.read(name)
        return 0.0

    def lose_power(self, draw):
        """Keep what is certain and, of the rest, what chance keeps: any names, and any beginning of the bytes."""
        for entry, inode in self.pending:
            if draw.random() < 0.5:
                self._settle(entry, inode)
        self.pending = []
        self.entries = dict(self.certain_entries)
        for inode in set(self.entries.values()):
            if inode not in self.certain_bytes:
                whole = self.bytes[inode]
                self.certain_bytes[inode] = whole[: draw.randint(0, len(whole))]
            self.bytes[inode] = self.certain_bytes[inode]


class FailingDisk:
    """Does what another does, until an operation at which something happens."""

    CHANGES = ("write", "sync", "link", "rename", "remove", "sync_folder", "make_folder")

    def __init__(self, disk, at=None, how="kill before"):
        self.disk, self.at, self.how, self.count = disk, at, how, 0

    def __getattr__(self, name):
        operation = getattr(self.disk, name)
        if name not in self.CHANGES:
            return operation

        def changed(*arguments):
            self.count += 1
            if self.count - 1 != self.at:
                return operation(*arguments)
            if self.how == "kill before":
                raise Killed
            if self.how == "no space":
                if name == "write":
                    # A part of it is there.
                    operation(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise OSError(errno.ENOSPC, "no space left on device")
            if self.how == "broken":
                raise OSError(errno.EIO, "input/output error")
            operation(*arguments)
            raise Killed

        return changed


def draw_from(seed):
    return random.Random(seed)
