"""The machine-readable card: Croissant 1.1 JSON-LD with its vocabulary of responsible AI.

Its records are those of `labels.parquet`, which every export has; the format's own files are listed beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from serpipe.pseudolabel.export.card import LIMITS, OUT_OF_SCOPE, Facts

LABELS = "labels.parquet"

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "prov": "http://www.w3.org/ns/prov#",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The context that the specification gives, https://docs.mlcommons.org/croissant/docs/croissant-spec.html."""

_MEDIA = {
    ".parquet": "application/x-parquet",
    ".jsonl": "application/jsonlines",
    ".json": "application/json",
    ".csv": "text/csv",
    ".gz": "application/gzip",
    ".tar": "application/x-tar",
}
_TYPES = {pa.string(): "sc:Text", pa.float32(): "cr:Float32", pa.float64(): "cr:Float64"}

_SAID = {
    "key": "the segment's id in the store",
    "audio": "file of the cut audio below this folder; absent where audio is by reference or in shards",
    "uri": "the recording",
    "start_s": "seconds from the recording's start",
    "end_s": "seconds from the recording's start",
    "split": "train or dev",
    "label": "the likeliest class",
    "weight": "for training",
    "confidence": "probability of the label",
    "speaker": "the owner's word",
    "feed": "the owner's word, else the folder of the recording",
}


def write(facts: Facts, files: Mapping[str, tuple[int, str]], schema: pa.Schema) -> bytes:
    """The description of an export.

    Args:
        facts: as on the card.
        files: size and SHA-256 of every file that is listed.
        schema: of `labels.parquet`.
    """
    record = facts.record
    name = f"emotion-pseudo-labels-generation-{record['number']}"
    licences = facts.licences
    content: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": name,
        "description": f"Emotion pseudo-labels of speech segments: {', '.join(record['classes'])}.",
        "license": [*licences.known, *([] if licences.complete else ["unknown"])],
        "url": "README.md",
        "version": f"{record['number']}.0.0",
        "datePublished": record["created"],
        "citeAs": f"{name}, recipe {record['recipe_hash']}",
        "creator": {"@type": "sc:Organization", "name": "the owner of the store", "url": "README.md"},
        "prov:wasGeneratedBy": {
            "@type": "prov:Activity",
            "name": f"generation {record['number']}, recipe {record['recipe_hash']}, serpipe {record['serpipe']}",
        },
        **_responsible(facts),
        "distribution": [_file(path, size, digest) for path, (size, digest) in sorted(files.items())],
        "recordSet": [_records(facts, schema)],
    }
    if record["parent"]:
        content["prov:wasDerivedFrom"] = f"emotion-pseudo-labels-generation-{record['parent']}"
    return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"


def _responsible(facts: Facts) -> dict[str, Any]:
    record = facts.record
    dropped = "; ".join(f"{step['stage']} {step['dropped']}" for step in record["funnel"] if step["dropped"])
    return {
        "rai:machineAnnotationTools": [f"{one['model']}, fingerprint {one['fp']}" for one in record["teachers"]],
        "rai:annotationsPerItem": f"{len(record['teachers'])} models of {record['lineages']} lineages",
        "rai:dataAnnotationProtocol": f"serpipe recipe {record['recipe_hash']}, whole in README.md",
        "rai:dataPreprocessingProtocol": [f"segments dropped by stage: {dropped or 'none'}"],
        "rai:dataLimitations": list(LIMITS),
        "rai:dataBiases": list(record["notes"]),
        "rai:dataUseCases": [
            "Training students that recognise emotion in speech.",
            *(f"Out of scope: {use}" for use in OUT_OF_SCOPE),
        ],
        "rai:personalSensitiveInformation": ["Voices of people, and what machines take for their emotions."],
    }


def _file(path: str, size: int, digest: str) -> dict[str, str]:
    ending = path[path.rfind(".") :] if "." in path.rpartition("/")[2] else ""
    return {
        "@type": "cr:FileObject",
        "@id": path,
        "name": path,
        "contentUrl": path,
        "contentSize": f"{size} B",
        "encodingFormat": _MEDIA.get(ending, "text/plain"),
        "sha256": digest,
    }


def _records(facts: Facts, schema: pa.Schema) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "labels",
        "name": "labels",
        "description": "one record a clip",
        "key": {"@id": "labels/key"},
        "field": [_field(facts, column) for column in schema],
    }


def _field(facts: Facts, column: pa.Field) -> dict[str, Any]:
    name = column.name
    emotion = name.removeprefix("soft_")
    said = _SAID.get(name) or (f"probability of {emotion}" if emotion != name else f"{name}, 0 to 1")
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"labels/{name}",
        "name": name,
        "description": said,
        "dataType": _TYPES[column.type],
        "source": {"fileObject": {"@id": LABELS}, "extract": {"column": name}},
    }
    if name == "label" or emotion != name:
        field["prov:wasAttributedTo"] = _agents(facts.record["teachers"])
    return field


def _agents(teachers: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [
        {"@type": "prov:SoftwareAgent", "@id": f"urn:serpipe:model:{one['model']}:{one['fp']}", "name": one["model"]}
        for one in teachers
    ]
