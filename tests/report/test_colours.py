"""The colours of methods: the same in every picture, and apart for colour-blind readers."""

import itertools

import numpy as np
import pytest

from fishexp.report.colours import COLOURS, DARK, SPARE, colours_of


def test_a_method_has_the_same_colour_in_every_picture():
    alone = colours_of(["mine"])["mine"]
    assert colours_of(["full", "mine", "fish"])["mine"] == alone
    assert colours_of(["fish"]) == {"fish": COLOURS["fish"]}
    many = colours_of([f"method{number}" for number in range(5)])
    assert sorted(many.values()) == sorted(SPARE)  # no two alike while there are colours


def seen(colour: str, blindness: str) -> np.ndarray:
    """Return the CIELAB coordinates of a colour as somebody sees it; matrices of Machado, Oliveira & Fernandes 2009."""
    matrices = {
        "none": np.eye(3),
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    }
    srgb = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.asarray(matrices[blindness]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    f = np.cbrt(xyz / [0.9505, 1, 1.089])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("palette", [(*COLOURS.values(), *SPARE), tuple(DARK.values())], ids=["light", "dark"])
@pytest.mark.parametrize("blindness", ["none", "protan", "deutan"])
def test_colour_blind_readers_tell_the_methods_apart(blindness, palette):
    labs = [seen(colour, blindness) for colour in palette]
    distances = [float(np.linalg.norm(a - b)) for a, b in itertools.combinations(labs, 2)]
    assert min(distances) > 20  # 2.3 is just noticeable


def test_every_colour_has_one_for_dark_pages():
    assert list(DARK) == [*COLOURS.values(), *SPARE]
