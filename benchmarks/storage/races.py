"""Do conditional writes to a store have one winner? Several clients write the same name at the same moment.

    python -m benchmarks.storage.races
    python -m benchmarks.storage.races --endpoint URL      # with credentials in the environment

Without an endpoint: a real S3 server on this machine (the extra ``dev`` has it). Commits of shards on S3 rest on the
first two rows; the others are why they do not rest on multipart uploads.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from benchmarks.peers import markdown_table
from benchmarks.speed.memory import places

CLIENTS = 6
PART = bytes(5 << 20)


def client(endpoint: str) -> Any:
    """One that asks once only."""
    return boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", config=Config(retries={"total_max_attempts": 1})
    )


def winners(writes: list[Callable[[], object]]) -> int:
    """How many of these calls succeed when they start together."""
    barrier = threading.Barrier(len(writes))
    won: list[int] = []

    def write(number: int) -> None:
        barrier.wait()
        with contextlib.suppress(ClientError):
            writes[number]()
            won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(len(writes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(won)


def race(endpoint: str, bucket: str, *, multipart: bool, replace: bool) -> int:
    """One round: a new name, or one that is there and is replaced while it is the same."""
    where = {"Bucket": bucket, "Key": secrets.token_hex(8)}
    clients = [client(endpoint) for _ in range(CLIENTS)]
    condition = {"IfNoneMatch": "*"}
    if replace:
        condition = {"IfMatch": clients[0].put_object(**where, Body=b"first")["ETag"]}
    writes: list[Callable[[], object]] = []
    for each in clients:
        if not multipart:
            writes.append(lambda each=each: each.put_object(**where, Body=b"mine", **condition))  # type: ignore[misc]
            continue
        upload = each.create_multipart_upload(**where)["UploadId"]
        part = {"PartNumber": 1, "ETag": each.upload_part(**where, UploadId=upload, PartNumber=1, Body=PART)["ETag"]}
        writes.append(
            lambda each=each, upload=upload, part=part: each.complete_multipart_upload(  # type: ignore[misc]
                **where, UploadId=upload, MultipartUpload={"Parts": [part]}, **condition
            )
        )
    return winners(writes)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--endpoint", help="another store; needs the right to create a bucket")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if options.endpoint is None:
            stack.enter_context(places())
        endpoint = options.endpoint or os.environ["AWS_ENDPOINT_URL"]
        bucket = f"races-{secrets.token_hex(4)}"
        client(endpoint).create_bucket(Bucket=bucket)
        rows = []
        for multipart in (False, True):
            for replace in (False, True):
                counts = Counter(
                    race(endpoint, bucket, multipart=multipart, replace=replace) for _ in range(options.rounds)
                )
                how = "multipart upload" if multipart else "one request"
                what = "replace (If-Match)" if replace else "create (If-None-Match)"
                several = sum(count for won, count in counts.items() if won > 1)
                rows.append((f"{how}, {what}", str(options.rounds), str(several), str(max(counts))))
    print(markdown_table((f"{CLIENTS} writers at once", "rounds", "with several winners", "most winners"), rows))


if __name__ == "__main__":
    main()
