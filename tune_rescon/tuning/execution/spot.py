"""EC2's notice that it takes a spot machine back: two minutes before, for who asks. Ray does not."""

from __future__ import annotations

import json
import urllib.request
from typing import Final
from urllib.error import HTTPError

__all__ = ["SpotNotice"]

#: Instance metadata, version 2: link-local, on EC2 alone.
SERVICE: Final = "http://169.254.169.254/latest"

#: Seconds an answer may take; where there is no such service, a connection may just hang.
_PATIENCE: Final = 1.0

_ACTIONS: Final = ("terminate", "stop", "hibernate")


class SpotNotice:
    """Asks whether the notice has come. On a machine that is not EC2's once, and never again."""

    def __init__(self, service: str = SERVICE) -> None:
        """Nothing is asked yet."""
        self._service = service
        # No proxy knows this machine's own metadata.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._answers: bool | None = None

    def came(self) -> bool:
        """Whether the machine will be taken away. False also where nobody knows."""
        if self._answers is False:
            return False
        try:
            token = self._ask("PUT", "api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
            said = self._ask("GET", "meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
            return json.loads(said)["action"] in _ACTIONS
        except HTTPError:
            # 404: no notice. A machine of another cloud says something like it, too.
            self._answers = True
        except OSError:
            self._answers = self._answers or False
        except (ValueError, LookupError, TypeError):
            self._answers = False
        return False

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(f"{self._service}/{path}", headers=headers, method=method)
        with self._opener.open(request, timeout=_PATIENCE) as answer:
            return str(answer.read().decode())
