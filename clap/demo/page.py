"""The page: two directions in two tabs."""

import gradio

from clap.demo.answers import LONGEST_SOUND, MAX_LABELS, Answers
from clap.demo.cards import clock, escape
from clap.prompts import TEMPLATES

TOPS = (5, 10, 20, 50)  # results of a search that can be chosen
EXAMPLES = ("a dog barks", "rain on a roof", "glass breaking", "people laugh", "an engine starts")
LABELS = ("dog", "rain", "siren", "speech", "music", "engine")
WAITING = 20  # requests in the queue; more are refused
MODEL = {"concurrency_limit": 1, "concurrency_id": "model"}  # one request at a time uses the model


def build_page(answers: Answers, *, title: str, sounds: str) -> gradio.Blocks:
    """The page.

    Args:
        title: name of the model.
        sounds: description of the sounds that are searched, such as "1,045 recordings of scenes".
    """
    with gradio.Blocks(title="CLAP", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.HTML(
            f'<div class="clap-title"><h1>CLAP</h1><p>Search sounds by text, and label sounds by text.</p>'
            f'<p class="clap-note">Model {escape(title)} · {escape(sounds)}</p></div>'
        )
        with gradio.Tab("Text finds sounds", id="search"):
            with gradio.Row():
                text = gradio.Textbox(
                    label="Describe a sound", placeholder="a dog barks in the rain", scale=6, elem_id="clap-text",
                    autofocus=True, max_lines=3,
                )  # fmt: skip
                top = gradio.Dropdown(TOPS, value=TOPS[1], label="Results", scale=1, min_width=100)
                search = gradio.Button("Search", variant="primary", scale=1, min_width=120, elem_id="clap-search")
            examples = gradio.Examples([[example] for example in EXAMPLES], text, label="Examples")
            found = gradio.HTML(elem_id="clap-found")
        with gradio.Tab("Sound gets labels", id="label"):
            with gradio.Row():
                with gradio.Column(scale=1):
                    upload = gradio.File(
                        label=f"Recording, up to {clock(LONGEST_SOUND)}", type="filepath", height=140,
                        elem_id="clap-upload",
                    )  # fmt: skip
                    recorded = gradio.Audio(
                        sources=["microphone"], type="filepath", format="wav", label="Or record one", editable=False,
                        buttons=[],
                    )  # fmt: skip
                    labels = gradio.Textbox(
                        value="\n".join(LABELS), label="Labels", lines=6, max_lines=12, elem_id="clap-labels",
                        info=f"One a line, or separated by commas on a single line; up to {MAX_LABELS}.",
                    )  # fmt: skip
                    with gradio.Accordion("Options", open=False):
                        prompt = gradio.Textbox(value=TEMPLATES[0], label="Prompt", info="{} is replaced by the label.")
                    score = gradio.Button("Score", variant="primary", elem_id="clap-score")
                with gradio.Column(scale=2):
                    scored = gradio.HTML(
                        '<p class="clap-note">Scores of the labels appear here, over time for long recordings.</p>',
                        elem_id="clap-scored",
                    )
        options = {"api_visibility": "private", **MODEL}
        gradio.on([text.submit, search.click, top.change], answers.find_sounds, [text, top], found, **options)
        examples.load_input_event.then(answers.find_sounds, [text, top], found, **options)
        score.click(answers.score_sound, [upload, recorded, labels, prompt], scored, **options)
        upload.upload(lambda: None, None, recorded, api_visibility="private", queue=False)  # the last one counts
        recorded.stop_recording(lambda: None, None, upload, api_visibility="private", queue=False)
    return page.queue(max_size=WAITING, default_concurrency_limit=1)
