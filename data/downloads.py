"""Pictures from the web, fetched as a polite guest: robots.txt, one request at a time, limits on everything."""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit
from urllib.robotparser import RobotFileParser

from data.images import IMAGE_SUFFIXES, read_image
from data.web_requests import USER_AGENT, Answer, DownloadLimits, Refused, normalised, request
from mesh.errors import InputError, require
from mesh.files import replacing

_MAX_LIST_BYTES = 10_000_000
_ROBOTS_BYTES = 500_000
_MAX_CRAWL_DELAY_S = 60.0
_BUSY = (429, 503)
_SIGNATURES = {
    ".jpg": rb"\xff\xd8\xff",
    ".png": rb"\x89PNG\r\n\x1a\n",
    ".webp": rb"RIFF.{4}WEBP",
    ".gif": rb"GIF8[79]a",
    ".bmp": rb"BM",
    ".tif": rb"II\*\0|MM\0\*",
}


def read_url_list(path: Path) -> list[str]:
    """The addresses in a text file, one a line, each once; empty lines and what follows a # at a word's start go.

    A line that is no http or https address is an InputError.
    """
    try:
        content = path.read_bytes()[: _MAX_LIST_BYTES + 1]
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read the list {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected a text file in UTF-8 with one address a line") from error
    require(len(content) <= _MAX_LIST_BYTES, f"{path}: a list of addresses has at most {_MAX_LIST_BYTES} bytes")
    urls: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if url := re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip():
            try:
                urls[normalised(url)] = None
            except InputError as error:
                raise InputError(f"{path}, line {number}: {error}") from error
    require(bool(urls), f"{path}: no addresses in it; expected one http or https address a line")
    return list(urls)


class Downloader:
    """Fetches pictures into one folder, which is made when the first one is there.

    One request at a time; between two requests to one host lies at least the interval, or what its robots.txt asks for.
    A host that says that it is busy is not asked again.
    """

    def __init__(
        self,
        folder: Path,
        limits: DownloadLimits | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.limits = folder, limits or DownloadLimits()
        self._sleep, self._clock = sleep, clock
        self._robots: dict[str, RobotFileParser | str] = {}  # rules, or why there are none
        self._next_request: dict[str, float] = {}
        self._busy: dict[str, int] = {}

    def fetch(self, url: str) -> Path:
        """Where the picture lies, fetched unless an earlier call did. InputError: one line, why there is none."""
        url = normalised(url)
        name = _file_name(url)
        for path in sorted(self.folder.glob(f"{name}.*")):
            if path.suffix in IMAGE_SUFFIXES:
                return path
        content = self._download(url)
        return self._store(content, name, url)

    def _download(self, url: str) -> bytes:
        """The content of an address or of where it leads to, if it may be fetched and calls itself a picture."""
        current = url
        for _ in range(self.limits.max_redirects + 1):
            self._check_robots(current)
            answer = self._request(current, int(self.limits.max_megabytes * 1e6), only_pictures=True)
            if answer.target is None:
                return answer.content
            current = answer.target
        raise InputError(f"{url}: more than {self.limits.max_redirects} redirects")

    def _check_robots(self, url: str) -> None:
        """InputError if the host's robots.txt forbids this address or asks for more patience than we have."""
        origin = urljoin(url, "/")
        if origin not in self._robots:
            self._robots[origin] = self._read_robots(urljoin(origin, "robots.txt"))
        rules = self._robots[origin]
        if isinstance(rules, str):
            raise InputError(f"{url}: no robots.txt could be had, which forbids all ({rules})")
        if not rules.can_fetch(USER_AGENT, url):
            raise InputError(f"{url}: robots.txt of this host forbids it")
        delay = rules.crawl_delay(USER_AGENT)
        if delay is not None and float(delay) > _MAX_CRAWL_DELAY_S:
            raise InputError(f"{url}: robots.txt of this host asks for {delay} s between requests")

    def _read_robots(self, url: str) -> RobotFileParser | str:
        """As in RFC 9309: no such file allows all; a host in trouble allows nothing, for the reason returned."""
        rules = RobotFileParser()
        rules.parse([])
        current = url
        try:
            for _ in range(self.limits.max_redirects + 1):
                answer = self._request(current, _ROBOTS_BYTES, only_pictures=False)
                if answer.target is None:
                    rules.parse(answer.content.decode("utf-8-sig", errors="replace").splitlines())
                    return rules
                current = answer.target
        except Refused as error:
            return rules if error.status < 500 and error.status not in _BUSY else _reason(error, current)
        except InputError as error:
            return _reason(error, current)
        return f"more than {self.limits.max_redirects} redirects"

    def _wait_for_turn(self, url: str) -> None:
        host = urlsplit(url).hostname or ""
        if host in self._busy:
            raise InputError(f"{url}: not asked, because {host} answered {self._busy[host]} before")
        rules = self._robots.get(urljoin(url, "/"))
        delay = rules.crawl_delay(USER_AGENT) if isinstance(rules, RobotFileParser) else None
        pause = self._next_request.get(host, -math.inf) - self._clock()
        if pause > 0:
            self._sleep(pause)
        self._next_request[host] = self._clock() + max(self.limits.interval_s, float(delay or 0))

    def _request(self, url: str, max_bytes: int, *, only_pictures: bool) -> Answer:
        """One request when it is this host's turn."""
        self._wait_for_turn(url)
        try:
            return request(url, self.limits, max_bytes=max_bytes, only_pictures=only_pictures)
        except Refused as error:
            if error.status in _BUSY:
                self._busy[urlsplit(url).hostname or ""] = error.status
            raise

    def _store(self, content: bytes, name: str, url: str) -> Path:
        """Keep it under an ending that says what it is, once it is known to be a whole picture."""
        ending = next((e for e, signature in _SIGNATURES.items() if re.match(signature, content, re.DOTALL)), None)
        if ending is None:  # not left to Pillow, which would start other programs for some formats
            raise InputError(f"{url}: not a picture in a known format ({', '.join(e[1:] for e in _SIGNATURES)})")
        path = self.folder / f"{name}{ending}"
        unchecked = path.with_suffix(".unchecked")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(unchecked) as file:
                file.write(content)
            read_image(unchecked)
            unchecked.replace(path)
        except OSError as error:
            raise InputError(f"{url}: cannot be stored in {self.folder}: {error.strerror}") from error
        except InputError as error:
            raise InputError(f"{url}: {str(error).removeprefix(f'{unchecked}: ')}") from error
        finally:
            with contextlib.suppress(OSError):  # moved, or never made
                unchecked.unlink()
        return path


def _file_name(url: str) -> str:
    """A readable name without ending that no other address has."""
    stem = unquote(urlsplit(url).path).rpartition("/")[2].rpartition(".")[0]
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:40].strip("_") or "picture"
    return f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"


def _reason(error: InputError, url: str) -> str:
    """Its message without the address."""
    return str(error).removeprefix(f"{url}: ")
