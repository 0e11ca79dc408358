"""What KubeRay 1.7 takes, as far as the manifests use it; a field that is not here is a typo or wants a look first.

From the Go types of `ray.io/v1`: names, types, limits and what belongs together. Pod templates are checked against
Kubernetes' own schemas.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, StringConstraints, model_validator

Label = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=47)]
"""A DNS label of RFC 1035; KubeRay puts more behind a RayJob's name and lets it have 47 characters."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: Label
    labels: dict[str, str] = {}


class Auth(Strict):
    mode: Literal["token", "disabled"]


class Head(Strict):
    rayStartParams: dict[str, str]  # noqa: N815 - Kubernetes' name
    template: dict[str, Any]


class Workers(Strict):
    groupName: Label  # noqa: N815
    replicas: int = Field(ge=0)
    minReplicas: int = Field(ge=0)  # noqa: N815
    maxReplicas: int = Field(ge=0)  # noqa: N815
    labels: dict[str, str]
    rayStartParams: dict[str, str]  # noqa: N815
    template: dict[str, Any]

    @model_validator(mode="after")
    def _limits(self) -> Self:
        assert self.minReplicas <= self.replicas <= self.maxReplicas
        # The operator refuses both ways of giving labels at once.
        assert "labels" not in self.rayStartParams
        return self


class Cluster(Strict):
    rayVersion: str  # noqa: N815
    enableInTreeAutoscaling: bool  # noqa: N815
    authOptions: Auth  # noqa: N815
    headGroupSpec: Head  # noqa: N815
    workerGroupSpecs: list[Workers]  # noqa: N815


class Submitter(Strict):
    backoffLimit: int = Field(ge=0)  # noqa: N815


class Spec(Strict):
    entrypoint: str
    backoffLimit: int = Field(ge=0)  # noqa: N815
    preRunningDeadlineSeconds: PositiveInt  # noqa: N815
    activeDeadlineSeconds: PositiveInt  # noqa: N815
    shutdownAfterJobFinishes: bool  # noqa: N815
    ttlSecondsAfterFinished: int = Field(ge=0)  # noqa: N815
    submitterConfig: Submitter  # noqa: N815
    rayClusterSpec: Cluster  # noqa: N815

    @model_validator(mode="after")
    def _ttl(self) -> Self:
        assert self.shutdownAfterJobFinishes or not self.ttlSecondsAfterFinished
        return self


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]  # noqa: N815
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: Spec
