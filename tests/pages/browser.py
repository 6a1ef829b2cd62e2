"""A headless Chromium with the network off, spoken to through a pipe: no driver, no server, no further package."""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SWITCHES = (
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--metrics-recording-only",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no name has an address
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def find_browser() -> str | None:
    """The path of a Chromium: `$CHROMIUM`, else the first on the path."""
    named = os.environ.get("CHROMIUM")
    return named or next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One tab. Events of the page being loaded are kept in `events`, as (method, params).

    Args:
        path: of the browser.
        timeout: seconds to wait for any answer.
    """

    def __init__(self, path: str, timeout: float = 120):
        self.timeout, self.events, self._number, self._rest = timeout, [], 0, b""
        self.profile = tempfile.mkdtemp(prefix="book-browser-")
        read_here, write_there = os.pipe()
        read_there, write_here = os.pipe()

        def connect() -> None:  # in the child: it reads commands from 3 and writes answers to 4
            low, high = os.dup(read_there), os.dup(write_there)
            low, high = (os.dup(low), os.dup(high)) if {low, high} & {3, 4} else (low, high)
            os.dup2(low, 3)
            os.dup2(high, 4)

        root = ["--no-sandbox"] if os.geteuid() == 0 or os.environ.get("CI") else []
        self.process = subprocess.Popen(
            [path, *SWITCHES, *root, f"--user-data-dir={self.profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=connect,
            close_fds=False,
            start_new_session=True,
        )
        os.close(read_there)
        os.close(write_there)
        self._read, self._write, self._session = read_here, write_here, None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params) -> dict:
        """Give a command and wait for its result.

        Raises:
            RuntimeError: if the browser refuses it.
        """
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _receive(self) -> dict:
        """The next message; events are noted on the way."""
        until = time.monotonic() + self.timeout
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise TimeoutError(f"the browser said nothing for {self.timeout} s")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise RuntimeError("the browser ended")
            self._rest += part
        raw, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(raw)
        if "method" in message:
            self.events.append((message["method"], message["params"]))
        return message

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        """Set the window, and whether the reader prefers dark pages."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        """Load a page, whole."""
        self.events.clear()
        self.send("Page.navigate", url=url)
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            self._receive()

    def run(self, script: str):
        """The value of an asynchronous JavaScript function body in the page."""
        result = self.send(
            "Runtime.evaluate", expression=f"(async () => {{{script}}})()", awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"])[:800])
        return result["result"].get("value")

    def requests(self) -> list[str]:
        """Addresses that the page asked for."""
        return [params["request"]["url"] for method, params in self.events if method == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Errors in the console: uncaught exceptions, `console.error`, and whatever did not load."""
        found = []
        for method, params in self.events:
            if method == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                found.append(details.get("exception", {}).get("description") or details["text"])
            elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
                found.append(" ".join(str(arg.get("value", arg.get("description"))) for arg in params["args"]))
            elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}".strip())
            elif method == "Network.loadingFailed" and not params.get("canceled"):
                found.append(f"not loaded: {params['errorText']}")
        return found

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Save what the page looks like."""
        data = self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """End the browser and remove its profile."""
        os.close(self._write)
        os.close(self._read)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)
