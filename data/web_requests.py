"""One polite request for a web address: limits in time and size, no private networks, nothing followed blindly.

Only http and https; redirects are handed back, so that the caller checks every step of the way like the first one.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit

from mesh.errors import InputError, require

USER_AGENT = "meshrecovery/0.1"
_CHUNK_BYTES = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
_BINARY = ("application/octet-stream", "binary/octet-stream", "")  # what servers say that do not know


@dataclass(frozen=True, kw_only=True)
class DownloadLimits:
    """How a download behaves towards the servers, and what it puts up with from them.

    `timeout_s` bounds a request as a whole, however slowly bytes keep coming. `private_addresses`: whether this machine
    and private networks may be asked; otherwise a list from elsewhere could reach what only this machine can see.
    """

    interval_s: float = 1.0
    timeout_s: float = 30.0
    max_megabytes: float = 20.0
    max_redirects: int = 5
    private_addresses: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.interval_s <= 3600, f"the interval must lie in 0..3600 seconds, got {self.interval_s}")
        require(0 < self.timeout_s <= 3600, f"the timeout must lie in 0..3600 seconds, got {self.timeout_s}")
        require(0 < self.max_megabytes <= 1000, f"the largest size must lie in 0..1000 MB, got {self.max_megabytes}")
        require(self.max_redirects >= 0, f"the number of redirects must not be negative, got {self.max_redirects}")


def normalised(url: str) -> str:
    """An address as it can be sent: no fragment, everything beyond ASCII quoted; InputError if it is none."""
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode() if ":" not in (parts.hostname or "") else parts.hostname
    except (ValueError, UnicodeError) as error:
        raise InputError(f"{url[:200]!r} is no valid address ({error})") from error
    if parts.scheme.lower() not in ("http", "https") or not host:
        raise InputError(f"{url[:200]!r}: expected an address that starts with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise InputError(f"an address at {host} holds a user name or password; leave it out")
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        raise InputError(f"{url[:200]!r} holds blanks or control characters; write them as %20 and the like")
    place = f"[{host}]" if ":" in host else host
    place += f":{port}" if port is not None else ""
    path, query = (quote(part, safe="/%:@!$&'()*+,;=~?-._[]") for part in (parts.path or "/", parts.query))
    return urlunsplit(SplitResult(parts.scheme.lower(), place.lower(), path, query, ""))


@dataclass(frozen=True)
class Answer:
    """What a server said: the content, or where else to look."""

    content: bytes = b""
    target: str | None = None


class Refused(InputError):
    """An answer with a status of 400 or above."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def request(url: str, limits: DownloadLimits, *, max_bytes: int, only_pictures: bool) -> Answer:
    """Ask once for a `normalised` address. InputError with one line if no good answer came, `Refused` from status 400.

    `only_pictures` refuses, before anything is read, what calls itself something else.
    """
    proxied = _is_proxied(url)
    if not limits.private_addresses:
        _refuse_private(urlsplit(url).hostname or "", url)  # all that can be judged where a proxy looks names up
    wanted = urllib.request.Request(url, headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})
    with _Deadline(limits.timeout_s) as deadline:
        opener = _opener(url, deadline, public_only=not (proxied or limits.private_addresses))
        try:
            with opener.open(wanted, timeout=limits.timeout_s) as response:
                return _read(response, url, max_bytes, only_pictures, deadline)
        except urllib.error.HTTPError as error:
            error.close()
            raise Refused(f"{url}: the server answered {error.code} ({_plain(error.reason)})", error.code) from error
        except InputError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            if deadline.passed or isinstance(reason, TimeoutError):
                raise InputError(f"{url}: took longer than {limits.timeout_s:g} s") from error
            raise InputError(f"{url}: {_plain(reason) or type(reason).__name__}") from error


def _read(
    response: http.client.HTTPResponse, url: str, max_bytes: int, only_pictures: bool, deadline: _Deadline
) -> Answer:
    """Content within the limits, of a response that came with a status below 400."""
    if response.status in _REDIRECTS:
        target = response.headers.get("Location")
        if not target:
            raise InputError(f"{url}: redirects to nowhere")
        try:
            return Answer(target=normalised(urljoin(url, target.strip().replace(" ", "%20"))))
        except (InputError, ValueError) as error:
            raise InputError(f"{url}: redirects to a wrong address: {error}") from error
    if response.status != 200:
        raise InputError(f"{url}: the server answered {response.status}, expected 200")
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if only_pictures and not kind.startswith("image/") and kind not in _BINARY:
        raise InputError(f"{url}: expected a picture, the server sends {_plain(kind)}")
    too_large = f"{url}: larger than {max_bytes / 1e6:g} MB"
    length = response.headers.get("Content-Length", "")
    require(not length.isdecimal() or int(length[:20]) <= max_bytes, too_large)
    content = bytearray()
    while chunk := response.read1(_CHUNK_BYTES):
        content += chunk
        require(len(content) <= max_bytes, too_large)
    if deadline.passed:
        raise TimeoutError
    if length.isdecimal() and len(content) < int(length[:20]):
        raise InputError(f"{url}: broken off after {len(content)} of {length} bytes")
    return Answer(content=bytes(content))


class _Deadline:
    """Ends a connection when time is up: a socket's own timeout starts anew with each byte that trickles in."""

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def watch(self, connection: socket.socket) -> None:
        """Have this one ended, too."""
        self._sockets.append(connection)
        if self.passed:
            self._end()

    def _end(self) -> None:
        self.passed = True
        for connection in self._sockets:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed by itself


def _opener(url: str, deadline: _Deadline, *, public_only: bool) -> urllib.request.OpenerDirector:
    """Opens http and https, through a proxy where the environment names one, and nothing else."""

    def check(connection: http.client.HTTPConnection) -> None:
        deadline.watch(connection.sock)
        if public_only:  # of the address connected to: what the name leads to may change from one look to the next
            try:
                _refuse_private(connection.sock.getpeername()[0], url)
            except InputError:
                connection.close()
                raise

    class Checked(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            check(self)

    class CheckedTls(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            check(self)

    class Http(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(Checked, request)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(CheckedTls, request)

    class Redirects(urllib.request.HTTPErrorProcessor):
        """Hands redirects over as they are, and makes errors of the statuses from 400 on."""

        def http_response(self, request: urllib.request.Request, response: Any) -> Any:
            return response if response.status < 400 else super().http_response(request, response)

        https_response = http_response

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        Http(),
        Https(),
        Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _is_proxied(url: str) -> bool:
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    return parts.scheme in proxies and not urllib.request.proxy_bypass(parts.hostname or "")


def _refuse_private(address: str, url: str) -> None:
    """InputError if a numeric address is of this machine or a private network."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        if address != "localhost" and not address.endswith(".localhost"):
            return
    else:
        found = getattr(found, "ipv4_mapped", None) or found
        if found.is_global and not found.is_multicast:
            return
    raise InputError(f"{url}: {address} is no public address; --private-addresses allows it")


def _plain(text: object) -> str:
    """What a server or the system said, on one line."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())[:200]
