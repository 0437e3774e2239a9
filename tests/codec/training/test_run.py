"""What a training run reads and leaves behind: crops within bounds of memory, files, card, and the final check."""

from __future__ import annotations

import csv
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from discernible import Codec
from discernible.codec.training.checkpoint import TrainingState
from discernible.codec.training.golden import check_weights, golden_images
from discernible.codec.training.photos import CropConfig, PhotoCrops
from discernible.codec.training.ranks import Ranks
from discernible.codec.training.train import TrainConfig, train
from discernible.codec.training.watch import CsvLog
from discernible.errors import ConfigError, TrainingError

from .training_setup import config_in, write_photos


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory: pytest.TempPathFactory, photos: Mapping[str, np.ndarray]) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), photos)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> TrainConfig:
    config = config_in(tmp_path_factory.mktemp("trained"), photo_folder, 60, "validate_every = 30")
    train(config, report=[].append)
    return config


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_training_improves_and_is_logged(trained: TrainConfig) -> None:
    log = table(trained.output / "log.csv")
    assert list(log[0]) == ["step", "seconds", "loss", "bpp", "mse"]
    assert [int(row["step"]) for row in log] == list(range(5, 61, 5))
    losses = [float(row["loss"]) for row in log]
    assert sum(losses[-4:]) < sum(losses[:4])
    validation = table(trained.output / "validation.csv")
    assert [row["step"] for row in validation] == ["0", "30", "60"]
    for quality in (20, 50, 80):
        assert 0 < float(validation[-1][f"ms_ssim_{quality}"]) <= 1
    assert float(validation[-1]["bpp_20"]) < float(validation[-1]["bpp_80"])
    assert float(validation[-1]["psnr_20"]) < float(validation[-1]["psnr_80"])
    assert float(validation[-1]["cost"]) < float(validation[0]["cost"])
    assert float(validation[-1]["cost_trained"]) > 0


def test_pictures_show_originals_above_three_reconstructions(trained: TrainConfig, photo_folder: Path) -> None:
    with Image.open(trained.output / "pictures" / "step_60.png") as image:
        assert image.size == (2 * 256, 4 * 192)
        sheet = np.asarray(image).astype(int)
    rows = sheet.reshape(4, 192, 512, 3)
    errors = [np.square(rows[0] - row).mean() for row in rows[1:]]
    assert errors[0] > errors[1] > errors[2] > 0


def test_the_card_says_what_was_done(trained: TrainConfig) -> None:
    path = trained.output / "weights.safetensors"
    card = path.with_suffix(".md").read_text()
    codec = Codec.load(path, device="cpu", precision="float32")
    assert codec.name == "mine"
    assert f"`{codec.fingerprint}`" in card
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    for part in ("bpp + λ·(1·mse)", "the KLT of the photographs", "60 steps of 4 crops", "torch", "*training* set"):
        assert part in card, part
    for quality in (20, 50, 80):
        streams = b"".join(codec.entropy_encode(item) for item in codec.analyse(golden_images(), quality))
        assert f"| {quality} | `{hashlib.sha256(streams).hexdigest()}` |" in card


def test_weights_that_do_not_code_as_the_network_are_refused(trained: TrainConfig) -> None:
    photos = PhotoCrops(trained.folders, trained.crops, seed=trained.seed)
    state = TrainingState(trained, photos, Ranks(0, 1, torch.device("cpu")))
    state.load(trained.output / "checkpoint.safetensors")
    with pytest.raises(TrainingError, match="levels off the network's"):
        check_weights(trained.output / "weights.safetensors", state.network.eval())


def test_a_validation_folder_is_used_and_must_hold_photographs(tmp_path: Path, photo_folder: Path) -> None:
    config = config_in(tmp_path, photo_folder, 0, f"validation = '{photo_folder}'")
    train(config, report=[].append)
    assert "that training did not see" in (config.output / "weights.md").read_text()
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match="no photographs of at least"):
        train(config_in(tmp_path / "b", photo_folder, 0, f"validation = '{tmp_path / 'empty'}'"), report=[].append)


def test_tensorboard_that_is_not_installed_is_named(
    tmp_path: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        train(config_in(tmp_path, photo_folder, 1, "tensorboard = true"), report=[].append)


def test_a_log_keeps_one_header_and_drops_what_is_ahead(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    log = CsvLog(path, ["loss", "mmd"], 0)
    for step in (5, 10, 15):
        log.add(step, {"loss": step / 2})
    log.close()
    with path.open("a") as file:
        file.write("20,broken")
    log = CsvLog(path, ["loss", "mmd"], 10)
    log.add(15, {"loss": 1.0, "mmd": 2.0})
    log.close()
    assert path.read_text().split() == ["step,loss,mmd", "5,2.50000,", "10,5.00000,", "15,1.00000,2.00000"]
    CsvLog(path, ["other"], 99).close()
    assert path.read_text().split() == ["step,other"]


def noise_photos(folder: Path, count: int) -> Path:
    random = np.random.default_rng(7)
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = np.full((64, 64 + 16 * (number % 3), 3), number, np.uint8)
        pixels[..., 2] = random.integers(0, 256)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


def small_window(gib: float = 100_000 / 2**30) -> CropConfig:
    return CropConfig(size=32, native=1.0, max_memory_gib=gib)


def test_crops_are_repeatable(photo_folder: Path) -> None:
    config = CropConfig(size=64, native=0.5)
    a, b = (PhotoCrops([photo_folder], config, seed=3).batch(6) for _ in range(2))
    assert torch.equal(a, b)
    assert a.shape == (6, 3, 64, 64)
    assert not torch.equal(a, PhotoCrops([photo_folder], config, seed=4).batch(6))


def test_a_window_moves_over_all_photographs_and_holds_few(tmp_path: Path) -> None:
    crops = PhotoCrops([noise_photos(tmp_path / "many", 30)], small_window(), seed=1)
    early = set(crops.batch(16)[:, 0, 0, 0].tolist())
    assert len(early) <= 100_000 // (3 * 64 * 64)
    seen = early | set(crops.batch(16 * 40)[:, 0, 0, 0].tolist())
    assert len(seen) >= 28


def test_a_window_repeats_and_resumes_at_any_crop(tmp_path: Path) -> None:
    folder = noise_photos(tmp_path / "many", 20)
    (folder / "05.png").write_bytes((folder / "05.png").read_bytes()[:80])
    straight = PhotoCrops([folder], small_window(), seed=2)
    first, second = straight.batch(203), straight.batch(300)
    again = PhotoCrops([folder], small_window(), seed=2)
    assert torch.equal(first, again.batch(203))
    resumed = PhotoCrops([folder], small_window(), seed=2)
    resumed.restore(again.state())
    assert torch.equal(second, resumed.batch(300))


def test_photographs_that_are_all_broken_end_in_an_error(tmp_path: Path) -> None:
    folder = noise_photos(tmp_path / "many", 12)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(TrainingError, match="can be decoded"):
        PhotoCrops([folder], small_window(), seed=2).batch(1)
    with pytest.raises(TrainingError, match="can be decoded"):
        PhotoCrops([folder], CropConfig(size=32), seed=2)


def test_held_out_photographs_are_never_drawn(tmp_path: Path) -> None:
    folder = noise_photos(tmp_path / "many", 40)
    crops = PhotoCrops([folder], CropConfig(size=32, native=1.0), hold_out=8)
    assert (len(crops.held_out), len(crops)) == (4, 36)
    held = {int(path.stem) for path in crops.held_out}
    assert not held & set(crops.batch(600)[:, 0, 0, 0].tolist())
    assert PhotoCrops([folder], CropConfig(size=32), hold_out=2).held_out == crops.held_out[:2]


def test_reduced_folders_get_their_share_and_are_always_reduced(tmp_path: Path) -> None:
    plain, reduced = noise_photos(tmp_path / "plain", 12), tmp_path / "reduced"
    reduced.mkdir()
    # Stripes a pixel wide, which no reduced crop still has; four times as many pixels as the others together.
    for number in range(6):
        stripes = np.zeros((320, 320, 3), np.uint8)
        stripes[:, ::2] = 200
        Image.fromarray(stripes).save(reduced / f"{number}.png")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(reduced / "too_small_to_reduce.png")
    for memory in (2.0, 500_000 / 2**30):
        config = CropConfig(size=32, native=1.0, reduced_share=0.3, max_scale=0.5, max_memory_gib=memory)
        crops = PhotoCrops([plain], config, reduced=[reduced], hold_out=1)
        assert (len(crops), crops.skipped, len(crops.held_out)) == (11 + 6, 1, 1)
        batch = crops.batch(600).float()
        striped = batch[:, 0].mean((1, 2)) > 60
        assert 0.22 < striped.float().mean() < 0.38
        assert (batch[striped][:, 0, 8:24, 8:24].std((1, 2)) < 60).all()


def test_folders_that_overlap_do_not_bring_back_what_is_held_out(tmp_path: Path) -> None:
    folder = noise_photos(tmp_path / "many", 40)
    crops = PhotoCrops([folder], CropConfig(size=32, native=1.0), reduced=[tmp_path], hold_out=4)
    assert (len(crops.held_out), len(crops)) == (4, 36)
    assert len(PhotoCrops([folder], CropConfig(size=32), without=crops.held_out)) == 36


def test_the_content_hash_follows_the_bytes_not_the_names(tmp_path: Path) -> None:
    folder = noise_photos(tmp_path / "many", 3)
    crops = PhotoCrops([folder], CropConfig(size=32))
    before, inventory = crops.content_hash(), crops.inventory()
    (folder / "00.png").rename(folder / "renamed.png")
    renamed = PhotoCrops([folder], CropConfig(size=32))
    assert renamed.content_hash() == before
    assert renamed.inventory() != inventory
    (folder / "01.png").unlink()
    assert PhotoCrops([folder], CropConfig(size=32)).content_hash() != before


def test_no_photographs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no photographs of at least"):
        train(TrainConfig(output=tmp_path / "run", folders=(tmp_path / "empty",)), report=[].append)
