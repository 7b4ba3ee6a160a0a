"""RawBoost against the published code: its filters and noises exactly, its draws in distribution."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.views import rawboost

GOLDEN = Path(__file__).parents[1] / ".." / "shared" / "golden" / "rawboost.npz"
ATOL = 1e-12
DRAWS = 200
KS_LIMIT = 0.195  # two samples of 200: p = 0.001
Arrays = Mapping[str, NDArray[Any]]


@pytest.fixture(scope="module")
def golden() -> Arrays:
    if not GOLDEN.exists():
        pytest.skip(f"no reference numbers at {GOLDEN}")
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return dict(arrays)


def notch(golden: Arrays, case: str, *, order: int | None = None) -> NDArray[np.float64]:
    fc, bw, c, gain = (golden[f"{case}/{key}"] for key in ("fc", "bw", "c", "G"))
    if order is not None:
        fc, bw, c, gain = fc[order], bw[order], c[order], gain[order]
    return rawboost.notch_filter(fc, bw, c, gain_db=float(gain))


# The published code's numbers


@pytest.mark.parametrize("case", [f"notch{i}" for i in range(5)])
def test_golden_notch_filters(golden: Arrays, case: str) -> None:
    np.testing.assert_allclose(notch(golden, case), golden[f"{case}/b"], rtol=0, atol=ATOL)


@pytest.mark.parametrize("item", ["odd", "even", "long", "impulse"])
def test_golden_filtering(golden: Arrays, item: str) -> None:
    x = golden["fir/impulse/x" if item == "impulse" else "fir/x"]
    got = rawboost.fir(x, golden[f"fir/{item}/b"])
    np.testing.assert_allclose(got, golden[f"fir/{item}/y"], rtol=0, atol=ATOL)


@pytest.mark.parametrize("item", ["quiet", "loud"])
def test_golden_normalisation(golden: Arrays, item: str) -> None:
    got = rawboost.unclipped(golden[f"norm/{item}/x"])
    np.testing.assert_allclose(got, golden[f"norm/{item}/if_clipping"], rtol=0, atol=ATOL)


@pytest.mark.parametrize("case", ["lnl", "lnl_loud"])
def test_golden_convolutive(golden: Arrays, case: str) -> None:
    filters = [notch(golden, case, order=i) for i in range(len(golden[f"{case}/G"]))]
    got = rawboost.convolutive(golden[f"{case}/x"], filters)
    np.testing.assert_allclose(got, golden[f"{case}/y"], rtol=0, atol=ATOL)


@pytest.mark.parametrize("case", ["isd", "isd_loud"])
def test_golden_impulsive(golden: Arrays, case: str) -> None:
    index, u1, u2 = (golden[f"{case}/{key}"] for key in ("index", "u1", "u2"))
    got = rawboost.impulsive(golden[f"{case}/x"], index, u1, u2, gain=float(golden[f"{case}/g_sd"]))
    np.testing.assert_allclose(got, golden[f"{case}/y"], rtol=0, atol=ATOL)


@pytest.mark.parametrize("case", ["ssi", "ssi_loud"])
def test_golden_additive(golden: Arrays, case: str) -> None:
    noise = rawboost.fir(golden[f"{case}/white"], notch(golden, case))
    got = rawboost.additive(golden[f"{case}/x"], noise, snr_db=float(golden[f"{case}/snr"]))
    np.testing.assert_allclose(got, golden[f"{case}/y"], rtol=0, atol=ATOL)


# Its distributions: of 200 draws each, the peak, RMS, SNR, power in 16 bands, and share of changed samples


def measure(x: NDArray[np.float64], y: NDArray[np.float64]) -> dict[str, Any]:
    power = np.abs(np.fft.rfft(y)[:-1]) ** 2 / len(y)
    return {
        "peak": np.abs(y).max(),
        "rms": np.sqrt((y**2).mean()),
        "snr_db": 10 * np.log10((x**2).sum() / ((y - x) ** 2).sum()),
        "changed": (y != x).mean(),
        "bands_db": 10 * np.log10(power.reshape(16, -1).mean(1) + 1e-12),
    }


def kolmogorov_smirnov(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The greatest distance between two empirical distributions."""
    places = np.concatenate([a, b])
    shares = [np.searchsorted(np.sort(sample), places, side="right") / len(sample) for sample in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


@pytest.fixture(scope="module", params=[("lnl", 1), ("isd", 2), ("ssi", 3), ("algo4", 4)], ids=lambda p: p[0])
def drawn(golden: Arrays, request: pytest.FixtureRequest) -> tuple[Arrays, Arrays]:
    """The reference's statistics of one algorithm, and those of our own draws."""
    name, algorithm = request.param
    x = golden["signal"]
    found = []
    for seed in range(DRAWS):
        y = rawboost.apply(x, variant=algorithm, rng=np.random.default_rng(seed))
        assert y.dtype == np.float32
        found.append(measure(x.astype(np.float64), y.astype(np.float64)))
    ours = {key: np.array([item[key] for item in found]) for key in found[0]}
    return {key: golden[f"stat/{name}/{key}"] for key in ours if f"stat/{name}/{key}" in golden}, ours


def test_golden_distributions(drawn: tuple[Arrays, Arrays]) -> None:
    theirs, ours = drawn
    for key in ("peak", "rms", "snr_db"):
        assert kolmogorov_smirnov(ours[key], theirs[key]) < KS_LIMIT, key
    for band in range(16):
        distance = kolmogorov_smirnov(ours["bands_db"][:, band], theirs["bands_db"][:, band])
        assert distance < KS_LIMIT, f"band {band}"


def test_golden_mean_power_of_the_bands(drawn: tuple[Arrays, Arrays]) -> None:
    theirs, ours = drawn
    error = np.sqrt(2 / DRAWS) * theirs["bands_db"].std(0, ddof=1)
    assert (np.abs(ours["bands_db"].mean(0) - theirs["bands_db"].mean(0)) < 4 * error).all()


def test_golden_share_of_impulses(golden: Arrays) -> None:
    """Where nothing was normalised, a tenth of the samples at most differ, evenly from 0."""
    x = golden["signal"]
    rng = np.random.default_rng(0)
    boosted = [rawboost.apply(x, variant=2, rng=rng) for _ in range(DRAWS)]
    ours, theirs = np.array([(y != x).mean() for y in boosted], np.float32), golden["stat/isd/changed"]
    assert kolmogorov_smirnov(ours, theirs) < KS_LIMIT
    few = ours[ours < 0.5]
    assert len(few) > DRAWS / 5
    assert few.max() <= 0.1


# By hand


def test_a_filter_stops_its_band_and_has_its_gain() -> None:
    taps = rawboost.notch_filter(np.array([2_000.0]), np.array([1_000.0]), np.array([200]), gain_db=-6.0)
    assert len(taps) == 201
    np.testing.assert_array_equal(taps, taps[::-1])
    gain_db = 20 * np.log10(np.abs(np.fft.rfft(taps, 16_000)))  # a bin every hertz
    assert gain_db[2_000] < -50
    assert gain_db[1_300] == pytest.approx(-6, abs=0.1)
    assert gain_db[:8_000].max() == pytest.approx(-6, abs=1e-3)


def test_an_impulse_of_gain_by_hand() -> None:
    x = np.array([0.5, -0.25, 0.5, 0.75])
    u1, u2 = np.array([1.0, 0.75]), np.array([1.0, 0.25])  # 1 + 2 · 1 · 1 = 3 and 1 + 2 · 0.5 · −0.5 = 0.5
    got = rawboost.impulsive(x, np.array([0, 2]), u1, u2, gain=2.0)
    np.testing.assert_allclose(got, np.array([1.5, -0.25, 0.25, 0.75]) / 1.5)
    np.testing.assert_array_equal(x, [0.5, -0.25, 0.5, 0.75])


def test_noise_at_a_ratio_by_hand() -> None:
    got = rawboost.additive(np.array([3.0, 4.0]), np.array([0.0, 100.0]), snr_db=20.0)
    np.testing.assert_allclose(got, [3.0, 4.5])


def test_filtering_is_convolution(rng: np.random.Generator) -> None:
    """Signals shorter and longer than a block, and of a multiple of its hop."""
    for n, count in ((5, 301), (400, 2), (rawboost.BLOCK - 10, 11), (3 * (rawboost.BLOCK - 100), 101), (20_000, 491)):
        x, taps = rng.normal(size=n), rng.normal(size=count)
        start = (count + 1) // 2
        expected = np.append(np.convolve(x, taps), [0.0, 0.0])[start : start + n]
        np.testing.assert_allclose(rawboost.fir(x, taps), expected, rtol=0, atol=1e-11)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


# Which algorithm is which: each against the steps in their order, from the same generator

Step = Callable[[NDArray[np.float64], np.random.Generator], NDArray[np.float64]]


def in_series(*steps: Step) -> Step:
    def run(x: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
        for step in steps:
            x = step(x, rng)
        return x

    return run


def parallel(x: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    total = rawboost.lnl(x, rng) + rawboost.isd(x, rng)
    return total / np.abs(total).max()


LNL, ISD, SSI = rawboost.lnl, rawboost.isd, rawboost.ssi


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (1, LNL),
        (2, ISD),
        (3, SSI),
        (4, in_series(LNL, ISD, SSI)),
        (5, in_series(LNL, ISD)),
        (6, in_series(LNL, SSI)),
        (7, in_series(ISD, SSI)),
        (8, parallel),  # of a signal so loud that its sum clips
    ],
)
def test_algorithms_are_their_steps_in_order(algorithm: int, expected: Step) -> None:
    x = np.random.default_rng(3).uniform(-0.9, 0.9, 2_000).astype(np.float32)
    before = x.copy()
    got = rawboost.apply(x, variant=algorithm, rng=np.random.default_rng(5))
    want = expected(x.astype(np.float64), np.random.default_rng(5)).astype(np.float32)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(x, before)


@given(n=st.integers(1, 3_000), algorithm=st.sampled_from(rawboost.VARIANTS), scale=st.floats(1e-4, 3.0))
def test_length_and_type_stay_and_numbers_are_finite(n: int, algorithm: int, scale: float) -> None:
    rng = np.random.default_rng(n)
    samples = (scale * rng.normal(size=n)).astype(np.float32)
    boosted = rawboost.apply(samples, variant=algorithm, rng=rng)
    assert (boosted.shape, boosted.dtype) == (samples.shape, samples.dtype)
    assert np.isfinite(boosted).all()
    if algorithm in (1, 2, 5, 8):  # stationary noise is added without normalising
        assert np.abs(boosted).max() <= 1


def test_draws_stay_in_the_published_ranges() -> None:
    """Filters of five bands have 5 · 11 − 4 to 5 · 99 − 4 taps, odd numbers all."""
    rng = np.random.default_rng(0)
    lengths = {len(rawboost.draw_filter(rng, gain_db=0.0)) for _ in range(500)}
    assert all(length % 2 for length in lengths)
    assert 51 <= min(lengths) < 150
    assert 400 < max(lengths) <= 491


def test_five_orders_are_drawn_the_first_at_0_db(monkeypatch: pytest.MonkeyPatch) -> None:
    gains: list[list[float]] = []
    original = rawboost.draw_filter

    def record(rng: np.random.Generator, *, gain_db: float) -> NDArray[np.float64]:
        gains[-1].append(gain_db)
        return original(rng, gain_db=gain_db)

    monkeypatch.setattr(rawboost, "draw_filter", record)
    for seed in range(50):
        gains.append([])
        rawboost.lnl(np.ones(100), np.random.default_rng(seed))
    drawn = np.array(gains)
    assert drawn.shape == (50, 5)
    assert (drawn[:, 0] == 0).all()
    assert -20 <= drawn[:, 1:].min() < -19 < -6 < drawn[:, 1:].max() <= -5


def test_impulses_hit_every_drawn_sample_once() -> None:
    for seed in range(20):
        x = np.random.default_rng(99).normal(0, 0.01, 5_000)  # so quiet that nothing clips
        count = int(5_000 * np.random.default_rng(seed).uniform(0, 10) / 100)
        assert np.count_nonzero(rawboost.isd(x, np.random.default_rng(seed)) != x) == count


@pytest.mark.parametrize(
    ("shape", "algorithm", "message"),
    [
        ((9,), 0, r"expected a RawBoost algorithm of \(1, 2, .*, 8\), got 0"),
        ((9,), 9, "got 9"),
        ((0,), 1, r"n > 0, got \(0,\)"),
        ((2, 9), 4, r"expected samples of shape \(n,\), n > 0, got \(2, 9\)"),
    ],
)
def test_wrong_arguments_are_named(shape: tuple[int, ...], algorithm: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rawboost.apply(np.ones(shape, np.float32), variant=algorithm, rng=np.random.default_rng(0))


def test_the_same_generator_gives_the_same_bytes() -> None:
    x = np.random.default_rng(1).normal(0, 0.1, 20_000).astype(np.float32)

    def digest(seed: int) -> str:
        return hashlib.sha256(rawboost.apply(x, variant=4, rng=np.random.default_rng(seed)).tobytes()).hexdigest()

    assert digest(1) == digest(1) != digest(2)
