"""Reports from made-up records: whole, self-contained, well-formed, and true to the numbers."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from videoauto_jax.eval.figures import GRPO_CURVES, curves
from videoauto_jax.eval.media import frame_strip
from videoauto_jax.eval.report import QuickstartReport, evaluation_report, picture, quickstart_report, write_report
from videoauto_jax.eval.samples import pick_samples
from videoauto_jax.eval.scoring import reliability, score_modes
from videoauto_jax.eval.theme import DARK, LIGHT, panels, style, to_svg

VOID = {"meta", "img", "br", "link", "input"}


class Outline(HTMLParser):
    """Collects tags, attributes and text, and checks that every element is closed in its turn."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def red_image(tmp_path_factory):
    path = tmp_path_factory.mktemp("media") / "red.png"
    Image.new("RGB", (120, 60), (200, 20, 20)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def records(red_image):
    made = []
    for n in range(24):
        kind = ("perception", "reasoning", "grounding")[n % 3]
        located = kind == "grounding"
        first, second = float(n % 3 != 1 or n % 4 == 0), float(n % 5 != 0)
        made.append(
            {
                "id": f"set/{n + 1}", "source": "set", "tags": [kind, "skill"],
                "problem_type": "iou" if located else "exact_match", "truth": [1.0, 2.0] if located else "A",
                "question": "Is <b>5 > 3</b> & so on?", "media": red_image if n < 12 else None, "text": "…",
                "first_answer": "A", "final_answer": "B" if n else "", "reasoning": "</p><script>alert(1)</script>",
                "confidence": -1.0 if n == 4 else 0.3 + 0.7 * (n % 7) / 6, "tokens": 50 + n, "first_tokens": 4,
                "finish_reason": "stop", "score_first": first, "score_second": second,
                "iou_first": first if located else None, "iou_second": second if located else None,
            }
        )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def data(records):
    scores = score_modes(records, 0.9)
    return QuickstartReport(
        seed=3,
        threshold=0.9,
        seconds={"world": 12.0, "train <fast>": 75.5},
        scores={"warmup": scores, "trained": scores},
        bars={
            "gain": {"value": 18.25, "target": 15, "met": True, "unit": "points"},
            "gap": {"value": 2.0, "target": 1, "met": False},
        },
        sft_metrics=[{"step": n + 1, "loss": 3.0 / (n + 1)} for n in range(30)],
        grpo_metrics=[{"step": n + 1, "reward": 2.0 + n / 40, "kl": None if n == 0 else n / 1e4} for n in range(30)],
        records=records,
        samples=6,
    )


@pytest.fixture(scope="module")
def html(data):
    return quickstart_report(data)


def test_the_page_is_well_formed_and_needs_nothing_from_outside(html):
    outline = Outline(html)
    assert "script" not in outline.tags and "link" not in outline.tags
    addresses = [value for name, value in outline.attributes if name in ("src", "href", "xlink:href")]
    assert addresses and all(value.startswith(("data:image/jpeg;base64,", "#")) for value in addresses)
    assert "@import" not in html and "url(http" not in html


def test_ids_are_unique_so_that_figures_do_not_borrow_from_each_other(html):
    ids = [value for name, value in Outline(html).attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 0


def test_what_models_and_data_wrote_is_text(html):
    assert "<script>" not in html and "<b>5 >" not in html
    assert "Is <b>5 > 3</b> & so on?" in Outline(html).text


def test_the_numbers_are_those_of_the_scores(html, data):
    text = Outline(html).text
    trained = data.scores["trained"]
    for mode in ("first", "second", "auto"):
        for name in ("all", "reasoning"):
            assert f"{trained[mode][name]['accuracy']:.1%}" in text
    assert f"{trained['auto']['grounding']['miou']:.3f}" in text
    assert "18.25 points" in text and "✓ met" in text and "✗ missed" in text
    assert "1 min 28 s" in text and "87.5 s" in text and "train <fast>" in text


def test_both_schemes_name_every_colour_that_figures_use(html):
    used = set(re.findall(r"var\(--(\w+)\)", html))
    assert used >= {"ink", "muted", "grid", "one"}
    assert LIGHT.keys() == DARK.keys() and all(html.count(f"--{name}:{DARK[name]}") for name in DARK)
    figures = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert not re.search(r"#[0-9a-fA-F]{6}", figures)


def test_answers_that_differ_are_shown(records):
    picked = pick_samples(records, 0.9, 6)
    verdicts = {(record["score_first"], record["score_second"]) for record in picked}
    assert len(picked) == 6 and len({record["id"] for record in picked}) == 6
    assert verdicts == {(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)}
    assert len(pick_samples(records[:2], 0.9, 6)) == 2 and pick_samples([], 0.9) == []


def test_an_evaluation_without_second_answers_has_no_gate(records):
    summary = {
        "model": "m", "mode": "auto", "profile": "paper", "threshold": 0.9, "n": 24,
        "eval": score_modes(records, 0.9, modes=("first", "auto")),
        "benchmarks": {}, "unscored": {}, "skipped": [{"id": "set/99", "media": "x.mp4", "reason": "cannot <decode>"}],
    }  # fmt: skip
    text = Outline(evaluation_report(summary, records)).text
    assert "The gate" not in text and "cannot <decode>" in text
    full = summary | {"mode": "record", "eval": score_modes(records, 0.9), "reliability": reliability(records)}
    assert "The gate" in Outline(evaluation_report(full, records)).text


def test_the_browser_holds_some_of_every_source(records):
    two = [record | {"source": ("one", "two")[n % 2]} for n, record in enumerate(records)]
    summary = {"model": "m", "n": 24, "mode": "record", "profile": "paper", "threshold": 0.9, "skipped": [],
               "benchmarks": {}, "unscored": {}, "eval": score_modes(two, 0.9)}  # fmt: skip
    html = evaluation_report(summary, two, samples=3)
    cards = re.findall(r'<article class="([^"]*)"', html)
    assert [sum(f"source-{n}" in card for card in cards) for n in (1, 2)] == [3, 3] and len(cards) == 6


def test_reports_are_written_whole(tmp_path, html):
    path = write_report(tmp_path, html)
    assert path == tmp_path / "report.html" and path.read_text() == html


def test_metrics_that_a_run_lacks_have_no_panel(data):
    assert len(curves(data.grpo_metrics, GRPO_CURVES, "round")) == 2
    assert curves([], GRPO_CURVES, "round") == []


def test_the_same_figure_is_the_same_text(data):
    def draw():
        with style():
            return to_svg(panels(curves(data.grpo_metrics, GRPO_CURVES, "round")), "x")

    assert draw() == draw()


def test_the_picture_is_a_png(data):
    assert picture(data).startswith(b"\x89PNG")


def test_a_strip_shows_the_frames_in_their_order(tmp_path):
    import av

    path = tmp_path / "grey.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for n in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((32, 64, 3), 20 * n, np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    strip = decode(frame_strip(path, count=4, height=16))
    assert strip.size == (4 * 32 + 3 * 2, 16)
    greys = [strip.getpixel((16 + 34 * n, 8))[0] for n in range(4)]
    assert greys == pytest.approx([20 * n for n in (2, 4, 7, 9)], abs=6)


def test_an_image_is_a_strip_of_one_and_a_broken_file_none(red_image, tmp_path):
    assert decode(frame_strip(red_image, height=30)).size == (60, 30)
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    assert frame_strip(tmp_path / "broken.mp4") is None and frame_strip(tmp_path / "absent.png") is None


def decode(address):
    import base64
    import io

    return Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/jpeg;base64,"))))
