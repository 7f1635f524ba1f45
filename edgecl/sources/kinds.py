"""Kinds of files by their suffix: those that can be read, and what helps with others."""
from __future__ import annotations

from collections.abc import Mapping

from edgecl.sources.spec import PHOTOS

READABLE = (*PHOTOS, ".csv", ".npz")
CURES = (   # what helps with kinds that can't be read
    ("in cameras' own formats", "export them as JPEG", ".arw .cr2 .cr3 .crw .dng .erf .kdc .mef .mrw .nef .nrw .orf "
     ".pef .raf .raw .rw2 .rwl .sr2 .srf .srw .x3f"),
    ("videos", "take pictures out of them: ffmpeg -i VIDEO -r 2 PICTURE%04d.jpg", ".3gp .avi .flv .m2ts .m4v .mkv "
     ".mov .mp4 .mpeg .mpg .mts .webm .wmv"),
    ("pictures", "convert them to JPEG or PNG", ".ai .cgm .dcm .dds .emf .eps .exr .fits .fts .hdr .ico .icns .j2k "
     ".jls .jp2 .jpf .jpx .jxl .jxr .pcx .psd .qoi .ras .sgi .svg .svgz .tga .wmf .xbm .xcf .xpm"),
    ("documents", "take the pictures out of them: pdfimages -j DOCUMENT.pdf PICTURE", ".doc .docx .odp .odt .pdf "
     ".ppt .pptx .djvu .epub .ps"),
    ("archives", "unpack them", ".7z .bz2 .gz .rar .tar .tgz .xz .zip .zst"),
    ("tables", "export them as .csv", ".arff .feather .h5 .hdf5 .mat .npy .ods .parquet .pkl .tsv .xls .xlsx"),
    ("sounds", "sound can't be learned", ".aac .aif .aiff .flac .m4a .mp3 .oga .ogg .opus .wav .wma"))
SHOWN = 5   # suffixes in a line


def can_be_read(suffix: str) -> bool:
    """Whether files with this suffix can be read here. suffix: in small letters, with its dot."""
    if suffix in (".heic", ".heif", ".avif"):
        from edgecl.images import readable

        return readable("AVIF" if suffix == ".avif" else "HEIF")
    return suffix in READABLE


def kinds_in_words(kinds: Mapping[str, int]) -> list[str]:
    """Lines about files of kinds that can't be read, each with what helps. kinds: suffix -> files."""
    rest, lines = dict(kinds), list[str]()
    for suffixes, cure in ((".heic .heif", _cure("HEIC_CURE")), (".avif", _cure("AVIF_CURE"))):
        lines += _line({each: rest.pop(each) for each in suffixes.split() if each in rest}, "", cure)
    for what, cure, suffixes in CURES:
        lines += _line({each: rest.pop(each) for each in suffixes.split() if each in rest}, what, cure)
    return lines + _line(rest, "neither photos nor recordings", "")


def _cure(name: str) -> str:
    from edgecl import images

    return str(getattr(images, name))


def _line(kinds: dict[str, int], what: str, cure: str) -> list[str]:
    if not kinds:
        return []
    total = sum(kinds.values())
    most = sorted(kinds, key=lambda suffix: (-kinds[suffix], suffix))
    named = ", ".join(f"{kinds[each]} {each or 'without a suffix'}" for each in most[:SHOWN])
    more = f", {total - sum(kinds[each] for each in most[:SHOWN])} of other kinds" if len(most) > SHOWN else ""
    return [f"{named}{more}" + (f" ({what})" if what else "") + (f": {cure}" if cure else "")]
