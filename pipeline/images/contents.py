"""Telling images by their first bytes, where the name of a file does not.

A file with a known extension is what that says. One without an extension, or with one that nobody knows
(``.jpg_orig``, ``.img``), is told by its content, as far as its format begins with a mark that nothing else begins
with: PPM and Targa files do not. Nor are files with an unknown extension taken for TIFF: the raw files of cameras begin
so, and hold a small preview where the picture would be.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["START_BYTES", "is_heif", "is_known_other", "member_in_content", "told_extension"]

START_BYTES = 32
"""So many bytes from the start tell what a file is."""

_NO_IMAGES = """
txt csv tsv json jsonl ndjson xml yaml yml toml ini cfg conf md rst html htm pdf tex doc docx xls xlsx log id
cls cls2 index npy npz npz pt pth ckpt pkl pickle pyd safetensors onnx h5 hdf5 mat parquet arrow feather db
sqlite lmdb mdb tar gz tgz zip bz2 xz zst 7z rar mp4 avi mov mkv webm m4v mpg mpeg wav mp3 flac ogg m4a py ipynb
sh bat ps1 js c cpp h cu java rs go r m sql svg eps ps ai psd xcf exr hdr pfm ply obj stl pcd las laz
cache lock crdownload md5 sha1 sha256 sum dci srt vtt geojson kml shp shx dbf prj
dng cr2 cr3 crw nef nrw arw sr2 srf orf rw2 raf pef raw rwl srw x3f 3fr mrw dcr kdc erf mef mos iiq
svs ndpi scn vms bif nii dcm
"""
_OTHERS = frozenset(_NO_IMAGES.split())
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"))
_BMP_HEADS = frozenset((12, 16, 40, 52, 56, 64, 108, 124))
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_known_other(extension: str) -> bool:
    """Whether files with that extension, in any case and without its dot, are known to be no images."""
    return extension.lower() in _OTHERS


def told_extension(start: bytes, *, named: bool) -> str | None:
    """The extension of an image whose file begins so; None when it is no image. ``named``: it has an extension."""
    if start.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "webp"
    if start[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    if is_heif(start):
        return "heic"
    if start.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51\0")):
        return "jp2"
    if start.startswith(b"qoif") and start[12:13] in (b"\3", b"\4"):
        return "qoi"
    if start.startswith(b"BM") and int.from_bytes(start[14:18], "little") in _BMP_HEADS and start[6:10] == bytes(4):
        return "bmp"
    return "tif" if not named and start.startswith(_TIFF) else None


def is_heif(start: bytes) -> bool:
    """Whether a file that begins so is HEIF: of HEVC pictures, or of such that only its inside names."""
    return start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS


def member_in_content(members: Mapping[str, bytes]) -> str | None:
    """The one member with an extension that nobody knows whose content is an image; None when there is not one."""
    found = [
        name
        for name, data in members.items()
        if "." not in name and not is_known_other(name) and told_extension(data[:START_BYTES], named=True)
    ]
    return found[0] if len(found) == 1 else None
