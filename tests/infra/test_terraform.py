"""Terraform: formatted, valid, and applied to an S3 and IAM that check every request against the policies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from serpipe.store.lease import Lease
from serpipe.store.storage import Storage
from tests.conftest import ROOT

FOLDER = ROOT / "infra" / "terraform"
PLUGINS = [
    os.environ.get("SERPIPE_TERRAFORM_PLUGINS", ""),
    "/usr/local/share/terraform/plugins",
    "/opt/tf-plugins",
]
"""Where the AWS provider may lie; elsewhere Terraform fetches it."""

pytestmark = [
    pytest.mark.skipif(not shutil.which("terraform"), reason="no terraform on the path"),
    # The provider asks ten times, five seconds apart, whether a lifecycle rule has settled.
    pytest.mark.timeout(600),
]


def terraform(folder: Path, *arguments: str, **environment: str) -> str:
    """Run Terraform in a folder; what it prints."""
    (folder / ".terraformrc").touch()
    quiet = {"CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1", "TF_CLI_CONFIG_FILE": str(folder / ".terraformrc")}
    done = subprocess.run(
        ["terraform", *arguments],
        cwd=folder,
        env=os.environ | quiet | environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ready(name: str, folder: Path) -> Path:
    """A copy of a configuration with its provider at hand."""
    copy = folder / name
    shutil.copytree(FOLDER / name, copy, ignore=shutil.ignore_patterns(".terraform*"))
    plugins = next((place for place in PLUGINS if place and Path(place).is_dir()), None)
    try:
        terraform(copy, "init", "-backend=false", "-input=false", *([f"-plugin-dir={plugins}"] if plugins else []))
    except AssertionError as error:
        pytest.skip(f"Terraform cannot have the AWS provider; set SERPIPE_TERRAFORM_PLUGINS: {str(error)[-300:]}")
    return copy


def test_it_is_formatted(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "terraform")
    assert terraform(tmp_path, "fmt", "-check", "-recursive", "-diff", "terraform") == ""


@pytest.mark.slow
def test_the_nodes_are_valid(tmp_path: Path) -> None:
    told = json.loads(terraform(ready("nodes", tmp_path), "validate", "-json"))
    assert (told["valid"], told["diagnostics"]) == (True, [])


PROVIDER = """
provider "aws" {{
  region                      = "us-east-1"
  access_key                  = "test"
  secret_key                  = "test"
  s3_use_path_style           = true
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
  endpoints {{
    iam = "{url}"
    s3  = "{url}"
    sts = "{url}"
  }}
}}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset", method="POST")).close()
    yield url
    server.stop()


@pytest.fixture(scope="module")
def applied(server: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The outputs of a store that was applied, its archive beside it."""
    owner(server, "s3").create_bucket(Bucket="archive")
    owner(server, "s3").put_object(Bucket="archive", Key="a.wav", Body=b"RIFF")
    folder = ready("store", tmp_path_factory.mktemp("terraform"))
    (folder / "provider.tf").write_text(PROVIDER.format(url=server))
    variables = {
        "bucket": "labels-of-ours",
        "archive_bucket_arns": ["arn:aws:s3:::archive"],
        "reader_principal_arns": ["arn:aws:iam::123456789012:root"],
    }
    (folder / "terraform.tfvars.json").write_text(json.dumps(variables))
    terraform(folder, "apply", "-auto-approve", "-input=false")
    # What is there is what was asked for: nothing is left to change.
    terraform(folder, "plan", "-detailed-exitcode", "-input=false")
    outputs = json.loads((folder / "terraform.tfstate").read_text())["outputs"]
    return {name: output["value"] for name, output in outputs.items()}


def owner(server: str, service: str, **keys: str) -> Any:
    keys = keys or {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return boto3.client(service, endpoint_url=server, region_name="us-east-1", **keys)


@pytest.fixture
def checked(server: str) -> Iterator[None]:
    """Every request but those to the server itself is checked against the caller's policies."""

    def free(count: str) -> None:
        plain = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{server}/moto-api/reset-auth", count.encode(), plain)
        urllib.request.urlopen(request).close()

    free("0")
    yield
    free("inf")


@pytest.fixture
def keys(server: str, applied: dict[str, str]) -> dict[str, dict[str, str]]:
    """Keys of the labelling and of the reading role."""
    # moto takes a Deny whose condition does not hold for one that does.
    owner(server, "s3").delete_bucket_policy(Bucket="labels-of-ours")
    found = {}
    for role in ("labeller", "reader"):
        arn = applied[f"{role}_role_arn"]
        given = owner(server, "sts").assume_role(RoleArn=arn, RoleSessionName="test")["Credentials"]
        found[role] = {
            "aws_access_key_id": given["AccessKeyId"],
            "aws_secret_access_key": given["SecretAccessKey"],
            "aws_session_token": given["SessionToken"],
        }
    return found


@pytest.mark.slow
def test_the_bucket_is_private_and_keeps_what_was_deleted(server: str, applied: dict[str, str]) -> None:
    assert applied["store"] == "s3://labels-of-ours"
    s3 = owner(server, "s3")
    blocks = s3.get_public_access_block(Bucket="labels-of-ours")["PublicAccessBlockConfiguration"]
    assert all(blocks.values())
    assert len(blocks) == 4
    assert s3.get_bucket_versioning(Bucket="labels-of-ours")["Status"] == "Enabled"
    rules = s3.get_bucket_lifecycle_configuration(Bucket="labels-of-ours")["Rules"]
    assert {rule["ID"] for rule in rules} == {"deleted", "uploads"}
    (statement,) = json.loads(s3.get_bucket_policy(Bucket="labels-of-ours")["Policy"])["Statement"]
    assert (statement["Effect"], statement["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}})


@pytest.mark.slow
def test_no_role_may_do_more_than_is_listed_here(server: str, applied: dict[str, str]) -> None:
    iam = owner(server, "iam")
    labels, archive = "arn:aws:s3:::labels-of-ours", "arn:aws:s3:::archive"
    wanted = {
        "labeller": {
            ("s3:GetObject", f"{labels}/*"),
            ("s3:PutObject", f"{labels}/*"),
            ("s3:DeleteObject", f"{labels}/*"),
            ("s3:AbortMultipartUpload", f"{labels}/*"),
            ("s3:ListBucket", labels),
            ("s3:ListBucket", archive),
            ("s3:GetObject", f"{archive}/*"),
        },
        "reader": {("s3:GetObject", f"{labels}/*"), ("s3:ListBucket", labels)},
    }
    for role, rights in wanted.items():
        name = f"labels-of-ours-{role}"
        assert iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"] == []
        (policy,) = iam.list_role_policies(RoleName=name)["PolicyNames"]
        statements = iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]["Statement"]
        assert {statement["Effect"] for statement in statements} == {"Allow"}
        assert {
            (action, resource)
            for statement in statements
            for action in listed(statement["Action"])
            for resource in listed(statement["Resource"])
        } == rights


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@pytest.mark.slow
def test_the_labelling_role_can_do_all_that_a_store_needs(
    server: str, keys: dict[str, dict[str, str]], checked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    for name, value in keys["labeller"].items():
        monkeypatch.setenv(name.upper(), value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    storage = Storage("s3://labels-of-ours/store")
    with Lease(storage, "a-run"):
        storage.put("predictions/R1-x.parquet", b"x")
        # More than one part, as a large table is.
        storage.put("embeddings/R1-x.parquet", b"x" * (60 << 20))
        assert storage.create("ledger/R1.parquet", b"x")
        assert storage.get("predictions/R1-x.parquet") == b"x"
        assert storage.exists("predictions/R1-x.parquet")
        assert not storage.exists("predictions/R2-x.parquet")
        assert storage.list("predictions/") == ["predictions/R1-x.parquet"]
        storage.delete("predictions/R1-x.parquet")
        assert storage.list("predictions/") == []
    with fsspec.filesystem("s3").open("s3://archive/a.wav") as file:
        assert file.read() == b"RIFF"
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.slow
def test_what_is_not_theirs_is_refused(server: str, keys: dict[str, dict[str, str]], checked: None) -> None:
    labeller, reader = (owner(server, "s3", **keys[role]) for role in ("labeller", "reader"))
    refused = {
        "labeller writes to the archive": lambda: labeller.put_object(Bucket="archive", Key="b.wav", Body=b""),
        "labeller deletes from the archive": lambda: labeller.delete_object(Bucket="archive", Key="a.wav"),
        "labeller lists all buckets": lambda: labeller.list_buckets(),
        "labeller deletes the bucket": lambda: labeller.delete_bucket(Bucket="labels-of-ours"),
        "labeller opens the bucket to others": lambda: labeller.delete_bucket_policy(Bucket="labels-of-ours"),
        "reader writes": lambda: reader.put_object(Bucket="labels-of-ours", Key="x", Body=b""),
        "reader deletes": lambda: reader.delete_object(Bucket="labels-of-ours", Key="x"),
        "reader reads the archive": lambda: reader.get_object(Bucket="archive", Key="a.wav"),
    }
    for what, ask in refused.items():
        with pytest.raises(ClientError, match="AccessDenied"):
            print(what, ask())
    assert reader.list_objects_v2(Bucket="labels-of-ours")["ResponseMetadata"]["HTTPStatusCode"] == 200
