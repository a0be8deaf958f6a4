"""The database a study is kept in: opened, or what is wrong with it said."""

from __future__ import annotations

import optuna

from tune_rescon.errors import StorageError, explain

__all__ = ["find_study", "open_database"]


def open_database(url: str, *, busy_seconds: float) -> optuna.storages.RDBStorage:
    """Connect; a writer waits ``busy_seconds`` for another one's transaction on a SQLite file.

    Raises:
        StorageError: it cannot be reached, is not a database, or another Optuna created its tables.
    """
    # Imported here: a dry run reads this module and opens no database.
    from sqlalchemy.exc import SQLAlchemyError

    wait = {"connect_args": {"timeout": busy_seconds}} if url.startswith("sqlite:") else {}
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs=wait)
    except (ImportError, SQLAlchemyError) as error:
        # The URL itself is not shown: it may hold a password.
        rule = "must be the URL of a database that can be reached"
        got = str(error).partition("\n")[0].strip(" .")
        hint = "For a local file give sqlite:///PATH/study.db."
        raise StorageError(explain(rule, got=got, where="--study", hint=hint)) from None
    except RuntimeError as error:
        raise _other_schema(url, str(error)) from None


def _other_schema(url: str, said: str) -> StorageError:
    """Another Optuna's tables; ``said`` is what Optuna says of them."""
    import sqlalchemy
    from optuna.storages._rdb.models import VersionInfoModel

    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        writer = connection.execute(sqlalchemy.select(VersionInfoModel.library_version)).scalar()
    if "storage upgrade" in said:
        # The URL is left out: a report reads a copy.
        hint = (
            "Keep a copy, then run `optuna storage upgrade --storage URL`, where URL is the database's"
            " (sqlite:///STORAGE/NAME/study.db unless --study names another)."
        )
    else:
        hint = f"Install optuna {writer} or later."
    rule = f"a study must have the tables of optuna {optuna.__version__}, which is installed here"
    return StorageError(explain(rule, got=f"those of optuna {writer}", where="--study", hint=hint))


def find_study(storage: optuna.storages.RDBStorage, name: str) -> int:
    """The id of a study.

    Raises:
        StorageError: there is none of that name.
    """
    try:
        return storage.get_study_id_from_name(name)
    except KeyError:
        rule = f"there is no study named {name!r} in the database"
        raise StorageError(explain(rule, where="--study")) from None
