# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: base-model-kit
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What a language model does, and how to make it yours
#
# You know Python. You do not have to know anything about language models: each word is explained where it comes up
# first.
#
# There are nine chapters. Each one runs alone: begin wherever you like, with its first cell. Each one ends with two
# questions that you answer by changing a cell and running it again (Shift-Enter). Nothing here needs the internet,
# and nothing can break.
#
# | chapter | question |
# | --- | --- |
# | 1 | What does the model read? |
# | 2 | What does it compute? |
# | 3 | How does a text come out of that? |
# | 4 | Why does it not answer my question? |
# | 5 | In which ways can I run it? |
# | 6 | Where do the time and the memory go? |
# | 7 | What do smaller files cost? |
# | 8 | How does it learn my text? |
# | 9 | Does it compute the same on another machine? |
#
# The model is **the starter**, SmolLM2-135M-Instruct. It is small and not clever, and it is here already. With a
# larger one, say Llama 3.2 1B, everything works alike and slower: in the first cell of a chapter, write
# `registry.find("llama-3.2-1b")`.

# %% [markdown]
# # 1. What does the model read?
#
# Numbers. A **tokenizer** cuts a text into pieces that it knows, and gives the number of each piece. Such a piece is
# a **token**. Frequent words are one token; rare ones are made of several. (A *token* of the Hugging Face Hub is
# something else: a password.)

# %%
from kit.engines import methods
from kit.engines.request import Request
from kit.models import registry

MODEL = registry.find("starter")
engine = methods.prepare(Request(MODEL, method="manual"))  # the tokenizer alone: no weights are loaded

TEXT = "The capital of France is Paris. Its motto is Fluctuat nec mergitur."
ids = engine.encode(TEXT)
print(ids)
print(" | ".join(engine.decode([one]) for one in ids))

# %% [markdown]
# The model sees nothing but these numbers. It does not see letters: that is why it counts the letters of a word
# badly. And a language that the tokenizer has seen little of costs more tokens, so it costs more time:

# %%
import matplotlib.pyplot as plt

SENTENCES = {
    "English": "All human beings are born free and equal in dignity and rights.",
    "German": "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "Spanish": "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "Turkish": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.",
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "Japanese": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
}
counts = {name: len(engine.encode(text)) for name, text in SENTENCES.items()}

plt.figure(figsize=(7, 2.8), layout="constrained")
plt.barh(list(counts), list(counts.values()), color="#0072B2")
plt.gca().invert_yaxis()
plt.xlabel("tokens for the same sentence")
plt.show()

# %% [markdown]
# **Try it.**
#
# 1. How many tokens is your own name? Put it into `TEXT`. And with a blank in front of it?
# 2. Add a sentence in your language to `SENTENCES`. How many more tokens does it cost than English?

# %% [markdown]
# # 2. What does it compute?
#
# One thing only: for each token that it knows, how probable it is that this one comes next. That is all. Whoever
# wants a text asks again and again.

# %%
import matplotlib.pyplot as plt
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kit.models import registry

FOLDER = registry.find("starter").folder
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype="bfloat16")

PROMPT = "The capital of France is"
with torch.inference_mode():
    scores = model(**tokenizer(PROMPT, return_tensors="pt")).logits[0, -1].float()
probabilities = scores.softmax(dim=0)  # a number for each token, from 0 to 1; together they are 1
print(f"{len(probabilities)} tokens, together {probabilities.sum():.3f}")

# %%
best = probabilities.topk(10)
labels = [repr(tokenizer.decode(one)) for one in best.indices]

plt.figure(figsize=(7, 3.2), layout="constrained")
plt.barh(range(10), best.values, color="#009E73")
plt.yticks(range(10), labels)
plt.gca().invert_yaxis()
plt.xlabel(f"probability of being next behind «{PROMPT}»")
plt.show()

# %% [markdown]
# Often the probability is given as its logarithm, a **log-probability**: 0 is certain, −0.7 is one half, −2.3 is a
# tenth. The same picture for any text, at every place, is in the browser: `make serve`.
#
# **Try it.**
#
# 1. Change `PROMPT` so that the model becomes quite sure (above 0.9), and so that it has no idea (all below 0.05).
# 2. End the prompt with a blank. Why does the picture change? (Look at how the labels begin.)

# %% [markdown]
# # 3. How does a text come out of that?
#
# By choosing a token, writing it behind the text, and asking again. There are two ways to choose. **Greedy**: always
# the most probable one, so the same text every time. **Sampling**: by chance, as if drawing lots; a `seed` makes the
# chance repeatable.
#
# The **temperature** bends the probabilities before the draw. Below 1 the probable ones gain, above 1 the improbable
# ones.

# %%
from kit.engines import generate
from kit.engines.request import Request
from kit.models import registry

MODEL = registry.find("starter")
PROMPT = "Once upon a time there was a"

with generate.loaded(Request(MODEL, PROMPT, method="manual"), 256) as engine:
    for temperature in (0.0, 0.8, 2.0):
        print(f"temperature {temperature}" + (" (greedy)" if temperature == 0 else ""))
        for seed in range(3):
            request = Request(MODEL, PROMPT, max_new_tokens=16, temperature=temperature, seed=seed)
            print("   ", engine.generate(request).text.replace("\n", " "))

# %%
import matplotlib.pyplot as plt
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(MODEL.folder)
model = AutoModelForCausalLM.from_pretrained(MODEL.folder, dtype="bfloat16")
with torch.inference_mode():
    scores = model(**tokenizer(PROMPT, return_tensors="pt")).logits[0, -1].float()

best = scores.topk(12).indices
plt.figure(figsize=(7, 3.2), layout="constrained")
for temperature, colour in ((0.5, "#0072B2"), (1.0, "#009E73"), (2.0, "#D55E00")):
    plt.plot((scores / temperature).softmax(dim=0)[best], marker="o", color=colour, label=f"temperature {temperature}")
plt.xticks(range(12), [tokenizer.decode(one) for one in best], rotation=45, ha="right")
plt.ylabel("probability")
plt.legend()
plt.show()

# %% [markdown]
# **Try it.**
#
# 1. At which temperature does the text stop making sense to you? Change the list of temperatures.
# 2. Make the greedy text longer (`max_new_tokens=120`). What happens to it after a while? Does a temperature of 0.8
#    cure it?

# %% [markdown]
# # 4. Why does it not answer my question?
#
# A **base model** has read texts, and goes on with texts. Behind a question, more questions may follow: so it is in
# many texts. An **instruction-tuned** model has then also read conversations, written in one fixed form, its
# **template**. In this form it answers. The starter is such a model. In the template it knows that it is its turn;
# without it, it goes on with the text, and for a question alone this mostly means: the text is over.

# %%
from transformers import AutoTokenizer

from kit.engines import generate
from kit.engines.request import Request
from kit.models import registry

MODEL = registry.find("starter")
QUESTION = "Why is the sky blue?"

tokenizer = AutoTokenizer.from_pretrained(MODEL.folder)
said = [{"role": "user", "content": QUESTION}]
in_template = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
print(in_template)

with generate.loaded(Request(MODEL, QUESTION, method="manual"), 256) as engine:
    for name, prompt in (("as a text", QUESTION), ("in the template", in_template)):
        came = engine.generate(Request(MODEL, prompt, max_new_tokens=40))
        print(f"--- {name}\n{came.text.strip() or '(it ends the text at once)'}\n")

# %% [markdown]
# The weights are the same ones, and so is the question. What differs is what the model believes to be reading:

# %%
import matplotlib.pyplot as plt
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(MODEL.folder, dtype="bfloat16")
figure, places = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
for axes, (name, prompt) in zip(places, (("as a text", QUESTION), ("in the template", in_template)), strict=True):
    with torch.inference_mode():
        best = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].float().softmax(dim=0).topk(6)
    axes.barh([repr(tokenizer.decode(one)) for one in best.indices], best.values, color="#CC79A7")
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title(f"{name}: what comes next?")
plt.show()

# %% [markdown]
# **Try it.**
#
# 1. Write the question so that a text would naturally go on with its answer: `"The sky is blue because"`. Does it need
#    the template now?
# 2. Put another name in place of `user` into the template's text by hand. Does it still answer?

# %% [markdown]
# # 5. In which ways can I run it?
#
# The kit knows three, and they compute the same model. Method 1, `pipeline`: one call of the transformers library
# does everything. Method 2, `manual`: the tokenizer, the model and `generate` are three things in your hands. Method
# 3, `llamacpp`: another program, llama.cpp, written for ordinary processors.

# %%
from kit.engines import generate
from kit.engines.request import Request
from kit.models import registry

MODEL = registry.find("starter")
done = []
for method in ("pipeline", "manual", "llamacpp"):
    done.append(generate.complete(Request(MODEL, "The capital of France is", method=method, max_new_tokens=40)))
    print(f"{method:9}{done[-1].dtype or done[-1].quant:10}{done[-1].text[:70]!r}")

# %%
import matplotlib.pyplot as plt

PHASES = {"import": "#E69F00", "load": "#56B4E9", "first token": "#009E73", "the other tokens": "#0072B2"}
seconds = [
    (one.import_s, one.load_s, one.first_token_s, (one.new_tokens - 1) / (one.decode_tokens_per_s or 1)) for one in done
]
ends = [0.0] * len(done)
plt.figure(figsize=(8, 2.8), layout="constrained")
for place, (phase, colour) in enumerate(PHASES.items()):
    widths = [each[place] for each in seconds]
    plt.barh([one.method for one in done], widths, left=ends, color=colour, label=phase)
    ends = [end + width for end, width in zip(ends, widths, strict=True)]
plt.gca().invert_yaxis()
plt.xlabel("seconds")
plt.legend()
plt.show()

# %% [markdown]
# The first method pays for the imports of the next one: this notebook is one process. `make bench` starts a process
# for each run, takes turns, and repeats; that is how a comparison becomes fair.
#
# **Try it.**
#
# 1. Run the first cell again. Which phase has almost gone, and why?
# 2. Which method is the fastest for 5 tokens, and which one for 200? Change `max_new_tokens`.

# %% [markdown]
# # 6. Where do the time and the memory go?
#
# A new token needs every **weight** of the model once. The starter has 135 million of them, and in the format
# **bfloat16** each one is two bytes. So each token reads 270 MB of memory, and nothing can be faster than the memory
# is read. How fast is it read here?

# %%
from kit.bench import roofline
from kit.engines import generate
from kit.engines.request import Request
from kit.models import registry

MODEL = registry.find("starter")
bandwidth = roofline.measure("cpu", 1 << 28)  # sums 256 MB, eight times
print(f"this machine reads {bandwidth / 1e9:.1f} GB of memory a second")

rows = []
for dtype in ("bfloat16", "float32"):
    request = Request(MODEL, "The capital of France is", method="manual", device="cpu", dtype=dtype, max_new_tokens=40)
    with generate.loaded(request, 256) as engine:
        speed = engine.generate(request).decode_tokens_per_s
        rows.append((dtype, engine.bytes_per_token(), speed, bandwidth / engine.bytes_per_token()))
for dtype, size, speed, most in rows:
    print(f"{dtype:9} {size / 1e6:4.0f} MB a token: {most:5.0f} tokens a second at most, {speed:5.0f} measured")

# %%
import matplotlib.pyplot as plt

figure, (speeds, sizes) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
names = [row[0] for row in rows]
speeds.barh(names, [row[3] for row in rows], color="#DDDDDD", label="what the memory allows")
speeds.barh(names, [row[2] for row in rows], height=0.4, color="#0072B2", label="measured")
speeds.set_xlabel("tokens a second")
speeds.legend()
sizes.barh(names, [row[1] / 1e6 for row in rows], color="#CC79A7")
sizes.set_xlabel("MB of weights")
plt.show()

# %% [markdown]
# A measured bar that is far shorter says: here the processor is the limit, or the program around it, not the memory.
# A small model on a fast memory shows this; a large model comes close to the line.
#
# **Try it.**
#
# 1. Llama 3.2 1B has 1.24 billion weights of two bytes. How many tokens a second can this machine do at most? Compute
#    it from `bandwidth`.
# 2. Start something heavy beside it (a film, a build) and run the first cell again. Which of the two bars moves?

# %% [markdown]
# # 7. What do smaller files cost?
#
# The weights can be rounded to fewer bits; this is called **quantisation**. The file gets smaller, so a token is read
# faster. What is lost? Measure it: how surprised is the model by a text that it has not written? The mean surprise is
# called the **loss**. Lower is better.

# %%
from kit.engines import generate
from kit.engines.request import Request
from kit.models import registry
from kit.paths import ROOT

MODEL = registry.find("starter")
TEXT = (ROOT / "env" / "golden" / "prompts" / "long.txt").read_text()[:600]

rows = []
for quant in ("bf16", "q8_0", "q4_0"):
    request = Request(
        MODEL, "The capital of France is", method="llamacpp", device="cpu", quant=quant, max_new_tokens=40
    )
    with generate.loaded(request, 512) as engine:  # the first time, it writes the file
        ids = engine.encode(TEXT)
        positions = engine.logprobs(ids, 1)
        loss = -sum(position.logprob for position in positions) / len(positions)
        came = engine.generate(request)
        rows.append((quant, engine.weights_bytes() / 1e6, loss, came.decode_tokens_per_s))
        print(f"{quant:5} {rows[-1][1]:4.0f} MB   loss {loss:.3f}   {rows[-1][3]:4.0f} tokens/s   {came.text[:50]!r}")

# %%
import matplotlib.pyplot as plt

figure, (losses, speeds) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
names = [row[0] for row in rows]
losses.plot([row[1] for row in rows], [row[2] for row in rows], marker="o", color="#D55E00")
for name, size, loss, _ in rows:
    losses.annotate(name, (size, loss), (6, 4), textcoords="offset points")
losses.set_xlabel("MB of weights")
losses.set_ylabel("loss (nats a token)")
losses.margins(0.15)
speeds.bar(names, [row[3] for row in rows], color="#0072B2")
speeds.set_ylabel("tokens a second")
plt.show()

# %% [markdown]
# Half the bits cost almost nothing. A quarter of them costs something, and how much depends on the model: the larger,
# the less.
#
# **Try it.**
#
# 1. Take another `TEXT`, of your own. Is the order of the three the same?
# 2. The file that the starter came in is `q4_1`: add it to the list. Where does it stand in the picture?

# %% [markdown]
# # 8. How does it learn my text?
#
# Show it the text, piece by piece, look how surprised it is, and move its weights a little so that it would have been
# less surprised. That is **fine-tuning**. **LoRA** moves not the weights themselves but a small addition to them: 2 %
# as many numbers.
#
# The text is about Velmora, a town that does not exist. So no model can know it.

# %%
import torch

from kit.engines import generate
from kit.engines.request import Request
from kit.models import registry
from kit.tune import data, evaluate, train

MODEL = registry.find("starter")
TEXT = evaluate.TEXT  # or pathlib.Path("my.txt"): paragraphs with an empty line between them
QUESTIONS = ["The person who is in charge of Velmora is called", "A typical meal in Velmora is"]
RECIPE = train.Recipe(epochs=4, lr=1e-3, rank=8, context=64, seed=0)


def answers(engine):
    return [evaluate.completion(engine, MODEL, question, 12) for question in QUESTIONS]


learn, held = data.hold_out(
    data.read(TEXT).samples
)  # what is held out is never learnt: it shows whether learning helps
print(f"{len(learn)} sentences to learn, {len(held)} held out. The first one: {learn[0].text}")

with generate.loaded(Request(MODEL, "-", method="manual", device="cpu"), 256) as engine:
    end = next(iter(engine.examined.ends))
    held_out = data.in_order(data.encode(held, engine.backend, end), [], RECIPE.context, 8)
    tokens = data.encode(learn, engine.backend, end)
    before, loss_before = answers(engine), train.mean_loss(engine.loaded, held_out)

    adapted = train.with_adapters(engine.loaded, RECIPE, None, MODEL.revision)
    numbers = [one for one in adapted.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(numbers, lr=RECIPE.lr)
    losses = []
    for block in data.blocks(tokens, [], RECIPE.context, RECIPE.epochs, RECIPE.seed):
        surprise, count = train.loss_sum(engine.loaded, block)
        loss = surprise / count
        loss.backward()  # in which direction would each number have lessened the surprise?
        optimizer.step()  # move each one a little that way
        optimizer.zero_grad()
        losses.append(loss.item())

    engine.loaded.eval()
    after, loss_after = answers(engine), train.mean_loss(engine.loaded, held_out)

for question, old, new in zip(QUESTIONS, before, after, strict=True):
    print(f"\n> {question}\n    before: {old}\n    after:  {new}")

# %%
import matplotlib.pyplot as plt

plt.figure(figsize=(7, 3), layout="constrained")
plt.plot(range(1, len(losses) + 1), losses, color="#56B4E9", label="the text that it learns")
plt.plot([0, len(losses)], [loss_before, loss_after], "o-", color="#D55E00", label="the text that was held out")
plt.xlabel("updates")
plt.ylabel("loss (nats a token)")
plt.ylim(bottom=0)
plt.legend()
plt.show()

# %% [markdown]
# `make tune DATA=my.txt` does the same with more care: it measures what was forgotten, goes on where it was stopped,
# and keeps the result as a model for every other verb.
#
# **Try it.**
#
# 1. Ask about something that is in no sentence: `"The second mayor of Velmora was"`. Does it say that it does not
#    know?
# 2. Set `epochs=1`, then 8. Which of the two lines in the picture tells you when to stop?

# %% [markdown]
# # 9. Does it compute the same on another machine?
#
# Almost. A processor adds numbers in its own order, and every sum is rounded. So another order gives another last
# digit:

# %%
print((0.1 + 0.2) + 0.3 == 0.1 + (0.2 + 0.3))

# %% [markdown]
# Mostly this changes nothing: the best token is far ahead. Where two tokens are almost as probable, the text can go
# another way. **How far is the best token ahead of the next one**, in a text that the model writes itself?

# %%
import matplotlib.pyplot as plt

from kit.engines import generate
from kit.engines.request import Request
from kit.models import registry

MODEL = registry.find("starter")
PROMPT = "The lighthouse keeper"

margins, texts = {}, {}
for dtype in ("float32", "bfloat16"):
    request = Request(MODEL, PROMPT, method="manual", device="cpu", dtype=dtype, max_new_tokens=40)
    with generate.loaded(request, 256) as engine:
        came = engine.generate(request)
        if dtype == "float32":
            ids, first = [*came.prompt_ids, *came.token_ids], len(came.prompt_ids)
        texts[dtype] = came.text
        margins[dtype] = [position.margin for position in engine.logprobs(ids, first)]

plt.figure(figsize=(9, 3), layout="constrained")
for dtype, colour in (("float32", "#0072B2"), ("bfloat16", "#D55E00")):
    plt.plot(margins[dtype], "o-", color=colour, label=dtype)
plt.axhline(0, color="black", linewidth=0.8)
plt.xlabel("token of the text that float32 wrote")
plt.ylabel("ahead by (nats)")
plt.legend()
plt.show()
for dtype, text in texts.items():
    print(f"{dtype:9}{text!r}")

# %% [markdown]
# Where the line comes near 0, the two formats, or two machines, may part. Where a point is below 0, they have parted.
# So «the same text» is too much to ask, and «a similar text» proves nothing. `verify` asks for something better: the
# same files, the same tokens, and for each position the same log-probability as in the reference that came with the
# kit, as near as the format allows.

# %%
from kit.engines.request import Request
from kit.models import registry
from kit.verify import stages

done = stages.verify(Request(registry.find("starter"), method="manual", device="cpu", dtype="float32"))
for stage in done.stages:
    print("ok    " if stage.ok else "FAILED", stage.name, "-", stage.text)

# %% [markdown]
# `make verify` ends with one line, a code. Two people who compare their codes know whether their machines run the
# same thing.
#
# **Try it.**
#
# 1. Change `PROMPT` until the two texts differ. How far was the best token ahead where they part?
# 2. Verify `dtype="bfloat16"` in the last cell. How much larger are the differences than in float32?
#
# That was all of it: tokens, probabilities, a choice, and again. Now teach it something of yours: `make tune
# DATA=my.txt`.
