"""HTTP to a registry: TLS with checked certificates, bounded answers, few redirects, and none to where TLS ends.

Who answers byte by byte is left: a limit of time for each piece alone would let one answer last for ever.

A login goes to the registry's own host, or to the token service that it names. Messages name host, path and status,
never a query or a header.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any
from urllib.parse import urlencode, urljoin, urlsplit

from deploykit._version import __version__
from deploykit.contract.errors import ArtifactError, DeviceError
from deploykit.contract.reading import decode_json
from deploykit_trust.oci.credentials import Credentials
from deploykit_trust.oci.reference import Reference, is_loopback

LARGEST_ANSWER_BYTES = 4 << 20
"""Of manifests, tokens and words of error: what the distribution specification asks registries to take."""
_TIMEOUT_S = 60.0
_SLOW_S, _LEAST_BYTES_PER_S = 60.0, 1 << 10
_MOST_REDIRECTS = 5
_SAID = 300
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_REDIRECTS = (301, 302, 303, 307, 308)


class LineError(DeviceError):
    """The registry could not be reached, or the line was cut: asking again may help."""


@dataclass(frozen=True)
class Answer:
    """What a registry answered.

    Attributes:
        status: HTTP status.
        headers: with names in lower case.
        url: that answered, after redirects.
    """

    status: int
    headers: Mapping[str, str]
    url: str = field(repr=False)


class _Paced(io.RawIOBase):
    """What comes from a registry; an error where it is waited for and hardly anything comes.

    Only the time that is spent waiting counts, not what the reader does between.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._waited_s = 0.0
        self._came = 0

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """See `io.RawIOBase`.

        Raises:
            TimeoutError: it was waited for longer than a minute, at fewer than 1024 bytes a second.
        """
        start = time.monotonic()
        count = self._raw.readinto(buffer)
        self._waited_s += time.monotonic() - start
        self._came += count or 0
        if self._waited_s > _SLOW_S:
            if count and self._came < self._waited_s * _LEAST_BYTES_PER_S:
                raise TimeoutError(f"it sends fewer than {_LEAST_BYTES_PER_S} bytes a second")
            self._waited_s, self._came = 0.0, 0
        return count

    def close(self) -> None:
        """See `io.RawIOBase`."""
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer that is read at a pace, from its first line on."""

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self.fp = io.BufferedReader(_Paced(sock.makefile("rb", buffering=0)))


class _Plain(http.client.HTTPConnection):
    response_class = _Response


class _Secure(http.client.HTTPSConnection):
    response_class = _Response


class _PlainHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """See `urllib.request.HTTPHandler`."""
        return self.do_open(_Plain, req)


class _SecureHandler(urllib.request.HTTPSHandler):
    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._checked = context

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """See `urllib.request.HTTPSHandler`."""
        return self.do_open(_Secure, req, context=self._checked)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows nothing: redirects are decided on in `Line`."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Line:
    """Requests to one registry.

    Args:
        reference: whose host is asked.
        credentials: of the user for it; None for nobody.
        plain_http: without TLS; a registry on this machine is asked so by default.
        scope: what a token is asked for: `pull`, or `pull,push`.
    """

    def __init__(
        self, reference: Reference, credentials: Credentials | None, *, plain_http: bool = False, scope: str = "pull"
    ) -> None:
        self.reference = reference
        self._plain = plain_http or reference.is_loopback
        self._base = f"{'http' if self._plain else 'https'}://{reference.host}"
        self._credentials = credentials
        self._scope = f"repository:{reference.name}:{scope}"
        self._authorization = ""
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        handlers: list[urllib.request.BaseHandler] = [_PlainHandler(), _SecureHandler(context), _Stay()]
        if reference.is_loopback:
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def url(self, path: str) -> str:
        """The address of `/v2/<name>/<path>`."""
        return f"{self._base}/v2/{self.reference.name}/{path}"

    def absolute(self, location: str, answer: Answer) -> str:
        """Where an upload goes on, which must be at the registry itself.

        Raises:
            ArtifactError: it is elsewhere.
        """
        found = _joined(answer.url, location)
        if not self._plain and found.startswith("http:"):  # what a registry behind a proxy thinks that it is asked by
            found = f"https:{found.removeprefix('http:')}"
        if _origin(found) != _origin(self._base):
            raise ArtifactError(f"{self.reference.host} sends an upload to {shown(found)}; it is not followed")
        return found

    @contextlib.contextmanager
    def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | IO[bytes] | None = None,
        ok: tuple[int, ...] = (200,),
    ) -> Iterator[tuple[Answer, http.client.HTTPResponse]]:
        """One request, with the login that the registry asks for; the body of the answer is read inside the block.

        Args:
            body: bytes, or a file with its length in `headers`; a file is asked for once only.
            ok: statuses that are answers; others are errors.
        Raises:
            LineError: no connection, or it was cut.
            DeviceError: the registry refuses the login, or answers with an error.
            ArtifactError: it redirects to where nothing is asked.
        """
        response = self._answered(method, url, dict(headers or {}), body)
        try:
            if response.status not in ok:
                raise self._refusal(method, response)
            lower = {name.lower(): value for name, value in response.headers.items()}
            try:
                yield Answer(response.status, lower, response.geturl()), response
            except (OSError, http.client.HTTPException) as error:
                raise self._cut(error) from error
        finally:
            response.close()

    def _answered(
        self, method: str, url: str, headers: dict[str, str], body: bytes | IO[bytes] | None
    ) -> http.client.HTTPResponse:
        response = self._once(method, url, headers, body)
        if response.status == 401:  # nobody was named, or a token has expired
            challenge = response.headers.get("WWW-Authenticate", "")
            response.close()
            self._log_in(challenge)
            if hasattr(body, "seek"):
                body.seek(0)  # type: ignore[union-attr]
            response = self._once(method, url, headers, body)
        for _ in range(_MOST_REDIRECTS):
            if response.status not in _REDIRECTS or method not in ("GET", "HEAD"):
                return response
            url = self._next(url, response)
            response = self._once(method, url, headers, None)
        if response.status in _REDIRECTS:
            response.close()
            raise ArtifactError(f"{self.reference.host} redirects more than {_MOST_REDIRECTS} times")
        return response

    def _next(self, url: str, response: http.client.HTTPResponse) -> str:
        """Where a redirect leads, if it is to be followed."""
        response.close()
        found = _joined(url, response.headers.get("Location", ""))
        plain = (
            self._plain and urlsplit(found).scheme == "http" and is_loopback(_host(found)) == is_loopback(_host(url))
        )
        if urlsplit(found).scheme != "https" and not plain:
            raise ArtifactError(f"{self.reference.host} redirects to {shown(found)}, without TLS; it is not followed")
        return found

    def _once(
        self, method: str, url: str, headers: dict[str, str], body: bytes | IO[bytes] | None
    ) -> http.client.HTTPResponse:
        own = {"User-Agent": f"deploykit/{__version__}", "Accept-Encoding": "identity", **headers}
        if self._authorization and _origin(url) == _origin(self._base):
            own["Authorization"] = self._authorization
        request = urllib.request.Request(url, data=body, headers=own, method=method)
        try:
            return self._opener.open(request, timeout=_TIMEOUT_S)  # type: ignore[no-any-return]
        except urllib.error.HTTPError as error:
            return error  # type: ignore[return-value]  # an answer like others
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._cut(error) from error

    def _cut(self, error: Exception) -> LineError:
        reason = getattr(error, "reason", None) or error
        hint = "check host and port, and whether the registry has TLS (--plain-http asks without)"
        if isinstance(reason, ssl.SSLError):
            reason = f"TLS: {reason.reason or reason}"
            hint = "a certificate of your own authority is taken from $SSL_CERT_FILE"
        return LineError(f"{self.reference.host} cannot be reached, or the line was cut: {reason}", hint=hint)

    def _refusal(self, method: str, response: http.client.HTTPResponse) -> DeviceError:
        said = ""
        if method != "HEAD":
            with contextlib.suppress(OSError, http.client.HTTPException):  # its words are not needed for the refusal
                said = _words(response.read(LARGEST_ANSWER_BYTES))
        if any(secret in said for secret in self._secrets()):  # which some say back: it is not for a log
            said = ""
        message = f"{self.reference.host} answers {response.status} to {method} {shown(response.geturl())}{said}"
        if response.status in (401, 403):
            return DeviceError(message, hint="log in: docker login, or DEPLOYKIT_REGISTRY_USER and _PASSWORD")
        if response.status == 404:
            return DeviceError(message, hint=f"is {self.reference} right?")
        if response.status == 429 or response.status >= 500:
            return LineError(message, hint="try again later; what was sent is not sent again")
        return DeviceError(message)

    def _secrets(self) -> Iterator[str]:
        """What no message may hold."""
        if self._credentials is not None:
            yield from (self._credentials.password, self._credentials.basic.partition(" ")[2])
        if self._authorization:
            yield self._authorization.partition(" ")[2]

    def _log_in(self, challenge: str) -> None:
        """Take what a 401 asks for: a password, or a token of the service that it names."""
        self._authorization = ""  # an expired token must not go to the service that gives the next one
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic":
            if self._credentials is None:
                hint = "log in: docker login, or DEPLOYKIT_REGISTRY_USER and _PASSWORD"
                raise DeviceError(f"{self.reference.host} asks for a login", hint=hint)
            self._authorization = self._credentials.basic
            return
        facts = dict(_CHALLENGE.findall(rest))
        if kind.lower() != "bearer" or not facts.get("realm"):
            raise DeviceError(f"{self.reference.host} asks for a login of a kind that is not known here: {kind[:40]!r}")
        self._authorization = f"Bearer {self._token(facts)}"

    def _token(self, facts: Mapping[str, str]) -> str:
        realm = _joined(self._base, facts["realm"])
        at_home = _origin(realm) == _origin(self._base) or (self.reference.is_loopback and is_loopback(_host(realm)))
        if urlsplit(realm).scheme != "https" and not (self._plain and at_home):
            raise ArtifactError(f"{self.reference.host} asks for a login at {shown(realm)}, without TLS; none is sent")
        query = {"service": facts["service"]} if facts.get("service") else {}
        separator = "&" if urlsplit(realm).query else "?"
        url = f"{realm}{separator}{urlencode({**query, 'scope': self._scope})}"
        headers = {"Authorization": self._credentials.basic} if self._credentials else {}
        response = self._once("GET", url, headers, None)
        try:
            if response.status != 200:
                raise self._refusal("GET", response)
            found = decode_json(response.read(LARGEST_ANSWER_BYTES), dict[str, Any], what="a token")
            token = found.get("token") or found.get("access_token")
        except (ArtifactError, OSError, http.client.HTTPException) as error:
            raise DeviceError(f"the login at {shown(realm)} gave no token that can be read") from error
        finally:
            response.close()
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise DeviceError(f"the login at {shown(realm)} gave no token")
        return token


def _joined(base: str, location: str) -> str:
    """An address that a registry names, from where it named it; one that is none is refused."""
    try:
        found = urljoin(base, location)
        _origin(found)
    except ValueError as error:
        raise ArtifactError(f"a registry names an address that is none: {error}") from error
    return found


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def shown(url: str) -> str:
    """An address for messages: without user, password and query, which may be secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:_SAID]


def _words(data: bytes) -> str:
    """What a registry says of an error, as its specification has it; nothing of a page that it is not."""
    try:
        first = decode_json(data, dict[str, Any], what="an error")["errors"][0]
        return f": {str(first.get('code', ''))[:60]} {str(first.get('message', ''))[:_SAID]}".rstrip()
    except (ArtifactError, KeyError, IndexError, TypeError, AttributeError):
        return ""
