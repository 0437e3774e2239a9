"""Every error that discernible raises on purpose, as one tree.

::

    DiscernibleError
    ├── ConfigError (ValueError)         an option or configuration value is out of range
    ├── CodecError
    │   ├── ImageError (ValueError)      pixels the codec cannot take (shape, dtype, size)
    │   ├── WeightsError
    │   │   ├── WeightsNotFoundError     no weights of that name or fingerprint, or at that path
    │   │   ├── WeightsFormatError       a weights file that is not ours, incomplete or damaged
    │   │   └── WeightsMismatchError     a stream made with weights other than the loaded ones
    │   ├── StreamError                  a .dci stream that cannot be decoded
    │   │   ├── StreamMagicError         does not start as a .dci stream does
    │   │   ├── StreamVersionError       a format version this release does not read
    │   │   ├── StreamHeaderError        a header field outside its range
    │   │   ├── StreamTruncatedError     ends before the data that its header announces
    │   │   ├── StreamTrailingError      bytes left over behind the end
    │   │   ├── StreamChecksumError      the CRC-32 does not match
    │   │   └── StreamCorruptError       CRC matches, but the entropy-coded data is inconsistent
    │   └── TrainingError                training cannot start or go on
    ├── PipelineError
    │   ├── StorageError                 reading or writing bytes failed
    │   ├── SourceError                  the source is missing, empty or of an unknown kind
    │   │   └── ScatteredSampleError     members of a sample lie apart in a tar
    │   ├── SampleError                  one sample cannot be converted; it is quarantined, the job goes on
    │   │   ├── ImageUnreadableError     the image member is not an image Pillow can decode
    │   │   ├── ImageTooLargeError       more pixels than the configured limit
    │   │   ├── ImageMissingError        the sample has no image member
    │   │   ├── LabelMapError            the image is a label map or depth, which losses would destroy
    │   │   ├── ImageFilteredError       the image is left out because it was asked for (too small)
    │   │   └── SampleFormatError        bad key, duplicate member name, unsafe path
    │   └── ShardError                   a shard (tar, receipt, statistics) is unreadable or inconsistent
    └── JobError
        ├── DestinationError             the destination holds another job or foreign files
        ├── WorkerError                  workers failed more often than allowed
        └── VerificationError            verify found a destination that does not add up

Lower-layer exceptions are wrapped ``from exc``. Errors about data carry ``shard`` and ``key`` where they are known, and
the message names them, so that a log line alone is enough to find the sample.
"""

from __future__ import annotations

__all__ = [
    "CodecError",
    "ConfigError",
    "DestinationError",
    "DiscernibleError",
    "ImageError",
    "ImageFilteredError",
    "ImageMissingError",
    "ImageTooLargeError",
    "ImageUnreadableError",
    "JobError",
    "LabelMapError",
    "PipelineError",
    "SampleError",
    "SampleFormatError",
    "ScatteredSampleError",
    "ShardError",
    "SourceError",
    "StorageError",
    "StreamChecksumError",
    "StreamCorruptError",
    "StreamError",
    "StreamHeaderError",
    "StreamMagicError",
    "StreamTrailingError",
    "StreamTruncatedError",
    "StreamVersionError",
    "TrainingError",
    "VerificationError",
    "WeightsError",
    "WeightsFormatError",
    "WeightsMismatchError",
    "WeightsNotFoundError",
    "WorkerError",
]


class DiscernibleError(Exception):
    """Base of all errors here; ``shard`` and ``key`` say where, when that is known."""

    def __init__(self, message: str, *, shard: str | None = None, key: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.shard = shard
        self.key = key

    def __str__(self) -> str:
        where = ", ".join(
            f"{name} {value}" for name, value in (("shard", self.shard), ("key", self.key)) if value is not None
        )
        return f"{self.message} [{where}]" if where else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # The default rebuilds from args alone and would lose shard and key between Ray processes.
        return (_rebuild, (type(self), self.message, self.shard, self.key))


def _rebuild(cls: type[DiscernibleError], message: str, shard: str | None, key: str | None) -> DiscernibleError:
    return cls(message, shard=shard, key=key)


class ConfigError(DiscernibleError, ValueError):
    """An option or configuration value is out of range or contradicts another."""


class CodecError(DiscernibleError):
    """Base of the errors of the codec."""


class ImageError(CodecError, ValueError):
    """Pixels that the codec cannot take: wrong shape, dtype or size."""


class WeightsError(CodecError):
    """Base of the errors about codec weights."""


class WeightsNotFoundError(WeightsError):
    """No weights of that name, at that path, or, in all places that were looked at, with that fingerprint."""


class WeightsFormatError(WeightsError):
    """A weights file that is not ours, incomplete or damaged."""


class WeightsMismatchError(WeightsError):
    """A stream that was made with weights other than the loaded ones."""


class StreamError(CodecError):
    """Base of the errors about a ``.dci`` stream that cannot be decoded."""


class StreamMagicError(StreamError):
    """Does not start as a ``.dci`` stream does."""


class StreamVersionError(StreamError):
    """A format version that this release does not read."""


class StreamHeaderError(StreamError):
    """A header field outside its range."""


class StreamTruncatedError(StreamError):
    """Ends before the data that its header announces."""


class StreamTrailingError(StreamError):
    """Bytes are left over behind the end."""


class StreamChecksumError(StreamError):
    """The CRC-32 does not match: the bytes were altered."""


class StreamCorruptError(StreamError):
    """The CRC-32 matches but the entropy-coded data is inconsistent."""


class TrainingError(CodecError):
    """Training cannot start or go on."""


class PipelineError(DiscernibleError):
    """Base of the errors of conversion and loading."""


class StorageError(PipelineError):
    """Reading or writing bytes failed."""


class SourceError(PipelineError):
    """The source is missing, empty or of an unknown kind."""


class ScatteredSampleError(SourceError):
    """Members of a sample lie apart in a tar, behind those of other samples."""


class SampleError(PipelineError):
    """One sample cannot be converted. It is quarantined with this reason, and the job goes on."""


class ImageUnreadableError(SampleError):
    """The image member is not an image that Pillow can decode."""


class ImageTooLargeError(SampleError):
    """The image has more pixels than the configured limit."""


class ImageMissingError(SampleError):
    """The sample has no image member."""


class LabelMapError(SampleError):
    """The image is a label map, a mask or depth: coded with losses it would say something else."""


class ImageFilteredError(SampleError):
    """The image is one of those that the job leaves out on request, such as small ones."""


class SampleFormatError(SampleError):
    """A bad key, a duplicate member name or an unsafe path."""


class ShardError(PipelineError):
    """A shard (tar, receipt or statistics) is unreadable or inconsistent."""


class JobError(DiscernibleError):
    """Base of the errors of planning, dispatch and the command line."""


class DestinationError(JobError):
    """The destination holds another job or foreign files."""


class WorkerError(JobError):
    """Workers failed more often than allowed."""


class VerificationError(JobError):
    """``verify`` found a destination that does not add up."""
