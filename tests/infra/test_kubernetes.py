"""The Kubernetes manifests: what the schemas allow, and what they must say for a night to be safe."""

from __future__ import annotations

import copy
import runpy
import shlex
from datetime import date
from importlib.metadata import version
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError

from serpipe.engine.cluster import STAGE_LABEL
from tests.conftest import ROOT
from tests.infra.kuberay import RayJob

FOLDER = ROOT / "infra" / "kuberay"
KUBERNETES = "1.34"
"""Of the schemas: what clouds run; older ones know every field as well."""


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


TEMPLATE = documents("rayjob.yaml")[0]
NIGHTLY = {document["kind"]: document for document in documents("nightly.yaml")}


def pods() -> dict[str, dict[str, Any]]:
    cluster = TEMPLATE["spec"]["rayClusterSpec"]
    found = {"head": cluster["headGroupSpec"]["template"]}
    found |= {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    found["nightly"] = NIGHTLY["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]
    return found


def test_the_rayjob_is_one_of_kuberay_1_7() -> None:
    job = RayJob.model_validate(TEMPLATE)
    assert job.spec.rayClusterSpec.rayVersion == version("ray")
    assert job.spec.backoffLimit > 0


def test_a_misspelt_field_is_found() -> None:
    wrong = copy.deepcopy(TEMPLATE)
    wrong["spec"]["backofLimit"] = wrong["spec"].pop("backoffLimit")
    with pytest.raises(ValidationError, match="backofLimit"):
        RayJob.model_validate(wrong)


@pytest.mark.parametrize("name", sorted(pods()))
def test_every_pod_is_one_of_kubernetes(name: str) -> None:
    template = pods()[name]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": template["spec"]}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("document", documents("nightly.yaml"), ids=lambda document: document["kind"])
def test_every_document_of_the_nightly_is_one_of_kubernetes(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", sorted(pods()))
def test_no_pod_has_more_rights_than_it_needs(name: str) -> None:
    spec = pods()[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    for container in spec["containers"]:
        security = container["securityContext"]
        assert not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]


def test_decoders_and_models_have_nodes_of_their_own() -> None:
    groups = {group["groupName"]: group for group in TEMPLATE["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    for stage in ("decode", "label"):
        # The name of the label is the engine's, for Ray, and that of Terraform's node groups, for Kubernetes.
        assert groups[stage]["labels"] == {STAGE_LABEL: stage}
        assert groups[stage]["template"]["spec"]["nodeSelector"] == {STAGE_LABEL: stage}
        assert f'{STAGE_LABEL} = "{stage}"' in (ROOT / "infra/terraform/nodes/main.tf").read_text()
        (container,) = groups[stage]["template"]["spec"]["containers"]
        gpus = container["resources"]["limits"].get("nvidia.com/gpu", "0")
        assert (int(gpus) > 0) == (stage == "label")
    assert TEMPLATE["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_night_is_made_by_an_account_that_can_do_nothing_else() -> None:
    assert NIGHTLY["Role"]["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}]
    name = NIGHTLY["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["serviceAccountName"]
    assert NIGHTLY["RoleBinding"]["subjects"] == [{"kind": "ServiceAccount", "name": name}]
    accounts = {
        document["metadata"]["name"]: document
        for document in documents("nightly.yaml")
        if document["kind"] == "ServiceAccount"
    }
    # The pods of the night decode files of strangers: they hold no token of Kubernetes.
    assert accounts["serpipe-labeller"]["automountServiceAccountToken"] is False
    for pod in ("head", "decode", "label"):
        assert pods()[pod]["spec"]["serviceAccountName"] == "serpipe-labeller"


def test_nights_do_not_overlap() -> None:
    spec = NIGHTLY["CronJob"]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    (container,) = pods()["nightly"]["spec"]["containers"]
    _, script, template = container["command"]
    assert (ROOT / script).exists()
    (volume,) = pods()["nightly"]["spec"]["volumes"]
    (kustomization,) = documents("kustomization.yaml")
    (generated,) = kustomization["configMapGenerator"]
    assert generated == {"name": volume["configMap"]["name"], "files": [template.rpartition("/")[2]]}
    # A RayJob waits for its cluster, and a night that hangs ends, before the next one is due.
    assert TEMPLATE["spec"]["activeDeadlineSeconds"] < 24 * 3600


def test_the_nights_command_can_be_parsed() -> None:
    rayjob = runpy.run_path(str(ROOT / "jobs" / "nightly_rayjob.py"))["tonight"](TEMPLATE, date(2026, 11, 20))
    RayJob.model_validate(rayjob)
    assert rayjob["metadata"]["name"] == "serpipe-nightly-2026-11-20"
    python, script, *arguments = shlex.split(rayjob["spec"]["entrypoint"])
    assert python == "python"
    job = runpy.run_path(str(ROOT / script))
    context = job["nightly"].make_context(script, arguments)
    assert context.params["night"].date() == date(2026, 11, 20)
    manifest = job["dated"](context.params["manifest"], date(2026, 11, 20))
    assert manifest == "s3://BUCKET/manifests/2026-11-20.parquet"
    from serpipe.cli.label import label

    label.make_context("label", [manifest, context.params["store"], *context.params["options"]])
