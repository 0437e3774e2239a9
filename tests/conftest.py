"""Fixtures that every part of the tests may use."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parent.parent

# A machine may be busy: no example is wrong because it took long.
settings.register_profile("discernible", deadline=None)
settings.load_profile("discernible")

# Set before anything imports Ray, and inherited by every process that a test starts. A local ray.init() would turn
# token authentication on and write a token file into the home folder; the tests' clusters are on loopback only.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# The S3 server of the tests is found as users' own are: by these variables, which every process inherits. No
# configuration of this account is looked at, and nothing reaches AWS.
os.environ |= {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
}
for _name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
    os.environ.pop(_name, None)
# Two cores: threads of BLAS and OpenMP on top of our own only get in each other's way, and change timings.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of evaluation data (`data/kodak`, `data/imagenet_val`, `models`, …); skips the test without it."""
    named = os.environ.get("DISCERNIBLE_DATA_DIR")
    folder = Path(named) if named else REPOSITORY.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"no evaluation data: {folder / 'data'} is not a folder (DISCERNIBLE_DATA_DIR names another one)")
    return folder


@pytest.fixture(scope="session")
def photo_files() -> Mapping[str, Path]:
    """Photographs that scikit-image and scikit-learn ship inside their wheels, as files: PNG and JPEG, all RGB."""
    import skimage
    import sklearn

    skimage_data = Path(skimage.__file__).parent / "data"
    sklearn_data = Path(sklearn.__file__).parent / "datasets" / "images"
    files = {
        "astronaut": skimage_data / "astronaut.png",  # 512×512
        "chelsea": skimage_data / "chelsea.png",  # 451×300
        "coffee": skimage_data / "coffee.png",  # 600×400
        "motorcycle": skimage_data / "motorcycle_left.png",  # 741×500
        "rocket": skimage_data / "rocket.jpg",  # 640×427
        "china": sklearn_data / "china.jpg",  # 640×427
        "flower": sklearn_data / "flower.jpg",  # 640×427
    }
    missing = [str(path) for path in files.values() if not path.is_file()]
    assert not missing, f"the installed scikit-image and scikit-learn do not ship {missing}"
    return files


@pytest.fixture(scope="session")
def photos(photo_files: Mapping[str, Path]) -> Mapping[str, NDArray[np.uint8]]:
    """Those photographs as read-only uint8 arrays of shape (3, H, W), by name."""
    from PIL import Image

    arrays = {}
    for name, path in photo_files.items():
        with Image.open(path) as image:
            pixels = np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
        pixels.flags.writeable = False
        arrays[name] = pixels
    return arrays


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a real S3 server; the environment has what it takes to use it."""
    command = [sys.executable, str(REPOSITORY / "infra/s3/serve.py"), "--watch", "--data"]
    server = subprocess.Popen(
        [*command, str(tmp_path_factory.mktemp("s3"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin
    assert server.stdout
    from discernible.pipeline.storage import s3_client

    line = server.stdout.readline()
    assert line, "the S3 server did not start"
    access = json.loads(line)
    os.environ |= {
        "AWS_ENDPOINT_URL": access["endpoint"],
        "AWS_ACCESS_KEY_ID": access["access_key"],
        "AWS_SECRET_ACCESS_KEY": access["secret_key"],
    }
    # Tests before this one may have made clients without that.
    s3_client._clients.clear()
    try:
        yield access["endpoint"]
    finally:
        server.stdin.close()
        server.stdout.close()
        server.wait(20)


@pytest.fixture(scope="session")
def s3_emulator(s3_server: str) -> Iterator[str]:
    """The endpoint of a second implementation of S3, for the cases in which stores differ. Takes any credentials."""
    folder = REPOSITORY / "build" / "ministack"
    if not (folder / "ministack").is_dir():
        pytest.skip("the emulator of S3 is not installed: make build/ministack/ministack")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(folder), "GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1"}
    environment["MINISTACK_HOST"] = "127.0.0.1"
    command = [sys.executable, "-m", "ministack"]
    endpoint = f"http://127.0.0.1:{port}"
    with (
        tempfile.TemporaryDirectory() as home,
        subprocess.Popen(
            command, env={**environment, "HOME": home}, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as server,
    ):
        deadline = time.monotonic() + 30
        while True:
            assert server.poll() is None, "the emulator did not start"
            try:
                urllib.request.urlopen(f"{endpoint}/_ministack/health", timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the emulator does not answer"
                time.sleep(0.1)
        try:
            yield endpoint
        finally:
            server.kill()


@pytest.fixture(scope="session")
def proxy(s3_server: str) -> Callable[..., Any]:
    """Makes faulty proxies before the S3 server."""
    from .s3_proxy import FaultyProxy

    return lambda **options: FaultyProxy(s3_server, **options)


@pytest.fixture
def bucket(s3_server: str) -> Iterator[str]:
    """The URL of a new bucket, which goes with all that is in it: every bucket takes volumes, and those are few."""
    import boto3

    name = f"test-{secrets.token_hex(6)}"
    client = boto3.client("s3")
    client.create_bucket(Bucket=name)
    yield f"s3://{name}"
    for upload in client.list_multipart_uploads(Bucket=name).get("Uploads", []):
        client.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
        for entry in page.get("Contents", []):
            client.delete_object(Bucket=name, Key=entry["Key"])
    client.delete_bucket(Bucket=name)


@pytest.fixture(scope="session")
def local_ray(s3_server: str) -> Iterator[None]:
    """One small Ray on the loopback interface, for the whole session: a start costs seconds and half a gigabyte."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=100_000_000,
        log_to_driver=False,
        configure_logging=False,
        _node_ip_address="127.0.0.1",
    )
    try:
        yield
    finally:
        ray.shutdown()
