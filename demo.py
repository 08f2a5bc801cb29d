"""
A page to try a checkpoint: words for masks, labels, how alike sentences are, where the heads look.

    python demo.py --checkpoint out/roberta                           # pretrained: masks
    python demo.py --checkpoint out/mine                              # fine-tuned: labels
    python demo.py --checkpoint out/roberta --classifier out/mine     # both

It needs requirements-demo.txt. The page is for this machine alone and loads nothing from elsewhere.
"""

import os
import re
import socket
from functools import partial

import runtime  # before torch: it sets how torch's threads wait

import torch

import inference
import tasks

CHARACTERS, LINES, SQUARES, BARS = 10_000, 16, 40, 8  # at most: in a text, compared, in a map's row, shown


def parse_arguments(argv):
    p = runtime.Parser(__doc__)
    p.add_argument("--checkpoint", required=True, help="a directory or a name on the hub")
    p.add_argument("--classifier", help="a fine-tuned checkpoint, for the labels")
    p.add_argument("--port", type=runtime.number(int, lambda n: 0 < n < 65536, "between 1 and 65535"),
                   default=7860, help="of the page, http://127.0.0.1:7860")
    runtime.add_machine_flags(p, dtype="float32")
    args = p.parse_args(argv)
    args.device = runtime.choose_device(args.device)
    socket.create_server(("127.0.0.1", args.port)).close()  # OSError if it is taken, before models are read
    return args

# -----------------------------------------------------------------------------
# Answers: strings -> HTML. What is wrong with a question is a ValueError, which safe() turns into HTML, too.

def escape(text):
    """What HTML could read as its own becomes a number: < is &#60;."""
    return re.sub(r"[^\w ]", lambda match: f"&#{ord(match[0])};", text)


def safe(answer, host):
    def ask(text, *values):
        try:
            if sum(len(value) for value in (text, *values) if isinstance(value, str)) > CHARACTERS:
                raise ValueError(f"The limit is {CHARACTERS:,} characters.")
            with host.autocast(len(text)):
                return answer(text, *values)
        except ValueError as error:
            return f'<p class="large"><mark>{escape(str(error))}</mark></p>'
    return ask


def bars(values, number="{:.1%}"):
    """[(name, value up to 1)] -> a bar for each."""
    return '<div class="bars">' + "".join(
        f'<span>{escape(name)}</span><div><i style="width:{100 * max(0, value):.2f}%"></i></div>'
        f"<b>{number.format(value)}</b>" for name, value in values) + "</div>"


def fill(model, tokenizer, text):
    sentence, *parts = map(escape, re.split(r"\[MASK\]|<mask>", text))
    if not parts:
        raise ValueError("Please write [MASK] where a word is missing.")
    masks, charts = inference.fill(model, tokenizer, text, BARS), ""
    for i, (words, part) in enumerate(zip(masks, parts), 1):
        words = [(word.strip() or repr(word), p) for word, p in words]
        sentence += f"<mark>{escape(words[0][0])}</mark>{part}"
        charts += f"<section><h3>Mask {i}</h3>{bars(words)}</section>"
    return f'<p class="large">{sentence}</p><div class="cards">{charts}</div>'


def classify(model, tokenizer, kind, host, text, second=""):
    examples = tasks.Examples([(text, second) if second.strip() else (text,)], None, ["the text"])
    tasks.check_texts(examples, kind)  # for tokens it finds the words
    rows = tasks.Rows(examples, kind, tokenizer, 10**9, model.config.type_vocab_size > 1)  # nothing is cut
    logits, classes = torch.tensor(tasks.logits_of(model, rows, 1, host)[0]), model.config.id2label
    if kind == "regression":
        return f'<p class="large">{logits.item():.4f}</p>'
    if kind == "tokens":
        return '<p class="large">' + " ".join(
            f"<ruby>{escape(word)}<rt>{escape(classes[i])}</rt></ruby>"
            for word, i in zip(examples.texts[0], logits.argmax(-1).tolist())) + "</p>"
    p = logits.sigmoid() if kind == "multilabel" else logits.softmax(-1)
    return bars(sorted(zip(classes.values(), p.tolist()), key=lambda pair: -pair[1])[:BARS])


def compare(encoder, tokenizer, text, others):
    longest, lines = encoder.config.longest_row, [line for line in others.splitlines() if line.strip()]
    vectors, cut = inference.embed(encoder, tokenizer, [text, *lines[:LINES]], longest, normalize=True)
    if cut or len(lines) > LINES:
        raise ValueError(f"The limit is {LINES} sentences of {longest} tokens.")
    cosines = zip(lines, (vectors[1:] @ vectors[0]).tolist())
    return bars(sorted(cosines, key=lambda pair: -pair[1]), "{:.3f}") + (
        "<p>Cosines of mean vectors. A model that has only learned masks finds most sentences alike.</p>")


def attend(model, tokenizer, text, layer, head):
    """An SVG: a row for each token that looks, a column for each that it looks at."""
    if (n := len(inference.masked_row(text, tokenizer))) > SQUARES:
        raise ValueError(f"The limit of a map is {SQUARES} tokens; this text has {n}.")
    tokens, maps = inference.attention(model, tokenizer, text)
    weights = (maps[layer - 1].mean(0) if head == "mean" else maps[layer - 1, head - 1]).tolist()
    names = [escape((token.strip() or repr(token))[:12]) for token in tokens]
    most, size, svg = max(map(max, weights)), min(30, 760 // n), ""
    for i, row in enumerate(weights):
        middle = size * (i + 0.5)
        svg += (f'<text x="-8" y="{middle + 4}" text-anchor="end">{names[i]}</text>'
                f'<text transform="translate({middle},-8) rotate(-45)">{names[i]}</text>')
        for j, p in enumerate(row):
            svg += (f'<rect x="{size * j}" y="{size * i}" width="{size - 2}" height="{size - 2}" rx="3" '
                    f'fill-opacity="{0.05 + 0.95 * p / most:.3f}">'
                    f"<title>{names[i]} looks at {names[j]}: {p:.3f}</title></rect>")
    side = size * n
    return (f'<svg class="map" viewBox="-90 -80 {side + 170} {side + 80}" width="{side + 170}">{svg}</svg>'
            f"<p>A row shows where its token looks, and sums to 1. The strongest square is {most:.2f}.</p>")

# -----------------------------------------------------------------------------
# The page

CSS = """
.gradio-container { width: 100%; max-width: 1000px !important; margin: 0 auto !important }
.submit-button { background: var(--primary-500); color: white; margin-left: 10px; border-radius: 6px }
.bars { display: grid; grid-template-columns: minmax(6em, auto) 1fr 3.5em; gap: 8px 12px; margin: 12px 0 }
.bars span, .bars b { text-align: right; overflow-wrap: anywhere; max-width: 26em; font-weight: 400 }
.bars div, .bars i { background: color-mix(in srgb, var(--primary-500) 12%, transparent); border-radius: 4px }
.bars i { display: block; height: 100%; background: var(--primary-500) }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 16px 40px }
.large { font-size: 1.5em; line-height: 2; margin: 0.4em 0 }
mark, rt { background: none; color: var(--primary-500); font-weight: 600 }
.map text { font-size: 13px; fill: var(--body-text-color) } .map rect { fill: var(--primary-500) }
"""


def section(gr, host, title, answer, texts, choices={}):
    """A tab of boxes and choices, {label: what is in it}, and below them the answer, from the start."""
    answer, last = safe(answer, host), [*texts][-1]
    with gr.Tab(title):
        boxes = [gr.Textbox(text, label=label, lines=text.count("\n") + 1, max_lines=8, max_length=CHARACTERS,
                            submit_btn=title if label == last else False) for label, text in texts.items()]
        boxes += [gr.Radio(values, value=values[0], label=label, visible=len(values) > 1)
                  for label, values in choices.items()]
        output = gr.HTML(answer(*(box.value for box in boxes)))
        # a Textbox is submitted, a Radio changes
        gr.on([getattr(box, "submit", box.change) for box in boxes], answer, boxes, output,
              concurrency_id="model", show_progress="hidden", api_visibility="private")


def build(gr, args, host):
    """The page, with the sections that the checkpoints can answer."""
    def open_checkpoint(path):
        model, tokenizer = inference.open_model(path)
        return model.to(host.device), tokenizer, inference.kind_of(model)
    model, tokenizer, kind = classifier = open_checkpoint(args.checkpoint)
    if args.classifier and (classifier := open_checkpoint(args.classifier))[2] == "words":
        raise ValueError(f"--classifier {args.classifier} has no classifier; fine-tune it first")
    layers, heads = inference.attention(model, tokenizer, "a")[1].shape[:2]
    with gr.Blocks(title="flatbert") as page:
        gr.HTML("<h1>flatbert</h1>" + escape(", ".join(filter(None, [args.checkpoint, args.classifier]))))
        if kind == "words" and tokenizer.mask_id is not None:
            section(gr, host, "Fill in", partial(fill, model, tokenizer), {
                "Text with [MASK] for missing words": "Return [MASK] if it is empty, [MASK] otherwise."})
        if classifier[2] != "words":
            second = {"Second text, if trained on pairs": ""} if classifier[2] != "tokens" else {}
            section(gr, host, "Classify", partial(classify, *classifier, host), {
                "Text": "Return the sum of the elements along the axis.", **second})
        section(gr, host, "Compare", partial(compare, model.encoder, tokenizer), {
            "Sentence": "Return the number of elements in the list.",
            "Others, one a line": "Count the items of a sequence.\nOpen the file.\nThe cat sat on the mat."})
        section(gr, host, "Attention", partial(attend, model, tokenizer), {
            "Text": "The cat sat on the mat because it was tired."}, {
            "Layer": [*range(1, layers + 1)], "Head": ["mean", *range(1, heads + 1)]})
    return page


def main(argv=None):
    with runtime.one_line_errors("demo.py"):
        args = parse_arguments(argv)
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}  # no telemetry
        try:
            import gradio as gr
            if tuple(map(int, gr.__version__.split(".")[:2])) < (6, 20):  # loads scripts from elsewhere
                raise ImportError(f"gradio {gr.__version__} is too old")
        except ImportError as error:
            raise ValueError(f"{error}: pip install -r requirements-demo.txt") from error
        with runtime.Host(args) as host:
            page = build(gr, args, host)
            os.environ["no_proxy"] = "127.0.0.1"  # gradio asks whether its own page is there
            page.launch(server_name="127.0.0.1", server_port=args.port, share=False, prevent_thread_lock=True,
                        theme=gr.themes.Base(primary_hue="indigo", neutral_hue="slate", font="system-ui"),
                        css=CSS, footer_links=[], ssr_mode=False, quiet=True)
            print(f"http://127.0.0.1:{args.port}   Ctrl-C ends it", flush=True)
            page.block_thread()


if __name__ == "__main__":
    main()
