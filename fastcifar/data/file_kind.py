"""The kind of a file by its first bytes, for messages about files that cannot be read."""

from __future__ import annotations

import re

from fastcifar.errors import one_line

HEAD_BYTES = 1_024
"""Bytes that `file_kind` needs."""
UNKNOWN = "of an unknown kind"
_SIGNATURES = (
    (rb"\xff\xd8", "a JPEG image"),
    (rb"\x89PNG\r\n\x1a\n", "a PNG image"),
    (rb"GIF8[79]a", "a GIF image"),
    (rb"RIFF....WEBP", "a WebP image"),
    (rb"BM.{12}[\x0c\x28\x40\x6c\x7c]\0\0\0", "a BMP image"),
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "a TIFF image"),
    (rb"....ftypavi[fs]", "an AVIF image"),
    (rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", "a HEIC image"),
    (rb"....ftypcrx ", "a raw camera image"),
    (rb"....(ftyp|moov|mdat|wide)", "an MP4 or QuickTime video"),
    (rb"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (rb"RIFF....AVI ", "an AVI video"),
    (rb"\0\0\x01[\xb3\xba]", "an MPEG video"),
    (rb"FLV\x01", "a Flash video"),
    (rb"RIFF....WAVE|ID3|OggS|fLaC", "a sound file"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL image"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (rb"P[1-7][\s#]", "a PPM, PGM or PBM image"),
    (rb"8BPS", "a Photoshop file"),
    (rb"\0\0\x01\0[\x01-\xff]\0", "a Windows icon"),
    (rb"qoif", "a QOI image"),
    (rb"v/1\x01", "an OpenEXR image"),
    (rb"DDS ", "a DDS image"),
    (rb"SIMPLE  =", "a FITS image"),
    (rb"%PDF-", "a PDF document"),
    (rb"%!PS", "a PostScript document"),
    (rb"\{\\rtf", "an RTF document"),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a Microsoft Office document or a Windows thumbnail cache"),
    (rb"PK(\x03\x04|\x05\x06)", "a ZIP archive"),
    (rb"\x1f\x8b", "a gzip file"),
    (rb".{257}ustar", "a tar archive"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (rb"Rar!\x1a\x07", "a RAR archive"),
    (rb"\xfd7zXZ\0", "an xz file"),
    (rb"BZh[1-9]", "a bzip2 file"),
    (rb"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (rb"PAR1", "a Parquet file"),
    (rb"SQLite format 3\0", "a SQLite database"),
    (rb"\x80[\x02-\x05](\x95|[\]}cK(X])", "a Python pickle"),
    (rb"\x7fELF", "a Linux program"),
    (rb"MZ.{58}", "a Windows program"),
    (rb"\0\x05\x16\x07", "an AppleDouble file, which macOS writes next to the user's"),
    (rb"bplist00", "a macOS property list"),
    (rb"version https://git-lfs\.github\.com", "a Git LFS pointer, not the file itself (fetch it with: git lfs pull)"),
    (rb"\.\./\.git/annex/|/annex/objects/", "a git-annex pointer, not the file itself (fetch it with: git annex get)"),
)
_COMPILED = tuple((re.compile(pattern, re.DOTALL), kind) for pattern, kind in _SIGNATURES)
_TEXTS = (
    (r"<!doctype html|<html|<head|<body|<script", "an HTML page, as a website sends instead of a file"),
    (r"(<\?xml.*?>|<!--.*?-->|<!doctype svg.*?>|\s)*<svg", "an SVG drawing"),
    (r"<\?xml|<[a-z!]", "an XML file"),
    (r"data:image/", "text: an image as a data URL"),
    (r"https?://\S+\s*$", "text: a URL"),
    (r"[{\[]", "text, such as JSON"),
)
"""For text files, in lower case."""


def file_kind(head: bytes) -> str:
    """The kind of a file that begins with these bytes, with an article, e.g. 'a WebP image'."""
    if not head:
        return "an empty file"
    for pattern, kind in _COMPILED:
        if pattern.match(head):
            return kind
    if not head.strip(b"\0"):
        return "a file of zero bytes, as after an interrupted download or on a full disk"
    text = _decode_text(head)
    if text is None:
        return f"{UNKNOWN} (it begins with the bytes {head[:8].hex(' ')})"
    for expression, kind in _TEXTS:
        if re.match(expression, text, re.DOTALL):
            return kind
    return f"text, and begins with {text[:20]!a}"


def _decode_text(head: bytes) -> str | None:
    """The bytes as lower-case text; None if they are not text."""
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"
    text = head[: len(head) // 2 * 2 if encoding == "utf-16" else None].decode(
        encoding, "ignore" if len(head) >= HEAD_BYTES else "replace"
    )
    if "\ufffd" in text or any(not (c.isprintable() or c.isspace()) for c in text.lstrip("\ufeff")):
        return None
    return text.lstrip("\ufeff \t\r\n").lower()


def decode_error_reason(head: bytes, error: BaseException, decodable: tuple[str, ...]) -> str:
    """Why decoding failed with `error` on a file that begins with `head`: its kind is not one of `decodable` (e.g.
    'a PNG image'), or the decoder's own reason."""
    kind = file_kind(head)
    if kind not in decodable:
        return f"it is {kind}"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    if not reason or "cannot identify image file" in reason:
        reason = "its header cannot be read"
    return f"it begins as {kind} and is truncated or corrupt: {reason}"
