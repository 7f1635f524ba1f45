"""Access control: the address to listen at, the token, and the accepted Host and Origin headers."""
from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import socket
import stat
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie
from pathlib import Path

from edgecl.errors import BadInput

COOKIE = "edgecl"
TOKEN_FORM = re.compile(r"[A-Za-z0-9_~+/=.-]{22,512}")  # 22 characters of base64 are 132 bits
HOW_TO_MAKE_A_TOKEN = "make one: (umask 077; python3 -c 'import secrets; print(secrets.token_urlsafe(32))' > FILE)"


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:8470`, `[::1]:8470`, `robot.local:8470` or `8470` (loopback). Raises BadInput."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isascii() or not port.isdigit() or int(port) > 65535 or re.search(r"[\s/@\[\]]", host):
        raise BadInput(f"http_listen is {text!r}", 'write it like "127.0.0.1:8470" or "0.0.0.0:8470"')
    return host, int(port)


def is_loopback(host: str) -> bool:
    """True if only this machine can reach the host's address."""
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def read_token(path: Path) -> str:
    """The token in a file that only the daemon's user may read. Raises BadInput."""
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            text = file.read(4096).decode("ascii", "replace").strip()
    except OSError as error:
        raise BadInput(f"the token file {path} can't be read ({error.strerror})", HOW_TO_MAKE_A_TOKEN) from error
    if not stat.S_ISREG(about.st_mode) or about.st_mode & 0o077 or about.st_uid not in (0, os.geteuid()):
        raise BadInput(f"the token file {path} has mode {about.st_mode & 0o7777:04o} and owner {about.st_uid}",
                       f"only the daemon's user may read it: chmod 600 {path}")
    if not TOKEN_FORM.fullmatch(text) or len(set(text)) < 8 or (re.fullmatch("[0-9a-fA-F]*", text) and len(text) < 32):
        raise BadInput(f"the token in {path} has fewer than 128 bits or invalid characters", HOW_TO_MAKE_A_TOKEN)
    return text


class Access:
    """The rules for one listening address. token: None for loopback without a token. Raises BadInput if other machines
    can reach the address and there is no token."""

    def __init__(self, host: str, token: str | None) -> None:
        if not is_loopback(host) and token is None:
            raise BadInput(f"http_listen is {host}, which others can reach, without a token",
                           "set http_token_file, or listen at 127.0.0.1; " + HOW_TO_MAKE_A_TOKEN)
        self._token = token.encode() if token is not None else None
        self._cookie = hmac.new(self._token, b"edgecl cookie", hashlib.sha256).hexdigest() if self._token else ""
        self._local = is_loopback(host)
        machine = socket.gethostname().lower()
        self._names = {"localhost"} if self._local else {"localhost", host.lower(), machine, f"{machine}.local"}

    def knows_host(self, host: str) -> bool:
        """True if a Host header names this machine; never for a name that an attacker's DNS can point here."""
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::[0-9]{1,5})?", host)
        if not match:
            return False
        name = match[1].strip("[]").lower().removesuffix(".")
        if name in self._names:
            return True
        with suppress(ValueError):  # an address is safe: DNS rebinding needs a name
            return ipaddress.ip_address(name).is_loopback or not self._local
        return False

    def knows_origin(self, origin: str, host: str) -> bool:
        """True if a page of that Origin was served here; https: through a proxy."""
        return origin.lower() in (f"http://{host}".lower(), f"https://{host}".lower())

    @property
    def open(self) -> bool:
        """True if no token is needed."""
        return self._token is None

    def accepts(self, authorization: str, cookies: str) -> bool:
        """True if a request carries the token, as `Bearer` or as the cookie of `login`; compared in constant time."""
        if self._token is None:
            return True
        scheme, _, shown = authorization.partition(" ")
        given = self.is_token(shown.strip()) if scheme.lower() == "bearer" else False
        kept = SimpleCookie()
        with suppress(CookieError):
            kept.load(cookies)
        crumb = kept[COOKIE].value if COOKIE in kept else ""
        return hmac.compare_digest(crumb.encode(), self._cookie.encode()) or given

    def is_token(self, text: str) -> bool:
        """True if a text is the token."""
        return self._token is not None and hmac.compare_digest(text.encode("utf-8", "replace"), self._token)

    @property
    def cookie(self) -> str:
        """The value that `login` stores in a browser: derived from the token, so that the token itself is not kept."""
        return self._cookie
