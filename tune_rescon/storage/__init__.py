"""Searches stored at a URL: the files that are uploaded and downloaded, and which copy is the newer one.

::

    parse_storage    --storage as a directory or a StorageUrl
    SearchHome       the place of one search at a URL: create reserves its name, find returns it
    RemoteFolder     the operations that are needed of fsspec; each succeeds completely or has no effect
    fetch_databases  before a search resumes: downloads the newest copies
    Sender, Mirror   while a search runs: uploads the changes, in a thread
    CheckpointMirror the checkpoints of one trial, on its node and at the URL
    local_file       the file at a path or a URL, as a local file
    sqlite_url       the URL of a SQLite file, quoted; sqlite_file is the inverse
    SharedValue      a JSON value that several machines may change

The package depends on fsspec and SQLite files, but not on Ray or Optuna. Names are loaded on first use,
because a search in a directory needs none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.storage.checkpoints import CheckpointMirror
    from tune_rescon.storage.home import (
        SearchHome,
        check_name,
        check_new_name,
        name_taken,
        name_without_space,
        no_such_search,
        usable,
    )
    from tune_rescon.storage.mirror import (
        Copy,
        Discard,
        Mirror,
        Pace,
        Sender,
        SupersededError,
        choose_copies,
        choose_copy,
        fetch_databases,
    )
    from tune_rescon.storage.remote import (
        RemoteError,
        RemoteFolder,
        SharedValue,
        StorageUrl,
        local_file,
        parse_storage,
    )
    from tune_rescon.storage.sqlite import (
        absolute_url,
        copy_database,
        needs_rollback,
        sqlite_file,
        sqlite_url,
    )
else:  # hidden from the type checker, which would accept any name
    __getattr__, __all__ = lazy_names(__name__)
