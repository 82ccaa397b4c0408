"""Downloads from a server on this machine that misbehaves on request."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from data.downloads import Downloader, read_url_list
from data.web_requests import DownloadLimits, normalised
from mesh.errors import InputError


def picture(kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (10, 200, 30)).save(stream, kind)
    return stream.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Answers by path; the server keeps what was asked for."""

    server: Server

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.agents.add(self.headers["User-Agent"])
        if self.path == "/robots.txt":
            self.answer(self.server.robots_status, "text/plain", self.server.robots.encode())
        elif self.path.startswith("/round"):
            self.redirect(self.path + "x")
        elif self.path.startswith("/to?"):
            self.redirect(self.path.partition("?")[2])
        elif self.path == "/drip.png":
            self.send_response(200)
            self.end_headers()
            for _ in self.for_long():
                try:
                    self.wfile.write(b"x")
                except OSError:
                    return
        elif self.path == "/dripping_head.png":
            for _ in self.for_long():
                try:
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX: y\r\n")
                except OSError:
                    return
        elif self.path == "/broken_off.png":
            self.answer(200, "image/png", picture()[:50], length=5000)
        elif self.path == "/endless.png":
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.end_headers()
            self.wfile.write(picture() + bytes(3_000_000))
        elif self.path in self.server.pages:
            self.answer(*self.server.pages[self.path])
        else:
            self.answer(404, "text/html", b"no")

    def for_long(self) -> Iterator[None]:
        """Never silent for long, and at an end only for the sake of the tests."""
        for _ in range(200):
            if self.server.stop.wait(0.02):
                return
            yield
        self.server.heard_out.append(self.path)

    def answer(self, status: int, kind: str, content: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def redirect(self, target: str) -> None:
        self.send_response(302)
        self.send_header("Location", target)
        self.end_headers()


class Server(ThreadingHTTPServer):
    """What it serves, and what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.agents: set[str] = set()
        self.heard_out: list[str] = []
        self.robots, self.robots_status = "User-agent: *\nDisallow: /private/\n", 200
        self.stop = threading.Event()
        self.pages: dict[str, tuple[int, str, bytes]] = {
            "/a.png": (200, "image/png", picture()),
            "/private/a.png": (200, "image/png", picture()),
            "/photo": (200, "application/octet-stream", picture("JPEG")),
            "/page.png": (200, "text/html", picture()),
            "/liar.png": (200, "image/png", b"<html>no picture</html>"),
            "/script.png": (200, "image/png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
            "/half.png": (200, "image/png", picture()[:-40]),
            "/large.png": (200, "image/png", bytes(3_000_000)),
            "/busy.png": (429, "text/plain", b"later"),
            "/with%20blank%C3%A9.png": (200, "image/png", picture()),
        }

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.stop.set()
        running.shutdown()
        thread.join()


def limits(**changes: object) -> DownloadLimits:
    given = {"interval_s": 0, "timeout_s": 10, "max_megabytes": 1, "private_addresses": True, **changes}
    return DownloadLimits(**given)  # type: ignore[arg-type]


def failure(server: Server, folder: Path, path: str, **changes: object) -> str:
    """The line that says why there is no picture; nothing may be left of the attempt."""
    url = server.url(path)
    with pytest.raises(InputError) as caught:
        Downloader(folder, limits(**changes)).fetch(url)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{url}: ")
    assert not folder.exists() or not list(folder.iterdir())
    return message.removeprefix(f"{url}: ")


def test_a_picture_is_kept_under_a_name_that_says_what_it_is(server: Server, tmp_path: Path) -> None:
    downloader = Downloader(tmp_path / "new", limits())
    path = downloader.fetch(server.url("/a.png"))
    assert path.read_bytes() == picture() and path.name.startswith("a-") and path.suffix == ".png"
    assert downloader.fetch(server.url("/photo")).suffix == ".jpg"
    assert downloader.fetch(server.url("/with blanké.png".replace(" ", "%20"))).name.startswith("with_blank")
    assert len(list((tmp_path / "new").iterdir())) == 3


def test_robots_are_asked_once_under_our_name_and_heard(server: Server, tmp_path: Path) -> None:
    downloader = Downloader(tmp_path, limits())
    downloader.fetch(server.url("/a.png"))
    with pytest.raises(InputError, match=r"robots\.txt of this host forbids it"):
        downloader.fetch(server.url("/private/a.png"))
    assert server.asked == ["/robots.txt", "/a.png"] and server.agents == {"meshrecovery/0.1"}


def test_a_redirect_into_what_robots_forbid_is_not_followed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"robots\.txt of this host forbids it"):
        Downloader(tmp_path, limits()).fetch(server.url("/to?/private/a.png"))
    assert "/private/a.png" not in server.asked


@pytest.mark.parametrize(("status", "allowed"), [(404, True), (403, True), (500, False), (429, False)])
def test_without_robots_everything_is_allowed_but_not_at_a_host_in_trouble(
    server: Server, tmp_path: Path, status: int, allowed: bool
) -> None:
    server.robots_status = status
    if allowed:
        assert Downloader(tmp_path, limits()).fetch(server.url("/a.png")).exists()
    else:
        assert f"robots.txt could be had, which forbids all (the server answered {status}" in failure(
            server, tmp_path, "/a.png"
        )


def test_robots_for_others_do_not_concern_us_and_those_for_us_do(server: Server, tmp_path: Path) -> None:
    server.robots = "User-agent: other\nDisallow: /\n"
    assert Downloader(tmp_path / "a", limits()).fetch(server.url("/a.png")).exists()
    server.robots = "User-agent: meshrecovery\nDisallow: /\n"
    assert "forbids" in failure(server, tmp_path / "b", "/a.png")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/large.png", "larger than 1 MB"),
        ("/endless.png", "larger than 1 MB"),
        ("/missing.png", "the server answered 404 (Not Found)"),
        ("/page.png", "expected a picture, the server sends text/html"),
        ("/liar.png", "not a picture in a known format (jpg, png, webp, gif, bmp, tif)"),
        ("/script.png", "not a picture in a known format (jpg, png, webp, gif, bmp, tif)"),
        ("/broken_off.png", "broken off after 50 of 5000 bytes"),
        ("/round", "more than 5 redirects"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(server: Server, tmp_path: Path, path: str, reason: str) -> None:
    assert failure(server, tmp_path / "downloads", path) == reason


def test_a_picture_that_cannot_be_decoded_is_not_kept(server: Server, tmp_path: Path) -> None:
    assert failure(server, tmp_path, "/half.png").startswith("the picture is damaged")


@pytest.mark.parametrize("path", ["/drip.png", "/dripping_head.png"])
def test_a_server_that_never_ends_is_left_even_if_bytes_keep_coming(server: Server, tmp_path: Path, path: str) -> None:
    server.robots_status = 404
    assert failure(server, tmp_path, path, timeout_s=0.3) == "took longer than 0.3 s"
    assert server.heard_out == []


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a.png", "gopher://x/"])
def test_a_redirect_to_another_scheme_is_refused(server: Server, tmp_path: Path, target: str) -> None:
    assert failure(server, tmp_path, f"/to?{target}").startswith("redirects to a wrong address")


def test_a_picture_that_is_there_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    first = Downloader(tmp_path, limits()).fetch(server.url("/a.png"))
    server.asked.clear()
    assert Downloader(tmp_path, limits()).fetch(server.url("/a.png")) == first and server.asked == []


def test_a_failed_picture_is_tried_again(server: Server, tmp_path: Path) -> None:
    failure(server, tmp_path, "/late.png")
    server.pages["/late.png"] = server.pages["/a.png"]
    assert Downloader(tmp_path, limits()).fetch(server.url("/late.png")).exists()


def test_private_addresses_are_refused_unless_allowed(server: Server, tmp_path: Path) -> None:
    for path in ("/a.png", "/to?/a.png"):
        assert "127.0.0.1 is no public address" in failure(server, tmp_path, path, private_addresses=False)
    assert server.asked == []


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "10.0.0.1:1"])
def test_private_addresses_are_not_even_connected_to(server: Server, tmp_path: Path, host: str) -> None:
    with pytest.raises(InputError, match="is no public address"):
        Downloader(tmp_path, limits(private_addresses=False)).fetch(f"http://{host}/a.png")


def test_a_name_that_leads_to_a_private_address_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: look_up("127.0.0.1", *rest, **more))
    url = server.url("/a.png").replace("127.0.0.1", "pictures.example.org")
    with pytest.raises(InputError, match=r"127\.0\.0\.1 is no public address"):
        Downloader(tmp_path, limits(private_addresses=False)).fetch(url)
    assert server.asked == []
    assert Downloader(tmp_path, limits()).fetch(url).exists()


def test_requests_to_one_host_keep_their_distance(server: Server, tmp_path: Path) -> None:
    now, pauses = [100.0], []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    downloader = Downloader(tmp_path, limits(interval_s=2), sleep=sleep, clock=lambda: now[0])
    downloader.fetch(server.url("/a.png"))
    now[0] += 0.5
    downloader.fetch(server.url("/photo"))
    assert pauses == [2, 1.5]  # robots.txt is a request, too
    server.robots = "User-agent: *\nCrawl-delay: 7\n"
    downloader = Downloader(tmp_path / "b", limits(interval_s=2), sleep=sleep, clock=lambda: now[0])
    for path in ("/a.png", "/photo"):
        downloader.fetch(server.url(path))
    assert pauses[2:] == [2, 7]
    server.robots = "User-agent: *\nCrawl-delay: 3600\n"
    assert "asks for 3600 s" in failure(server, tmp_path / "c", "/a.png")


def test_a_busy_host_is_left_alone(server: Server, tmp_path: Path) -> None:
    downloader = Downloader(tmp_path, limits())
    with pytest.raises(InputError, match="429"):
        downloader.fetch(server.url("/busy.png"))
    with pytest.raises(InputError, match=r"not asked, because 127\.0\.0\.1 answered 429 before"):
        downloader.fetch(server.url("/a.png"))
    assert "/a.png" not in server.asked


def test_a_host_that_is_not_there_is_asked_once_and_is_one_line_each(server: Server, tmp_path: Path) -> None:
    asked: list[float] = []
    downloader = Downloader(tmp_path, limits(interval_s=5), sleep=asked.append)
    for name in ("a", "b", "c"):
        with pytest.raises(InputError, match="which forbids all") as caught:
            downloader.fetch(f"http://nobody.invalid/{name}.png")
        assert "\n" not in str(caught.value)
    assert asked == []


def test_a_list_holds_each_address_once_and_comments_go(tmp_path: Path) -> None:
    file = tmp_path / "urls.txt"
    file.write_text(
        "\ufeff# mine\nhttps://Example.org/a.jpg#part  # the first\n\nHTTP://example.org\nhttps://example.org/a.jpg\n"
    )
    assert read_url_list(file) == ["https://example.org/a.jpg", "http://example.org/"]


@pytest.mark.parametrize(
    "line",
    [
        "file:///etc/passwd",
        "ftp://example.org/a",
        "photo.jpg",
        "http://",
        "http://u:secret@example.org/",
        "http://x:99999/",
    ],
)
def test_a_line_that_is_no_web_address_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    file = tmp_path / "urls.txt"
    file.write_text(f"http://example.org/a.jpg\n{line}\n")
    with pytest.raises(InputError, match="line 2") as caught:
        read_url_list(file)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"\xff\xfe\x00h"])
def test_a_list_without_addresses_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "urls.txt").write_bytes(content)
    with pytest.raises(InputError, match="address"):
        read_url_list(tmp_path / "urls.txt")


def test_addresses_are_sent_in_ascii() -> None:
    assert (
        normalised("http://bücher.example/é a.jpg".replace(" ", "%20")) == "http://xn--bcher-kva.example/%C3%A9%20a.jpg"
    )


@pytest.mark.parametrize(
    "changes", [{"interval_s": -1}, {"timeout_s": 0}, {"max_megabytes": float("nan")}, {"max_redirects": -1}]
)
def test_limits_that_mean_nothing_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InputError):
        DownloadLimits(**changes)  # type: ignore[arg-type]
