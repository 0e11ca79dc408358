"""What every format is called, where its files lie and what stands in them: one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal
from urllib.parse import quote

from serpipe.pseudolabel.export import shards
from serpipe.pseudolabel.export.clips import GENDER, LANGUAGE, TEXT, Clip

DATASET = "serpipe"
"""What EmoBox calls the data set; its files carry the name."""

FILE = "{start}/{key}.flac"
"""Below the folder of all audio: no folder gets more than a 256th of the files."""

Said = Callable[[Clip, Sequence[str]], Any]
"""What a column holds, from a clip and the generation's classes."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text file of a format.

    Attributes:
        name: with `{split}` where each split has a file of its own.
        style: a JSON object a line, also compressed; comma-separated with a header; the values of a line with blanks
            between them, each line once, in the order of its bytes (Kaldi); a key and all of its values (spk2utt).
        columns: name to content.
        per_class: further columns, one for each class: its name from the class.
        last: columns that come after those.
        if_any: whether a line is written only where its last value is there.
    """

    name: str
    style: Literal["jsonl", "jsonl.gz", "csv", "lines", "groups"]
    columns: Mapping[str, Said]
    per_class: Callable[[str], str] | None = None
    last: Mapping[str, Said] = field(default_factory=dict)
    if_any: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format.

    Attributes:
        title: for people.
        loads: how it is loaded, code or words.
        splits: its own words for train and dev.
        references: whether it can name a stretch of a recording, so that no audio need be copied.
        channels: whether it can name one channel of a file.
        audio: where a cut clip's file lies, with `{split}`, `{start}` (two digits of the key) and `{key}`; None where
            cut audio goes into shards.
        texts: its text files.
        cut_texts: those of cut audio, where they are others.
        shard: makes the files of one shard of cut audio.
        beside: what a shard holds beside the audio.
        fixed: files that depend on the classes alone.
    """

    title: str
    loads: str
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "dev": "dev"})
    references: bool = False
    channels: bool = False
    audio: str | None = None
    texts: tuple[Text, ...] = ()
    cut_texts: tuple[Text, ...] | None = None
    shard: shards.Write | None = None
    beside: Mapping[str, Said] = field(default_factory=dict)
    fixed: Callable[[Sequence[str]], dict[str, bytes]] = lambda _: {}


def _plain(name: str) -> Said:
    get = attrgetter(name)
    return lambda clip, _: get(clip)


def _meta(names: Sequence[str], otherwise: str | None = None) -> Said:
    return lambda clip, _: clip.said(names) or otherwise


def _constant(value: object) -> Said:
    return lambda _clip, _classes: value


def _soft(clip: Clip, classes: Sequence[str]) -> dict[str, float]:
    return dict(zip(classes, clip.soft, strict=True))


def _name(clip: Clip, _: Sequence[str]) -> str:
    """A cut clip's file below the folder of all audio."""
    return FILE.format(start=clip.key[:2], key=clip.key)


_HF_SPLITS = {"train": "train", "dev": "validation"}

_LABELS: dict[str, Said] = {
    "label": _plain("label"),
    "soft_label": _soft,
    "weight": _plain("weight"),
    "confidence": _plain("confidence"),
    "arousal": _plain("arousal"),
    "valence": _plain("valence"),
    "dominance": _plain("dominance"),
    "speaker": _plain("voice"),
    "feed": _plain("feed"),
}
"""What formats that take any column are told."""

_ORIGIN: dict[str, Said] = {"uri": _plain("uri"), "start_s": _plain("start_s"), "end_s": _plain("end_s")}

_SENSEVOICE = {
    "happiness": "HAPPY",
    "sadness": "SAD",
    "anger": "ANGRY",
    "neutral": "NEUTRAL",
    "fear": "FEARFUL",
    "disgust": "DISGUSTED",
    "surprise": "SURPRISED",
}
_EMOBOX = {
    "anger": "Angry",
    "disgust": "Disgust",
    "fear": "Fear",
    "happiness": "Happy",
    "sadness": "Sad",
    "surprise": "Surprise",
    "neutral": "Neutral",
    "contempt": "Contempt",
    "calm": "Calm",
    "other": "Other",
}


def _frames(clip: Clip, _: Sequence[str]) -> int:
    """Filterbank frames of 10 ms, as FunASR counts them."""
    return int(clip.duration_s * 100)


def _words(clip: Clip, _: Sequence[str]) -> int:
    text = clip.said(TEXT) or ""
    return len(text.split() if " " in text else text)


_FUNASR: dict[str, Said] = {
    "key": _plain("key"),
    "text_language": lambda clip, _: f"<|{clip.said(LANGUAGE) or 'auto'}|>",
    "emo_target": lambda clip, _: f"<|{_SENSEVOICE.get(clip.label, 'EMO_UNKNOWN')}|>",
    "event_target": _constant("<|Speech|>"),
    "with_or_wo_itn": _constant("<|woitn|>"),
    "target": _meta(TEXT, ""),
    "source": _plain("path"),
    "target_len": _words,
    "source_len": _frames,
    "soft_label": _soft,
    "weight": _plain("weight"),
}

_EMOBOX_ROW: dict[str, Said] = {
    "key": lambda clip, _: f"{DATASET}-{clip.key}",
    "dataset": _constant(DATASET),
    "wav": _plain("path"),
    "type": _constant("raw"),
    "sample_rate": _plain("rate"),
    "num_frame": lambda clip, _: float(round(clip.duration_s * clip.rate)),
    "task": _constant("category"),
    "length": _plain("duration_s"),
    "emo": _plain("label"),
    "channel": _constant(1),
    "soft_label": _soft,
    "weight": _plain("weight"),
    "speaker": _plain("voice"),
}
_EMOBOX_STRETCH: dict[str, Said] = {**_EMOBOX_ROW, "start_time": _plain("start_s"), "end_time": _plain("end_s")}


def _emobox(columns: Mapping[str, Said]) -> tuple[Text, ...]:
    return (
        Text(f"{DATASET}/{DATASET}.jsonl", "jsonl", columns),
        Text(f"{DATASET}/fold_1/{DATASET}_{{split}}_fold_1.jsonl", "jsonl", columns),
    )


def _emobox_fixed(classes: Sequence[str]) -> dict[str, bytes]:
    # EmoBox's loader wants a test file. Nobody is to be judged by pseudo-labels, so it is empty.
    return {
        f"{DATASET}/label_map.json": json.dumps({name: _EMOBOX[name] for name in classes}, indent=1).encode() + b"\n",
        f"{DATASET}/fold_1/{DATASET}_test_fold_1.jsonl": b"",
    }


def _superb_name(emotion: str) -> str:
    """EMO-SUPERB's column names are adjectives where the language has one."""
    return {"anger": "angry", "happiness": "happy", "sadness": "sad"}.get(emotion, emotion)


def _superb_fixed(classes: Sequence[str]) -> dict[str, bytes]:
    config = {
        "data_split_type": {"train": "Train", "dev": "Development", "test": "Test"},
        "categorical": {"emo_type": [_superb_name(name) for name in classes]},
        "dimensional": {"max_score": 1, "min_score": 0},
        "description": "pseudo-labels of a serpipe generation; no test split",
    }
    return {"Primary/config.json": json.dumps(config, indent=1).encode() + b"\n"}


def _kaldi_speaker(clip: Clip, _: Sequence[str]) -> str:
    """A speaker without blanks; nothing in it sorts before the hyphen, so sorting by utterance sorts by speaker."""
    return quote(clip.voice, safe="").replace("-", "%2D").replace("%", "=")


def _utterance(clip: Clip, classes: Sequence[str]) -> str:
    return f"{_kaldi_speaker(clip, classes)}-{clip.key}"


def _seconds(name: str) -> Said:
    get = attrgetter(name)
    return lambda clip, _: f"{get(clip):.7f}".rstrip("0").rstrip(".")


def _kaldi(name: str, value: Said, *, key: Said = _utterance, if_any: bool = False) -> Text:
    return Text(f"{{split}}/{name}", "lines", {"key": key, "value": value}, if_any=if_any)


_KALDI = (
    _kaldi("utt2spk", _kaldi_speaker),
    Text("{split}/spk2utt", "groups", {"key": _kaldi_speaker, "value": _utterance}),
    _kaldi("utt2dur", _seconds("duration_s")),
    _kaldi("utt2emo", _plain("label")),
    _kaldi("utt2weight", _plain("weight")),
    _kaldi("utt2soft", lambda clip, _: " ".join(f"{value:.6f}" for value in clip.soft)),
    _kaldi("utt2lang", _meta(LANGUAGE), if_any=True),
    _kaldi("text", _meta(TEXT), if_any=True),
)
_KALDI_STRETCH = Text(
    "{split}/segments",
    "lines",
    {"key": _utterance, "recording": _plain("recording"), "from": _seconds("start_s"), "to": _seconds("end_s")},
)


def _kaldi_fixed(classes: Sequence[str]) -> dict[str, bytes]:
    return {"classes.txt": "".join(f"{name}\n" for name in classes).encode()}


_NEMO: dict[str, Said] = {
    "audio_filepath": lambda clip, _: clip.file or clip.uri,
    "offset": _plain("offset_s"),
    "duration": _plain("duration_s"),
    "label": _plain("label"),
    "text": _meta(TEXT, ""),
    "soft_label": _soft,
    "weight": _plain("weight"),
    "speaker": _plain("voice"),
}


def _lhotse_channel(clip: Clip, _: Sequence[str]) -> int:
    return clip.channel if clip.channels > 1 and not clip.cut else 0


def _lhotse_supervisions(clip: Clip, classes: Sequence[str]) -> list[dict[str, Any]]:
    said = {"text": clip.said(TEXT), "language": clip.said(LANGUAGE), "gender": clip.said(GENDER)}
    supervision = {
        "id": clip.key,
        "recording_id": clip.key if clip.cut else clip.recording,
        "start": 0.0,
        "duration": clip.duration_s,
        "channel": _lhotse_channel(clip, classes),
        "speaker": clip.voice,
        **{name: value for name, value in said.items() if value is not None},
        "custom": {
            "emotion": clip.label,
            **{name: column(clip, classes) for name, column in _LABELS.items() if name not in ("label", "speaker")},
            **{name: column(clip, classes) for name, column in _ORIGIN.items()},
        },
    }
    return [supervision]


def _lhotse_recording(clip: Clip, _: Sequence[str]) -> dict[str, Any]:
    channels = list(range(clip.channels))
    kind = "url" if "://" in clip.uri else "file"
    return {
        "id": clip.recording,
        "sources": [{"type": kind, "channels": channels, "source": clip.uri}],
        "sampling_rate": clip.sample_rate,
        "num_samples": round(clip.recording_s * clip.sample_rate),
        "duration": round(clip.recording_s * clip.sample_rate) / clip.sample_rate,
        "channel_ids": channels,
    }


_LHOTSE: dict[str, Said] = {
    "id": _plain("key"),
    "start": _plain("offset_s"),
    "duration": _plain("duration_s"),
    "channel": _lhotse_channel,
    "supervisions": _lhotse_supervisions,
    "type": _constant("MonoCut"),
}

FORMATS: dict[str, Format] = {
    "hf": Format(
        title="Hugging Face datasets, Parquet with the audio inside",
        loads='datasets.load_dataset("{root}")',
        splits=_HF_SPLITS,
        shard=shards.parquet,
        beside={**_LABELS, **_ORIGIN, "soft_label": _plain("soft")},
    ),
    "audiofolder": Format(
        title="Hugging Face audiofolder",
        loads='datasets.load_dataset("audiofolder", data_dir="{root}")',
        splits=_HF_SPLITS,
        audio=f"{{split}}/{FILE}",
        texts=(Text("{split}/metadata.jsonl", "jsonl", {"file_name": _name, **_LABELS, **_ORIGIN}),),
    ),
    "funasr": Format(
        title="FunASR and SenseVoice JSONL",
        loads="funasr-train-ds ++train_data_set_list={root}/train.jsonl ++valid_data_set_list={root}/dev.jsonl",
        audio=f"audio/{FILE}",
        texts=(Text("{split}.jsonl", "jsonl", _FUNASR),),
    ),
    "kaldi": Format(
        title="Kaldi data folders",
        loads='kaldiio.load_scp("{root}/train/wav.scp")',
        references=True,
        audio=f"audio/{FILE}",
        texts=(*_KALDI, _KALDI_STRETCH, _kaldi("wav.scp", _plain("uri"), key=_plain("recording"))),
        cut_texts=(*_KALDI, _kaldi("wav.scp", _plain("path"))),
        fixed=_kaldi_fixed,
    ),
    "emobox": Format(
        title="EmoBox JSONL with one fold",
        loads=f'EmoDataset("{DATASET}", "{{root}}", "{{root}}", fold=1, split="train")',
        splits={"train": "train", "dev": "valid"},
        references=True,
        audio=f"audio/{FILE}",
        texts=_emobox(_EMOBOX_STRETCH),
        cut_texts=_emobox(_EMOBOX_ROW),
        fixed=_emobox_fixed,
    ),
    "emo-superb": Format(
        title="EMO-SUPERB soft-label CSV",
        loads="Primary/labels_consensus_1.csv and Primary/config.json, audio in Audios",
        splits={"train": "Train", "dev": "Development"},
        audio=f"Audios/{FILE}",
        texts=(
            Text(
                "Primary/labels_consensus_1.csv",
                "csv",
                {"FileName": _name},
                per_class=_superb_name,
                last={
                    "EmoAct": _plain("arousal"),
                    "EmoVal": _plain("valence"),
                    "EmoDom": _plain("dominance"),
                    "SpkrID": _plain("voice"),
                    "Gender": _meta(GENDER, "Unknown"),
                    "Split_Set": lambda clip, _: {"train": "Train", "dev": "Development"}[clip.split],
                },
            ),
        ),
        fixed=_superb_fixed,
    ),
    "nemo": Format(
        title="NeMo manifests",
        loads="model.train_ds.manifest_filepath={root}/train_manifest.json",
        references=True,
        audio=f"audio/{FILE}",
        texts=(Text("{split}_manifest.json", "jsonl", _NEMO),),
    ),
    "lhotse": Format(
        title="lhotse cuts; cut audio as lhotse Shar",
        loads='lhotse.CutSet.from_file("{root}/cuts_train.jsonl.gz"), or CutSet.from_shar(in_dir="{root}/train")',
        references=True,
        channels=True,
        texts=(Text("cuts_{split}.jsonl.gz", "jsonl.gz", {**_LHOTSE, "recording": _lhotse_recording}),),
        cut_texts=(),
        shard=shards.shar,
        beside=_LHOTSE,
    ),
    "webdataset": Format(
        title="WebDataset",
        loads='webdataset.WebDataset("{root}/train-000000.tar")',
        shard=shards.webdataset,
        beside={"key": _plain("key"), **_LABELS, **_ORIGIN},
    ),
}
"""By the name that the command line takes."""
