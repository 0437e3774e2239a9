"""``discernible evaluate`` as a function: data and weights in, a report of real files out."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table as RichTable

from ...errors import ConfigError
from ...stored import dump_json
from .contestants import CLASSICAL, Contestant, Learned, classical
from .judges import Detector, FeatureDistance, Segmenter, load_classifier, load_embedding
from .layout import Part
from .measure import Labels, Native, Objects, Photos, Recognition, Row, RowStore, Task, measure
from .report import check_plots, curve_file, to_html, to_markdown, to_svg
from .tables import parts

__all__ = ["Evaluation", "EvaluationConfig", "evaluate"]

_TITLE = "What compression costs people and networks"


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What to evaluate on what. Each of ``photos``, ``labelled``, ``native`` and ``objects`` names a folder and asks
    for its part.

    ``weights``: names or files, each with ``@GUIDE`` behind it if not the encoder's usual guide is meant.
    ``classifiers`` and ``embeddings`` judge both ``labelled`` and ``native``.
    ``codecs``: names from :data:`.contestants.CLASSICAL`, all that can be written here by default. ``limit``: at most
    so many pictures of each folder, spread over it. ``markdown``: where the tables go a second time, the plots
    beside them as SVG files.
    """

    output: Path
    weights: tuple[str, ...] = ("default",)
    photos: Path | None = None
    labelled: Path | None = None
    native: Path | None = None
    objects: Path | None = None
    features: str | None = None
    classifiers: tuple[str, ...] = ("efficientnet-lite2",)
    embeddings: tuple[str, ...] = ()
    detector: Path | None = None
    segmenter: Path | None = None
    codecs: tuple[str, ...] = ()
    limit: int | None = None
    markdown: Path | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if all(folder is None for folder in (self.photos, self.labelled, self.native, self.objects)):
            raise ConfigError("nothing to evaluate on: name --photos, --labelled, --native or --objects")
        known = {codec.name for codec in CLASSICAL}
        unknown = sorted(set(self.codecs) - known)
        if unknown:
            raise ConfigError(f"unknown codecs {unknown}; there are {', '.join(sorted(known))}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit must be at least 1, not {self.limit}")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The sections of the report, and its files."""

    sections: list[Part]
    files: list[Path]

    def to_json(self) -> dict[str, object]:
        """As JSON values: every table, and the paths."""
        tables = {f"{part.title}: {t.title}": dataclasses.asdict(t) for part in self.sections for t in part.tables}
        return {"tables": tables, "files": [str(path) for path in self.files]}

    def render(self) -> RenderableType:
        """For people: the tables that conclude; the others are in the files."""
        shown: list[RenderableType] = []
        for part in self.sections:
            for table in part.tables:
                if table.title != "Every setting":
                    grid = RichTable(*table.header, title=f"{part.title}: {table.title}", caption=table.note)
                    for row in table.rows:
                        grid.add_row(*row)
                    shown.append(grid)
        return Group(*shown, *(str(path) for path in self.files))


def evaluate(config: EvaluationConfig, *, report: Callable[[str], None]) -> Evaluation:
    """Measure what is not measured yet, and write ``report.html``, ``results.json`` and the Markdown file.

    ``report`` gets a line for each codec and setting. Rows are kept in ``rows.jsonl``: an interrupted evaluation goes
    on, and new weights are measured against the rows of the classical codecs that are there.

    Raises:
        ConfigError: a folder, model file or package that is not there. ImageError: an unreadable picture.
        WeightsError: no such weights.
    """
    check_plots()
    learned = [Learned.parse(text) for text in config.weights]
    names = [codec.name for codec in learned]
    if len(set(names)) != len(names):
        raise ConfigError(
            f"two of the weights have the same name: {names}; give them different ones when training. Weights without "
            "an importance head are the same with @auto, with @none and without"
        )
    rivals = [codec for codec in classical() if not config.codecs or codec.name in config.codecs]
    store = RowStore(config.output / "rows.jsonl")
    rows: list[Row] = []
    families: dict[str, str] = {}
    for task in _tasks(config):
        families |= task.families if isinstance(task, Recognition) else {}
        contestants: list[Contestant] = [*learned, *(codec for codec in rivals if codec.takes_part(task.name))]
        rows += measure(task, contestants, store, report)
    sections = parts(rows, names, families)
    lead = f"{config.command}\n{_machine()}"
    files = [config.output / "report.html", config.output / "results.json"]
    files[0].write_text(to_html(_TITLE, lead, sections, names), "utf-8")
    if config.markdown is not None:
        files.append(config.markdown)
        config.markdown.parent.mkdir(parents=True, exist_ok=True)
        text = to_markdown(_TITLE, f"```\n{lead}\n```", sections, config.markdown)
        config.markdown.write_text(text, "utf-8")
        for curve in (curve for part in sections for curve in part.curves):
            curve_file(config.markdown, curve).write_text(to_svg(curve, names), "utf-8")
    result = Evaluation(sections=sections, files=files)
    files[1].write_text(dump_json(result.to_json(), indent=1), "utf-8")
    return result


def _tasks(config: EvaluationConfig) -> list[Task]:
    tasks: list[Task] = []
    if config.photos is not None:
        tasks.append(Photos(config.photos, FeatureDistance(config.features) if config.features else None, config.limit))
    if config.labelled is not None or config.native is not None:
        classifiers = [load_classifier(name) for name in config.classifiers]
        embeddings = [load_embedding(name) for name in config.embeddings]
        if config.labelled is not None:
            tasks.append(Labels(config.labelled, classifiers, embeddings, config.limit))
        if config.native is not None:
            tasks.append(Native(config.native, classifiers, embeddings, config.limit))
    if config.objects is not None:
        detector = Detector(str(config.detector)) if config.detector else None
        segmenter = Segmenter(str(config.segmenter)) if config.segmenter else None
        tasks.append(Objects(config.objects, detector, segmenter, config.limit))
    return tasks


def _machine() -> str:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"
