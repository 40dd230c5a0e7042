"""CIFAR-10 with 10, 5 and 2 classes and the hybrid data, on stand-in files; colours and shifts against slow loops."""

import dataclasses
import io
import tarfile

import pytest
import torch
from standins import write_cifar100, write_idx

from routing_gym.envs.make import make_routing_vector_env
from routing_gym.experiments.cli import main
from routing_gym.tasks import DataError, Shift, cifar2, cifar5, cifar10, download, files, hybrid_mnist_cifar
from routing_gym.tasks.augmentation import draw_palettes, mean_color, recolor
from routing_gym.tasks.digits import read_mnist
from routing_gym.tasks.hybrid import enlarge

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def kind_of(split):
    """The class of CIFAR-10 that a stand-in's brightness shows, for every row of a split."""
    return (split.images[split.image].float().mean((1, 2, 3)) // 20).long()


def images_before_normalising(split, rows, augmentation=None):
    pixels = split.pixels(rows, augmentation) * split.std.view(-1, 1, 1) + split.mean.view(-1, 1, 1)
    return pixels.round().to(torch.uint8)


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (cifar10, CIFAR),
        (cifar5, ("cat", "dog", "deer", "horse", "other")),
        (cifar2, ("horse", "other")),
    ],
)
def test_the_classes_of_cifar_10(build, names):
    splits = build(held_out=3)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [170, 30, 40]
    for split in splits.values():
        assert split.input_shape == (3, 32, 32) and split.num_tasks == 1 and split.num_classes == len(names)
        shown = [CIFAR[kind] for kind in kind_of(split)]
        assert [names[label] for label in split.label] == [name if name in names else "other" for name in shown]
    assert not set(splits["train"].image.tolist()) & set(splits["validation"].image.tolist())
    assert kind_of(splits["validation"]).bincount().tolist() == [3] * 10
    assert splits["train"].augmentation == Shift(4, True, "mean")
    assert splits["validation"].augmentation is None and splits["test"].augmentation is None
    assert set(build()) == {"train", "test"} and build(shift=0, flip=False)["train"].augmentation is None


def test_the_hybrid_has_five_digits_and_five_classes_of_photographs():
    splits = hybrid_mnist_cifar(held_out=2)
    # 20 and 5 stand-ins of each digit, 20 and 4 of each class of photographs.
    assert splits["train"].label.bincount().tolist() == [18] * 10
    assert splits["validation"].label.bincount().tolist() == [2] * 10
    assert splits["test"].label.bincount().tolist() == [5] * 5 + [4] * 5
    for name, split in splits.items():
        assert split.images.dtype == torch.uint8 and split.input_shape == (3, 32, 32)
        assert split.num_tasks == 1 and split.num_classes == 10 and split.drawings == (25 if name == "test" else 100)
        photographs = split.image >= split.drawings
        assert torch.equal(split.label >= 5, photographs)
        names = ["airplane", "automobile", "deer", "horse", "frog"]
        assert [names[label - 5] for label in split.label[photographs]] == [
            CIFAR[kind] for kind in kind_of(split)[photographs]
        ]
    mean, std = splits["test"].mean, splits["test"].std
    colored = splits["train"].images[splits["train"].image].double()
    torch.testing.assert_close(mean, colored.mean((0, 2, 3)).float())
    torch.testing.assert_close(std, colored.std((0, 2, 3), correction=0).float())


def test_every_digit_has_two_colours_of_its_own():
    train = hybrid_mnist_cifar()["train"]
    grey, digits = read_mnist(None)
    small = enlarge(grey["train"][digits["train"] < 5])
    assert small.shape == (100, 1, 32, 32)
    palettes = draw_palettes(100, generator(0))
    for number in (0, 41, 99):
        for row, column in ((0, 0), (5, 13), (9, 20)):
            share = float(small[number, 0, row, column]) / 255
            for channel in range(3):
                first, second = palettes[number, :, channel].tolist()
                assert abs(int(train.images[number, channel, row, column]) - (first + share * (second - first))) <= 0.5
    again, other = hybrid_mnist_cifar()["train"], hybrid_mnist_cifar(data_seed=1)["train"]
    assert torch.equal(again.images, train.images) and not torch.equal(other.images[:100], train.images[:100])
    assert torch.equal(other.images[100:], train.images[100:])


def test_digits_are_resized_by_linear_interpolation():
    image = torch.randint(0, 256, (1, 1, 28, 28), generator=generator()).to(torch.uint8)
    large = enlarge(image)[0, 0]
    for row, column in ((0, 0), (1, 17), (16, 3), (31, 31)):
        # Pixel centres of the 32 fall between those of the 28; beyond the outermost nothing changes.
        y, x = (min(max((place + 0.5) * 28 / 32 - 0.5, 0), 27) for place in (row, column))
        top, left = min(int(y), 26), min(int(x), 26)
        value = 0.0
        for i in (0, 1):
            for j in (0, 1):
                weight = (1 - abs(y - top - i)) * (1 - abs(x - left - j))
                value += weight * float(image[0, 0, top + i, left + j])
        assert abs(float(large[row, column]) - value) <= 0.5 + 1e-4


def test_recolouring():
    shades = torch.tensor([[[[0, 255, 51, 128]]]], dtype=torch.uint8)
    colored = recolor(shades, torch.tensor([[[10, 200, 0], [110, 0, 255]]]))
    assert colored[0, :, 0].tolist() == [[10, 110, 30, 60], [200, 0, 160, 100], [0, 255, 51, 128]]
    palettes = draw_palettes(3000, generator())
    distance = (palettes[:, 0] - palettes[:, 1]).float().norm(dim=1) / 255
    assert palettes.shape == (3000, 2, 3) and float(distance.min()) >= 0.3 and float(distance.min()) < 0.32
    assert int(palettes.min()) == 0 and int(palettes.max()) == 255
    assert torch.equal(palettes, draw_palettes(3000, generator()))
    assert not torch.equal(palettes, draw_palettes(3000, generator(1)))


def test_the_mean_colour_is_one_of_light():
    images = torch.randint(0, 256, (40, 3, 5, 7), generator=generator()).to(torch.uint8)
    light = (images.double() / 255) ** 2.2
    wanted = 255 * light.mean((2, 3)) ** (1 / 2.2)
    assert float((mean_color(images).double() - wanted).abs().max()) <= 0.5 + 1e-5
    for byte in (0, 1, 77, 254, 255):
        assert mean_color(torch.full((1, 3, 4, 4), byte, dtype=torch.uint8)).tolist() == [[byte] * 3]
    half = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    assert mean_color(half).item() == 186  # 255 / 2^(1/2.2), not 128


def slow(image, down, right, mirror, fill):
    """Mirror, then move one image, pixel by pixel."""
    channels, height, width = image.shape
    light = ((image.double() / 255) ** 2.2).mean((1, 2))
    moved = torch.empty_like(image)
    for channel in range(channels):
        outside = round(255 * float(light[channel]) ** (1 / 2.2)) if fill == "mean" else 0
        for y in range(height):
            for x in range(width):
                source_y, source_x = y - down, x - right
                inside = 0 <= source_y < height and 0 <= source_x < width
                source_x = width - 1 - source_x if mirror else source_x
                moved[channel, y, x] = image[channel, source_y, source_x] if inside else outside
    return moved


@pytest.mark.parametrize("fill", ["mean", "black"])
def test_shifts_are_those_of_a_slow_loop(fill):
    shift = Shift(3, flip=True, fill=fill)
    images = torch.randint(0, 256, (12, 3, 6, 5), generator=generator()).to(torch.uint8)
    parameters = shift.draw(12, generator(1))
    parameters[:4] = torch.tensor([[3, -3, 1], [-3, 3, 0], [0, 0, 1], [0, 0, 0]])
    drawn = torch.arange(12) % 3 == 0
    moved = shift.apply(images, parameters, drawn)
    assert parameters[drawn][:, 2].any()  # some that would be mirrored are drawings
    for number, (down, right, mirror) in enumerate(parameters.tolist()):
        assert torch.equal(moved[number], slow(images[number], down, right, mirror and not drawn[number], fill))
    assert torch.equal(shift.apply(images[5:6], parameters[5:6]), shift.apply(images, parameters)[5:6])
    flipped = Shift(0, flip=True, fill=fill).apply(images[:1], torch.tensor([[0, 0, 1]]))
    assert torch.equal(flipped, images[:1].flip(3))


def test_training_images_follow_their_parameters_alone():
    train = hybrid_mnist_cifar()["train"]
    rows = torch.tensor([3, 60, 150, 199])
    drawn = train.draw_augmentation(4, generator(5))
    assert torch.equal(drawn, train.draw_augmentation(4, generator(5))) and drawn.shape == (4, 3)
    drawn[:, 2] = 1
    seen = images_before_normalising(train, rows, drawn)
    for image, row, (down, right, _) in zip(seen, rows, drawn.tolist(), strict=True):
        assert torch.equal(image, slow(train.images[row], down, right, int(row) >= 100, "mean"))
    assert torch.equal(train.pixels(rows, drawn), train.pixels(rows, drawn))
    with pytest.raises(ValueError, match=r"augmentation of shape \(4, 3\) expected, got \(4, 9\)"):
        train.pixels(rows, torch.zeros(4, 9, dtype=torch.int64))


def test_digits_can_get_new_colours_each_time():
    splits = hybrid_mnist_cifar(recolor_each_time=True, shift=2, flip=False)
    train, fixed = splits["train"], hybrid_mnist_cifar()["train"]
    assert torch.equal(train.images, fixed.images) and splits["test"].shades is None
    rows = torch.tensor([3, 60, 150])
    drawn = train.draw_augmentation(3, generator(5))
    assert drawn.shape == (3, 9)
    seen = images_before_normalising(train, rows, drawn)
    for image, row, parameters in zip(seen, rows, drawn, strict=True):
        plain = train.images[row]
        if int(row) < 100:
            palette, shade = parameters[3:].view(2, 3).double(), train.shades[row].double() / 255
            plain = (palette[0].view(3, 1, 1) * (1 - shade) + palette[1].view(3, 1, 1) * shade).round().to(torch.uint8)
        assert torch.equal(image, slow(plain, *parameters[:2].tolist(), False, "mean"))
    again = images_before_normalising(train, rows, train.draw_augmentation(3, generator(6)))
    assert not torch.equal(again[0], seen[0])
    assert torch.equal(images_before_normalising(train, rows), fixed.images[rows])  # without parameters its own colours


def test_bad_options_and_fields_are_refused():
    train = hybrid_mnist_cifar(recolor_each_time=True)["train"]
    with pytest.raises(ValueError, match=r"CIFAR-2: held_out must be an integer from 0 to 19, got 20"):
        cifar2(held_out=20)
    with pytest.raises(ValueError, match="fill must be 'black' or 'mean', got 'grey'"):
        cifar10(fill="grey")
    with pytest.raises(ValueError, match="at least 1 pixel or flips"):
        hybrid_mnist_cifar(shift=-1)
    with pytest.raises(ValueError, match="drawings must be an integer from 0 to 200, got 201"):
        dataclasses.replace(train, drawings=201)
    with pytest.raises(ValueError, match=r"shades must be uint8 of shape \(100, 1, 32, 32\)"):
        dataclasses.replace(train, shades=train.shades[1:])
    with pytest.raises(ValueError, match="recolours needs shades"):
        dataclasses.replace(train, shades=None)
    with pytest.raises(ValueError, match="has no augmentation"):
        hybrid_mnist_cifar()["test"].pixels(torch.arange(2), torch.zeros(2, 3, dtype=torch.int64))
    photographs = cifar10()["train"]
    with pytest.raises(ValueError, match="drawings of Hybrid MNIST/CIFAR-10 can only stand first"):
        photographs.with_tasks(train)
    both = train.with_tasks(photographs)
    assert both.drawings == 100 and both.num_tasks == 2 and len(both) == 400


def test_missing_and_broken_cifar_10_files_are_named(copied, tmp_path):
    with pytest.raises(
        DataError, match=r"cifar-10-batches-bin/data_batch_1.bin is missing: run `routing-gym download c"
    ):
        cifar10(data_dir=str(tmp_path / "nowhere"), allow_partial=True)
    folder = copied / "cifar-10-batches-bin"
    batch = folder / "data_batch_4.bin"
    whole = batch.read_bytes()
    mended = r"delete it and run `routing-gym download cifar-10 --data-dir"
    batch.write_bytes(whole[:-7])
    for partial in (False, True):
        with pytest.raises(DataError, match=rf"data_batch_4.bin is truncated .* 122913 bytes, expected .*; {mended}"):
            hybrid_mnist_cifar(data_dir=str(copied), allow_partial=partial)
    batch.write_bytes(whole[:3073] + bytes([10]) + whole[3074:])
    with pytest.raises(DataError, match=rf"data_batch_4.bin is of another .* label 10 .* less than 10; {mended}"):
        cifar5(data_dir=str(copied))
    batch.write_bytes(bytes([1]) + whole[1:])
    with pytest.raises(
        DataError, match=r"of other data: \[19, 21, 20, .* expected as many of each; delete them and run"
    ):
        cifar2(data_dir=str(copied))
    write_cifar100(copied / "other", {"train": 300})
    batch.write_bytes((copied / "other/train.bin").read_bytes())
    with pytest.raises(
        DataError, match="data_batch_4.bin is truncated or of other data: 922200 bytes, expected 122920"
    ):
        cifar10(data_dir=str(copied))
    batch.write_bytes(whole + whole)
    with pytest.raises(DataError, match="data_batch_4.bin is of other data: 80 rows, at most 40 expected"):
        cifar10(data_dir=str(copied), allow_partial=True)


def test_a_part_of_cifar_10_is_taken_only_when_asked_and_named(copied):
    folder = copied / "cifar-10-batches-bin"
    (folder / "data_batch_5.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_5.bin is missing: run `routing-gym download cifar-10"):
        cifar10(data_dir=str(copied))
    test = folder / "test_batch.bin"
    test.write_bytes(test.read_bytes()[: 3073 * 37])
    train = cifar10(data_dir=str(copied), allow_partial=True)["train"]
    assert len(train) == 160 and train.name == "CIFAR-10 (partial: 160 of 200 train, 37 of 40 test images)"
    test_split = hybrid_mnist_cifar(data_dir=str(copied), allow_partial=True)["test"]
    assert test_split.label.bincount().tolist() == [5] * 5 + [4, 4, 4, 3, 4]
    assert cifar10(allow_partial=True)["train"].name == "CIFAR-10"
    test.write_bytes(test.read_bytes()[: 3073 * 9])
    with pytest.raises(DataError, match=r"test_batch.bin are of other data: \[1, .*, 0\] images of the ten classes"):
        cifar10(data_dir=str(copied), allow_partial=True)


def test_digits_that_are_not_there_are_named(copied):
    write_idx(copied / "MNIST/raw/t10k-labels-idx1-ubyte.gz", torch.ones(50, dtype=torch.uint8).numpy())
    with pytest.raises(DataError, match="MNIST's test images lack one of the digits 0 to 4"):
        hybrid_mnist_cifar(data_dir=str(copied))


def test_the_archive_is_unpacked_into_the_official_layout(stand_in_data, tmp_path, monkeypatch):
    source = tmp_path / "cifar-10-binary.tar.gz"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(stand_in_data / "cifar-10-batches-bin", "cifar-10-batches-bin")
    source.write_bytes(packed.getvalue())
    monkeypatch.setattr("routing_gym.tasks.files.pooch.retrieve", lambda *args, **options: str(source))
    assert main(["download", "cifar-10", "--data-dir", str(tmp_path)]) == 0
    assert len(cifar10(data_dir=str(tmp_path))["train"]) == 200
    assert download(files.CIFAR10, str(tmp_path)) == tmp_path / "cifar-10-batches-bin"


SETS = {"cifar-10": 10, "cifar-5": 5, "cifar-2": 2, "hybrid": 10, "svhn": 10, "cifar-100-fine": 100}


@pytest.mark.parametrize("name", SETS)
def test_environments_are_made_over_the_data(name):
    def pixels(seed):
        options = {"recolor_each_time": True} if name == "hybrid" else {}
        env = make_routing_vector_env(
            dataset=name, network="mlp", num_blocks=2, num_envs=8, device="cpu", held_out=1, **options
        )
        assert {part: split.num_classes for part, split in env.datasets.items()} == dict.fromkeys(
            ("train", "test", "validation"), SETS[name]
        )
        observation, _ = env.reset(seed=seed)
        for _ in range(3):
            env.step(torch.zeros(8, dtype=torch.int64))
        return observation["activation"]

    assert torch.equal(pixels(0), pixels(0)) and not torch.equal(pixels(0), pixels(1))


def test_stored_parameters_replay_the_same_images():
    env = make_routing_vector_env(
        dataset="hybrid", network="mlp", num_blocks=2, num_envs=16, device="cpu", recolor_each_time=True
    )
    first, _ = env.reset(seed=3)
    again = env.dataset.pixels(env.state.instance, env.batch.augmentation)
    assert env.batch.augmentation.shape == (16, 9)
    state = env.network.start(again, env.dataset.task[env.state.instance])
    assert torch.equal(env.network.observe(state), first["activation"])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_images():
    train = hybrid_mnist_cifar(recolor_each_time=True)["train"]
    rows, drawn = torch.arange(0, 200, 3), train.draw_augmentation(67, generator())
    torch.testing.assert_close(train.to("cuda").pixels(rows.cuda(), drawn).cpu(), train.pixels(rows, drawn))


@pytest.mark.parametrize("size", [16, 8])
def test_cifar_is_shrunk_by_means_of_squares(size):
    whole, small = (cifar10(size=pixels) for pixels in (32, size))
    side = 32 // size
    for split, shrunk in small.items():
        images = whole[split].images.double()
        means = torch.stack([images[:, :, i::side, j::side] for i in range(side) for j in range(side)]).mean(0)
        assert shrunk.images.shape[2:] == (size, size) and bool(((shrunk.images - means).abs() <= 0.5).all())
        assert shrunk.name == f"CIFAR-10 at {size}x{size}" and torch.equal(shrunk.label, whole[split].label)
    with pytest.raises(ValueError, match="CIFAR-10: size must be one of 32, 16, 8, got 12"):
        cifar10(size=12)
