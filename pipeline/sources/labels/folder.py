"""Which labels a folder of images comes with, and what each image gets of them.

===========  =====================================================  =========================
``table``    ``labels.csv``, ``metadata.csv``, ``metadata.jsonl``…  ``cls``, ``json``
``yolo``     ``labels/….txt`` for ``images/…``                      ``txt``
``coco``     ``annotations/*.json``                                 ``json``
``voc``      ``Annotations/….xml`` for ``JPEGImages/…``             ``xml``
``folder``   ``CLASS/x.jpg``, ``train/CLASS/x.jpg``                 ``cls``
===========  =====================================================  =========================

Without being told, whatever is unambiguous is taken. Kinds that give different members go together; two that give one
member contradict each other and are an error, but a table and folders that name the same classes. Folders count only
where none of the other three is there, whose folders are parts of a data set, and no ``.cls`` lies beside an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ....errors import SourceError
from ....stored import Fields, as_text, dump_json
from ...storage.base import is_remote
from ...storage.names import short
from ...storage.patterns import path_matches
from ..folders import FolderListing, ListedFile
from .classes import FolderLabels
from .coco import CocoLabels, is_coco_name
from .files import CLASS_FILES, LONGEST_CLASS_FILE, FileLabels, voc_labels, yolo_classes, yolo_labels
from .image_names import ImageNames
from .source import LabelSource, Opener, Stray, class_names
from .tables import TABLE_NAMES, TableLabels

__all__ = ["KINDS", "LabelReport", "Labels", "classes_json", "find_labels"]

KINDS = ("auto", "none", "folder", "yolo", "coco", "voc")
"""What the option may say but the name of a file."""


_MOST_NAMES = 16
_LONGEST_NAME = 64


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """What was found, for people and programs.

    ``kinds`` were taken and give ``members``; ``words`` says so in a line. ``labelled`` and ``unlabelled`` are images,
    ``stray`` labels of images that are not taken.
    """

    kinds: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    words: str = ""
    labelled: int = 0
    unlabelled: Stray
    stray: Stray

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "kinds": list(self.kinds),
            "members": list(self.members),
            "words": self.words,
            "labelled": self.labelled,
            "unlabelled": self.unlabelled.to_json(),
            "stray": self.stray.to_json(),
        }

    @classmethod
    def from_json(cls, data: object) -> LabelReport:
        """What :meth:`to_json` gave. Raises FieldError."""
        told = Fields(data, "labels")
        return cls(
            kinds=_names(told, "kinds"),
            members=_names(told, "members"),
            words=told.text("words"),
            labelled=told.whole("labelled"),
            unlabelled=Stray.from_json(told.raw("unlabelled")),
            stray=Stray.from_json(told.raw("stray")),
        )

    def lines(self) -> list[str]:
        """In a line what was taken, and a line for each thing that should be known of it."""
        notes = (
            (self.unlabelled, "images without label"),
            (self.stray, "labels of images that are not taken"),
        )
        more = [f"{each.count:,} {what} ({each.words()})" for each, what in notes if each.count]
        return [self.words, *(more if self.kinds else [])]


def _names(told: Fields, name: str) -> tuple[str, ...]:
    return tuple(as_text(each, name, longest=_LONGEST_NAME) for each in told.items(name)[:_MOST_NAMES])


class Labels:
    """The labels of the images of a folder. ``classes`` are names by index; none for most kinds of ``table``."""

    def __init__(self, sources: Iterable[LabelSource], doubt: str = "") -> None:
        self._sources = tuple(sources)
        self._doubt = doubt
        self.classes: Mapping[int, str] = {}
        for number, source in enumerate(self._sources):
            before = self._sources[number - 1].name
            self.classes = class_names(self.classes, source.classes, before, source.name)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What was taken."""
        return tuple(source.kind for source in self._sources)

    @property
    def elsewhere(self) -> str | None:
        """The file of labels that is not in the folder, absolute; None when all are in it."""
        files = (path for source in self._sources for path in source.files)
        return next((path for path in files if is_remote(path) or path.startswith("/")), None)

    def add_to(self, listed: ListedFile) -> ListedFile:
        """A sample with what is told of its image. Raises SourceError."""
        file = listed.source
        given, paths, size = dict(file.given), list(file.paths), listed.size
        for told in filter(None, (source.of(file.paths[0]) for source in self._sources)):
            given.update(told.given)
            paths += (entry.name for entry in told.files)
            size += sum(map(len, told.given.values())) + sum(entry.size for entry in told.files)
        return ListedFile(replace(file, paths=tuple(paths), given=given), size)

    def survey(self, listing: FolderListing) -> LabelReport:
        """Looks at all images, and marks the files in use. Raises SourceError."""
        labelled, unlabelled = 0, Stray()
        for listed in listing if self._sources else ():
            file = self.add_to(listed).source
            files = file.paths[len(listed.source.paths) :]
            if files or file.given:
                labelled += 1
                self._check_own(listed, (*file.given, *map(_member, files)))
            else:
                unlabelled.add(file.paths[0])
            for path in files:
                listing.use(path)
        stray = Stray()
        for source in self._sources:
            for path in source.files:
                listing.use(path)
            stray.merge(source.stray)
            if isinstance(source, FileLabels):
                for path in filter(source.is_one, listing.others()):
                    stray.add(path)
        members = sorted(frozenset[str]().union(*(source.members for source in self._sources)))
        return LabelReport(
            kinds=self.kinds,
            members=tuple(members),
            words=", ".join(source.words() for source in self._sources) or f"none{self._doubt}",
            labelled=labelled,
            unlabelled=unlabelled,
            stray=stray,
        )

    def _check_own(self, listed: ListedFile, told: Iterable[str]) -> None:
        """Refuse labels of which the image has a file of its own."""
        own = {_member(path): path for path in listed.source.paths[1:]} | dict(listed.source.named)
        for member in told:
            if member in own:
                source = next(source for source in self._sources if member in source.members)
                raise SourceError(
                    f"{own[member]} lies beside its image, and {source.name} would become the member {member!r}, too: "
                    "--labels none takes the files beside the images alone"
                )


def _member(path: str) -> str:
    return path.rpartition(".")[2].lower()


def classes_json(classes: Mapping[int, str]) -> bytes:
    """The content of ``classes.json``: an object of names by index."""
    ordered = {str(index): classes[index] for index in sorted(classes)}
    return (dump_json(ordered, indent=1) + "\n").encode()


def find_labels(
    listing: FolderListing,
    wanted: str,
    read: Opener,
    outside: Callable[[str], str | None] = lambda path: None,
    location: str = "",
) -> Labels:
    """The labels of a folder.

    Args:
        listing: its files.
        wanted: one of :data:`KINDS`, or the path of a file or a pattern for some, relative to the folder, or of a file
            elsewhere.
        read: opens a file of the folder, or elsewhere.
        outside: the absolute location of such a file elsewhere, if there is one.
        location: of the folder; absolute.

    Raises:
        SourceError: what is wanted is not there, labels are malformed, or two kinds contradict each other.
        StorageError: a file cannot be read.
    """
    if wanted == "none":
        return Labels(())
    finder = _Finder(listing, read, location)
    if wanted == "auto":
        return finder.automatic()
    if wanted in KINDS:
        return Labels(finder.of_kind(wanted))
    return Labels((finder.of_files(wanted, outside),))


class _Finder:
    def __init__(self, listing: FolderListing, read: Opener, location: str) -> None:
        self._listing = listing
        self._read = read
        self._location = location
        self._names: ImageNames | None = None

    @property
    def _images(self) -> ImageNames:
        self._names = self._names or self._images_for(None)
        return self._names

    def _images_for(self, elsewhere: str | None) -> ImageNames:
        return ImageNames(self._listing.files(), self._location, elsewhere)

    def automatic(self) -> Labels:
        tables: dict[str, list[str]] = {}
        annotations: list[str] = []
        class_files: list[str] = []
        for path in self._listing.others():
            base = path.rpartition("/")[2].lower()
            if base in TABLE_NAMES:
                tables.setdefault(base, []).append(path)
            elif is_coco_name(path):
                annotations.append(path)
            elif base in CLASS_FILES:
                class_files.append(path)
        found: list[LabelSource] = [TableLabels(paths, self._read, self._images) for _, paths in sorted(tables.items())]
        if annotations:
            coco = CocoLabels(annotations, self._read, self._images, sure=False)
            found += [coco] if coco.files else []
        found += filter(None, (self._files("yolo", class_files), self._files("voc", ())))
        folders = FolderLabels(self._listing.images())
        doubt = ""
        if not any(source.kind in ("yolo", "coco", "voc") for source in found):
            why = "there are .cls files beside images" if self._listing.has_beside("cls") else folders.doubt
            if not why:
                found = self._with_folders(found, folders)
            elif not found and len(folders.classes) > 1:
                doubt = f" ({why}; --labels folder takes {len(folders.classes)} folders for classes)"
        _check_apart(found)
        return Labels(found, doubt)

    def of_kind(self, kind: str) -> list[LabelSource]:
        if kind == "folder":
            folders = FolderLabels(self._listing.images())
            if not folders.classes:
                raise SourceError("--labels folder: there are no folders with images in them")
            return [folders]
        others = self._listing.others()
        if kind == "coco":
            paths = [path for path in others if is_coco_name(path)]
            coco = CocoLabels(paths, self._read, self._images, sure=False) if paths else None
            if coco is None or not coco.files:
                raise SourceError(
                    "--labels coco: there is no annotations/*.json with lists of images and annotations; name the file "
                    "with --labels FILE"
                )
            return [coco]
        class_files = [path for path in others if path.rpartition("/")[2].lower() in CLASS_FILES]
        found = self._files(kind, class_files if kind == "yolo" else ())
        if found is None:
            raise SourceError(
                "--labels yolo: no image in a folder images/ has its .txt in a folder labels/ beside that"
                if kind == "yolo"
                else "--labels voc: no image in a folder JPEGImages/ has its .xml in a folder Annotations/ beside that"
            )
        return [found]

    def of_files(self, wanted: str, outside: Callable[[str], str | None]) -> LabelSource:
        inside = wanted.removeprefix("./")
        paths = [path for path in self._listing.others() if path_matches(path, inside)]
        elsewhere = None if paths else outside(wanted)
        if elsewhere is not None:
            paths = [elsewhere]
        if not paths:
            raise SourceError(
                f"--labels {wanted}: there is no such file in the source, and none of that path; or one of "
                f"{', '.join(KINDS)}"
            )
        odd = next((path for path in paths if not path.lower().endswith((".csv", ".tsv", ".jsonl", ".json"))), None)
        if odd is not None:
            raise SourceError(f"--labels {wanted}: {odd} is no .csv, .tsv, .jsonl or .json (COCO)")
        if all(path.lower().endswith(".json") for path in paths):
            return CocoLabels(paths, self._read, self._images_for(elsewhere))
        if any(path.lower().endswith(".json") for path in paths):
            raise SourceError(f"--labels {wanted} names both tables and COCO's files: {', '.join(paths[:4])}")
        return TableLabels(paths, self._read, self._images_for(elsewhere))

    def _files(self, kind: str, class_files: Iterable[str]) -> FileLabels | None:
        """The labels in files beside the folders of images, if there is one."""
        labels = yolo_labels(self._listing.other) if kind == "yolo" else voc_labels(self._listing.other)
        if not any(map(labels.is_one, self._listing.others())):
            return None
        if not any(labels.of(image) for image in self._listing.images()):
            return None
        for path in class_files:
            with self._read(path) as stream:
                classes = yolo_classes(path, stream.read(LONGEST_CLASS_FILE + 1))
            if classes is not None:
                labels.take_classes(path, classes)
        return labels

    def _with_folders(self, found: list[LabelSource], folders: FolderLabels) -> list[LabelSource]:
        """Both, where they do not speak of the same; the tables alone where folders say nothing else."""
        tables = [source for source in found if isinstance(source, TableLabels) and "cls" in source.members]
        for table in tables:
            pairs: dict[str, str] = {}
            for image, label, folder in _labelled_twice(self._listing.images(), table, folders):
                if pairs.setdefault(label, folder) != folder:
                    raise SourceError(
                        f"{table.name} and the folders contradict each other: images of the label {short(label)!r} lie "
                        f"in {short(pairs[label])!r} and in {short(folder)!r} ({short(image)}); say with --labels "
                        f"{table.files[0]} or --labels folder which one counts"
                    )
            if len(set(pairs.values())) < len(pairs):
                raise SourceError(
                    f"{table.name} and the folders contradict each other: {len(pairs)} labels are in "
                    f"{len(set(pairs.values()))} folders; say with --labels {table.files[0]} or --labels folder which "
                    "one counts"
                )
        return found if tables else [*found, folders]


def _labelled_twice(images: Iterable[str], table: TableLabels, folders: FolderLabels) -> Iterator[tuple[str, str, str]]:
    for image in images:
        label, folder = table.label(image), folders.label(image)
        if label is not None and folder is not None:
            yield image, label, folder


def _check_apart(found: list[LabelSource]) -> None:
    """Refuse two kinds that give one member."""
    for number, source in enumerate(found):
        for other in found[:number]:
            both = sorted(source.members & other.members)
            if both:
                raise SourceError(
                    f"{other.name} and {source.name} would both become the member {both[0]!r}: say with --labels "
                    f"{_option(other)} or --labels {_option(source)} which one counts"
                )


def _option(source: LabelSource) -> str:
    if source.kind != "table":
        return source.kind
    return source.files[0] if len(source.files) == 1 else f"'*{source.files[0].rpartition('/')[2]}'"
