"""Searches kept at a URL: what is sent there, what is brought back, and which copy is the newer one.

::

    parse_storage    --storage as a directory or a StorageUrl
    SearchHome       one search's place at a URL: taken once, found again
    RemoteFolder     the few things asked of fsspec, each whole or not at all
    fetch_databases  before a search goes on: the newest copies
    Sender, Mirror   while it runs: what changed, and the thread that sends it
    CheckpointMirror one trial's checkpoints, on its node and there
    local_file       a file at a path or a URL, as one of this machine's
    sqlite_url       the URL of a SQLite file, quoted; sqlite_file reads one
    Register         a value that several machines may change; SharedValue reads and writes it as JSON

It knows fsspec and SQLite files, and nothing of Ray or Optuna. Names are loaded on first use: a search in a
directory needs none of this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.storage.checkpoints import CheckpointMirror
    from tune_rescon.storage.choice import Copy, choose_copies, choose_copy
    from tune_rescon.storage.database import copy_database
    from tune_rescon.storage.fetching import fetch_databases
    from tune_rescon.storage.home import SearchHome, usable
    from tune_rescon.storage.localising import local_file
    from tune_rescon.storage.location import StorageUrl, parse_storage
    from tune_rescon.storage.mirror import Mirror, Pace
    from tune_rescon.storage.names import check_name, check_new_name, name_taken, no_such_search
    from tune_rescon.storage.register import Register, RegisterEntry
    from tune_rescon.storage.remote import RemoteError, RemoteFolder
    from tune_rescon.storage.sending import Discard, Sender, SupersededError
    from tune_rescon.storage.shared import SharedValue
    from tune_rescon.storage.sqlite import sqlite_file, sqlite_url

__all__ = [
    "CheckpointMirror",
    "Copy",
    "Discard",
    "Mirror",
    "Pace",
    "Register",
    "RegisterEntry",
    "RemoteError",
    "RemoteFolder",
    "SearchHome",
    "Sender",
    "SharedValue",
    "StorageUrl",
    "SupersededError",
    "check_name",
    "check_new_name",
    "choose_copies",
    "choose_copy",
    "copy_database",
    "fetch_databases",
    "local_file",
    "name_taken",
    "no_such_search",
    "parse_storage",
    "sqlite_file",
    "sqlite_url",
    "usable",
]

__getattr__ = lazy_names(
    __name__,
    {
        "CheckpointMirror": "checkpoints",
        "Copy": "choice",
        "Discard": "sending",
        "Mirror": "mirror",
        "Pace": "mirror",
        "Register": "register",
        "RegisterEntry": "register",
        "RemoteError": "remote",
        "RemoteFolder": "remote",
        "SearchHome": "home",
        "Sender": "sending",
        "SharedValue": "shared",
        "StorageUrl": "location",
        "SupersededError": "sending",
        "check_name": "names",
        "check_new_name": "names",
        "choose_copies": "choice",
        "choose_copy": "choice",
        "copy_database": "database",
        "fetch_databases": "fetching",
        "local_file": "localising",
        "name_taken": "names",
        "no_such_search": "names",
        "parse_storage": "location",
        "sqlite_file": "sqlite",
        "sqlite_url": "sqlite",
        "usable": "home",
    },
)
