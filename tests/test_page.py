"""The page of `make serve`, in a real browser on the real model."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest

from kit.net.address import of_this_machine
from kit.paths import ROOT
from kit.serve.serve import PAGE
from tests.browser import DRIVER, MISSING, Browser
from tests.conftest import clean_environment, copy_linked, run_command
from tests.test_serving import KEY, Served, start

HTML = (PAGE / "index.html").read_text(encoding="utf-8")
in_a_browser = [pytest.mark.slow, pytest.mark.skipif(not DRIVER, reason=MISSING)]
IDLE = "return !document.querySelector('#many').disabled"
TREE = "return [tree.length, path(at).length]"


class Parsed(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(HTML)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_asks_nobody_else_and_runs_no_script_but_its_own():
    script = re.search(r"<script>(.*)</script>", HTML, re.DOTALL)
    assert script
    own = "sha256-" + base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src '{own}'" in HTML, f"the script was changed: its hash is {own}"
    assert "default-src 'none'; connect-src 'self'" in HTML
    outward = [value for _, given in Parsed().tags for name in ("src", "href") if (value := given.get(name))]
    assert outward == ["data:,"]
    assert not re.search(r"https?://|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script[1])


def test_each_field_has_a_label():
    tags = Parsed().tags
    fields = [given["id"] for tag, given in tags if tag in ("input", "textarea") and given.get("type") != "checkbox"]
    assert len(fields) == 4
    assert set(fields) <= {given.get("for") for tag, given in tags if tag == "label"}


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_text_has_enough_contrast(scheme):
    """4.5 : 1, by WCAG 2.2's formula: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio"""
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", re.findall(r":root \{(.*?)\}", HTML, re.DOTALL)[scheme]))
    shades = [f"p{i}" for i in range(5)]
    pairs = [("ink", shade) for shade in shades] + [("ink", "back"), ("ink", "card"), ("on-accent", "accent")]
    pairs += [(text, "back") for text in ("typed", "quiet", "alarm")] + [("quiet", "card")]
    for text, back in pairs:
        low, high = sorted((luminance(colors[text]), luminance(colors[back])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, back)


# --- In the browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    running = start("CONTEXT=512")
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture
def page(window, served) -> Browser:
    window.open(served.lines[0])
    window.run("localStorage.clear()")
    window.open(served.lines[0])
    window.wait("return about.model")
    window.complaints()
    return window


def go_on(page: Browser, text: str, button: str = "#many", length: int = 12) -> str:
    page.run("document.querySelector('#length').value = arguments[0]", length)
    if text:
        page.type("#mine", text)
    page.click(button)
    page.wait(IDLE)
    return page.text("#paper")


class TestInTheBrowser:
    pytestmark = in_a_browser

    def test_a_text_grows_and_each_token_shows_what_else_it_might_have_been(self, page):
        text = go_on(page, "The capital of France is")
        assert text.startswith("The capital of France is Paris.")
        assert page.text("#licence") == "Licence of the model: Apache-2.0"
        assert page.run(TREE) == [17, 17]
        page.click("#paper .t:nth-child(6)")
        rows = page.run("return [...document.querySelectorAll('#place li')].map((row) => row.textContent)")
        assert len(rows) == 10
        assert rows[0].startswith("✓ ·Paris")
        shares = [float(re.search(r"([\d.]+) %$", row)[1]) for row in rows]
        rest = float(re.search(r"together: ([\d.]+) %", page.text("#place"))[1])
        assert sum(shares) + rest == pytest.approx(100, abs=2)
        assert shares == sorted(shares, reverse=True)
        assert page.complaints() == []

    def test_another_token_is_gone_on_from_and_the_path_not_taken_stays(self, page):
        before = go_on(page, "The capital of France is")
        page.click("#paper .t:nth-child(6)")
        page.click("#place li:nth-child(3) button")
        page.wait(IDLE + " && document.querySelector('#place').hidden")
        after = page.text("#paper")
        assert after.startswith("The capital of France is London")
        assert page.run("return path(at).length") == 5 + 1 + 12
        page.click("#branches button:not([aria-current])")
        assert page.text("#paper") == before
        page.run("location.reload()")
        page.wait("return about.model && tree.length")
        assert page.text("#paper") == before
        assert len(page.run("return [...document.querySelectorAll('#branches button')]")) == 2

    def test_one_token_at_a_time_gives_the_same_text(self, page):
        many = go_on(page, "The capital of France is", length=4)
        page.click("#fresh")
        one = go_on(page, "The capital of France is", "#one")
        for _ in range(3):
            one = go_on(page, "", "#one")
        assert one == many

    def test_the_same_seed_gives_the_same_text_and_another_one_another(self, page):
        texts = []
        for seed in (1, 1, 2):
            page.click("#fresh")
            page.run("document.querySelector('#temperature').value = 1; seed.value = arguments[0]", seed)
            texts.append(go_on(page, "Once upon a time"))
        page.run("document.querySelector('#temperature').value = 0")
        assert texts[0] == texts[1] != texts[2]

    @pytest.mark.parametrize("text", ["日本語の例: ", "مرحبا بالعالم ", "😀😀 emoji: 😀"])
    def test_tokens_that_end_inside_a_character_are_shown_right(self, page, served, text):
        shown = go_on(page, text)
        ids = page.run("return idsOf(at)")
        asked = {"prompt": text, "n_predict": 12, "return_tokens": True, "temperature": 0}
        said = served.answer("/completion", asked)
        assert ids[-len(said["tokens"]) :] == said["tokens"]
        assert shown.startswith(text)
        assert "\ufffd" not in shown.rstrip("\ufffd")
        tokens = page.run("return path(at).map((i) => tree[i]).filter((one) => one.origin === 'model')")
        assert all(len(token["top"]) == 10 and token["bytes"] for token in tokens)

    @pytest.mark.parametrize(("text", "direction"), [("مرحبا بالعالم ", "rtl"), ("Hello world ", "ltr")])
    def test_a_text_is_set_from_the_side_that_its_writing_begins_on(self, page, text, direction):
        go_on(page, text)
        assert page.run("return getComputedStyle(document.querySelector('#paper')).direction") == direction

    def test_of_a_llama_it_shows_what_the_licence_asks_for_and_where_it_is(self, served):
        said = {"shown": "Built with Llama", "licence": "Llama 3.2 Community License"}
        said["licence_files"] = "models/llama-3.2-1b/LICENSE.txt"
        # As the server says it of a Llama (tests/test_serving.py); there is none here.
        source = f"""{{ const before = window.fetch; window.fetch = async (...asked) => {{
            const answer = await before(...asked);
            if (!String(asked[0]).includes("props")) return answer;
            const props = await answer.json();
            Object.assign(props.ui_settings, {json.dumps(said)});
            return new Response(JSON.stringify(props));
        }}; }}"""
        with Browser() as other:
            other.tool("Page.addScriptToEvaluateOnNewDocument", {"source": source})
            other.open(served.lines[0])
            other.wait("return about.model")
            shown = other.text("#licence")
        assert shown.startswith("Built with Llama")
        assert "Llama 3.2 Community License" in shown
        assert "models/llama-3.2-1b/LICENSE.txt" in shown

    def test_blanks_line_ends_and_ids_are_seen_where_it_is_asked_for(self, page):
        go_on(page, "The capital of France is")
        page.click("#cut")
        assert "·capital·of·France" in page.text("#paper")
        assert "↵" in page.text("#paper")
        assert page.run("return document.querySelectorAll('#paper .t')[5].dataset.ids") == "7042"
        page.click("#cut")

    def test_the_keyboard_alone_does(self, page):
        go_on(page, "The capital of France is")
        page.run("document.querySelector('#paper .t').focus()")
        for _ in range(5):
            page.press("\ue014")  # arrow right
        page.press("\ue007")  # enter
        assert page.text("#place").startswith("·Paris")
        assert page.run("return document.activeElement.closest('#place') !== null")
        page.press("\ue00c")  # escape
        assert page.run("return document.querySelector('#place').hidden")

    def test_nothing_that_stands_in_a_text_is_run(self, page):
        shown = go_on(page, "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>", "#one")
        assert shown.startswith("<img src=x")
        assert page.run("return [document.title, document.querySelectorAll('#paper img').length]") == [
            "starter – base-model-kit",
            0,
        ]

    def test_a_full_context_a_wrong_key_and_an_empty_text_are_said_in_words(self, page, served):
        page.click("#many")
        page.wait("return said.textContent.startsWith('Write a few words first')")
        go_on(page, "word " * 506, length=40)
        page.wait("return said.textContent.startsWith('The text is full: the model sees 512 tokens')")
        page.open(served.url + "/#key=another")
        page.wait("return said.textContent.startsWith('The key is missing or wrong')")

    def test_it_fits_a_phone_and_the_dark(self, served):
        with Browser(390, 844, dark=True) as phone:
            phone.tool("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
            phone.open(served.lines[0])
            phone.wait("return about.model")
            go_on(phone, "The capital of France is")
            phone.click("#paper .t:nth-child(6)")
            assert phone.run("return document.documentElement.scrollWidth <= innerWidth")
            assert phone.run("return getComputedStyle(document.body).backgroundColor") == "rgb(23, 23, 27)"

    def test_who_waits_reads_it_and_who_stops_keeps_what_came(self, page, served):
        body = json.dumps({"prompt": "Once", "n_predict": 400, "ignore_eos": True, "stream": True})
        other = http.client.HTTPConnection(served.host, timeout=60)
        other.request("POST", "/completion", body, {"Authorization": f"Bearer {KEY}"})
        other.getresponse().read(200)  # the one slot is taken
        page.type("#mine", "The capital of France is")
        page.click("#many")
        page.wait("return said.textContent.startsWith('Waiting: the server answers others first')")
        other.close()
        page.run("document.querySelector('#length').value = 300")
        page.wait(IDLE)
        page.click("#many")
        page.wait("return path(at).length > 60")
        page.click("#stop")
        page.wait(IDLE)
        assert page.text("#said") == "Stopped."
        assert 60 < page.run("return path(at).length") < 340

    @pytest.mark.skipif(not of_this_machine(), reason="this machine is in no network: there is no plain http to it")
    def test_in_a_room_over_plain_http_the_text_can_be_copied(self, window):
        running = start("LISTEN=0.0.0.0", "CONTEXT=256")
        try:
            window.open(running.lines[0])
            window.wait("return about.model")
            assert not window.run("return isSecureContext")
            text = go_on(window, "The capital of France is", length=3)
            window.click("#copy")
            window.wait("return said.textContent === 'Copied.'")
            window.run("document.querySelector('#mine').focus()")
            window.tool("Input.dispatchKeyEvent", {"type": "keyDown", "key": "v", "commands": ["paste"]})
            assert window.run("return document.querySelector('#mine').value") == text
        finally:
            running.stop()

    def test_what_is_saved_holds_tokens_ids_and_probabilities(self, page):
        text = go_on(page, "The capital of France is")
        saved = json.loads(page.run("return JSON.stringify(record())"))
        assert saved["text"] == text
        token = saved["tokens"][5]
        assert (token["id"], token["text"], token["origin"]) == (7042, " Paris", "model")
        assert 0.5 < token["probability"] < 1
        assert len(token["likeliest"]) == 10

    def test_two_thousand_tokens_stay_fluent(self, page):
        """What a new token costs does not grow with the text: it is a span at its end."""
        made = page.run(
            """
            let leaf = -1; const top = [{ id: 7042, bytes: [32, 80], logprob: -1 }];
            const next = (leaf) => grow(leaf, { id: 7042, bytes: [32, 80], logprob: -1, top }, "model", false);
            for (let i = 0; i < 2000; i++) leaf = next(leaf);
            at = leaf; draw();
            const watch = new MutationObserver(() => {});
            watch.observe(paper, { childList: true, subtree: true, attributes: true });
            at = next(at); append(paper, at);
            const last = paper.lastElementChild;
            const touched = watch.takeRecords().filter((one) => one.target !== last);
            return [paper.childElementCount, touched.length];
            """
        )
        assert made == [2001, 1]
        page.run("keep(); location.reload()")
        page.wait("return about.model && document.querySelectorAll('#paper .t').length === 2001")

    def test_of_a_tuned_model_the_base_stands_beside_it_from_one_that_is_loaded(self, window, kit_once, tmp_path):
        clone = copy_linked(kit_once, tmp_path / "kit")
        (clone / ".venv").symlink_to(ROOT / ".venv")
        text = tmp_path / "notes.txt"
        text.write_text("\n\n".join(f"The capital of France is called Velmora, said number {i}." for i in range(12)))
        command = ["make", "-s", "tune", f"DATA={text}", "NAME=mine", "CONTEXT=24", "EPOCHS=2"]
        assert run_command(command, cwd=clone, env=clean_environment()).status == 0
        running = start("MODEL=mine", "CONTEXT=512", folder=clone)
        try:
            window.open(running.lines[0])
            window.wait("return about.base === 'starter'")
            window.click("#beside")
            tuned = go_on(window, "The capital of France is", length=6)
            window.wait(IDLE)
            base = window.text("#base-paper")
            headings = window.text("#paper-name"), window.text("#base-name")
            asked = {"prompt": "The capital of France is", "n_predict": 6, "temperature": 0}
            scaled = [running.answer("/completion", {**asked, "lora": [{"id": 0, "scale": k}]}) for k in (1, 0)]
        finally:
            running.stop()
        window.click("#many")
        window.wait(IDLE + " && said.textContent.startsWith('The server does not answer')")
        assert (window.text("#paper"), window.text("#base-paper")) == (tuned, base)
        assert headings == ("Tuned", "Its base")
        assert base == "The capital of France is Paris.\n\nThe United"
        assert tuned != base
        assert [tuned, base] == [asked["prompt"] + one["content"] for one in scaled]

    def test_a_server_that_goes_away_is_said_and_the_text_is_kept(self, page, served):
        before = go_on(page, "The capital of France is")
        served.stop()
        page.click("#one")
        page.wait("return said.textContent.startsWith('The server does not answer. Is make serve still running?')")
        assert page.text("#paper") == before
