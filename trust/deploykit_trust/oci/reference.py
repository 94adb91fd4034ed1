"""`REF`: where an artifact lies in a registry, `host[:port]/name[:tag][@sha256:digest]`, checked before it is used.

The host is always written out: no registry is anybody's default.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from deploykit.contract.errors import UsageError

_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9a-fA-F:]+\])"
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?P<host>{_HOST}(?::[0-9]{{1,5}})?)/(?P<name>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_LONGEST_NAME = 255
_FORM = "registry.example.org/team/model:v1, or ...@sha256:<64 hex digits>"


@dataclass(frozen=True)
class Reference:
    """A place in a registry.

    Attributes:
        host: with its port, where one is given.
        name: of the repository.
        tag: "" where only a digest is given.
        digest: `sha256:...` of the manifest; "" where only a tag is given.
    """

    host: str
    name: str
    tag: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read what a user typed; without tag and digest the tag is `latest`.

        Raises:
            UsageError: it is of another form.
        """
        found = _REFERENCE.fullmatch(text)
        if found is None or len(found["name"]) > _LONGEST_NAME:
            raise UsageError(f"{text[:300]!r} names no place in a registry", hint=_FORM)
        host, digest = found["host"], found["digest"] or ""
        if not re.search(r"[.:\[]", host) and host != "localhost":
            hint = f"write the registry out: {_FORM}"
            raise UsageError(f"{text[:300]!r} begins with {host!r}, which is no host", hint=hint)
        return cls(host, found["name"], found["tag"] or ("" if digest else "latest"), digest)

    @property
    def target(self) -> str:
        """What a manifest is asked for by: the digest where there is one, for it cannot change."""
        return self.digest or self.tag

    @property
    def is_loopback(self) -> bool:
        """Whether the registry is on this machine, so that nobody is on the way."""
        return is_loopback(self.host)

    def pinned(self, digest: str) -> str:
        """The reference by digest, which stays the same whatever becomes of the tag."""
        return f"{self.host}/{self.name}@{digest}"

    def __str__(self) -> str:
        tag, digest = self.tag and f":{self.tag}", self.digest and f"@{self.digest}"
        return f"{self.host}/{self.name}{tag}{digest}"


def is_loopback(host: str) -> bool:
    """Whether a host (with or without port) is this machine by its own name: no name service is asked."""
    name = re.sub(r":[0-9]+$", "", host).strip("[]")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
