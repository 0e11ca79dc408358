"""The recipe of a generation: a TOML or YAML file of which every value has a default, and every default its source.

`docs/recipe.md` is made from the descriptions here.
"""

from __future__ import annotations

import difflib
import hashlib
import tomllib
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serpipe.errors import UsageError
from serpipe.ids import canonical_uri
from serpipe.labels import CANONICAL
from serpipe.manifest.storage import open_bytes

Share = Annotated[float, Field(ge=0, le=1)]

_OURS = "a proposal of serpipe's"


def _field(default: Any, what: str, source: str = _OURS) -> Any:
    named = "" if default is None and source is _OURS else source
    return Field(default=default, description=what, json_schema_extra={"source": named})


def _parts(section: type[_Section]) -> Any:
    return Field(default_factory=section, description=(section.__doc__ or "").strip())


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Teacher(_Section):
    """A model whose stored predictions vote."""

    model: str = Field(description="its name in the store")
    fp: str | None = _field(None, "model fingerprint; needed only where the store has several")
    lineage: str | None = _field(
        None,
        "models that share a lineage share one vote; unset: the family it belongs to in serpipe, else its own name; "
        "students are one, and no witness beside models from elsewhere",
        "seed, base and large of emotion2vec+ taught one another, and the superb models all learnt IEMOCAP",
    )
    weight: float = Field(default=1.0, gt=0, description="of its lineage's vote", json_schema_extra={"source": _OURS})


class Calibrate(_Section):
    """How scores become probabilities, fitted on gold."""

    method: Literal["auto", "temperature", "vector", "none"] = _field(
        "auto",
        "`temperature` fits one number a teacher, `vector` a weight and a bias a class, `auto` takes vector scaling "
        "from 500 gold segments on",
        "Guo et al. 2017 (temperature and vector scaling); the 500 from common practice",
    )
    split: str = _field(
        "cal",
        "gold split it is fitted on; where gold has none of it: `dev`, then `train`, which "
        "students have learnt and are not fitted on",
    )


class Quality(_Section):
    """What audio is good enough; a measure that is absent passes."""

    min_s: float = _field(2.75, "shortest segment, seconds", "MSP-Podcast (Lotfian & Busso 2019): 2.75-11 s")
    max_s: float = _field(15.0, "longest segment, seconds", "Vox-Profile's models were trained on at most 15 s")
    snr_db: float = _field(10.0, "least estimated SNR", "half of MSP-Podcast's 20 dB: shouts and sobs are noisy too")
    clipping: Share = _field(0.01, "largest share of samples at full scale")
    speech: Share = _field(0.5, "least share of frames with speech")
    good_snr_db: float = _field(20.0, "SNR of good audio", "MSP-Podcast: WADA-SNR of at least 20 dB")
    good_clipping: Share = _field(0.001, "clipping of good audio")
    good_speech: Share = _field(0.7, "speech share of good audio")
    fair_weight: Share = _field(0.7, "weight of what passes without being good")


class Agree(_Section):
    """What independent lineages must have in common; off with a single lineage."""

    lineages: int = Field(
        default=2,
        ge=1,
        description="least number of lineages whose likeliest class is the label",
        json_schema_extra={"source": "emotion2vec+ and C2SER keep what two independent sources say alike"},
    )
    jsd: float = _field(0.15, "largest Jensen-Shannon divergence between lineages, nats")
    abstain: Share = _field(0.4, "largest share of scores outside the classes, also with a single lineage")


class Select(_Section):
    """One threshold for each class, from all usable segments (FreeMatch), a margin, and no audio twice."""

    margin: Share = _field(0.25, "least distance between the two likeliest classes")
    low: Share = _field(0.6, "the global threshold, the mean confidence, is not below", "FreeMatch, bounds ours")
    high: Share = _field(0.9, "nor above", "FreeMatch clips at 0.95; speech is more ambiguous than photographs")
    floor: Share = _field(0.5, "no class's threshold is below this")
    overlap: Share = _field(
        0.0,
        "of two segments of a recording and channel that share more than this of the shorter one, the surer is kept; 1 "
        "is off",
        "a proposal of serpipe's: overlapping windows are for timelines, and in training they weigh their audio twice",
    )


class Coherence(_Section):
    """Whether arousal, valence and text fit the label."""

    dimensions: str | None = _field(
        None, "model whose arousal and valence are compared; unset: the one dimensional model of the store, if any"
    )
    percentile: float = Field(
        default=5.0,
        ge=0,
        le=50,
        description="of gold's likelihood under its class's Gaussian, below which a segment is dropped",
        json_schema_extra={"source": _OURS},
    )
    least_gold: int = Field(
        default=30,
        ge=4,
        description="gold segments of a class for a Gaussian; below it: anger is arousal >= 0.5 and valence <= 0.5, "
        "sadness arousal <= 0.55 and valence <= 0.5, happiness valence >= 0.5, others pass",
        json_schema_extra={"source": "the regions: Russell's circumplex, with a margin"},
    )
    text_emotion: str = _field(
        "text_emotion",
        "the owner's column with the emotion of the words; neutral, other and unknown words contradict nothing, an "
        "emotion outside the classes contradicts every label",
        "emotion2vec_base_finetuned: same text emotion and speech emotion",
    )


class Balance(_Section):
    """How classes are brought closer: the most confident of each are kept."""

    alpha: float = Field(
        default=1 / 3,
        ge=0,
        description="the l-th most frequent of L classes keeps (N[L+1-l] / N[1]) ** alpha of what the caps "
        "leave of it, classes with under 1 % of the most frequent one's keep theirs and do not count; 0 is off",
        json_schema_extra={"source": "CReST (Wei et al. 2021), counts of the candidates instead of gold"},
    )
    least_rate: Share = _field(0.1, "no class keeps less than this share")
    neutral_share: Share = _field(
        0.4, "largest share of neutral in what is kept; 1 is off", "MSP-Podcast without retrieval is 46 % neutral"
    )


class Caps(_Section):
    """How much of a class one voice or one feed may be."""

    per_speaker: int = Field(
        default=20,
        ge=0,
        description="segments of a class per recording and speaker; 0 is off",
        json_schema_extra={"source": "80 % of MSP-Podcast comes from 26 % of its speakers"},
    )
    feed_share: Share = _field(
        0.01,
        "largest share of what is kept of a class from one feed, but never less than twice its even share; 1 is off",
    )
    speaker: tuple[str, ...] = _field(("speaker", "speaker_id", "spk"), "the owner's columns that name the speaker")
    feed: tuple[str, ...] = _field(
        ("feed", "show", "podcast", "corpus"), "the owner's columns that name the feed; else the folder of the uri"
    )


class Budget(_Section):
    """How many hours a generation may keep, as a share of what was considered."""

    first: Share = _field(
        0.05,
        "of a generation that no promoted student teaches",
        "emotion2vec+ kept 2.9 % of 160,000 h in its first round",
    )
    later: Share = _field(0.3, "of one that a promoted student teaches", "and 26.5 % in its second")
    least_hours: float = Field(
        default=10.0,
        ge=0,
        description="hours that are always allowed, so that small archives keep what passes",
        json_schema_extra={"source": _OURS},
    )


class Split(_Section):
    """Which kept rows are held out; a speaker, or a recording without one, is never on both sides."""

    dev: Share = _field(0.05, "share of speakers that go to `dev`")


class Export(_Section):
    """What `serpipe export` writes where it is not told otherwise."""

    format: Literal["hf", "audiofolder", "funasr", "kaldi", "emobox", "emo-superb", "nemo", "lhotse", "webdataset"] = (
        _field("hf", "one of [the formats](exports.md)")
    )
    audio: Literal["reference", "cut"] | None = _field(
        None, "clips named by recording and times, or cut out of it; unset: by reference where the format can"
    )


class Recipe(_Section):
    """A whole recipe.

    Examples:
        >>> Recipe().select.margin
        0.25
        >>> Recipe().hash == Recipe(seed=0).hash, Recipe().hash == Recipe(seed=1).hash
        (True, False)
    """

    seed: int = _field(0, "decides ties and which kept rows are held out")
    audio: str | None = _field(
        None, "audio fingerprint; needed only where the store's recordings were cut several ways"
    )
    classes: tuple[str, ...] | Literal["common", "C4", "C7"] = _field(
        "common", "canonical emotions; `common` is what all teachers can name; calm counts as neutral where it is none"
    )
    teachers: tuple[Teacher, ...] = _field((), "unset: every categorical model in the store that is no student")
    calibrate: Calibrate = _parts(Calibrate)
    quality: Quality = _parts(Quality)
    agree: Agree = _parts(Agree)
    select: Select = _parts(Select)
    coherence: Coherence = _parts(Coherence)
    balance: Balance = _parts(Balance)
    caps: Caps = _parts(Caps)
    budget: Budget = _parts(Budget)
    split: Split = _parts(Split)
    export: Export = _parts(Export)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        names = [teacher.model for teacher in self.teachers]
        if len(set(names)) < len(names):
            raise ValueError("teachers: a model is named twice")
        if not isinstance(self.classes, str):
            unknown = [name for name in self.classes if name not in CANONICAL]
            if unknown or len(set(self.classes)) < max(len(self.classes), 2):
                raise ValueError(f"classes: two or more different ones of {', '.join(CANONICAL)}")
        if self.select.low > self.select.high or self.quality.min_s > self.quality.max_s:
            raise ValueError("the lower bound of select.low to select.high or quality.min_s to max_s is the higher one")
        return self

    @property
    def hash(self) -> str:
        """64 hexadecimal digits over every value, defaults included."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def load(path: str | None) -> Recipe:
    """Read a recipe; None is the default one.

    Raises:
        UsageError: `RECIPE_UNREADABLE`, `RECIPE_UNKNOWN_KEY` or `RECIPE_INVALID`, each with the key.
    """
    if path is None:
        return Recipe()
    try:
        with open_bytes(canonical_uri(path)[0]) as file:
            return parse(file.read().decode("utf-8"), path)
    except (OSError, UnicodeDecodeError, ValueError, ImportError) as error:
        raise UsageError("RECIPE_UNREADABLE", f"recipe {path} cannot be read ({error})") from None


def parse(text: str, name: str = "recipe") -> Recipe:
    r"""Check the text of a recipe.

    Args:
        text: TOML, or YAML where the name ends like that.
        name: what error messages call it.

    Raises:
        UsageError: `RECIPE_UNREADABLE`, the text is no TOML or YAML; otherwise as `load`.

    Examples:
        >>> parse("[agree]\njsd = 0.1").agree.jsd
        0.1
        >>> parse("[agree]\njds = 0.1")
        Traceback (most recent call last):
        serpipe.errors.UsageError: RECIPE_UNKNOWN_KEY: recipe: there is no key agree.jds; did you mean jsd? ...
    """
    try:
        written = _yaml(text) if name.lower().endswith((".yaml", ".yml")) else tomllib.loads(text)
        return Recipe.model_validate(written)
    except tomllib.TOMLDecodeError as error:
        raise UsageError("RECIPE_UNREADABLE", f"{name} is no TOML: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError("RECIPE_UNREADABLE", f"{name} is no YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise _sentence(name, error) from None


def _yaml(text: str) -> Any:
    # An empty file is the default recipe, as an empty TOML is.
    return yaml.safe_load(text) or {}


def _sentence(name: str, error: ValidationError) -> UsageError:
    first = next((e for e in error.errors() if e["type"] == "extra_forbidden"), error.errors()[0])
    place = [str(step) for step in first["loc"]]
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(place[-1], _keys(place[:-1]), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return UsageError(
            "RECIPE_UNKNOWN_KEY", f"{name}: there is no key {'.'.join(place)}; {hint}docs/recipe.md lists them all"
        )
    where = ".".join(place)
    why = first["msg"].removeprefix("Value error, ")
    return UsageError("RECIPE_INVALID", f"{name}: {where + ': ' if where else ''}{why}; see docs/recipe.md")


def _keys(place: list[str]) -> list[str]:
    section: type[BaseModel] = Recipe
    for step in place:
        if step == "teachers":
            section = Teacher
        elif step in section.model_fields:
            kind = section.model_fields[step].annotation
            section = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else section
    return list(section.model_fields)


def page() -> str:
    """Every key, what it means, its default and where that comes from, as Markdown."""
    lines = [
        "# The recipe of a generation",
        "",
        "Made from the code by `docs/generate.py`. A recipe is a TOML or YAML file given to `serpipe pseudolabel",
        "--recipe`; what it does not say has the default below, so an empty file is the default recipe. Unknown keys",
        "are refused.",
        "",
        "```toml",
        "seed = 1",
        "",
        "[[teachers]]",
        'model = "emotion2vec-plus-large"',
        "",
        "[[teachers]]",
        'model = "odyssey-categorical"',
        "",
        "[quality]",
        "snr_db = 15",
        "```",
        "",
    ]
    top = [name for name, field in Recipe.model_fields.items() if not _is_section(field.annotation)]
    lines += [*_table(Recipe, top), "## [[teachers]]", "", Teacher.__doc__ or "", "", *_table(Teacher)]
    for name, field in Recipe.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            lines += [f"## [{name}]", "", field.description or "", "", *_table(kind)]
    return "\n".join(lines)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _table(section: type[BaseModel], names: list[str] | None = None) -> list[str]:
    rows = ["| key | default | meaning | source of the default |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        if names is None or name in names:
            extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            default = "required" if field.is_required() else _toml(field.default)
            rows.append(f"| `{name}` | {default} | {field.description} | {extra.get('source', '')} |")
    return [*rows, ""]


def _toml(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(repr, value))}]`".replace("'", '"')
    if isinstance(value, float):
        return f"`{value:.4g}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"
