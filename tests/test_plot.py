"""plot.py: what the lines, the legend and the maps hold, beside the log and the model."""

import json
import sys

import numpy as np
import pytest

import inference
import plot

PRETRAINING = dict(init_from="scratch", preset="roberta-laptop", recipe="fast", optimizer="muon", layers=None,
                   mask_prob=0.25, unigram_bias=True, seed=0, data=["pydoc"], unigram_nats=7.0)
FINETUNING = dict(init_from="out/a", task="sst2", train_file=None, train="full", lr=1e-4, metric="accuracy",
                  trained=3_000_000)


def write(folder, config, *lines, end="\n", flags=""):
    folder.mkdir()
    log = [config | {"command": f"script.py --out_dir {folder} {flags}"}, *lines]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, log)) + end)
    return str(folder)


def at(step, **values):
    return dict(step=step, tokens=step * 1e6, elapsed_s=step * 60, **values)


def pretraining(folder, losses=(9.0, 6.0, 4.0), flags="", **changes):
    lines = [at(i, loss=loss + 0.5, val_loss=loss, lr=0.001) for i, loss in enumerate(losses)]
    return write(folder, PRETRAINING | changes, *lines, flags=flags)


def finetuning(folder, curves=((0.5, 0.8), (0.7, 0.6)), flags="", **changes):
    lines = [dict(seed=seed, step=5 * i, val_accuracy=value)
             for seed, curve in enumerate(curves) for i, value in enumerate(curve, 1)]
    return write(folder, FINETUNING | changes, *lines, dict(final=True), flags=flags)


def draw(*argv):
    return plot.draw_runs(plot.parse_arguments(argv))


def lines_of(axes):
    return [np.array(line.get_data(), float).tolist() for line in axes.lines]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def title(figure):
    return figure.legends[0].get_title().get_text()


def test_the_curves_of_a_pretraining(tmp_path):
    """Resumed, and killed while it wrote a line."""
    figure = draw(write(
        tmp_path / "run", PRETRAINING, at(10, loss=9.5, lr=0.001), at(10, val_loss=9.0),
        {"resumed_at": 10, "max_steps": 30}, at(20, loss=6.5, lr=0.002), at(20, val_loss=6.0),
        at(30, loss=4.5, lr=0.003), at(30, val_loss=4.0, final=True), end='\n{"step": 40, "lo'))
    losses, losses_in_time, rates, rates_in_time = figure.axes
    assert lines_of(losses) == [[[10, 20, 30], [9, 6, 4]], [[10, 20, 30], [9.5, 6.5, 4.5]], [[0, 1], [7, 7]]]
    assert lines_of(losses_in_time) == lines_of(losses)  # a million tokens a minute
    assert (rates.get_xlabel(), rates_in_time.get_xlabel()) == ("million tokens", "minutes")
    assert lines_of(rates) == lines_of(rates_in_time) == [[[10, 20, 30], [0.001, 0.002, 0.003]]]
    low, high = losses.get_ylim()
    assert 3.5 < low < 4 and 7 < high < 7.5  # the first loss, 9, is beyond
    assert title(figure) == "run: roberta-laptop"
    assert legend(figure) == ["validation", "training", "unigram line 7.00"]


def test_a_run_that_stays_above_the_unigram_line_is_shown_whole(tmp_path):
    figure = draw(pretraining(tmp_path / "a"), pretraining(tmp_path / "b", (9.0, 8.0), unigram_nats=7.2))
    low, high = figure.axes[0].get_ylim()
    assert 3.5 < low < 4 and 9 < high < 9.5 and legend(figure)[-1] == "unigram lines"
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert [(line.get_ydata()[0], line.get_color()) for line in dashed] == [(7.0, "C0"), (7.2, "C1")]


@pytest.mark.parametrize("changes, flags, expected", [
    (dict(recipe="paper", optimizer="adamw"), "--recipe paper", ["recipe fast", "recipe paper"]),
    (dict(mask_prob=0.15), "--mask_prob=0.15", ["mask_prob 0.25", "mask_prob 0.15"]),
    (dict(unigram_bias=False, seed=1), "--no-unigram_bias --seed 1",
     ["unigram_bias, seed 0", "no-unigram_bias, seed 1"]),
    (dict(layers=2), "--layers 2", ["default", "layers 2"]),
    (dict(data=["a.txt", "b.txt"]), "--data a.txt b.txt", ["data pydoc", "data a.txt b.txt"]),
    (dict(), "--log_interval 5", ["one", "two"]),
])
def test_the_legend_says_what_differs(changes, flags, expected, tmp_path):
    """Of what was typed: the optimizer follows from the recipe."""
    runs = pretraining(tmp_path / "one"), pretraining(tmp_path / "two", flags=flags, **changes)
    assert legend(draw(*runs))[:-3] == expected
    assert legend(draw(*runs, "--names", "a $x$", "b"))[:-3] == ["a $x$", "b"]


def test_fine_tunings(tmp_path):
    full = finetuning(tmp_path / "full")
    lora = finetuning(tmp_path / "lora", [(0.6, 0.9)], "--train lora", train="lora", trained=2_000_000)
    figure = draw(full, lora)
    best, curves = figure.axes
    assert lines_of(curves) == [[[5, 10], [50, 80]], [[5, 10], [70, 60]], [[5, 10], [60, 90]]]
    assert [line.get_color() for line in curves.lines] == ["C0", "C0", "C1"]
    mean, lower, upper, other = lines_of(best)
    assert mean == [[3e6], [75]] and other == [[2e6], [90]]
    assert upper[1][0] - 75 == pytest.approx(75 - lower[1][0]) == pytest.approx(np.std([80, 70], ddof=1))
    ticks = [label.get_text() for label in best.get_xticklabels(which="both")]
    assert {"1M", "10M"} <= set(ticks) and not any("$" in text for text in ticks)
    assert legend(figure) == ["train full", "train lora"]
    alone = draw(full)
    assert lines_of(alone.axes[0]) == lines_of(curves)[:2] and title(alone) == "full: from out/a, sst2, full"


@pytest.mark.parametrize("argv, message", [
    (["pre", "fine"], "pre is a pretraining and fine a fine-tuning"),
    (["fine", "other"], "different metrics, accuracy and spearman"),
    (["damaged"], "damaged/log.jsonl, line 2 is damaged"),
    (["begun"], "nothing to draw yet"),
    (["alien"], "no log of train_mlm.py"),
    (["nowhere"], "nowhere holds no run"),
    ([], "name a run"),
    (["pre", "--out", "plot.txt"], "ends in .png, .svg, .pdf"),
    (["pre", "--layer", "1"], "--layer: no effect here"),
    (["pre", "--names", "a", "b"], "--names: 2 for 1 runs"),
    (["a", "text", "--attention", "checkpoint"], "one text, in quotes; here are 2"),
    (["a text", "--attention", "nowhere"], "nowhere"),
])
def test_bad_input(argv, message, tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pretraining(tmp_path / "pre"), finetuning(tmp_path / "fine"), write(tmp_path / "begun", PRETRAINING)
    write(tmp_path / "other", FINETUNING | {"metric": "spearman"}, dict(seed=0, step=1, val_spearman=0.5))
    write(tmp_path / "alien", {"a": 1}), write(tmp_path / "damaged", PRETRAINING, end='\n{"step":\n{}\n')
    before = sorted(tmp_path.rglob("*"))
    assert message in refused(plot, argv) and sorted(tmp_path.rglob("*")) == before


def test_files(tmp_path, capsys, refused, monkeypatch):
    run = pretraining(tmp_path / "run", np.linspace(9, 3, 100))
    for name, start in (("a.png", b"\x89PNG"), ("new/a.svg", b"<?xml"), ("a.PDF", b"%PDF")):
        plot.main([run, "--out", str(tmp_path / name)])
        picture = (tmp_path / name).read_bytes()
        assert picture.startswith(start) and len(picture) < 150_000
        assert capsys.readouterr().out == f"{tmp_path / name}\n"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in refused(plot, [run, "--out", str(tmp_path / "b.png")])
    assert not (tmp_path / "b.png").exists()


def test_attention(base, refused, monkeypatch):
    def draw(*more):
        figure = plot.draw_attention(plot.parse_arguments(["--attention", base["bert"], *more]))
        return {axes.get_title(): axes for axes in figure.axes if axes.images}
    tokens, maps = inference.attention(*inference.open_encoder(base["bert"]), "the film was [MASK]")
    layers, heads = maps.shape[:2]
    panels = draw("the film was <mask>")
    assert list(panels) == [f"layer {i + 1}, head {j + 1}" for i in range(layers) for j in range(heads)]
    assert np.array_equal([axes.images[0].get_array() for axes in panels.values()], maps.flatten(0, 1))
    labels = [label.get_text() for label in panels["layer 1, head 1"].get_yticklabels()]
    assert labels == tokens and labels[-2:] == ["[MASK]", "[SEP]"]
    assert list(draw("film", "--head", "2")) == [f"layer {i + 1}, head 2" for i in range(layers)]
    assert list(draw("film", "--layer", "2", "--head", "1")) == ["layer 2, head 1"]
    monkeypatch.setattr(plot, "LARGEST", 4)
    for argv, message in ((["film", "--head", "9"], "--head 9: "), (["film " * 99], "positions"),
                          (["film " * 30], f"{layers} x {heads} maps of 32 tokens are too much")):
        assert message in refused(plot, ["--attention", base["bert"], *argv])
