"""`explain`: images of a run with their class activation maps, as pictures, a table and arrays."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.checks import require_choice
from fastcifar.config import ExplainConfig
from fastcifar.explain.cam import Activations, Size, best_layer, stages_of
from fastcifar.explain.choice import Verdicts, choose, verdicts
from fastcifar.explain.pictures import read_pictures
from fastcifar.explain.trained import Trained, write_png
from fastcifar.files import write_atomically, writing_to
from fastcifar.training.progress import Reporter, SilentReporter
from fastcifar.training.run_folder import RunFolder

CAM_BATCH = 50
COLUMNS = ("index", "true", "predicted", "confidence", "loss", "file")
METHOD_NAMES = {"gradcam": "Grad-CAM", "gradcampp": "Grad-CAM++", "hirescam": "HiResCAM"}


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What was made."""

    num_images: int
    """Test images, or pictures of the user's."""
    num_wrong: int | None
    """Of the test images."""
    num_shown: int
    layers: tuple[str, ...]
    sizes: tuple[Size, ...]
    """(h, w) of each layer's own maps."""
    files: tuple[Path, ...]
    """grid.png, index.csv, maps.npz and the sheets; nothing if there is no image to show."""


@dataclass(frozen=True, kw_only=True)
class Subjects:
    """The images that are explained."""

    images: npt.NDArray[np.uint8]
    """(N, H, W, 3)."""
    names: tuple[str, ...]
    """What each is called in headings: 'test image 12', 'my-cat.jpg'."""
    files: tuple[str, ...]
    """Names of their sheets."""
    verdicts: Verdicts
    """With index and true class -1 where there is none."""


@dataclass(frozen=True, kw_only=True)
class MapTable:
    """All maps: by target, method, image and layer."""

    targets: tuple[str, ...]
    methods: tuple[str, ...]
    layers: tuple[str, ...]
    sizes: tuple[Size, ...]
    classes: npt.NDArray[np.int64]
    """(targets, N): the class of each map."""
    maps: npt.NDArray[np.float32]
    """(targets, methods, N, layers, H, W) in 0..1."""
    has_evidence: npt.NDArray[np.bool_]
    """(targets, methods, N, layers)."""


def explain_run(
    run: RunFolder,
    config: ExplainConfig,
    *,
    pictures: Sequence[Path] = (),
    data_dir: str | None = None,
    device: str = "auto",
    trusted: str | None = None,
    reporter: Reporter | None = None,
) -> Explanation:
    """Explain test images of a run into its folder explain/, or the user's own pictures into explain/pictures/.

    trusted: 'package.module:function', if that is the run's network and you know what it does.
    Raises DataError (4) if test.beton or a picture is missing, damaged or of another kind; CheckpointError (6);
    UsageError (2).
    """
    reporter = reporter or SilentReporter()
    trained = Trained(run, data_dir=data_dir, device=device, trusted=trusted)
    layers = stages_of(trained.model) if config.layers == ("all",) else config.layers
    names = trained.info.class_names
    require_choice("target", config.target, ("pred", "true", "both", *names))
    if pictures:
        subjects, num_images, num_wrong = _pictures(trained, pictures, layers), len(pictures), None
        folder, heading = run.explain / "pictures", f"{run.path.name}: {len(pictures):,} of your pictures"
    else:
        subjects, num_images, num_wrong = _test_images(trained, config, reporter)
        folder, heading = run.explain, f"{run.path.name}: {num_wrong:,} of {num_images:,} test images misclassified"
    num_shown = len(subjects.images)
    if not num_shown:
        return Explanation(num_images=num_images, num_wrong=num_wrong, num_shown=0, layers=layers, sizes=(), files=())
    table = map_table(trained, subjects, layers, config, reporter)
    files = _write(folder, subjects, table, names, heading, reporter)
    return Explanation(
        num_images=num_images,
        num_wrong=num_wrong,
        num_shown=num_shown,
        layers=layers,
        sizes=table.sizes,
        files=files,
    )


def _test_images(trained: Trained, config: ExplainConfig, reporter: Reporter) -> tuple[Subjects, int, int]:
    beton = trained.open_beton("test")
    found = verdicts(trained.predictions("test", beton, "none", reporter))
    chosen = choose(found, config)
    rows = found.index[chosen]
    subjects = Subjects(
        images=beton.images(rows) if len(rows) else np.empty((0, *beton.image_shape), np.uint8),
        names=tuple(f"test image {row}" for row in rows),
        files=tuple(f"{row:05d}.png" for row in rows),
        verdicts=found.at(chosen),
    )
    return subjects, len(found.index), int((~found.right).sum())


def _pictures(trained: Trained, paths: Sequence[Path], layers: Sequence[str]) -> Subjects:
    images = read_pictures(paths, trained.info.image_shape)
    probabilities = torch.cat(
        [
            Activations(trained.model, trained.normalised(images[i : i + CAM_BATCH]), layers).logits.softmax(dim=1)
            for i in range(0, len(images), CAM_BATCH)
        ]
    ).cpu()
    unknown = np.full(len(paths), -1)
    return Subjects(
        images=images,
        names=tuple(path.name for path in paths),
        files=tuple(f"{i:05d}.png" for i in range(len(paths))),
        verdicts=Verdicts(
            index=unknown,
            true=unknown,
            predicted=probabilities.argmax(dim=1).numpy(),
            confidence=probabilities.amax(dim=1).double().numpy(),
            loss=np.full(len(paths), np.nan),
        ),
    )


def map_table(
    trained: Trained, subjects: Subjects, layers: Sequence[str], config: ExplainConfig, reporter: Reporter
) -> MapTable:
    """One forward pass, and a backward pass for each kind of target, for every 50 images."""
    classes = _targets(config.target, trained.info.class_names, subjects.verdicts)
    chosen = np.stack(list(classes.values()))  # (targets, N)
    maps: list[npt.NDArray[np.float32]] = []
    evidence: list[npt.NDArray[np.bool_]] = []
    num = len(subjects.images)
    reporter.begin("maps", num)
    sizes: tuple[Size, ...] = ()
    for start in range(0, num, CAM_BATCH):
        part = slice(start, start + CAM_BATCH)
        kept = Activations(trained.model, trained.normalised(subjects.images[part]), layers)
        made = [
            [found[method] for method in config.methods]
            for found in (kept.maps(torch.from_numpy(of[part]).to(trained.device), config.methods) for of in chosen)
        ]
        maps.append(np.stack([[m.maps.cpu().numpy() for m in row] for row in made]))
        evidence.append(np.stack([[m.has_evidence.cpu().numpy() for m in row] for row in made]))
        sizes = kept.sizes
        reporter.advance(len(kept.logits))
    return MapTable(
        targets=tuple(classes),
        methods=config.methods,
        layers=tuple(layers),
        sizes=sizes,
        classes=chosen,
        maps=np.concatenate(maps, axis=2),
        has_evidence=np.concatenate(evidence, axis=2),
    )


def _targets(target: str, names: tuple[str, ...], found: Verdicts) -> dict[str, npt.NDArray[np.int64]]:
    """By kind of target the class of each image, (N,)."""
    known = bool((found.true >= 0).all())
    if target in ("true", "both") and not known:
        target = "pred"  # of the user's pictures nobody said what they show
    kinds = {"pred": found.predicted, "true": found.true}
    if target == "both":
        return kinds
    return {target: kinds[target] if target in kinds else np.full(len(found.true), names.index(target))}


def _write(
    folder: Path, subjects: Subjects, table: MapTable, names: tuple[str, ...], heading: str, reporter: Reporter
) -> tuple[Path, ...]:
    from fastcifar import plotting
    from fastcifar.plotting.images import Named

    found = subjects.verdicts
    titles = [
        Named(names[t] if t >= 0 else "", f"{names[p]} {c:.0%}", bool(t == p))
        for t, p, c in zip(found.true, found.predicted, found.confidence, strict=True)
    ]
    best = best_layer(table.sizes)
    shown = f"{METHOD_NAMES[table.methods[0]]} of {target_name(table.targets[0])} at {_layer(table, best)}"
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    sheets = _write_sheets(folder, subjects, table, names, reporter)
    grid = write_png(
        folder / "grid.png",
        plotting.cam_grid(subjects.images, table.maps[0, 0, :, best], titles, f"{heading}\n{shown}"),
    )
    return grid, _write_index(folder, subjects, names), _write_maps(folder, subjects, table), *sheets


def _write_sheets(
    folder: Path, subjects: Subjects, table: MapTable, names: tuple[str, ...], reporter: Reporter
) -> tuple[Path, ...]:
    from fastcifar import plotting
    from fastcifar.plotting.images import SheetRow

    made, place = folder / ".sheets.partial", folder / "sheets"
    methods = [METHOD_NAMES[method] for method in table.methods]
    found = subjects.verdicts
    reporter.begin("sheets", len(subjects.images))
    with writing_to(made):
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
    for i, image in enumerate(subjects.images):
        rows = [
            SheetRow(
                f"{_layer(table, k)}\nfor {names[table.classes[t, i]]}",
                list(table.maps[t, :, i, k]),
                table.has_evidence[t, :, i, k].tolist(),
            )
            for k in range(len(table.layers))
            for t in range(len(table.targets))
        ]
        true = f"true {names[found.true[i]]}, " if found.true[i] >= 0 else ""
        loss = f", loss {found.loss[i]:.2f}" if found.true[i] >= 0 else ""
        title = f"{subjects.names[i]}: {true}predicted {names[found.predicted[i]]} {found.confidence[i]:.0%}{loss}"
        write_png(made / subjects.files[i], plotting.cam_sheet(image, rows, methods, title))
        reporter.advance(1)
    with writing_to(place):
        shutil.rmtree(place, ignore_errors=True)
        made.rename(place)
    return tuple(place / name for name in subjects.files)


def _layer(table: MapTable, k: int) -> str:
    height, width = table.sizes[k]
    return f"{table.layers[k]} ({height}x{width})"


def target_name(target: str) -> str:
    """A kind of target, in words."""
    return {"pred": "the predicted class", "true": "the true class"}.get(target, target)


def _write_index(folder: Path, subjects: Subjects, names: tuple[str, ...]) -> Path:
    found, path = subjects.verdicts, folder / "index.csv"
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(subjects.files):
        known = found.true[i] >= 0
        rows.append(
            {
                "index": int(found.index[i]) if known else subjects.names[i],
                "true": names[found.true[i]] if known else "",
                "predicted": names[found.predicted[i]],
                "confidence": round(float(found.confidence[i]), 6),
                "loss": round(float(found.loss[i]), 6) if known else "",
                "file": f"sheets/{name}",
            }
        )

    def write(partial: Path) -> None:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)
    return path


def _write_maps(folder: Path, subjects: Subjects, table: MapTable) -> Path:
    path = folder / "maps.npz"
    arrays = {
        "index": subjects.verdicts.index,
        "images": subjects.images,
        "targets": np.array(table.targets),
        "methods": np.array(table.methods),
        "layers": np.array(table.layers),
        "sizes": np.array(table.sizes),
        "classes": table.classes,
        "maps": table.maps,
        "has_evidence": table.has_evidence,
    }

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    write_atomically(path, write)
    return path
